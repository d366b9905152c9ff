//! The resolv.conf and hosts of containers. Pure, but for [`Resolver::of_machine`].

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use super::link::Link;

/// Where systemd's resolver writes the servers it forwards to.
const SYSTEMD_UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

/// What containers are told about names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolver {
    /// The text of their /etc/resolv.conf.
    pub(crate) text: String,
    /// The servers in it.
    pub(crate) servers: Vec<Ipv4Addr>,
}

impl Resolver {
    /// Takes the machine's resolvers; `None` where containers could use none of them.
    pub(crate) fn of_machine() -> Option<Self> {
        ["/etc/resolv.conf", SYSTEMD_UPSTREAM].iter().map(Path::new).find_map(|path| {
            let found = Self::usable(&fs::read_to_string(path).ok()?);
            (!found.servers.is_empty()).then_some(found)
        })
    }

    /// Names these servers.
    pub(crate) fn of_servers(servers: &[Ipv4Addr]) -> Self {
        let text = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        Self { text, servers: servers.to_vec() }
    }

    /// Keeps what containers can use of a resolv.conf: no loopback servers (theirs is another
    /// loopback) and no IPv6 ones. Search domains and options stay.
    pub(crate) fn usable(text: &str) -> Self {
        let mut kept = Self { text: String::new(), servers: Vec::new() };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("nameserver"), server) => match server.and_then(|s| s.parse().ok()) {
                    Some(IpAddr::V4(server)) if !server.is_loopback() => kept.servers.push(server),
                    _ => continue,
                },
                (Some("search" | "domain" | "options"), _) => {}
                _ => continue,
            }
            kept.text.push_str(line.trim());
            kept.text.push('\n');
        }
        kept
    }
}

/// The text of /etc/hosts.
pub(crate) fn hosts(hostname: &str, address: Option<Ipv4Addr>, link: Option<&Link>) -> String {
    let own = address.unwrap_or(Ipv4Addr::LOCALHOST);
    let link = link.map(Link::hosts_line).unwrap_or_default();
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{hostname}\n{link}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_resolver_is_of_no_use_to_a_container() {
        let found = Resolver::usable("# made by systemd\nnameserver 127.0.0.53\noptions edns0\nsearch a.b\n");
        assert!(found.servers.is_empty());
        assert_eq!(found.text, "options edns0\nsearch a.b\n");
    }

    #[test]
    fn servers_keep_their_order_and_ipv6_ones_are_left_out() {
        let found = Resolver::usable("nameserver fd00::1\nnameserver 10.0.0.2\n nameserver 10.0.0.1\n");
        assert_eq!(found.servers, [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 1)]);
        assert_eq!(found.text, "nameserver 10.0.0.2\nnameserver 10.0.0.1\n");
    }
}
