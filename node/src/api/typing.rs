//! Who runs an app types into the terminals of its containers ([`crate::terminals`]).
//!
//! That a program asks for it is a line of its container's log. The client that runs the app is told of it in place of the line, by the
//! same stream; it shows as it is whatever comes after, of all containers, and sends what is typed on. It knows of one container at a time,
//! by whose name it calls them all: so what is typed is for the last one that asked and works on something. A client that types into one
//! which has ended is told so, and of the next.

use shoal_proto::modal_client as pb;
use shoal_state::{AppId, NodeId, TaskId};
use shoal_worker::Keyboard;
use shoal_worker::log::{Entry, Filter};

use super::error::Error;
use super::{Api, Connection, exec_by_server};
use crate::execs::{self, At, Typed};
use crate::terminals::ASKED_MAX;

/// A client that may be the one that runs an app, as it follows the app's log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Follower {
    pub(super) app: AppId,
    pub(super) connection: Connection,
}

impl Follower {
    /// Says whether it is the client that runs the app: `modal app logs` asks for the same lines.
    pub(super) fn runs_the_app(&self, api: &Api) -> bool {
        let is_elsewhere = || api.reports.clients_elsewhere(&api.local()).is_some_and(|elsewhere| elsewhere.apps.contains(&self.app));
        api.lifecycle.is_of_client(self.app, self.connection).unwrap_or_else(|| !is_elsewhere())
    }

    /// Tells it that a container asks, unless it types into another one already.
    pub(super) async fn asked(&self, api: &Api, line: &Entry, entry_id: &str) -> Vec<pb::TaskLogsBatch> {
        // The line may come before the news that there is such a container.
        let Ok(state) = api.read_latest_unless(|state| state.tasks.contains_key(&line.task)).await else { return Vec::new() };
        let Some(node) = state.tasks.get(&line.task).map(|task| task.node) else { return Vec::new() };
        let mut all = Vec::new();
        if api.terminals.told(self.connection).is_none() {
            // It may come from another node, or from an earlier start of this one, and type into one that asked before.
            let mut before = asked_in(api, self.app, line.timestamp_ns).await.unwrap_or_default();
            before.retain(|task| *task != line.task);
            all.extend(before.iter().filter(|task| !state.tasks.contains_key(*task)).map(|task| end(*task, entry_id)));
            before.retain(|task| state.tasks.contains_key(task));
            if let Some(first) = before.first() {
                api.terminals.came(self.connection, *first, before.clone());
            }
        }
        if api.terminals.asks(self.connection, line.task) {
            all.push(begins(node, line.task, entry_id));
        }
        all
    }

    /// Returns the container that it types into, if that has ended.
    pub(super) fn ended(&self, api: &Api) -> Option<TaskId> {
        // This node has heard of it before it noted it.
        api.terminals.told(self.connection).filter(|told| !api.local().tasks.contains_key(told))
    }

    /// Tells it that its container has ended, and of the next one that asked.
    pub(super) fn ends(&self, api: &Api, task: TaskId, entry_id: &str) -> Vec<pb::TaskLogsBatch> {
        let state = api.local();
        let next = api.terminals.ended(self.connection, |task| state.tasks.contains_key(&task));
        let next = next.and_then(|next| Some(begins(state.tasks.get(&next)?.node, next, entry_id)));
        [end(task, entry_id)].into_iter().chain(next).collect()
    }
}

/// Says that a container has ended; a client that does not type into it takes no notice.
fn end(task: TaskId, entry_id: &str) -> pb::TaskLogsBatch {
    pb::TaskLogsBatch { task_id: task.to_string(), entry_id: entry_id.to_owned(), eof: true, ..Default::default() }
}

/// Says that a container asks, and what the client is to call it.
fn begins(node: NodeId, task: TaskId, entry_id: &str) -> pb::TaskLogsBatch {
    let at = At { node, task, exec: execs::FIRST.to_owned() };
    let (task_id, entry_id, pty_exec_id) = (task.to_string(), entry_id.to_owned(), exec_by_server::named(&at));
    pb::TaskLogsBatch { task_id, entry_id, pty_exec_id, ..Default::default() }
}

/// Types a message into the container that it is for, of those that asked a client which was told of `told`.
///
/// What is typed when none is there any more goes nowhere, as at a terminal that was hung up: that they have ended the client is told by
/// the log, and it would show an error as a fault of its own.
pub(super) async fn put(api: &Api, connection: Connection, told: TaskId, typed: Typed) -> Result<(), Error> {
    let asked = match api.terminals.asked(connection, told) {
        Some(asked) => asked,
        None => asked_before(api, connection, told).await?,
    };
    if typed.data.is_empty() && !typed.eof {
        // A sign of life.
        return Ok(());
    }
    let state = api.local();
    let there: Vec<(NodeId, TaskId)> = asked.into_iter().filter_map(|task| Some((state.tasks.get(&task)?.node, task))).collect();
    let several = there.len() > 1;
    for (node, task) in there.iter().filter(|_| several) {
        match execs::type_into(api, *node, *task, typed.clone(), false).await {
            Ok(false) | Err(Error::NotFound(_)) => {}
            taken => return taken.map(drop),
        }
    }
    let Some((node, task)) = there.first() else { return Ok(()) };
    match execs::type_into(api, *node, *task, typed, true).await {
        Err(Error::NotFound(_)) => Ok(()),
        taken => taken.map(drop),
    }
}

/// Finds out who has asked a client that comes from another node, or from an earlier start of this one.
async fn asked_before(api: &Api, connection: Connection, told: TaskId) -> Result<Vec<TaskId>, Error> {
    let state = api.read_latest_unless(|state| state.tasks.contains_key(&told)).await?;
    let mut asked = match state.tasks.get(&told) {
        Some(task) => asked_in(api, task.app, u64::MAX).await?,
        None => Vec::new(),
    };
    if !asked.contains(&told) {
        asked.insert(0, told);
    }
    api.terminals.came(connection, told, asked);
    Ok(api.terminals.asked(connection, told).unwrap_or_default())
}

/// Returns the containers of an app that asked before a time, in this order: the last of them, if they are many.
async fn asked_in(api: &Api, app: AppId, before_ns: u64) -> Result<Vec<TaskId>, Error> {
    let filter = Filter { until_ns: Some(before_ns), ..Keyboard::asked_in(app) };
    let lines = api.joined.fetch(&filter, ASKED_MAX).await?.entries;
    Ok(lines.iter().filter(|line| line.asks_for_a_terminal()).map(|line| line.task).collect())
}
