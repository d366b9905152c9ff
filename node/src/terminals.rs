//! Terminals that clients describe, and which of them are connected with a container.
//!
//! The first process of a container has a terminal if its function was made by a client that runs an app interactively. When the program
//! asks for it, the client learns of that by the log of its app ([`crate::api::logs`]); what is printed it reads there, and what is typed it
//! sends as to a process ([`crate::api::typing`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_proto::modal_client as pb;
use shoal_runtime::TerminalSize;
use shoal_state::TaskId;

use crate::api::Connection;

/// Of how many connections it is remembered which terminals they are connected with. Beyond it the oldest connection is forgotten: should
/// its container end, it is told so by the end of its app.
const CONNECTIONS_MAX: usize = 4096;
/// Of how many containers it is remembered that they asked one client. Beyond it nothing is typed into the one that asked first.
pub(crate) const ASKED_MAX: usize = 256;

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

/// What one client types into.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Typist {
    /// The container that the client was told of. It sends all that is typed to this one.
    told: TaskId,
    /// All that have asked, in this order; the one above is among them.
    asked: Vec<TaskId>,
}

/// The containers that clients type into, by the connections of the clients: soft state. Cheap to clone.
///
/// A client takes one terminal at a time, and containers ask when they like: of several, what is typed is for the last that works on
/// something ([`crate::api::typing`]).
#[derive(Debug, Clone, Default)]
pub(crate) struct Connected(Arc<Mutex<BTreeMap<Connection, Typist>>>);

impl Connected {
    /// Notes that a container asks. True if the client is to be told of it: it types into no other yet.
    pub(crate) fn asks(&self, connection: Connection, task: TaskId) -> bool {
        let mut connected = self.0.lock();
        let Some(typist) = connected.get_mut(&connection) else {
            enter(&mut connected, connection, Typist { told: task, asked: vec![task] });
            return true;
        };
        if !typist.asked.contains(&task) {
            typist.asked.push(task);
            if typist.asked.len() > ASKED_MAX {
                typist.asked.remove(0);
            }
        }
        false
    }

    /// Returns the containers that have asked a client which types into this one, the last that asked first; none where that is not known.
    pub(crate) fn asked(&self, connection: Connection, told: TaskId) -> Option<Vec<TaskId>> {
        let connected = self.0.lock();
        let typist = connected.get(&connection).filter(|typist| typist.told == told)?;
        Some(typist.asked.iter().rev().copied().collect())
    }

    /// Notes what a client types into that came here from elsewhere: `asked` have asked before, in this order.
    pub(crate) fn came(&self, connection: Connection, told: TaskId, mut asked: Vec<TaskId>) {
        let mut connected = self.0.lock();
        let since = connected.remove(&connection).map(|typist| typist.asked).unwrap_or_default();
        asked.extend(since.into_iter().filter(|task| !asked.contains(task)).collect::<Vec<_>>());
        enter(&mut connected, connection, Typist { told, asked });
    }

    /// Returns the container that a client was told of.
    pub(crate) fn told(&self, connection: Connection) -> Option<TaskId> {
        self.0.lock().get(&connection).map(|typist| typist.told)
    }

    /// Notes that a client is told of the end of its container. Returns the one that it is to be told of next: the last that asked of
    /// those that are there.
    pub(crate) fn ended(&self, connection: Connection, is_there: impl Fn(TaskId) -> bool) -> Option<TaskId> {
        let mut connected = self.0.lock();
        let mut typist = connected.remove(&connection)?;
        typist.asked.retain(|task| is_there(*task));
        typist.told = *typist.asked.last()?;
        let told = typist.told;
        enter(&mut connected, connection, typist);
        Some(told)
    }
}

fn enter(connected: &mut BTreeMap<Connection, Typist>, connection: Connection, typist: Typist) {
    connected.insert(connection, typist);
    if connected.len() > CONNECTIONS_MAX {
        connected.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ta(number: u128) -> TaskId {
        TaskId::from_random(number)
    }

    #[test]
    fn the_oldest_connections_are_forgotten_beyond_the_bound() {
        let connected = Connected::default();
        let connections: Vec<Connection> = (0..=CONNECTIONS_MAX).map(|_| Connection::new()).collect();
        assert!(connections.iter().all(|connection| connected.asks(*connection, ta(1))));
        assert_eq!((connected.told(connections[0]), connected.told(connections[1])), (None, Some(ta(1))));
    }

    #[test]
    fn a_client_is_told_of_one_container_at_a_time() {
        let (connected, connection) = (Connected::default(), Connection::new());
        assert!(connected.asks(connection, ta(1)) && !connected.asks(connection, ta(2)) && !connected.asks(connection, ta(3)));
        assert!(!connected.asks(connection, ta(2)), "a line that is read again");
        assert_eq!(connected.asked(connection, ta(1)), Some(vec![ta(3), ta(2), ta(1)]));
        assert_eq!(connected.asked(connection, ta(2)), None, "it was told of another");
        assert_eq!(connected.ended(connection, |task| task == ta(2)), Some(ta(2)));
        assert_eq!((connected.told(connection), connected.asked(connection, ta(2))), (Some(ta(2)), Some(vec![ta(2)])));
        assert_eq!(connected.ended(connection, |_| false), None);
        assert!(connected.asks(connection, ta(4)), "it types into none any more");
        connected.came(connection, ta(5), vec![ta(5), ta(6)]);
        assert_eq!(connected.asked(connection, ta(5)), Some(vec![ta(4), ta(6), ta(5)]), "it types into one of which it was told elsewhere");
    }

    #[test]
    fn of_many_that_ask_the_last_are_known() {
        let (connected, connection) = (Connected::default(), Connection::new());
        assert_eq!((0..300).filter(|number| connected.asks(connection, ta(*number))).count(), 1);
        let asked = connected.asked(connection, ta(0)).unwrap();
        assert_eq!((asked.len(), asked[0]), (ASKED_MAX, ta(299)));
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
