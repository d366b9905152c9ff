//! What happened in a world, in order: what invariants are held against.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use shoal_calls::calls::{Entry, Status};
use shoal_state::model::Voting;
use shoal_state::{CallId, Command, FunctionId, InputId, NodeId, QueueId, ShardId, TaskId, Timestamp};

use crate::council::Config;
use crate::time::Time;

/// An output as somebody saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `Output`")]
pub struct Seen {
    pub input: InputId,
    pub entry: Entry,
    pub retry_count: u32,
    pub status: Status,
    /// A hash of the result.
    pub result: u64,
}

/// Something that happened.
#[expect(missing_docs, reason = "the fields are what the sentence of their variant names")]
#[derive(Debug, Clone)]
pub enum Event {
    /// A node's process runs; its machine may have restarted before.
    NodeStarted {
        node: usize,
        id: NodeId,
        machine_restarted: bool,
    },
    /// A node's process is gone, and so are its containers.
    NodeStopped {
        node: usize,
    },
    /// Something is wrong with a node for now: a wire, its speed, all of it.
    Trouble {
        node: usize,
        what: &'static str,
    },
    /// A wire is cut in one way, or is whole again; in worlds in which things are said around it.
    Wire {
        from: usize,
        to: usize,
        cut: bool,
    },
    /// No faults from here on.
    Healed,
    /// A node leads from here on.
    Elected {
        node: usize,
        term: u64,
    },
    /// A leader put other members of consensus behind its log; with these it was in touch then.
    MembersBegun {
        by: usize,
        old: Config,
        new: Config,
        there: Vec<usize>,
    },
    /// The members of consensus are others from here on.
    MembersDecided {
        by: usize,
        config: Config,
    },
    /// In the end: who votes, and who is to by the wishes of operators; each node of the cluster, with its zone and what is wished of it.
    MembersFinal {
        config: Config,
        nodes: Vec<(usize, String, Option<Voting>)>,
    },
    /// A node that is out of the cluster has stopped for good.
    Departed {
        node: usize,
    },
    /// A machine founded a cluster, or has joined one; all that it had on its disk is gone.
    Founded {
        machine: usize,
        cluster: u64,
    },
    Joined {
        machine: usize,
        cluster: u64,
    },
    Wiped {
        machine: usize,
    },
    /// In the end, of which cluster each machine is, and whether one was wiped.
    FormationFinal {
        clusters: Vec<Option<u64>>,
        wiped: bool,
    },
    /// A leader planned first in its term, on a state with so many entries; so many were decided before.
    Planned {
        node: usize,
        term: u64,
        applied: usize,
        before_term: usize,
    },
    /// A command that a node proposed was decided; whether the state took it.
    Decided {
        by: usize,
        command: Box<Command>,
        taken: bool,
    },
    /// A container runs, or is gone.
    ContainerBegan {
        task: TaskId,
        node: usize,
    },
    ContainerEnded {
        task: TaskId,
        node: usize,
    },
    /// A container was given an input; it has worked on it; its outcome counts, or was dropped.
    RunBegan {
        task: TaskId,
        node: usize,
        input: InputId,
        retry_count: u32,
    },
    WorkDone {
        task: TaskId,
        input: InputId,
    },
    RunEnded {
        task: TaskId,
        input: InputId,
        retry_count: u32,
    },
    /// A container was told that an input is cancelled, and has stopped it.
    RunStopped {
        task: TaskId,
        input: InputId,
    },
    /// A client was told that a call is open. `lasting`: it survives restarts of machines.
    Opened {
        call: CallId,
        lasting: bool,
    },
    /// A client was told that its inputs are there. The same request may have been sent several times.
    Put {
        call: CallId,
        key: String,
        inputs: Vec<InputId>,
        tries: u32,
    },
    /// A client was told of the tries of inputs that it wanted tried again; equal keys are one wish.
    Retried {
        call: CallId,
        key: String,
        tried: Vec<(InputId, u32)>,
    },
    /// A client was told that inputs of a call are cancelled, or that inputs of a cancelled call are there.
    Cancelled {
        call: CallId,
        inputs: Vec<InputId>,
    },
    /// A client read outputs from `after` on. `all`: there was room for all that there are.
    Read {
        call: CallId,
        reader: u64,
        began: Duration,
        after: Entry,
        last: Entry,
        seen: Vec<Seen>,
        all: bool,
    },
    /// A client asked how many inputs a call has.
    Counted {
        call: CallId,
        began: Duration,
        inputs: u32,
    },
    /// A client was told that there is no such thing.
    Missing {
        call: CallId,
        began: Duration,
        why: String,
    },
    /// A container of a gang, of another rank than 0, was given an input; it is done with it.
    RankBegan {
        task: TaskId,
        node: usize,
        input: InputId,
        retry_count: u32,
    },
    RankEnded {
        task: TaskId,
        input: InputId,
        retry_count: u32,
    },
    /// A node has taken an item that a container yielded; items are counted from 1.
    YieldTaken {
        call: CallId,
        task: TaskId,
        node: usize,
        index: u64,
    },
    /// A client read what a call yields, from `after` on: the number of each item, and what it says.
    Yielded {
        call: CallId,
        reader: u64,
        after: u64,
        seen: Vec<(u64, u64)>,
    },
    /// A client has the outcome of a call, by this task, and does not get what comes after item `has`.
    YieldedGone {
        call: CallId,
        reader: u64,
        has: u64,
        task: Option<TaskId>,
    },
    /// In the end, what a call is: its inputs, each with its output.
    Final {
        call: CallId,
        inputs: Vec<InputId>,
        seen: Vec<Seen>,
    },
    /// A client was told that an item is in a queue.
    ItemPut {
        queue: QueueId,
        item: u64,
    },
    /// A client was given items: those it had not been given by this request before.
    ItemsTaken {
        queue: QueueId,
        entries: Vec<(Entry, u64)>,
    },
    /// In the end, what is left in a queue.
    ItemsLeft {
        queue: QueueId,
        items: Vec<u64>,
    },
    /// A client was told that a value is set, the only one who sets it.
    ValueSet {
        shard: ShardId,
        value: u64,
    },
    /// A client looked a value up.
    ValueRead {
        shard: ShardId,
        began: Duration,
        value: u64,
    },
    /// A call was made because a schedule said so.
    Scheduled {
        function: FunctionId,
        due: Timestamp,
        call: CallId,
    },
    /// A client has all that it wanted, or has not when the world ends.
    ClientDone {
        client: u64,
    },
    ClientStuck {
        client: u64,
        at: &'static str,
    },
}

/// All that happened. Clones are the same.
#[derive(Debug, Clone)]
pub struct History {
    time: Time,
    shown: bool,
    events: Rc<RefCell<Vec<(Duration, Event)>>>,
}

impl History {
    /// Begins with nothing.
    pub fn new(time: &Time) -> Self {
        Self { time: time.clone(), shown: std::env::var_os("SHOAL_TRACE").is_some(), events: Rc::default() }
    }

    /// Notes what happened now.
    pub fn note(&self, event: Event) {
        if self.shown {
            eprintln!("{:>12?} {event:?}", self.time.now());
        }
        self.events.borrow_mut().push((self.time.now(), event));
    }

    /// Returns the events, each with its time.
    pub fn take(&self) -> Vec<(Duration, Event)> {
        std::mem::take(&mut *self.events.borrow_mut())
    }
}

/// Hashes what happened: equal hashes, equal worlds.
pub fn hash(events: &[(Duration, Event)]) -> u64 {
    events.iter().fold(0xcbf2_9ce4_8422_2325, |hash, event| fnv(hash, format!("{event:?}").as_bytes()))
}

/// Goes on with a hash (FNV-1a).
pub fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
