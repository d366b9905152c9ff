//! Nodes: how `shoal node list` shows them, and what operators do with them.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path as UrlPath, State as Shared};
use serde::{Deserialize, Serialize};
use shoal_members::removal::{judge, name};
use shoal_state::model::{Member, Node, Voting};
use shoal_state::{Command, NodeId, State};

use super::undecided::latest_or_known;
use super::{Answer, check_label};
use crate::api::{self, Api};
use crate::audit::{Event, What};
use crate::standing::{self, Standing};

/// A line of `shoal node list`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodeLine {
    /// The node's id.
    pub(crate) node_id: String,
    /// What people call it.
    pub(crate) name: String,
    /// Where it is reached.
    pub(crate) address: String,
    /// `accepts tasks`, or `drains`.
    pub(crate) state: String,
    /// What it is to consensus: `leader`, `voter` or `follower`.
    pub(crate) role: String,
    /// By which voter it is told what is decided, where it follows and has found one.
    #[serde(default)]
    pub(crate) told_by: Option<String>,
    /// How many entries it has applied less than whoever has applied most; none when it did not answer.
    #[serde(default)]
    pub(crate) behind: Option<u64>,
    /// Whether it answers the node that is asked.
    pub(crate) connected: bool,
    /// What an operator has decided of its vote: `votes`, `does not vote`, or nothing.
    #[serde(default)]
    pub(crate) decided: Option<String>,
    /// Where its peers reach it, `host:port` (UDP).
    pub(crate) peers: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// The release that it runs.
    pub(crate) release: String,
    /// Its tasks.
    pub(crate) tasks: usize,
    /// CPU that containers may use, in thousandths of a core.
    pub(crate) cpu_milli: u32,
    /// CPU that no task holds, in thousandths of a core.
    pub(crate) cpu_milli_free: u32,
    /// Memory that containers may use, in bytes.
    pub(crate) memory_bytes: u64,
    /// Memory that no task holds, in bytes.
    pub(crate) memory_bytes_free: u64,
    /// Its GPUs.
    pub(crate) gpus: u32,
    /// When its process started, in milliseconds since 1970.
    pub(crate) started_ms: u64,
}

pub(super) async fn nodes(Shared(api): Shared<Api>) -> Answer<Vec<NodeLine>> {
    // Whoever looks while nothing can be decided is shown what this node knows.
    let (state, standings) = tokio::join!(latest_or_known(&api), standing::of_all(&api));
    let raft = api.cluster.raft().status();
    let up: BTreeMap<NodeId, Standing> = standings.into_iter().filter_map(|(node, said)| Some((node, said.ok()?))).collect();
    let newest = up.values().map(|said| said.applied).max().unwrap_or(raft.applied);
    let role = |id: NodeId| match raft.leader {
        Some(leader) if leader == id => "leader",
        _ if raft.voters.iter().any(|peer| peer.node == id) => "voter",
        _ => "follower",
    };
    let line = |(id, node): (&NodeId, &Node)| {
        let (cpu_milli_free, memory_bytes_free) = state.free(*id);
        let member = state.members.get(id);
        let of = |of: fn(&Member) -> &String| member.map(of).cloned().unwrap_or_default();
        NodeLine {
            node_id: id.to_string(),
            name: node.name.clone(),
            address: node.address.clone(),
            state: if node.draining { "drains" } else { "accepts tasks" }.to_owned(),
            role: role(*id).to_owned(),
            told_by: up.get(id).and_then(|said| said.told_by).map(|voter| name(&state, voter)),
            behind: up.get(id).map(|said| newest.saturating_sub(said.applied)),
            connected: up.contains_key(id),
            decided: state.voting.get(id).map(|voting| decided(*voting).to_owned()),
            peers: of(|member| &member.address),
            labels: node.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            release: of(|member| &member.release),
            tasks: state.tasks.values().filter(|task| task.node == *id).count(),
            cpu_milli: node.capacity.cpu_milli,
            cpu_milli_free,
            memory_bytes: node.capacity.memory_bytes,
            memory_bytes_free,
            gpus: node.capacity.gpus,
            started_ms: node.started.0,
        }
    };
    Ok(Json(state.nodes.iter().map(line).collect()))
}

fn decided(voting: Voting) -> &'static str {
    match voting {
        Voting::Must => "votes",
        Voting::MustNot => "does not vote",
    }
}

/// Finds a node by its id, or by the name that it alone has.
pub(super) fn find(state: &State, which: &str) -> Result<NodeId, api::Error> {
    if let Ok(id) = which.parse::<NodeId>()
        && (state.nodes.contains_key(&id) || state.members.contains_key(&id))
    {
        return Ok(id);
    }
    let named: Vec<NodeId> = state.nodes.iter().filter(|(_, node)| node.name == which).map(|(id, _)| *id).collect();
    match named[..] {
        [id] => Ok(id),
        [] => Err(api::Error::NotFound(format!("no node has the id or name {which:?}; `shoal node list` shows them"))),
        _ => {
            Err(api::Error::Precondition(format!("{} nodes are called {which:?}: name one by its id, from `shoal node list`", named.len())))
        }
    }
}

/// What an operator asks to be done with a node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NodeWish {
    /// It gets no new tasks.
    Drain,
    /// It gets tasks again.
    Undrain,
    /// Labels to set; an empty value takes one away.
    Label(BTreeMap<String, String>),
    /// It votes whenever it is there.
    Promote,
    /// It does not vote.
    Demote,
    /// The cluster says whether it votes.
    Unpin,
    /// It belongs to the cluster no more, for good.
    Remove,
}

pub(super) async fn node_do(Shared(api): Shared<Api>, UrlPath(which): UrlPath<String>, Json(wish): Json<NodeWish>) -> Answer<String> {
    let state = api.read_latest().await?;
    let id = find(&state, &which)?;
    let plain = |command, what: &str| (command, what.to_owned());
    let (command, what) = match wish {
        NodeWish::Drain => plain(Command::DrainNode { id, draining: true }, "drains: it gets no new tasks"),
        NodeWish::Undrain => plain(Command::DrainNode { id, draining: false }, "gets tasks again"),
        NodeWish::Label(changes) => {
            let mut labels = state.nodes.get(&id).map(|node| node.labels.clone()).unwrap_or_default();
            for (key, value) in changes {
                check_label("key of a label", &key)?;
                // One that an older release took can still be taken away.
                if !value.is_empty() {
                    check_key(&key)?;
                }
                check_label("value of a label", &value)?;
                match value.is_empty() {
                    true => drop(labels.remove(&key)),
                    false => drop(labels.insert(key, value)),
                }
            }
            let what = if labels.is_empty() { "has no labels now".to_owned() } else { format!("has the labels {} now", said(&labels)) };
            (Command::LabelNode { id, labels }, what)
        }
        NodeWish::Promote => {
            answers(&api, id).await?;
            plain(Command::SetVoting { id, voting: Some(Voting::Must) }, "votes from now on, whenever it is there")
        }
        NodeWish::Demote => plain(Command::SetVoting { id, voting: Some(Voting::MustNot) }, "votes no more; it follows"),
        NodeWish::Unpin => plain(Command::SetVoting { id, voting: None }, "votes or follows as the cluster needs it"),
        NodeWish::Remove => return remove(&api, &state, id).await,
    };
    api.propose(command).await?;
    let why = format!("node {} ({id}) {what}", name(&state, id));
    note(&api, &why);
    Ok(Json(why))
}

/// Refuses a key that could not be told apart where labels are listed, as `KEY=VALUE KEY=VALUE`.
fn check_key(key: &str) -> Result<(), api::Error> {
    if key.chars().all(|char| char.is_alphanumeric() || "._-/".contains(char)) && !key.is_empty() {
        return Ok(());
    }
    Err(api::Error::Invalid(format!("{key:?} cannot be the key of a label: letters, digits and . _ - / are what it may have")))
}

fn said<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

fn note(api: &Api, why: &str) {
    let (who, why) = ("operator".to_owned(), why.to_owned());
    api.audit.note(Event { what: What::NodeChanged, who, method: "", from: String::new(), why });
}

/// Refuses to give a vote to a node that is away: the cluster would wait for it.
async fn answers(api: &Api, id: NodeId) -> Result<(), api::Error> {
    match standing::of_all(api).await.into_iter().find(|(node, _)| *node == id) {
        Some((_, Err(why))) => Err(api::Error::Precondition(format!("node {id} cannot be made to vote while it does not answer: {why}"))),
        _ => Ok(()),
    }
}

async fn remove(api: &Api, state: &State, id: NodeId) -> Answer<String> {
    let raft = api.cluster.raft().status();
    let lets_in = standing::of_all(api).await.into_iter().filter_map(|(node, said)| Some((node, said.ok()?.lets_in))).collect();
    let cost = judge(state, &raft, &lets_in, id).map_err(api::Error::Precondition)?;
    crate::homes::vacate(api, id).await?;
    let why = "removed by an operator".to_owned();
    api.propose(Command::RemoveNode { id, at: api.now(), why }).await?;
    let why = format!("node {} ({id}) was removed; should it come back, it must be wiped and joined anew. {cost}", name(state, id));
    note(api, &why);
    Ok(Json(why))
}
