//! Terminals that clients describe, and which of them are connected with a container.
//!
//! The first process of a container has a terminal if its function was made by a client that runs an app interactively. When the program
//! asks for it, the client learns of that by the log of its app ([`crate::api::logs`]); what is printed it reads there, and what is typed it
//! sends as to any process ([`crate::execs`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_proto::modal_client as pb;
use shoal_runtime::TerminalSize;
use shoal_state::TaskId;

use crate::api::Connection;

/// Of how many connections it is remembered which terminals they are connected with. Beyond it the oldest connection is forgotten: should
/// its container end, it is told so by the end of its app.
const CONNECTIONS_MAX: usize = 4096;

/// Returns how large a client's terminal is.
pub(crate) fn size(info: &pb::PtyInfo) -> TerminalSize {
    let size = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    TerminalSize { rows: size(info.winsz_rows), columns: size(info.winsz_cols) }
}

/// Returns the variables by which programs know what their terminal can do.
pub(crate) fn variables(info: &pb::PtyInfo) -> impl Iterator<Item = (String, String)> {
    let variables = [("TERM", &info.env_term), ("COLORTERM", &info.env_colorterm), ("TERM_PROGRAM", &info.env_term_program)];
    variables.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name.to_owned(), value.clone()))
}

/// Returns the terminal that a function's containers are to have.
pub(crate) fn of_function(view: &pb::Function) -> Option<&pb::PtyInfo> {
    view.pty_info.as_ref().filter(|info| info.pty_type() != pb::pty_info::PtyType::Unspecified)
}

/// The containers that clients type into, by the connections of the clients: soft state. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connected(Arc<Mutex<BTreeMap<Connection, BTreeSet<TaskId>>>>);

impl Connected {
    /// Notes that a client types into a container, or is asked to.
    pub(crate) fn note(&self, connection: Connection, task: TaskId) {
        let mut connected = self.0.lock();
        connected.entry(connection).or_default().insert(task);
        if connected.len() > CONNECTIONS_MAX {
            connected.pop_first();
        }
    }

    /// Returns the containers that a client types into.
    pub(crate) fn of(&self, connection: Connection) -> Vec<TaskId> {
        self.0.lock().get(&connection).map(|tasks| tasks.iter().copied().collect()).unwrap_or_default()
    }

    /// Notes that a client was told of the end of a container.
    pub(crate) fn forget(&self, connection: Connection, task: TaskId) {
        let mut connected = self.0.lock();
        if let Some(tasks) = connected.get_mut(&connection) {
            tasks.remove(&task);
            if tasks.is_empty() {
                connected.remove(&connection);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_connections_are_forgotten_beyond_the_bound() {
        let (connected, task) = (Connected::default(), TaskId::from_random(1));
        let connections: Vec<Connection> = (0..=CONNECTIONS_MAX).map(|_| Connection::new()).collect();
        connections.iter().for_each(|connection| connected.note(*connection, task));
        assert!(connected.of(connections[0]).is_empty() && connected.of(connections[1]) == [task]);
        connected.forget(connections[1], task);
        assert!(connected.of(connections[1]).is_empty() && connected.0.lock().len() == CONNECTIONS_MAX - 1);
    }

    #[test]
    fn a_function_has_a_terminal_if_it_says_of_which_kind() {
        let kind = |pty_type: pb::pty_info::PtyType| pb::Function {
            pty_info: Some(pb::PtyInfo { pty_type: pty_type.into(), enabled: true, ..Default::default() }),
            ..Default::default()
        };
        assert!(of_function(&kind(pb::pty_info::PtyType::Function)).is_some());
        assert!(of_function(&kind(pb::pty_info::PtyType::Unspecified)).is_none());
        assert!(of_function(&pb::Function::default()).is_none());
    }
}
