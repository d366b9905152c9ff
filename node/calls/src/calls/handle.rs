//! [`Calls`]: the calls of a node, for everyone who is not their owner.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use shoal_state::model::Shard;
use shoal_state::{CallId, FunctionId, InputId, ObjectId, ShardId, TaskId};
use shoal_storage::log::{Log, Position};
use tokio::sync::{mpsc, oneshot, watch};

use super::away::{Away, Told, explain};
use super::confirm::{Confirmed, Rounds};
use super::driver::{Driver, Event, REQUESTS_WAITING_MAX, Reply};
use super::error::Error;
use super::ground::{Ground, Machine};
use super::info::{CallInfo, InputInfo, Load};
use super::model::{Cancelled, Entry, LeaseRequest, Leased, Lost, NewInput, OpenCall, Outcome, Outputs, PutInput, RetryInput, Status};
use super::options::{Failed, Options};
use super::refused::Refused;
use super::rules::{Answer, Request};
use super::running::Running;
use super::streams::Streams;
use crate::objects::{ObjectAnswer, ObjectRequest};
use crate::shards::Replicas;

/// How much longer than it asked to wait a request waits for its answer: for the queue and the disk.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// How long a node may take to read the records of shards that come home.
const CONFIGURE_DEADLINE: Duration = Duration::from_secs(600);

/// A handle on the calls of a node; clones share it. They end when the last handle is gone.
#[derive(Debug, Clone)]
pub struct Calls {
    events: mpsc::Sender<Event>,
    pub(super) log: Log,
    streams: Streams,
    load: watch::Receiver<Arc<Load>>,
    ended: Arc<OnceLock<String>>,
    /// How many copies records must have, and how many shards at home here have fewer.
    min_copies: usize,
    short: Arc<AtomicUsize>,
    pub(crate) ground: Arc<dyn Ground>,
    pub(super) away: Arc<Away>,
    pub(super) running: Arc<Running>,
    pub(super) rounds: Arc<Rounds>,
}

impl Calls {
    /// Opens the calls in a folder, on a thread of their own. Blocks while the log is read.
    ///
    /// No shard is at home here before [`Self::configure`] says so. `peers` is the way to other nodes; a cluster of one has none.
    pub fn open(options: &Options, peers: Option<Box<dyn Replicas>>) -> Result<Self, Failed> {
        let (calls, owner) = Self::on(options, peers, Arc::new(Machine))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| Failed::System { what, source }
        };
        let runtime = runtime.map_err(failed("make a runtime for calls"))?;
        let run = move || runtime.block_on(owner);
        std::thread::Builder::new().name("calls".to_owned()).spawn(run).map_err(failed("start the thread of calls"))?;
        Ok(calls)
    }

    /// As [`Self::open`], on another ground than the machine's: returns besides what owns the calls, which is to be run.
    pub fn on(
        options: &Options,
        peers: Option<Box<dyn Replicas>>,
        ground: Arc<dyn Ground>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), Failed> {
        let (events, requests) = mpsc::channel(REQUESTS_WAITING_MAX);
        let (told, load) = watch::channel(Arc::default());
        let driver = Driver::open(options, peers, told, ground.clone())?;
        let (log, streams, short) = (driver.log(), driver.streams(), driver.short());
        let ended: Arc<OnceLock<String>> = Arc::default();
        let why = ended.clone();
        let owner = async move {
            let ended = driver.run(requests).await;
            let _ = why.set(match ended {
                Ok(()) => "they were stopped".to_owned(),
                Err(failed) => explain(&failed),
            });
        };
        let (away, running, rounds) = (Arc::new(Away::new(options.node)), Arc::default(), Arc::default());
        let min_copies = options.min_copies;
        Ok((Self { events, log, streams, load, ended, min_copies, short, ground, away, running, rounds }, owner))
    }

    /// Writes and syncs what there is, and ends. Later requests are answered with [`Error::Ended`]. The folder may be opened again
    /// once all handles are gone.
    pub async fn stop(&self) -> Result<(), Error> {
        let (reply, stopped) = oneshot::channel();
        self.send(Event::Stop { reply }).await?;
        self.wait("stop", Duration::ZERO, stopped).await
    }

    /// Waits until the calls have ended, and returns why. The node must then start anew.
    pub async fn ended(&self) -> String {
        self.events.closed().await;
        self.why()
    }

    /// Applies what Raft decided about shards, in order. Older epochs are ignored.
    ///
    /// Inherited inputs of a shard that comes home are held back, see [`Self::reports_complete`].
    pub async fn configure(&self, shards: Vec<(ShardId, Shard)>) -> Result<(), Error> {
        self.away.note(&shards);
        let (reply, done) = oneshot::channel();
        self.send(Event::Configure { shards, reply }).await?;
        self.wait("take the shards over", CONFIGURE_DEADLINE, done).await
    }

    /// Opens a call, unless it is open already.
    pub async fn open_call(&self, open: OpenCall) -> Result<(), Error> {
        self.done("open a call", Request::Open(open)).await
    }

    /// Opens a call and puts its first inputs, in one go. As [`Self::open_call`] and [`Self::put_inputs`].
    pub async fn open_call_with(&self, open: OpenCall, items: Vec<NewInput>, key: &str) -> Result<Vec<PutInput>, Error> {
        let call = open.call;
        if !self.away.is_all_here() && !self.away.opens_with() {
            self.open_call(open).await?;
            return self.put_inputs(call, items, key).await;
        }
        match self.told("open a call", Duration::ZERO, Request::OpenWith { open, items, key: key.to_owned() }).await? {
            Told::Put(put) => Ok(put),
            other => Err(not_expected(other)),
        }
    }

    /// Puts inputs, once for each key: the same key gets the same ids.
    ///
    /// A cancelled call's inputs are [`Status::Terminated`] at once.
    pub async fn put_inputs(&self, call: CallId, items: Vec<NewInput>, key: &str) -> Result<Vec<PutInput>, Error> {
        let request = Request::Put { call, items, key: key.to_owned() };
        match self.told("put inputs", Duration::ZERO, request).await? {
            Told::Put(put) => Ok(put),
            other => Err(not_expected(other)),
        }
    }

    /// Says that no more inputs are put: a reader who has all outputs then need not wait for more.
    pub async fn finish_inputs(&self, call: CallId) -> Result<(), Error> {
        self.done("end the inputs of a call", Request::FinishInputs { call }).await
    }

    /// Lets inputs be tried again, once for each key. Returns each with the number of its current try, in order.
    ///
    /// An earlier output is gone; a task that still works on the earlier try is told not to. A cancelled input stays as it is.
    pub async fn retry_inputs(&self, items: Vec<RetryInput>, key: &str) -> Result<Vec<(InputId, u32)>, Error> {
        let request = Request::Retry { items, key: key.to_owned() };
        match self.told("retry inputs", Duration::ZERO, request).await? {
            Told::Retried(retried) => Ok(retried),
            other => Err(not_expected(other)),
        }
    }

    /// Returns outputs after `after`, at most `max`; waits until there is one, the call is over, or `wait` is over.
    ///
    /// Anyone may read again from any place for as long as the call is kept: 7 days after its last output, or 10 minutes after
    /// a reader who set `clear_on_success` had all of them.
    pub async fn outputs(&self, call: CallId, after: Entry, max: usize, wait: Duration, clear_on_success: bool) -> Result<Outputs, Error> {
        let request = Request::Outputs { call, after, max, wait_ms: millis(wait), clear: clear_on_success, only: None };
        self.poll(request, wait).await
    }

    /// As [`Self::outputs`], of all inputs whose place in the call (`idx`) is in `only`, whatever was read before.
    ///
    /// Waits until there is an output of at least one of them. `clear_on_success` counts for unary calls alone.
    pub async fn outputs_of(
        &self,
        call: CallId,
        only: RangeInclusive<u32>,
        wait: Duration,
        clear_on_success: bool,
    ) -> Result<Outputs, Error> {
        let (after, max, wait_ms) = (Entry::default(), usize::MAX, millis(wait));
        self.poll(Request::Outputs { call, after, max, wait_ms, clear: clear_on_success, only: Some(only) }, wait).await
    }

    async fn poll(&self, request: Request, wait: Duration) -> Result<Outputs, Error> {
        match self.told("read outputs", wait, request).await? {
            Told::Outputs(outputs) => Ok(outputs),
            other => Err(not_expected(other)),
        }
    }

    /// Gives a task inputs to work on: the oldest that wait, at most `max`.
    ///
    /// A repeated key gets the same inputs again, as far as they have no outcome. A lease is not a record: see
    /// [`Self::adopt`].
    pub async fn lease(&self, request: LeaseRequest) -> Result<Leased, Error> {
        let (wait, task, pool) = (Duration::from_millis(request.wait_ms), request.task, request.pool);
        match self.told("lease inputs", wait, Request::Lease(request)).await? {
            Told::Leased(inputs) => {
                self.running.begin(task, pool, &inputs);
                Ok(Leased::Inputs(inputs))
            }
            Told::Stop => Ok(Leased::Stop),
            other => Err(not_expected(other)),
        }
    }

    /// Brings outcomes. Answers when they count; also for those that were dropped, because another was first.
    ///
    /// `from` is the task that brings them, with the pool that it serves; none for the platform itself. A task brings
    /// outcomes of its own pool alone ([`Refused::OfAnotherPool`](super::Refused)). A failure that is tried again makes no
    /// output.
    pub async fn finish(&self, from: Option<(TaskId, FunctionId)>, outcomes: Vec<Outcome>) -> Result<(), Error> {
        let ended: Vec<InputId> = outcomes.iter().map(|outcome| outcome.input).collect();
        self.done("write outcomes", Request::Finish { from, outcomes }).await?;
        if let Some((task, _)) = from {
            self.running.end(task, &ended);
        }
        Ok(())
    }

    /// Says that a task has ended, however. Its inputs go on as `lost` says; the task is told to stop should it ask again.
    ///
    /// Must be called for every task that ever asked for inputs, or it is kept in memory.
    pub async fn task_lost(&self, task: TaskId, pool: FunctionId, lost: Lost) -> Result<(), Error> {
        self.running.ended(task);
        self.done("give up a task", Request::TaskLost { task, pool, lost }).await
    }

    /// Ends all inputs of a pool that no task has, with this status and exactly this result.
    pub async fn fail_pool(&self, pool: FunctionId, status: Status, result: Bytes) -> Result<(), Error> {
        self.done("fail waiting inputs", Request::FailPool { pool, status, result }).await
    }

    /// Cancels a call with all its inputs, also those put later. What waits is [`Status::Terminated`] at once; tasks are told by
    /// [`Self::held_cancels`] what not to go on with, and after a grace it is `Terminated` too.
    pub async fn cancel_call(&self, call: CallId) -> Result<Cancelled, Error> {
        self.cancel(Request::CancelCall { call }).await
    }

    /// Cancels some inputs, as [`Self::cancel_call`] does.
    pub async fn cancel_inputs(&self, inputs: Vec<InputId>) -> Result<Cancelled, Error> {
        self.cancel(Request::CancelInputs { inputs }).await
    }

    /// Cancels all calls of these pools that are not over: for an app that stops. What runs is not told so: its tasks are to
    /// be ended with their app.
    pub async fn cancel_pools(&self, pools: Vec<FunctionId>) -> Result<Cancelled, Error> {
        self.cancel(Request::CancelPools { pools }).await
    }

    async fn cancel(&self, request: Request) -> Result<Cancelled, Error> {
        match self.told("cancel", Duration::ZERO, request).await? {
            Told::Cancelled(cancelled) => Ok(cancelled),
            other => Err(not_expected(other)),
        }
    }

    /// Returns which of its inputs a task should not go on with; waits until there is one or `wait` is over.
    ///
    /// An input is named again by a later request when it has no outcome 10 s after it was named.
    pub async fn held_cancels(&self, task: TaskId, pool: FunctionId, wait: Duration) -> Result<Vec<InputId>, Error> {
        let request = Request::HeldCancels { task, pool, wait_ms: millis(wait) };
        match self.told("wait for cancellations", wait, request).await? {
            Told::HeldCancels(inputs) => Ok(inputs),
            other => Err(not_expected(other)),
        }
    }

    /// Says what a live task runs, after a restart or a move of the shard: each input with the number of its try. What the task
    /// has ended and was not acknowledged yet belongs to it.
    pub async fn adopt(&self, task: TaskId, pool: FunctionId, inputs: Vec<(InputId, u32)>) -> Result<(), Error> {
        self.done("adopt a task", Request::Adopt { task, pool, inputs }).await
    }

    /// Says that every node has reported what its tasks run: the inherited inputs of these shards that nobody runs may be leased.
    pub async fn reports_complete(&self, shards: Vec<ShardId>) -> Result<(), Error> {
        match self.told_here("release inherited inputs", Duration::ZERO, Request::ReportsComplete { shards }).await? {
            Told::Done => Ok(()),
            other => Err(not_expected(other)),
        }
    }

    /// Returns what a call is and how far it has come.
    pub async fn info(&self, call: CallId) -> Result<CallInfo, Error> {
        let mut infos = self.infos(Request::Info { call }).await?;
        infos.pop().ok_or(Error::Refused(Refused::NoCall { call }))
    }

    /// Returns the inputs of a call and where each stands.
    pub async fn inputs(&self, call: CallId) -> Result<Vec<InputInfo>, Error> {
        match self.told("list inputs", Duration::ZERO, Request::Inputs { call }).await? {
            Told::Inputs(inputs) => Ok(inputs),
            other => Err(not_expected(other)),
        }
    }

    /// Returns the call that an input belongs to.
    pub async fn call_of(&self, input: InputId) -> Result<CallInfo, Error> {
        let mut infos = self.infos(Request::CallOf { input }).await?;
        infos.pop().ok_or(Error::Refused(Refused::NoInput { input }))
    }

    /// Returns the calls of a function that are kept here, oldest first.
    pub async fn calls_of(&self, function: FunctionId) -> Result<Vec<CallInfo>, Error> {
        self.infos(Request::CallsOf { function }).await
    }

    /// Returns the calls kept here that an input's code made, oldest first.
    pub async fn children_of(&self, input: InputId) -> Result<Vec<CallInfo>, Error> {
        self.infos(Request::Children { input }).await
    }

    async fn infos(&self, request: Request) -> Result<Vec<CallInfo>, Error> {
        match self.told("look calls up", Duration::ZERO, request).await? {
            Told::Infos(infos) => Ok(infos),
            other => Err(not_expected(other)),
        }
    }

    /// Asks something of a dict or a queue, wherever it is at home.
    pub async fn object(&self, request: ObjectRequest) -> Result<ObjectAnswer, Error> {
        let wait = Duration::from_millis(request.wait_ms());
        match self.told("answer for a dict or a queue", wait, Request::Object(request)).await? {
            Told::Object(answer) => Ok(answer),
            other => Err(not_expected(other)),
        }
    }

    /// Returns the dicts and queues that have anything in the shards that are at home here.
    pub async fn objects_here(&self) -> Result<Vec<ObjectId>, Error> {
        self.objects_of(ObjectRequest::All).await
    }

    /// Returns which of these are at home here and were not used for long: see [`crate::objects::SILENCE_MAX_MS`].
    pub async fn silent_objects(&self, objects: Vec<ObjectId>) -> Result<Vec<ObjectId>, Error> {
        self.objects_of(ObjectRequest::Silent { objects }).await
    }

    async fn objects_of(&self, request: ObjectRequest) -> Result<Vec<ObjectId>, Error> {
        match self.told_here("list dicts and queues", Duration::ZERO, Request::Object(request)).await? {
            Told::Object(ObjectAnswer::Objects(objects)) => Ok(objects),
            other => Err(not_expected(other)),
        }
    }

    /// Returns the data streams of this node; those of a call are removed with it.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Returns a watch of how busy everything is. It changes at once when a pool gets an input and no task waits for one.
    pub fn load(&self) -> watch::Receiver<Arc<Load>> {
        self.load.clone()
    }

    pub(super) async fn done(&self, what: &'static str, request: Request) -> Result<(), Error> {
        match self.told(what, Duration::ZERO, request).await? {
            Told::Done => Ok(()),
            other => Err(not_expected(other)),
        }
    }

    /// Asks the rules of this node, and reads what their answer names.
    pub(super) async fn told_here(&self, what: &'static str, wait: Duration, mut request: Request) -> Result<Told, Error> {
        loop {
            let again = self.confirms().then(|| request.clone());
            let asked = self.ask(request).await?;
            let Reply { answer, witnesses, places } = self.wait(what, wait, asked).await?;
            let told = self.told_of(answer, places).await?;
            let Some(again) = again else { return Ok(told) };
            // Only what changed nothing is asked again.
            match self.confirm(what, &witnesses).await? {
                Confirmed::Yes => return Ok(told),
                Confirmed::Changed => request = again,
            }
        }
    }

    /// Reads what an answer of the rules names.
    async fn told_of(&self, answer: Answer, places: Vec<Position>) -> Result<Told, Error> {
        Ok(match answer {
            Answer::Done => Told::Done,
            Answer::Refused(refused) => Told::Refused(refused),
            Answer::Put(put) => Told::Put(put),
            Answer::Retried(retried) => Told::Retried(retried),
            Answer::Outputs(found) => Told::Outputs(self.read_outputs(found, places).await?),
            Answer::Leased(leased) => Told::Leased(self.read_inputs(leased, places).await?),
            Answer::Stop => Told::Stop,
            Answer::Cancelled(cancelled) => Told::Cancelled(cancelled),
            Answer::HeldCancels(inputs) => Told::HeldCancels(inputs),
            Answer::Infos(infos) => Told::Infos(infos),
            Answer::Inputs(inputs) => Told::Inputs(inputs),
            Answer::Objects { answer, .. } => Told::Object(self.read_objects(answer, places).await?),
        })
    }

    async fn ask(&self, request: Request) -> Result<oneshot::Receiver<Reply>, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Ask { request, reply }).await?;
        Ok(answer)
    }

    pub(super) async fn send(&self, event: Event) -> Result<(), Error> {
        match self.ground.within(ANSWER_DEADLINE, self.events.send(event)).await {
            Some(sent) => sent.map_err(|_| Error::Ended { why: self.why() }),
            None => Err(Error::Late { what: "take a request", waited: ANSWER_DEADLINE }),
        }
    }

    pub(super) async fn wait<T>(&self, what: &'static str, wait: Duration, answer: oneshot::Receiver<T>) -> Result<T, Error> {
        let waited = wait + ANSWER_DEADLINE;
        match self.ground.within(waited, answer).await {
            Some(answer) => answer.map_err(|_| Error::Ended { why: self.why() }),
            None => match self.short.load(Ordering::Relaxed) {
                0 => Err(Error::Late { what, waited }),
                shards => Err(Error::FewCopies { what, waited, shards, required: self.min_copies }),
            },
        }
    }

    fn why(&self) -> String {
        self.ended.get().cloned().unwrap_or_else(|| "they are stopping".to_owned())
    }
}

/// Returns the no that came in place of the expected answer.
fn not_expected(told: Told) -> Error {
    match told {
        Told::Refused(refused) => Error::Refused(refused),
        // Each request has one kind of answer besides a refusal: anything else is a bug of the rules.
        other => unreachable!("the rules gave {other:?} to another kind of request"),
    }
}

pub(super) fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}
