//! A leader changes who votes only where a majority of those that vote, and of those that are to, is in touch with it: else nothing could be
//! decided any more, by its own change.

use std::collections::BTreeSet;

use super::Events;
use crate::history::Event;

pub(super) fn check(events: &Events) -> Result<(), String> {
    for (at, event) in events {
        let Event::MembersBegun { by, old, new, there } = event else { continue };
        let (None, Some(next)) = (&old.next, &new.next) else { continue };
        let majority = |voters: &BTreeSet<usize>| voters.iter().filter(|voter| there.contains(voter)).count() * 2 > voters.len();
        if let Some(lost) = [&old.voters, next].into_iter().find(|voters| !majority(voters)) {
            return Err(format!("at {at:?} node {by} changes the voters {:?} to {next:?}: of {lost:?} it hears {there:?}", old.voters));
        }
    }
    Ok(())
}
