//! Which apps still have a client: soft state, started anew with the node.
//!
//! A client is *gone* when the connection that it showed itself on was closed and no call for its app came within
//! [`CLOSED_MAX`], or when it was silent for [`SILENT_MAX`]. An ephemeral app ends with its client, a detached one when
//! its client is gone and its work is done.
//!
//! None of this is ever because this node was away. The time of an app begins when this node first looks at it, and the
//! time during which this node did not look (it was stopped, or the machine slept) does not count. A connection that
//! this node itself gave up on says nothing of the client behind it.
//!
//! In a cluster a client speaks to one node, and to another when it loses that one: what other nodes hear counts, and a connection
//! that was closed says something only after [`MOVED_MAX`]. What no node has heard of is ended by the leader, after [`SILENT_MAX`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_state::model::AppState;
use shoal_state::{AppId, State};

use super::app;

/// How long a client may be silent: three of its heartbeats.
pub(crate) const SILENT_MAX: Duration = Duration::from_secs(45);
/// How long after the end of its connection a client has to call again.
pub(crate) const CLOSED_MAX: Duration = Duration::from_secs(5);
/// The same where there are other nodes that it may have gone to: it shows itself there with its next heartbeat.
const MOVED_MAX: Duration = Duration::from_secs(20);
/// How long a detached app without a client must have had nothing to do before it ends.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// The longest time between two looks in which this node surely was not away.
const LOOK_MAX: Duration = Duration::from_secs(4);

/// One connection of a client, as long as this node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Connection(u64);

impl Connection {
    /// Counts a new connection.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self(COUNT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What is known of an app's client.
#[derive(Debug)]
struct Client {
    /// When it last showed itself, or the app was first looked at.
    heard: Instant,
    /// The connections on which it showed itself, and which are open.
    connections: BTreeSet<Connection>,
    /// When it closed the last of them.
    closed: Option<Instant>,
    /// It said good-bye, and left its app running.
    left: bool,
    /// Since when its app has had nothing to do.
    idle: Option<Instant>,
}

impl Client {
    fn new(now: Instant) -> Self {
        Self { heard: now, connections: BTreeSet::new(), closed: None, left: false, idle: None }
    }

    /// Says why the client counts as gone.
    fn gone(&self, now: Instant, alone: bool) -> Option<&'static str> {
        let (closed_max, why) = if alone {
            (CLOSED_MAX, "its client closed the connection and did not come back within 5 s")
        } else {
            (MOVED_MAX, "its client closed the connection and did not come back, to this node or another, within 20 s")
        };
        if self.left {
            Some("its client disconnected")
        } else if self.closed.is_some_and(|closed| now.saturating_duration_since(closed) > closed_max) {
            Some(why)
        } else if now.saturating_duration_since(self.heard) > SILENT_MAX {
            Some("its client was silent for 45 s")
        } else {
            None
        }
    }

    /// Takes out a time that does not count.
    fn shift(&mut self, away: Duration) {
        self.heard += away;
        self.closed = self.closed.map(|closed| closed + away);
        self.idle = self.idle.map(|idle| idle + away);
    }
}

#[derive(Debug, Default)]
struct Known {
    clients: HashMap<AppId, Client>,
    /// Apps whose client no node has heard of since then, as far as this one knows while it leads.
    unheard: HashMap<AppId, Instant>,
    looked: Option<Instant>,
}

/// What other nodes hear of clients.
#[derive(Debug, Clone, Default)]
pub(crate) struct Elsewhere {
    /// The apps whose clients one of them hears.
    pub(crate) apps: BTreeSet<AppId>,
    /// Whether all of them tell, or are lost.
    pub(crate) all_tell: bool,
}

/// What is known of the clients of apps. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lifecycle {
    known: Arc<Mutex<Known>>,
}

impl Lifecycle {
    /// Begins with no knowledge.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Notes that an app's client shows itself on a connection.
    pub(crate) fn beat(&self, app: AppId, connection: Connection) {
        let now = Instant::now();
        let mut known = self.known.lock();
        let client = known.clients.entry(app).or_insert_with(|| Client::new(now));
        client.heard = now;
        client.closed = None;
        client.left = false;
        client.connections.insert(connection);
    }

    /// Says whether a connection is that of an app's client; none when its client is on no connection of this node.
    pub(crate) fn is_of_client(&self, app: AppId, connection: Connection) -> Option<bool> {
        let known = self.known.lock();
        let client = known.clients.get(&app).filter(|client| !client.connections.is_empty())?;
        Some(client.connections.contains(&connection))
    }

    /// Notes a call for an app, whoever made it: a client whose connection broke may be back.
    pub(crate) fn called(&self, app: AppId) {
        if let Some(client) = self.known.lock().clients.get_mut(&app) {
            client.closed = None;
        }
    }

    /// Says whether a call might show that a client is back: only then is it worth finding out whose it is.
    pub(crate) fn misses_anyone(&self) -> bool {
        self.known.lock().clients.values().any(|client| client.closed.is_some())
    }

    /// Notes that an app's client said good-bye and left the app running.
    pub(crate) fn left(&self, app: AppId) {
        self.known.lock().clients.entry(app).or_insert_with(|| Client::new(Instant::now())).left = true;
    }

    /// Notes the end of a connection: `by_client` when its other end closed it.
    pub(crate) fn closed(&self, connection: Connection, by_client: bool) {
        let now = Instant::now();
        for client in self.known.lock().clients.values_mut() {
            if client.connections.remove(&connection) && client.connections.is_empty() && by_client {
                client.closed = Some(now);
            }
        }
    }

    /// Returns the apps whose clients are here.
    pub(crate) fn heard(&self) -> BTreeSet<AppId> {
        let now = Instant::now();
        let here = |client: &Client| !client.left && client.closed.is_none() && now.saturating_duration_since(client.heard) <= SILENT_MAX;
        self.known.lock().clients.iter().filter(|(_, client)| here(client)).map(|(id, _)| *id).collect()
    }

    /// Returns the apps that are to end now, each with the reason, and forgets what is no longer in the state.
    ///
    /// `works` says whether an app has anything to do. `elsewhere` is what other nodes hear, or None while this one cannot know:
    /// then nothing ends. `leads` says whether this node ends what nobody has heard of.
    pub(crate) fn abandoned(
        &self,
        state: &State,
        now: Instant,
        elsewhere: Option<&Elsewhere>,
        leads: bool,
        works: impl Fn(AppId) -> bool,
    ) -> Vec<(AppId, &'static str)> {
        let mut known = self.known.lock();
        let away = known.looked.replace(now).map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        if away > LOOK_MAX {
            known.clients.values_mut().for_each(|client| client.shift(away));
            known.unheard.values_mut().for_each(|since| *since += away);
        }
        known.clients.retain(|id, _| state.apps.get(id).is_some_and(app::has_client));
        known.unheard.retain(|id, _| state.apps.get(id).is_some_and(app::has_client));
        let Some(elsewhere) = elsewhere else {
            known.unheard.clear();
            return Vec::new();
        };
        let (mut ends, alone, Known { clients, unheard, .. }) = (Vec::new(), state.members.len() <= 1, &mut *known);
        for (id, app) in state.apps.iter().filter(|(_, app)| app::has_client(app)) {
            let is_elsewhere = elsewhere.apps.contains(id);
            if is_elsewhere && clients.get(id).is_some_and(|client| client.gone(now, alone).is_some()) {
                clients.remove(id);
            }
            let client = if alone || clients.contains_key(id) {
                unheard.remove(id);
                clients.entry(*id).or_insert_with(|| Client::new(now))
            } else if is_elsewhere || !leads || !elsewhere.all_tell {
                unheard.remove(id);
                continue;
            } else if now.saturating_duration_since(*unheard.entry(*id).or_insert(now)) <= SILENT_MAX {
                continue;
            } else {
                // Nobody has heard of it: from now on it is this node's, and silent.
                let heard = unheard.remove(id).unwrap_or(now);
                clients.entry(*id).or_insert_with(|| Client::new(heard))
            };
            let Some(why) = client.gone(now, alone) else {
                client.idle = None;
                continue;
            };
            if app.state != AppState::Detached {
                ends.push((*id, why));
            } else if works(*id) {
                client.idle = None;
            } else if now.saturating_duration_since(*client.idle.get_or_insert(now)) > IDLE_MAX {
                ends.push((*id, "it was detached, and nothing was left to do"));
            }
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::model::{App, Environment, Member};
    use shoal_state::{Command, EnvironmentId, NodeId, Timestamp};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn state_with(kind: AppState) -> (State, AppId) {
        let (mut state, environment, id) = (State::default(), EnvironmentId::from_random(1), AppId::from_random(1));
        state.apply(&Command::CreateEnvironment { environment: Environment::new(environment, "main", Timestamp(0)) }).unwrap();
        state.apply(&Command::CreateApp { id, app: App::new(environment, kind, Timestamp(0)) }).unwrap();
        (state, id)
    }

    /// Looks once a second, as the node does, and returns after how many seconds the app is to end, and why.
    fn ends(lifecycle: &Lifecycle, state: &State, begin: Instant, works: bool, seconds: u32) -> Option<(u32, &'static str)> {
        (0..seconds).find_map(|second| {
            let found = lifecycle.abandoned(state, begin + second * SECOND, Some(&Elsewhere::default()), true, |_| works);
            found.first().map(|(_, why)| (second, *why))
        })
    }

    #[test]
    fn an_app_has_its_full_time_from_when_it_is_first_looked_at() {
        let (state, id) = state_with(AppState::Ephemeral);
        let (lifecycle, begin) = (Lifecycle::new(), Instant::now());
        // The node has run for an hour when the app comes, and looks before the client's first word.
        let later = begin + 3600 * SECOND;
        assert_eq!(ends(&lifecycle, &state, later, false, 100), Some((46, "its client was silent for 45 s")));
        lifecycle.beat(id, Connection::new());
        assert_eq!(ends(&lifecycle, &state, begin, false, 45), None);
    }

    #[test]
    fn a_closed_connection_ends_an_ephemeral_app_unless_a_call_comes() {
        let (state, id) = state_with(AppState::Ephemeral);
        let (lifecycle, first, second) = (Lifecycle::new(), Connection::new(), Connection::new());
        let began = Instant::now();
        lifecycle.beat(id, first);
        lifecycle.beat(id, second);
        lifecycle.closed(first, true);
        assert_eq!(ends(&lifecycle, &state, began, false, 30), None, "another connection of it is open");
        lifecycle.closed(Connection::new(), true);
        assert_eq!(ends(&lifecycle, &state, began, false, 30), None, "somebody else's connection was closed");
        lifecycle.closed(second, true);
        lifecycle.called(id);
        assert_eq!(ends(&lifecycle, &state, began, false, 30), None, "a call came");
        let third = Connection::new();
        lifecycle.beat(id, third);
        lifecycle.closed(third, true);
        let (after, why) = ends(&lifecycle, &state, Instant::now(), false, 30).unwrap();
        assert!((5..=6).contains(&after) && why.contains("closed the connection"), "{after} {why}");
    }

    #[test]
    fn a_connection_that_this_node_gave_up_says_nothing_of_the_client() {
        let (state, id) = state_with(AppState::Ephemeral);
        let (lifecycle, connection) = (Lifecycle::new(), Connection::new());
        lifecycle.beat(id, connection);
        lifecycle.closed(connection, false);
        assert_eq!(ends(&lifecycle, &state, Instant::now(), false, 44), None);
    }

    #[test]
    fn time_in_which_the_node_was_away_does_not_count() {
        let (state, id) = state_with(AppState::Ephemeral);
        let (lifecycle, begin) = (Lifecycle::new(), Instant::now());
        let connection = Connection::new();
        lifecycle.beat(id, connection);
        assert_eq!(ends(&lifecycle, &state, begin, false, 20), None);
        // Stopped for an hour; the client's heartbeats wait in the socket.
        let back = begin + 3600 * SECOND;
        assert_eq!(ends(&lifecycle, &state, back, false, 20), None);
        assert!(ends(&lifecycle, &state, back + 20 * SECOND, false, 30).is_some());
    }

    #[test]
    fn a_detached_app_ends_when_its_client_is_gone_and_its_work_is_done() {
        let (state, id) = state_with(AppState::Detached);
        let (lifecycle, begin) = (Lifecycle::new(), Instant::now());
        lifecycle.beat(id, Connection::new());
        assert_eq!(ends(&lifecycle, &state, begin, false, 40), None, "its client is there");
        lifecycle.left(id);
        assert_eq!(ends(&lifecycle, &state, begin, true, 200), None, "it works");
        assert_eq!(ends(&lifecycle, &state, begin, false, 200).map(|(after, _)| after), Some(6));
    }

    fn cluster_with(kind: AppState) -> (State, AppId) {
        let (mut state, id) = state_with(kind);
        for number in 1..=3 {
            let member = Member { address: format!("n{number}:7470"), version: 1, release: "0".to_owned(), joined: Timestamp(0) };
            state.members.insert(NodeId::from_random(number), member);
        }
        (state, id)
    }

    #[test]
    fn what_no_node_has_heard_of_is_ended_by_the_leader() {
        let (state, id) = cluster_with(AppState::Ephemeral);
        let (all, begin) = (Elsewhere { all_tell: true, ..Elsewhere::default() }, Instant::now());
        let ends = |lifecycle: &Lifecycle, elsewhere: Option<&Elsewhere>, leads: bool| {
            (0..200).find(|second| !lifecycle.abandoned(&state, begin + *second * SECOND, elsewhere, leads, |_| false).is_empty())
        };
        assert_eq!(ends(&Lifecycle::new(), Some(&all), true), Some(46));
        assert_eq!(ends(&Lifecycle::new(), Some(&all), false), None, "another one leads");
        assert_eq!(ends(&Lifecycle::new(), Some(&Elsewhere::default()), true), None, "a node of an older release may have its client");
        let claimed = Elsewhere { apps: BTreeSet::from([id]), ..all };
        assert_eq!(ends(&Lifecycle::new(), Some(&claimed), true), None, "another node has its client");
        assert_eq!(ends(&Lifecycle::new(), None, true), None, "this node is cut off");
    }

    #[test]
    fn a_client_that_went_to_another_node_is_not_gone() {
        let (state, id) = cluster_with(AppState::Ephemeral);
        let (lifecycle, connection, begin) = (Lifecycle::new(), Connection::new(), Instant::now());
        lifecycle.beat(id, connection);
        lifecycle.closed(connection, true);
        assert!(lifecycle.heard().is_empty());
        let none = Elsewhere { all_tell: true, ..Elsewhere::default() };
        let there = Elsewhere { apps: BTreeSet::from([id]), ..none.clone() };
        let ended = |from: u32, to: u32, elsewhere: &Elsewhere| {
            (from..to).find(|second| !lifecycle.abandoned(&state, begin + *second * SECOND, Some(elsewhere), false, |_| false).is_empty())
        };
        assert_eq!(ended(0, 19, &none), None, "it has until its next heartbeat to show itself elsewhere");
        assert_eq!(ended(19, 90, &there), None);
        assert_eq!(ended(90, 200, &none), None, "this node has forgotten it, and does not lead");
    }
}
