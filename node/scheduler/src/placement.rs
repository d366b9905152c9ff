//! What a function asks of the nodes that it runs on, beyond room: labels, and a place for all containers of a gang at once.
//!
//! What a decorator says of regions and clouds is held against the labels `region` and `cloud` that operators give nodes, and
//! `nonpreemptible=True` keeps a function off nodes labelled `preemptible=true`. A label that no node has is not used in this cluster,
//! and nothing is asked of it: programs that were written elsewhere name regions that mean nothing here.

use shoal_gpu::Request;
use shoal_state::State;
use shoal_state::imbl::OrdMap;

use crate::why::Obstacle;

/// The label that says where a node is: `us-east`, say. A function that asks for `us` may run there.
pub const REGION: &str = "region";
/// The label that says of which cloud or house a node is.
pub const CLOUD: &str = "cloud";
/// The label that says with `true` that a node may be taken away at any time.
pub const PREEMPTIBLE: &str = "preemptible";

/// The labels of a node.
pub type Labels = OrdMap<String, String>;

/// What a function asks of the nodes that it runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// In one of these regions; anywhere when there are none.
    pub regions: Vec<String>,
    /// Of this cloud.
    pub cloud: Option<String>,
    /// On no node that may be taken away.
    pub nonpreemptible: bool,
    /// Together with so many of its own kind, for a clustered function.
    pub gang: Option<u32>,
    /// With GPUs: the first of these choices that can be had.
    pub gpus: Vec<Request>,
}

impl Placement {
    /// Leaves out what this cluster has no labels for.
    #[must_use]
    pub fn within(&self, state: &State) -> Self {
        let is_used = |label: &str| state.nodes.values().any(|node| node.labels.contains_key(label));
        Self {
            regions: if is_used(REGION) { self.regions.clone() } else { vec![] },
            cloud: self.cloud.clone().filter(|_| is_used(CLOUD)),
            nonpreemptible: self.nonpreemptible,
            gang: self.gang,
            gpus: self.gpus.clone(),
        }
    }

    /// Says whether it asks for anything.
    pub fn is_any(&self) -> bool {
        *self == Self::default()
    }

    /// Says whether it may run on any node.
    fn is_anywhere(&self) -> bool {
        Self { gang: None, gpus: vec![], ..self.clone() }.is_any()
    }

    /// Returns how many containers are placed at once.
    pub fn at_once(&self) -> u32 {
        self.gang.unwrap_or(1).max(1)
    }

    /// Returns the first thing that keeps a node with these labels from being one.
    pub fn obstacle(&self, labels: &Labels) -> Option<Obstacle> {
        let of = |label: &str| labels.get(label).map_or("", String::as_str);
        if !self.regions.is_empty() && !self.regions.iter().any(|region| is_in(of(REGION), region)) {
            Some(Obstacle::Region)
        } else if self.cloud.as_ref().is_some_and(|cloud| !of(CLOUD).eq_ignore_ascii_case(cloud)) {
            Some(Obstacle::Cloud)
        } else if self.nonpreemptible && of(PREEMPTIBLE).eq_ignore_ascii_case("true") {
            Some(Obstacle::Preemptible)
        } else {
            None
        }
    }

    /// Says in words what it asks for: `region eu or us, cloud aws`.
    pub fn words(&self) -> String {
        let regions = (!self.regions.is_empty()).then(|| format!("region {}", self.regions.join(" or ")));
        let cloud = self.cloud.as_ref().map(|cloud| format!("cloud {cloud}"));
        let nonpreemptible = self.nonpreemptible.then(|| "a node that is not preemptible".to_owned());
        regions.into_iter().chain(cloud).chain(nonpreemptible).collect::<Vec<_>>().join(", ")
    }

    /// Says why no node of the cluster is one that may be, if none is: what is asked for, and what there is instead.
    pub fn nowhere(&self, state: &State) -> Option<String> {
        let here = self.within(state);
        if state.nodes.is_empty() || here.is_anywhere() || state.nodes.values().any(|node| here.obstacle(&node.labels).is_none()) {
            return None;
        }
        let there = |label: &str| {
            let mut all: Vec<&str> = state.nodes.values().filter_map(|node| node.labels.get(label)).map(String::as_str).collect();
            all.sort_unstable();
            all.dedup();
            (!all.is_empty()).then(|| format!("{label} {}", all.join(" and ")))
        };
        let labels: Vec<_> = [REGION, CLOUD, PREEMPTIBLE].into_iter().filter_map(there).collect();
        let there =
            if labels.is_empty() { "none has such a label".to_owned() } else { format!("nodes are labelled {}", labels.join(", ")) };
        Some(format!("needs {}, and no node is that: {there}", here.words()))
    }
}

/// Says whether a node's region is the one that is asked for, or within it: `us-east-1` is in `us` and in `us-east`.
fn is_in(region: &str, asked: &str) -> bool {
    let (region, asked) = (region.to_ascii_lowercase(), asked.to_ascii_lowercase());
    region.strip_prefix(asked.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_holds_those_that_are_written_after_it() {
        for (region, asked, holds) in [
            ("us-east-1", "us", true),
            ("us-east-1", "us-east", true),
            ("US-East", "us-east", true),
            ("us", "us-east", false),
            ("usa", "us", false),
            ("", "us", false),
        ] {
            assert_eq!(is_in(region, asked), holds, "{region} in {asked}");
        }
    }
}
