//! `shoal node`: the machines of the cluster.

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::Common;
use super::admin::{ask, escaped};
use super::lists::{ago, print_json, print_table};
use crate::admin::{NodeLine, NodeWish, StatusReport};

/// `shoal node …`
#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// List nodes with what they have and what is free.
    #[command(visible_alias = "ls", after_help = "Examples:\n  shoal node list\n  shoal node list --json")]
    List(Common),
    /// Show all that is known of one node.
    #[command(after_help = "Examples:\n  shoal node show gpu-1\n  shoal node show no-… --json")]
    Show(OneNode),
    /// Give a node no new tasks.
    #[command(after_help = "Examples:\n  shoal node drain gpu-1\n  shoal node drain no-…")]
    Drain(OneNode),
    /// Give a node tasks again.
    #[command(after_help = "Examples:\n  shoal node undrain gpu-1")]
    Undrain(OneNode),
    /// Set labels of a node; an empty value takes one away.
    #[command(after_help = "Examples:\n  shoal node label gpu-1 zone=a rack=7\n  shoal node label gpu-1 rack=")]
    Label {
        #[command(flatten)]
        node: OneNode,
        /// What to set, as KEY=VALUE.
        #[arg(required = true, value_parser = label)]
        labels: Vec<(String, String)>,
    },
    /// Make a node vote whenever it is there, instead of another one.
    #[command(after_help = "Examples:\n  shoal node promote gpu-1")]
    Promote(OneNode),
    /// Take a node's vote: it only follows.
    #[command(after_help = "Examples:\n  shoal node demote gpu-1")]
    Demote(OneNode),
    /// Leave it to the cluster again whether a node votes.
    #[command(after_help = "Examples:\n  shoal node unpin gpu-1")]
    Unpin(OneNode),
    /// Take a node out of the cluster for good, with the tasks that it runs, up or down. Drain it before.
    #[command(visible_alias = "rm", after_help = "Examples:\n  shoal node remove gpu-1\n  shoal node rm no-…")]
    Remove(OneNode),
}

/// A node, and how to ask for it.
#[derive(Debug, Args)]
pub(super) struct OneNode {
    /// The node's id or name.
    node: String,
    #[command(flatten)]
    common: Common,
}

/// Reads a label, as `zone=a`.
fn label(text: &str) -> Result<(String, String), String> {
    let wrong = || format!("{text:?} is no label: write KEY=VALUE, as zone=a");
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(wrong)?;
    Ok((key.to_owned(), value.to_owned()))
}

impl NodeCommand {
    /// Runs the command.
    pub(super) fn run(self) -> anyhow::Result<i32> {
        let common = match self {
            Self::List(common) => common,
            Self::Show(one) => return one.show(),
            Self::Drain(one) => return one.ask(&NodeWish::Drain),
            Self::Undrain(one) => return one.ask(&NodeWish::Undrain),
            Self::Label { node, labels } => return node.ask(&NodeWish::Label(labels.into_iter().collect())),
            Self::Promote(one) => return one.ask(&NodeWish::Promote),
            Self::Demote(one) => return one.ask(&NodeWish::Demote),
            Self::Unpin(one) => return one.ask(&NodeWish::Unpin),
            Self::Remove(one) => return one.ask(&NodeWish::Remove),
        };
        let nodes: Vec<NodeLine> = ask(&common, "GET", "/nodes", &())?;
        if common.json {
            print_json(&nodes)?;
            return Ok(0);
        }
        let row = |node: NodeLine| {
            let cpu = format!("{}m of {}m", node.cpu_milli_free, node.cpu_milli);
            let memory = format!("{} of {} MiB", node.memory_bytes_free >> 20, node.memory_bytes >> 20);
            let state = if node.connected { node.state } else { format!("{}, not reached", node.state) };
            let lag = node.behind.filter(|behind| *behind > 0).map(|behind| format!(", {behind} behind")).unwrap_or_default();
            let role = node.role + &lag + if node.decided.is_some() { " (pinned)" } else { "" };
            [node.node_id, node.name, node.address, state, role, node.tasks.to_string(), cpu, memory, ago(node.started_ms)]
        };
        print_table(
            ["NODE", "NAME", "ADDRESS", "STATE", "ROLE", "TASKS", "CPU FREE", "MEMORY FREE", "STARTED"],
            nodes.into_iter().map(row),
        );
        // Silence would look as if all were well.
        let report: StatusReport = ask(&common, "GET", "/status", &())?;
        report.consensus.trouble.iter().for_each(|trouble| eprintln!("note: {trouble}"));
        Ok(0)
    }
}

impl OneNode {
    fn ask(self, wish: &NodeWish) -> anyhow::Result<i32> {
        let done: String = ask(&self.common, "POST", &format!("/nodes/{}", escaped(&self.node)), wish)?;
        if self.common.json {
            print_json(&done)?;
        } else {
            println!("{done}");
        }
        Ok(0)
    }

    fn show(self) -> anyhow::Result<i32> {
        let nodes: Vec<NodeLine> = ask(&self.common, "GET", "/nodes", &())?;
        let node = chosen(nodes, &self.node)?;
        if self.common.json {
            print_json(&node)?;
            return Ok(0);
        }
        let labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let labels = if labels.is_empty() { "none".to_owned() } else { labels.join(" ") };
        println!("{} ({})", node.name, node.node_id);
        println!("  state      {}{}", node.state, if node.connected { "" } else { "; this node does not reach it" });
        let decided = node.decided.map(|decided| format!(" (an operator has decided that it {decided})")).unwrap_or_default();
        let told_by = node.told_by.map(|voter| format!(", told by {voter} what is decided")).unwrap_or_default();
        let behind = node.behind.map(|behind| format!(", {behind} entries behind")).unwrap_or_default();
        println!("  consensus  {}{told_by}{behind}{decided}", node.role);
        println!("  clients    {}\n  peers      {}/udp", node.address, node.peers);
        println!("  labels     {labels}");
        println!("  CPU        {}m free of {}m", node.cpu_milli_free, node.cpu_milli);
        println!("  memory     {} MiB free of {}", node.memory_bytes_free >> 20, node.memory_bytes >> 20);
        println!("  GPUs       {}\n  tasks      {}", node.gpus, node.tasks);
        println!("  release    {}, started {}", node.release, ago(node.started_ms));
        Ok(0)
    }
}

/// Returns the node with this id, or the only one with this name.
fn chosen(mut nodes: Vec<NodeLine>, wanted: &str) -> anyhow::Result<NodeLine> {
    nodes.retain(|node| node.node_id == wanted || node.name == wanted);
    if nodes.len() > 1 {
        bail!("{} nodes are called {wanted:?}: name one by its id, from `shoal node list`", nodes.len());
    }
    nodes.pop().with_context(|| format!("no node has the id or name {wanted:?}; `shoal node list` shows them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_nodes_with_one_name_none_is_shown_for_the_other() {
        let node = |id: &str, name: &str| -> NodeLine {
            let line = serde_json::json!({
                "node_id": id, "name": name, "address": "", "state": "", "role": "", "connected": true, "peers": "", "labels": {},
                "release": "", "tasks": 0, "cpu_milli": 0, "cpu_milli_free": 0, "memory_bytes": 0, "memory_bytes_free": 0, "gpus": 0,
                "started_ms": 0,
            });
            serde_json::from_value(line).unwrap()
        };
        let shown = |wanted: &str| chosen(vec![node("no-1", "a"), node("no-2", "b"), node("no-3", "b")], wanted).map(|node| node.node_id);
        assert_eq!(shown("a").unwrap(), "no-1");
        assert_eq!(shown("no-3").unwrap(), "no-3");
        assert!(shown("b").unwrap_err().to_string().contains("2 nodes are called \"b\""));
        assert!(shown("c").unwrap_err().to_string().contains("no node has the id or name"));
    }
}
