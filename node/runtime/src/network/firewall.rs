//! The rules between containers and the rest of the world: one nftables table, owned by this
//! engine, written once. Nothing is added to it when a container starts: which rules apply is
//! decided by the range its address comes from.
//!
//! - To the node itself: only the node's own ports at the gateway address (and DNS, where the
//!   machine's resolver is the machine itself). Not its other services, under whatever address.
//! - To other containers, of this or another engine: nothing.
//! - To the world: masqueraded, for addresses of the open range; nothing for those of the closed
//!   one. Blocked networks (cloud metadata, peers) answer like the closed range.
//! - From the world to containers: only answers.
//! - IPv6: nothing; containers have none.

use std::{
    io::{self, Write},
    net::Ipv4Addr,
    process::{Command, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::subnet::Subnet;
use crate::{Error, Result, identity::Tag, process::wait_blocking};

/// How long nft may take. It needs some milliseconds.
const NFT_DEADLINE: Duration = Duration::from_secs(20);

/// What the rules say. Rendered by [`Rules::render`], which is pure.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) tag: Tag,
    pub(crate) subnet: Subnet,
    pub(crate) gateway: Ipv4Addr,
    /// TCP ports of the node that containers may reach.
    pub(crate) node_ports: Vec<u16>,
    /// Resolvers that are addresses of this machine.
    pub(crate) local_resolvers: Vec<Ipv4Addr>,
    /// Networks that no container may reach, such as "169.254.0.0/16".
    pub(crate) blocked: Vec<String>,
}

impl Rules {
    /// Writes the table as one script for nft, which applies it whole or not at all.
    ///
    /// `check_source` adds the rule against forged source addresses, for which some kernels lack
    /// the module.
    fn render(&self, check_source: bool) -> String {
        let table = self.tag.firewall_table();
        let slots = format!("\"{}*\"", self.tag.link_prefix());
        let genuine = if check_source { "fib saddr . iif oif missing drop" } else { "" };
        let ports = set(&self.node_ports);
        let to_node = when(&ports, |p| format!("ip daddr {} tcp dport {p} accept", self.gateway));
        let resolvers = set(&self.local_resolvers);
        let dns = when(&resolvers, |r| format!("ip daddr {r} meta l4proto {{ tcp, udp }} th dport 53 accept"));
        let blocked = set(&self.blocked);
        let elements = when(&blocked, |b| format!("elements = {b}"));
        format!(
            "table inet {table} {{}}
delete table inet {table}
table inet {table} {{
  set blocked {{
    type ipv4_addr; flags interval; auto-merge
    {elements}
  }}
  chain to_node {{
    type filter hook input priority filter; policy accept;
    iifname != {slots} accept
    meta nfproto != ipv4 drop
    {genuine}
    ct state established,related accept
    {to_node}
    {dns}
    ip daddr {gateway} icmp type echo-request accept
    reject with icmpx admin-prohibited
  }}
  chain onward {{
    type filter hook forward priority filter; policy accept;
    iifname != {slots} oifname != {slots} accept
    meta nfproto != ipv4 drop
    {genuine}
    ct state established,related accept
    oifname {slots} reject with icmpx admin-prohibited
    ip saddr != {open} reject with icmpx admin-prohibited
    ip daddr @blocked reject with icmpx admin-prohibited
    accept
  }}
  chain disguise {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {open} oifname != {slots} masquerade
  }}
}}
",
            gateway = self.gateway,
            open = self.subnet.open_range(),
        )
    }

    /// Puts the table in place, replacing a former one. Blocks.
    pub(crate) fn apply(&self) -> Result<()> {
        let Err(first) = nft(self.tag, "write", &self.render(true)) else { return Ok(()) };
        tracing::warn!(error = %first, "trying without the check of source addresses");
        nft(self.tag, "write", &self.render(false)).map_err(|_| first)
    }
}

/// Replaces the blocked networks. Blocks.
pub(crate) fn set_blocked(tag: Tag, networks: &[String]) -> Result<()> {
    let table = tag.firewall_table();
    let elements = when(&set(networks), |b| format!("add element inet {table} blocked {b}\n"));
    nft(tag, "change", &format!("flush set inet {table} blocked\n{elements}"))
}

/// Removes the table, if it is there. Blocks.
pub(crate) fn remove(tag: Tag) -> Result<()> {
    let table = tag.firewall_table();
    nft(tag, "remove", &format!("table inet {table} {{}}\ndelete table inet {table}\n"))
}

/// "{ a, b }", or nothing where there is nothing: an empty set is a syntax error.
fn set<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let items: Vec<_> = items.iter().map(T::to_string).collect();
    format!("{{ {} }}", items.join(", "))
}

fn when(text: &str, render: impl FnOnce(&str) -> String) -> String {
    if text.is_empty() { String::new() } else { render(text) }
}

fn nft(tag: Tag, action: &'static str, script: &str) -> Result<()> {
    let failed = |message: String| Error::Firewall { action, table: tag.firewall_table(), message };
    match run(script) {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(failed("the program nft is missing: install nftables".into())),
        Err(e) => Err(failed(e.to_string())),
    }
}

/// Runs nft on a script. One that hangs is killed.
fn run(script: &str) -> io::Result<Output> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .env_clear()
        .env("PATH", crate::spec::DEFAULT_PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // The script is smaller than a pipe, so this waits for nobody.
        stdin.write_all(script.as_bytes())?;
    }
    let pid = Pid::from_child(&child);
    let ended = wait_blocking(pidfd_open(pid, PidfdFlags::empty())?, NFT_DEADLINE)?;
    if !ended {
        child.kill()?;
        child.wait()?;
        let what = format!("nft did not end within {NFT_DEADLINE:?}");
        return Err(io::Error::new(io::ErrorKind::TimedOut, what));
    }
    child.wait_with_output()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn rules() -> Rules {
        Rules {
            tag: Tag::of(Path::new("/x")),
            subnet: Subnet::new(Ipv4Addr::new(10, 99, 0, 0)),
            gateway: Ipv4Addr::new(10, 99, 0, 1),
            node_ports: vec![7470, 7480],
            local_resolvers: Vec::new(),
            blocked: vec!["169.254.0.0/16".into()],
        }
    }

    #[test]
    fn only_the_nodes_ports_at_the_gateway_are_open() {
        let text = rules().render(true);
        assert!(text.contains("ip daddr 10.99.0.1 tcp dport { 7470, 7480 } accept"));
        assert!(!text.contains("dport 53"), "no local resolver, no DNS to the node");
        assert!(text.contains("ip saddr != 10.99.0.0/17 reject"));
    }

    #[test]
    fn empty_lists_leave_no_empty_sets() {
        let rules = Rules { node_ports: vec![], blocked: vec![], ..rules() };
        let text = rules.render(false);
        assert!(!text.contains("{  }") && !text.contains("elements") && !text.contains("tcp dport"));
        assert!(!text.contains("fib"));
    }

    #[test]
    fn a_resolver_on_the_machine_itself_is_let_through() {
        let rules = Rules { local_resolvers: vec![Ipv4Addr::new(192, 0, 2, 9)], ..rules() };
        assert!(rules.render(true).contains("ip daddr { 192.0.2.9 } meta l4proto { tcp, udp } th dport 53"));
    }
}
