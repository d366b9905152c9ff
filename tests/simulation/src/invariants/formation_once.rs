//! Equal machines become one cluster: none founds one, or joins one that is no more, while another machine is of another. In the end all are
//! of the same, unless one was wiped, which may leave them waiting for its data.

use std::collections::BTreeMap;

use super::Events;
use crate::history::Event;

pub(super) fn check(events: &Events) -> Result<(), String> {
    let mut of: BTreeMap<usize, u64> = BTreeMap::new();
    for (at, event) in events {
        match event {
            Event::Founded { machine, cluster } | Event::Joined { machine, cluster } => {
                if let Some((other, its)) = of.iter().find(|(_, its)| *its != cluster) {
                    return Err(format!("at {at:?} machine {machine} is of cluster {cluster}, and machine {other} of cluster {its}"));
                }
                of.insert(*machine, *cluster);
            }
            Event::Wiped { machine } => drop(of.remove(machine)),
            Event::FormationFinal { clusters, wiped: false } if clusters.iter().any(Option::is_none) => {
                return Err(format!("at {at:?} some machines are of no cluster: {clusters:?}"));
            }
            _ => {}
        }
    }
    Ok(())
}
