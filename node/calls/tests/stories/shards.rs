//! Stories about the rules of one shard on several nodes.

use std::collections::BTreeMap;

use shoal_calls::shards::{Counted, Mark, Replica};
use shoal_state::model::{Shard, ShardChange};
use shoal_state::{NodeId, ShardId};
use shoal_stories::{Line, World};

/// Nodes `n1`, `n2`, … with one shard, and what the home sent.
#[derive(Default)]
struct Nodes {
    nodes: BTreeMap<u128, Replica>,
    /// What each node's log holds.
    logs: BTreeMap<u128, Vec<Mark>>,
}

fn shard() -> ShardId {
    ShardId::new(7).unwrap()
}

fn node(word: &str) -> NodeId {
    NodeId::from_random(number(word))
}

fn number(word: &str) -> u128 {
    word.strip_prefix('n').and_then(|number| number.parse().ok()).expect("a node such as n1")
}

fn nodes(list: Option<&str>) -> Vec<NodeId> {
    list.into_iter().flat_map(|list| list.split(',')).map(node).collect()
}

fn change(line: &Line<'_>, at: usize) -> ShardChange {
    let node = node(line.plain[at + 1]);
    match line.plain[at] {
        "join" => ShardChange::Join(node),
        "drop" => ShardChange::Drop(node),
        "promote" => ShardChange::Promote(node),
        other => panic!("{other} is no change"),
    }
}

fn marks(marks: &[Mark]) -> String {
    let marks: Vec<String> = marks.iter().map(|mark| format!("{}@{}", mark.index, mark.epoch)).collect();
    marks.join(" ")
}

impl Nodes {
    fn replica(&mut self, word: &str) -> &mut Replica {
        self.nodes.entry(number(word)).or_insert_with(|| Replica::new(shard(), node(word), Mark::default(), vec![], false))
    }

    fn ask(&mut self, word: &str, change: ShardChange) -> Result<(), shoal_calls::shards::replica::Refused> {
        let replica = self.replica(word);
        replica.ask(replica.config().epoch, change)
    }

    fn propose(&mut self, word: &str) -> String {
        match self.replica(word).propose() {
            Ok(mark) => {
                self.logs.entry(number(word)).or_default().push(mark);
                let far = Counted { written: mark.index, synced: 0 };
                let counted = self.replica(word).acked(node(word), mark.epoch, far).unwrap();
                format!("{word} writes {}, counted {}", marks(&[mark]), counted.written)
            }
            Err(refused) => format!("refused: {refused}"),
        }
    }

    /// The home's records from `from` on reach another node.
    fn send(&mut self, line: &Line<'_>) -> String {
        let (home, to) = (line.plain[0], line.plain[1]);
        let log = self.logs.get(&number(home)).cloned().unwrap_or_default();
        let common = self.replica(to).tail();
        let from = line.number("from", self.replica(home).common_with(common) + 1);
        let epoch = line.number("epoch", self.replica(home).config().epoch);
        let after = log.iter().rev().find(|mark| mark.index < from).copied().unwrap_or_default();
        let records: Vec<Mark> = log.iter().filter(|mark| mark.index >= from).copied().collect();
        match self.replica(to).receive(epoch, after, &records) {
            Ok(received) => {
                let log = self.logs.entry(number(to)).or_default();
                if let Some(last) = received.cut {
                    log.retain(|mark| mark.index <= last);
                }
                log.extend(&records[received.take..]);
                let cut = received.cut.map_or(String::new(), |last| format!(" cuts back to {last} and"));
                format!("{to}{cut} has {}", marks(&self.logs[&number(to)]))
            }
            Err(refused) => format!("refused: {refused}"),
        }
    }
}

impl World for Nodes {
    fn run(&mut self, line: &Line<'_>) -> Vec<String> {
        let plain = &line.plain;
        let told = match line.verb {
            "config" => {
                let config = Shard {
                    epoch: line.number("epoch", 0),
                    home: node(line.text("home").expect("a home")),
                    in_sync: nodes(line.text("in_sync")),
                    joining: nodes(line.text("joining")),
                };
                let mut told = Vec::new();
                for word in plain {
                    if self.replica(word).adopt(config.clone()) {
                        told.push(self.propose(word));
                    }
                    told.push(format!("{word} is {:?}", self.replica(word).role()));
                }
                return told;
            }
            "machine_restart" => {
                let word = plain[0];
                let log = self.logs.entry(number(word)).or_default();
                log.truncate(line.number("keeps", u64::MAX) as usize);
                let tail = log.last().copied().unwrap_or_default();
                let mut began: Vec<Mark> = Vec::new();
                for mark in log {
                    if began.last().is_none_or(|last| last.epoch < mark.epoch) {
                        began.push(*mark);
                    }
                }
                self.nodes.insert(number(word), Replica::new(shard(), node(word), tail, began, true));
                format!("{word} comes back with {}", marks(&self.logs[&number(word)]))
            }
            "requires" => {
                let copies = line.number("copies", 1) as usize;
                self.replica(plain[0]).require_copies(copies);
                format!("{} counts nothing with fewer than {copies} copies", plain[0])
            }
            "propose" => self.propose(plain[0]),
            "send" => self.send(line),
            "ack" => {
                let (home, from) = (plain[0], plain[1]);
                let epoch = line.number("epoch", self.replica(home).config().epoch);
                let written = self.replica(from).tail().index;
                let far = Counted { written, synced: line.number("synced", 0) };
                match self.replica(home).acked(node(from), epoch, far) {
                    Ok(counted) => format!("counted: {} written, {} synced", counted.written, counted.synced),
                    Err(refused) => format!("refused: {refused}"),
                }
            }
            "ask" => match self.ask(plain[0], change(line, 1)) {
                Ok(()) => format!("must have it: {}", names(&self.replica(plain[0]).must_have())),
                Err(refused) => format!("refused: {refused}"),
            },
            "refused" => {
                self.replica(plain[0]).refused();
                format!("must have it: {}", names(&self.replica(plain[0]).must_have()))
            }
            other => panic!("{other} is no command"),
        };
        let mut told = told;
        for number in 1..10 {
            told = told.replace(&NodeId::from_random(number).to_string(), &format!("n{number}"));
        }
        vec![told]
    }
}

fn names(nodes: &[NodeId]) -> String {
    let names: Vec<String> = nodes.iter().map(|node| format!("n{}", node.bits())).collect();
    names.join(" ")
}

#[test]
fn shards_behave_as_the_stories_say() {
    shoal_stories::check::<Nodes>(&crate::golden("shards"), 7);
}
