//! Which GPUs of one node a container gets.

use std::collections::BTreeSet;

use crate::{Kind, Request};

/// GPUs that serve one of several choices.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allocation {
    /// Which choice; 0 is the best.
    pub choice: usize,
    /// How well its kind serves the choice; 0 = as named.
    pub rank: usize,
    /// Their numbers on the node.
    pub gpus: Vec<u32>,
}

/// Picks GPUs for the first of the choices that can be served: all of one kind, the one that serves it best, those with the lowest
/// numbers. `kinds` are the kinds of all GPUs of the node, `free` the numbers of those that nobody has.
pub fn allocate(choices: &[Request], kinds: &[Kind], free: &BTreeSet<u32>) -> Option<Allocation> {
    let of = |kind: &Kind| free.iter().copied().filter(|gpu| kinds.get(*gpu as usize) == Some(kind)).collect::<Vec<_>>();
    choices.iter().enumerate().find_map(|(choice, request)| {
        if request.count == 0 {
            return Some(Allocation { choice, rank: 0, gpus: vec![] });
        }
        let able = kinds.iter().collect::<BTreeSet<_>>().into_iter().filter_map(|kind| {
            let (rank, gpus) = (request.rank(kind)?, of(kind));
            (gpus.len() >= request.count as usize).then_some((rank, gpus))
        });
        let (rank, mut gpus) = able.min()?;
        gpus.truncate(request.count as usize);
        Some(Allocation { choice, rank, gpus })
    })
}

/// Says whether a node with these GPUs could serve any of the choices, were they all free.
pub fn fits(choices: &[Request], kinds: &[Kind]) -> bool {
    allocate(choices, kinds, &(0..kinds.len() as u32).collect()).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(names: &[&str]) -> Vec<Kind> {
        names.iter().map(|name| Kind::new(name)).collect()
    }

    #[test]
    fn the_first_choice_that_is_free_is_taken_and_never_a_mix() {
        let node = kinds(&["A100-80GB", "H100", "A100-40GB", "H100"]);
        let pick = |choices: &[(&str, u32)], free: &[u32]| {
            let choices: Vec<Request> = choices.iter().map(|(name, count)| Request::new(name, *count)).collect();
            allocate(&choices, &node, &free.iter().copied().collect()).map(|found| (found.choice, found.rank, found.gpus))
        };
        assert_eq!(pick(&[("H100", 2), ("A100", 1)], &[0, 1, 2, 3]), Some((0, 0, vec![1, 3])));
        assert_eq!(pick(&[("H100", 2), ("A100", 1)], &[0, 1, 2]), Some((1, 0, vec![2])));
        assert_eq!(pick(&[("A100", 1)], &[0]), Some((0, 1, vec![0])), "more memory than asked for");
        assert_eq!(pick(&[("A100", 2)], &[0, 2]), None, "two kinds are no two of one");
        assert_eq!(pick(&[("any", 2)], &[0, 1, 2, 3]), Some((0, 0, vec![1, 3])));
        assert_eq!(pick(&[("T4", 1)], &[0, 1, 2, 3]), None);
        assert!(fits(&[Request::new("H100", 2)], &node) && !fits(&[Request::new("H100", 3)], &node));
    }
}
