//! How equal machines become one cluster, whichever is started first: what each does next, by what all have said.
//!
//! Every machine asks all seeds how they stand. Who finds a cluster joins it. Only the first of the sorted seeds ever founds one, and
//! only after every seed has answered that it has none, was given the same seeds and the same secret, and the founders have promised
//! durably to found none themselves and to follow this very node. So two clusters never come to be: an empty machine founds
//! nothing while a seed cannot be reached or has a cluster, and a first seed that was wiped finds the promises that were made to what
//! it was before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_state::NodeId;

/// Why a cluster cannot come of these seeds.
#[derive(Debug, thiserror::Error)]
pub enum BadSeeds {
    /// One is named twice.
    #[error("cannot start with these seeds: one of them is there twice")]
    Twice,
    /// More are to found it than there are.
    #[error("cannot expect {expect} founders of {given} seeds: name as many with --seeds, or expect fewer")]
    Few {
        /// How many are to.
        expect: usize,
        /// How many there are.
        given: usize,
    },
}

/// The seeds of a cluster that is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seeds {
    /// Where they are reached, `host:port`, sorted.
    pub list: Vec<String>,
    /// How many of them found the cluster: the first ones.
    pub expect: usize,
}

impl Seeds {
    /// Reads what the operator gave, in whatever order.
    pub fn new(seeds: &[String], expect: usize, port: u16) -> Result<Self, BadSeeds> {
        let whole = |seed: &String| {
            let seed = seed.trim();
            match seed.rsplit_once(':').is_some_and(|(host, port)| !host.ends_with(':') && port.parse::<u16>().is_ok()) {
                true => seed.to_owned(),
                false => format!("{seed}:{port}"),
            }
        };
        let mut list: Vec<String> = seeds.iter().filter(|seed| !seed.trim().is_empty()).map(whole).collect();
        list.sort();
        let given = list.len();
        list.dedup();
        if given != list.len() {
            return Err(BadSeeds::Twice);
        }
        let expect = if expect == 0 { given } else { expect };
        if expect > given {
            return Err(BadSeeds::Few { expect, given });
        }
        Ok(Self { list, expect })
    }
}

/// How a seed stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Which start of which machine: a machine knows itself by it.
    pub start: u128,
    /// Its seeds.
    pub seeds: Seeds,
    /// Whether it is of a cluster.
    pub has_cluster: bool,
    /// Which node it has promised to follow.
    pub promised: Option<NodeId>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Ask these to be let in, one after the other.
    Join(Vec<String>),
    /// Have these promise, then found.
    Found {
        /// The other founders.
        promises: Vec<String>,
    },
    /// Ask again later; why.
    Wait(String),
}

/// Says what to do next, from what all seeds have said. `me`: which node this would be, and which start.
pub fn next(seeds: &Seeds, me: (NodeId, u128), own_promise: Option<NodeId>, seen: &BTreeMap<String, Result<Seen, String>>) -> Next {
    let with_cluster =
        |(seed, said): (&String, &Result<Seen, String>)| said.as_ref().is_ok_and(|said| said.has_cluster).then(|| seed.clone());
    let clusters: Vec<String> = seen.iter().filter_map(with_cluster).collect();
    if !clusters.is_empty() {
        return Next::Join(clusters);
    }
    let silent = seen.iter().find_map(|(seed, said)| said.as_ref().err().map(|why| format!("{seed} does not answer: {why}")));
    if let Some(why) = silent {
        return Next::Wait(why);
    }
    let answered = || seen.iter().filter_map(|(seed, said)| Some((seed, said.as_ref().ok()?)));
    if let Some((seed, other)) = answered().find(|(_, said)| said.seeds != *seeds) {
        let (theirs, ours) = (other.seeds.list.join(","), seeds.list.join(","));
        let (expects, expect) = (other.seeds.expect, seeds.expect);
        return Next::Wait(format!(
            "{seed} was started with --seeds {theirs} --expect {expects}, and this machine with --seeds {ours} --expect {expect}: give all of them the same"
        ));
    }
    let own = answered().find(|(_, said)| said.start == me.1).map(|(seed, _)| seed);
    let first = seeds.list.first();
    match (own, first) {
        (None, _) => return Next::Wait("none of the seeds is this machine, and none of them has a cluster yet".to_owned()),
        (Some(own), Some(first)) if own != first => return Next::Wait(format!("{first} is to found the cluster")),
        _ => {}
    }
    let promised_elsewhere = answered().find_map(|(seed, said)| said.promised.filter(|to| *to != me.0).map(|to| (seed.clone(), to)));
    let promised_elsewhere = promised_elsewhere.or(own_promise.filter(|to| *to != me.0).map(|to| ("this machine".to_owned(), to)));
    if let Some((seed, to)) = promised_elsewhere {
        return Next::Wait(format!(
            "{seed} has promised to follow node {to}, which may have founded a cluster: start that one; if its data is gone for good, \
             wipe the data folders of all the seeds"
        ));
    }
    Next::Found { promises: seeds.list.iter().take(seeds.expect).filter(|seed| Some(*seed) != own).cloned().collect() }
}

/// Says whether a machine that was given `own`, and has promised what it `held`, promises to follow `founder`, which was given `theirs`.
/// It promises that to one node only, and durably: whoever asks for promises, and then founds, keeps to its own.
///
/// # Errors
/// When it does not; why.
pub fn promise(own: &Seeds, held: Option<NodeId>, theirs: &Seeds, founder: NodeId) -> Result<(), String> {
    if theirs != own {
        return Err("it was started with other seeds".to_owned());
    }
    keeps(held, founder)
}

/// As [`promise`], where it is known that both were given the same seeds: a machine's own promise before it asks others for theirs.
///
/// # Errors
/// When it has promised to follow another one.
pub fn keeps(held: Option<NodeId>, founder: NodeId) -> Result<(), String> {
    match held {
        Some(held) if held != founder => Err(format!("it has promised to follow node {held}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod once;

#[cfg(test)]
mod tests {
    use super::*;

    const ME: (NodeId, u128) = (NodeId::from_random(1), 77);

    fn seeds(list: &[&str]) -> Seeds {
        Seeds::new(&list.iter().map(|seed| (*seed).to_owned()).collect::<Vec<_>>(), 0, 7470).unwrap()
    }

    fn empty(start: u128, promised: Option<u128>) -> Result<Seen, String> {
        Ok(Seen { start, seeds: seeds(&["a", "b", "c"]), has_cluster: false, promised: promised.map(NodeId::from_random) })
    }

    fn member() -> Result<Seen, String> {
        empty(0, None).map(|seen| Seen { has_cluster: true, ..seen })
    }

    fn away() -> Result<Seen, String> {
        Err("nobody answers there".to_owned())
    }

    /// What this machine does when a, b and c say this.
    fn does(said: [Result<Seen, String>; 3]) -> Next {
        let names = ["a:7470", "b:7470", "c:7470"].map(str::to_owned);
        next(&seeds(&["a", "b", "c"]), ME, None, &names.into_iter().zip(said).collect())
    }

    fn waits(said: [Result<Seen, String>; 3], why: &str) {
        match does(said) {
            Next::Wait(said) => assert!(said.contains(why), "{said:?} does not say {why:?}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn seeds_are_the_same_in_any_order_and_bad_ones_are_refused_in_words() {
        assert_eq!(seeds(&["c", " a", "b:7470"]), seeds(&["a:7470", "b", "c"]));
        assert_eq!((seeds(&["a", "b"]).expect, seeds(&["[::1]:9", "n"]).list), (2, vec!["[::1]:9".to_owned(), "n:7470".to_owned()]));
        let wrong = |list: &[&str], expect| {
            Seeds::new(&list.iter().map(|seed| (*seed).to_owned()).collect::<Vec<_>>(), expect, 7470).unwrap_err().to_string()
        };
        assert!(wrong(&["a", "a:7470"], 2).contains("there twice"));
        assert!(wrong(&["a", "b"], 3).contains("cannot expect 3 founders of 2 seeds"));
    }

    #[test]
    fn only_the_first_seed_founds_and_only_when_all_have_answered() {
        let all = vec!["b:7470".to_owned(), "c:7470".to_owned()];
        assert_eq!(does([empty(77, None), empty(2, None), empty(3, None)]), Next::Found { promises: all.clone() });
        assert_eq!(does([empty(77, Some(1)), empty(2, Some(1)), empty(3, None)]), Next::Found { promises: all }, "it goes on where it was");
        waits([empty(77, None), away(), empty(3, None)], "b:7470 does not answer: nobody answers there");
        waits([empty(1, None), empty(77, None), empty(3, None)], "a:7470 is to found the cluster");
        waits([empty(1, None), empty(2, None), empty(3, None)], "none of the seeds is this machine");
    }

    #[test]
    fn who_finds_a_cluster_joins_it_and_founds_none() {
        assert_eq!(does([member(), away(), empty(77, None)]), Next::Join(vec!["a:7470".to_owned()]));
        assert_eq!(does([empty(77, None), member(), away()]), Next::Join(vec!["b:7470".to_owned()]), "a first seed that was wiped");
    }

    #[test]
    fn a_promise_to_another_node_stands() {
        waits([empty(77, None), empty(2, Some(9)), empty(3, None)], "b:7470 has promised to follow node no-");
        waits([empty(77, Some(9)), empty(2, None), empty(3, None)], "wipe the data folders of all the seeds");
    }

    #[test]
    fn machines_that_were_told_something_else_are_named() {
        let other = empty(2, None).map(|seen| Seen { seeds: seeds(&["a", "b"]), ..seen });
        waits([empty(77, None), other, empty(3, None)], "b:7470 was started with --seeds a:7470,b:7470 --expect 2");
    }
}
