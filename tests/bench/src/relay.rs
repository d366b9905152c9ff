//! The relay: the least that stands between the real client and real entrypoints, in one file.
//!
//! Everything is in memory. There is no log, no state, no placement, no credentials, no limit: an input goes from the call
//! that brings it to the entrypoint that asks next, and its output back to whoever polls. The entrypoints are the client's
//! own, in containers made by the node's engine, as many as the node has. So what a call through a node takes longer than
//! one through the relay is what Shoal adds.
//!
//! A second port leads to the **null** server, which answers outputs itself as soon as it is asked: what a call takes there is
//! the client's own time.
//!
//! Orders come on stdin, one a line. `bare FUNCTION COUNT` runs so many more entrypoints at once, each by a plain `runsc run`,
//! and says how long it took until all have asked for their first input; they are gone then. `keep FUNCTION COUNT` runs some
//! that stay, and answers when all wait. The end of stdin ends everything.
//!
//! Caveats. Calls are never forgotten, inputs that an entrypoint loses are lost, and nobody is asked who they are.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Args;
use parking_lot::Mutex;
use prost::Message as _;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::modal_client_client::ModalClientClient;
use shoal_proto::modal_client::modal_client_server::{ModalClient, ModalClientServer};
use shoal_runtime::{Bind, Container, ContainerSpec, Engine, EngineConfig, NetworkMode};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::server::UdsConnectInfo;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::raw::{self, Program, Raw};
use crate::say;

/// How long a request for inputs is held, as by a node.
const INPUTS_WAIT: Duration = Duration::from_secs(55);
/// How long a heartbeat is held, as by a node.
const HEARTBEAT_HELD: Duration = Duration::from_secs(14);
/// How many inputs of a map may be under way, as by a node.
const INPUTS_OUTSTANDING: u32 = 1000;
/// The largest message, in bytes, as by a node.
const MESSAGE_BYTES_MAX: usize = 110 << 20;
/// How long entrypoints may take to ask for their first input: many at once take each other's cores.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// How many of those that stay are started at a time.
const STARTS_AT_ONCE: usize = 4;
/// What the null server answers: a pickled `None`.
const NONE_PICKLED: &[u8] = b"\x80\x04N.";

/// What the relay serves.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// A JSON file that says what to run and where it comes from.
    #[arg(long)]
    setup: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Setup {
    /// An empty folder to work in.
    work: PathBuf,
    runsc: PathBuf,
    /// The root of entrypoints, a folder.
    folder: PathBuf,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    cwd: String,
    /// Folders that entrypoints see: (here, there).
    binds: Vec<(PathBuf, String)>,
    /// Where an entrypoint finds its arguments and its channel.
    task_dir: String,
    socket: String,
    /// The node that knows the functions, and a token.
    node: String,
    token_id: String,
    token_secret: String,
    app: String,
    functions: Vec<FunctionSetup>,
    /// Control groups for what plain `runsc run`s start.
    #[serde(default)]
    groups: Vec<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
struct FunctionSetup {
    tag: String,
    /// The folder with its arguments.
    dir: PathBuf,
    /// How many entrypoints serve it.
    containers: usize,
}

/// The inputs of one function that wait for an entrypoint.
#[derive(Debug)]
struct Pool {
    waiting: Mutex<VecDeque<pb::FunctionGetInputsItem>>,
    came: Notify,
    /// The processes through which entrypoints have asked.
    known: Mutex<HashSet<i32>>,
    /// One for each entrypoint that has asked for its first input.
    asked: Semaphore,
}

impl Default for Pool {
    fn default() -> Self {
        Self { waiting: Mutex::default(), came: Notify::new(), known: Mutex::default(), asked: Semaphore::new(0) }
    }
}

impl Pool {
    fn put(&self, items: Vec<pb::FunctionGetInputsItem>) {
        let count = items.len();
        self.waiting.lock().extend(items);
        (0..count).for_each(|_| self.came.notify_one());
    }

    /// Counts an entrypoint that asks, the first time it does.
    fn asks(&self, process: i32) {
        if self.known.lock().insert(process) {
            self.asked.add_permits(1);
        }
    }

    /// Waits until so many more entrypoints have asked for their first input.
    async fn all_asked(&self, count: usize) -> anyhow::Result<()> {
        let all = self.asked.acquire_many(u32::try_from(count)?);
        let late = || format!("{count} entrypoints did not all ask for an input within {START_DEADLINE:?}");
        tokio::time::timeout(START_DEADLINE, all).await.with_context(late)??.forget();
        Ok(())
    }

    /// Takes up to `max` inputs: the first when it comes, the others as they come within `linger` after it.
    async fn take_batch(&self, max: usize, linger: Duration) -> Vec<pb::FunctionGetInputsItem> {
        let Some(first) = self.take().await else { return vec![] };
        let (mut taken, until) = (vec![first], tokio::time::Instant::now() + linger);
        loop {
            {
                let mut waiting = self.waiting.lock();
                let more = waiting.len().min(max.saturating_sub(taken.len()));
                taken.extend(waiting.drain(..more));
            }
            if taken.len() >= max || tokio::time::timeout_at(until, self.came.notified()).await.is_err() {
                return taken;
            }
        }
    }

    async fn take(&self) -> Option<pb::FunctionGetInputsItem> {
        let until = tokio::time::Instant::now() + INPUTS_WAIT;
        loop {
            if let Some(item) = self.waiting.lock().pop_front() {
                return Some(item);
            }
            tokio::time::timeout_at(until, self.came.notified()).await.ok()?;
        }
    }
}

/// The outputs of one call.
#[derive(Debug, Default)]
struct Call {
    inputs: AtomicU64,
    outputs: Mutex<Vec<pb::FunctionGetOutputsItem>>,
    came: Notify,
}

impl Call {
    fn put(&self, output: pb::FunctionGetOutputsItem) {
        self.outputs.lock().push(output);
        self.came.notify_waiters();
    }

    /// Returns the outputs after the first `after`, when there are some or the time is over.
    async fn read(&self, after: usize, wait: Duration) -> Vec<pb::FunctionGetOutputsItem> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let mut came = std::pin::pin!(self.came.notified());
            came.as_mut().enable();
            if let Some(fresh) = self.outputs.lock().get(after..).filter(|fresh| !fresh.is_empty()) {
                return fresh.to_vec();
            }
            if tokio::time::timeout_at(until, came).await.is_err() {
                return vec![];
            }
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    functions: HashMap<String, pb::FunctionGetResponse>,
    pools: HashMap<String, Arc<Pool>>,
    calls: Mutex<HashMap<u64, Arc<Call>>>,
    next: AtomicU64,
}

/// One door to the relay: the real one, or the null server's.
#[derive(Clone, Debug)]
struct Relay {
    shared: Arc<Shared>,
    null: bool,
}

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn absent(what: &str, id: &str) -> Status {
    Status::not_found(format!("the relay knows no {what} {id:?}"))
}

/// Ids say where things are: the call's number, and for inputs their place in it.
fn number(id: &str, prefix: &str) -> Result<u64, Status> {
    let digits = id.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| absent("call", id))
}

impl Relay {
    fn call(&self, number: u64) -> Result<Arc<Call>, Status> {
        self.shared.calls.lock().get(&number).cloned().ok_or_else(|| absent("call", &number.to_string()))
    }

    /// Hands inputs to the entrypoints of a function, and says what they are called.
    fn put(
        &self,
        function: &str,
        call: u64,
        invocation: i32,
        inputs: Vec<pb::FunctionPutInputsItem>,
    ) -> Result<Vec<pb::FunctionPutInputsResponseItem>, Status> {
        let (pool, found) = (self.shared.pools.get(function).ok_or_else(|| absent("function", function))?, self.call(call)?);
        found.inputs.fetch_add(inputs.len() as u64, Ordering::Relaxed);
        let name = |idx: i32| format!("in-{call}-{idx}");
        let jwt = |idx: i32| format!("e30.{call}.{idx}");
        let said = inputs.iter().map(|item| pb::FunctionPutInputsResponseItem {
            idx: item.idx,
            input_id: name(item.idx),
            input_jwt: jwt(item.idx),
        });
        let said = said.collect();
        if self.null {
            inputs.into_iter().for_each(|item| found.put(nothing(item.idx, name(item.idx))));
            return Ok(said);
        }
        let item = |item: pb::FunctionPutInputsItem| pb::FunctionGetInputsItem {
            input_id: name(item.idx),
            input: item.input,
            function_call_id: format!("fc-{call}"),
            function_call_invocation_type: invocation,
            function_map_idx: Some(item.idx),
            attempt_token: name(item.idx),
            ..Default::default()
        };
        pool.put(inputs.into_iter().map(item).collect());
        Ok(said)
    }
}

/// The output of the null server.
fn nothing(idx: i32, input_id: String) -> pb::FunctionGetOutputsItem {
    let mut result = pb::GenericResult { status: pb::generic_result::GenericStatus::Success.into(), ..Default::default() };
    result.data_oneof = Some(pb::generic_result::DataOneof::Data(NONE_PICKLED.into()));
    pb::FunctionGetOutputsItem {
        result: Some(result.encode_to_vec().into()),
        idx,
        input_id,
        data_format: pb::DataFormat::Pickle.into(),
        output_created_at: seconds_now(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl ModalClient for Relay {
    async fn client_hello(&self, _: Request<()>) -> Result<Response<pb::ClientHelloResponse>, Status> {
        Ok(Response::new(pb::ClientHelloResponse::default()))
    }

    async fn function_get(&self, request: Request<pb::FunctionGetRequest>) -> Result<Response<pb::FunctionGetResponse>, Status> {
        let tag = request.into_inner().object_tag;
        self.shared.functions.get(&tag).cloned().map(Response::new).ok_or_else(|| absent("function", &tag))
    }

    async fn function_map(&self, request: Request<pb::FunctionMapRequest>) -> Result<Response<pb::FunctionMapResponse>, Status> {
        let request = request.into_inner();
        let call = self.shared.next.fetch_add(1, Ordering::Relaxed);
        self.shared.calls.lock().insert(call, Arc::default());
        let invocation = request.function_call_invocation_type;
        Ok(Response::new(pb::FunctionMapResponse {
            function_call_id: format!("fc-{call}"),
            pipelined_inputs: self.put(&request.function_id, call, invocation, request.pipelined_inputs)?,
            retry_policy: Some(pb::FunctionRetryPolicy::default()),
            function_call_jwt: format!("e30.{call}.-"),
            sync_client_retries_enabled: false,
            max_inputs_outstanding: INPUTS_OUTSTANDING,
        }))
    }

    async fn function_put_inputs(
        &self,
        request: Request<pb::FunctionPutInputsRequest>,
    ) -> Result<Response<pb::FunctionPutInputsResponse>, Status> {
        let request = request.into_inner();
        let call = number(&request.function_call_id, "fc-")?;
        let invocation = pb::FunctionCallInvocationType::Sync.into();
        Ok(Response::new(pb::FunctionPutInputsResponse { inputs: self.put(&request.function_id, call, invocation, request.inputs)? }))
    }

    async fn function_finish_inputs(&self, _: Request<pb::FunctionFinishInputsRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn function_get_outputs(
        &self,
        request: Request<pb::FunctionGetOutputsRequest>,
    ) -> Result<Response<pb::FunctionGetOutputsResponse>, Status> {
        let request = request.into_inner();
        let call = self.call(number(&request.function_call_id, "fc-")?)?;
        let after = request.last_entry_id.split('-').next().and_then(|place| place.parse().ok()).unwrap_or(0);
        let outputs = call.read(after, Duration::from_secs_f32(request.timeout.clamp(0.0, 55.0))).await;
        let finished = call.outputs.lock().len() as u64;
        Ok(Response::new(pb::FunctionGetOutputsResponse {
            idxs: outputs.iter().map(|output| output.idx).collect(),
            last_entry_id: format!("{}-0", after + outputs.len()),
            num_unfinished_inputs: i32::try_from(call.inputs.load(Ordering::Relaxed).saturating_sub(finished)).unwrap_or(i32::MAX),
            outputs,
        }))
    }

    async fn container_hello(&self, _: Request<()>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn container_heartbeat(
        &self,
        _: Request<pb::ContainerHeartbeatRequest>,
    ) -> Result<Response<pb::ContainerHeartbeatResponse>, Status> {
        tokio::time::sleep(HEARTBEAT_HELD).await;
        Ok(Response::new(pb::ContainerHeartbeatResponse::default()))
    }

    async fn container_log(&self, _: Request<pb::ContainerLogRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn task_result(&self, request: Request<pb::TaskResultRequest>) -> Result<Response<()>, Status> {
        let result = pb::GenericResult::decode(request.into_inner().result.unwrap_or_default()).unwrap_or_default();
        eprintln!("an entrypoint behind the relay ended: {}", result.exception);
        Ok(Response::new(()))
    }

    async fn function_get_inputs(
        &self,
        request: Request<pb::FunctionGetInputsRequest>,
    ) -> Result<Response<pb::FunctionGetInputsResponse>, Status> {
        let through = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred?.pid());
        let request = request.into_inner();
        let (id, max) = (request.function_id, usize::try_from(request.batch_max_size).unwrap_or_default().max(1));
        let pool = self.shared.pools.get(&id).ok_or_else(|| absent("function", &id))?;
        pool.asks(through.unwrap_or_default());
        let inputs = pool.take_batch(max, Duration::from_millis(request.batch_linger_ms)).await;
        Ok(Response::new(pb::FunctionGetInputsResponse { inputs, ..Default::default() }))
    }

    async fn function_put_outputs(&self, request: Request<pb::FunctionPutOutputsRequest>) -> Result<Response<()>, Status> {
        for output in request.into_inner().outputs {
            let call = self.call(number(&output.input_id, "in-")?)?;
            let place = output.input_id.rsplit('-').next().and_then(|place| place.parse().ok());
            call.put(pb::FunctionGetOutputsItem {
                idx: place.unwrap_or_default(),
                input_id: output.input_id,
                result: output.result,
                data_format: output.data_format,
                input_started_at: output.input_started_at,
                output_created_at: output.output_created_at,
                retry_count: output.retry_count,
                ..Default::default()
            });
        }
        Ok(Response::new(()))
    }
}

/// The functions as the node describes them to clients, by tag.
async fn described(setup: &Setup) -> anyhow::Result<HashMap<String, pb::FunctionGetResponse>> {
    let channel: Channel = Endpoint::from_shared(setup.node.clone())?.connect().await.context("cannot reach the node")?;
    let mut node = ModalClientClient::new(channel);
    let mut found = HashMap::new();
    for function in &setup.functions {
        let wanted = pb::FunctionGetRequest { app_name: setup.app.clone(), object_tag: function.tag.clone(), ..Default::default() };
        let mut request = Request::new(wanted);
        for (name, value) in [("x-modal-token-id", &setup.token_id), ("x-modal-token-secret", &setup.token_secret)] {
            request.metadata_mut().insert(name, value.parse().context("a token that cannot be sent")?);
        }
        let answer = node.function_get(request).await.with_context(|| format!("cannot look up function {}", function.tag))?;
        found.insert(function.tag.clone(), answer.into_inner());
    }
    Ok(found)
}

fn service(relay: Relay) -> ModalClientServer<Relay> {
    ModalClientServer::new(relay).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn server() -> Server {
    Server::builder().initial_stream_window_size(4 << 20).initial_connection_window_size(16 << 20).tcp_nodelay(true)
}

/// Answers clients on a port of this machine, and says which.
async fn serve_clients(relay: Relay) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen")?;
    let port = listener.local_addr()?.port();
    // tonic sets what concerns sockets only on those that it accepts itself.
    let incoming = tokio_stream::StreamExt::map(TcpListenerStream::new(listener), |stream| {
        stream.inspect(|stream| {
            let _ = stream.set_nodelay(true);
        })
    });
    tokio::spawn(server().add_service(service(relay)).serve_with_incoming(incoming));
    Ok(port)
}

fn serve_entrypoints(relay: Relay, socket: &Path) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    tokio::spawn(server().add_service(service(relay)).serve_with_incoming(UnixListenerStream::new(listener)));
    Ok(())
}

/// Starts an entrypoint as a node does, but for the root, which is a folder.
async fn start(setup: &Setup, engine: &Engine, function: &FunctionSetup) -> anyhow::Result<Container> {
    let mut spec = ContainerSpec::new(&setup.folder, setup.argv.iter().cloned());
    spec.env.clone_from(&setup.env);
    spec.cwd.clone_from(&setup.cwd);
    spec.network = NetworkMode::Nat;
    spec.binds = binds(setup, function).into_iter().map(|(source, target)| Bind { source, target, read_only: false }).collect();
    let container = engine.create(spec).await.context("cannot create an entrypoint's container")?;
    let stdio = container.take_stdio().context("a container without pipes")?;
    for pipe in [stdio.stdout, stdio.stderr] {
        std::thread::spawn(move || std::io::copy(&mut std::fs::File::from(pipe), &mut std::io::stderr()));
    }
    container.start().await.context("cannot start an entrypoint")?;
    Ok(container)
}

fn binds(setup: &Setup, function: &FunctionSetup) -> Vec<(PathBuf, String)> {
    let own = (function.dir.clone(), setup.task_dir.clone());
    setup.binds.iter().cloned().chain([own]).collect()
}

/// An entrypoint by a plain `runsc run`. Ended by [`Bare::end`].
struct Bare {
    container: raw::Container,
    process: Child,
}

impl Bare {
    /// Takes it down. Blocks.
    fn end(mut self) -> anyhow::Result<()> {
        drop(self.container);
        self.process.wait().context("cannot wait for runsc")?;
        Ok(())
    }
}

fn run_bare(setup: &Setup, raw: &mut Raw, function: &FunctionSetup) -> anyhow::Result<Bare> {
    let program = Program {
        root: setup.folder.clone(),
        argv: setup.argv.clone(),
        env: setup.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: setup.cwd.clone(),
        binds: binds(setup, function),
    };
    let container = raw.prepare(&program)?;
    let process = container.run(Stdio::null(), Stdio::inherit())?;
    Ok(Bare { container, process })
}

/// Runs entrypoints at once and measures until each has asked for its first input.
async fn bare(setup: &Setup, raw: &mut Raw, pool: &Pool, function: &FunctionSetup, count: usize) -> anyhow::Result<Duration> {
    // Other processes may have the numbers of earlier ones.
    pool.known.lock().clear();
    let began = Instant::now();
    let runs: Vec<Bare> = (0..count).map(|_| run_bare(setup, raw, function)).collect::<anyhow::Result<_>>()?;
    let asked = pool.all_asked(count).await;
    let taken = began.elapsed();
    end_all(runs)?;
    asked.map(|()| taken)
}

/// Runs entrypoints, some at a time, that stay.
async fn keep(
    setup: &Setup,
    raw: &mut Raw,
    pool: &Pool,
    function: &FunctionSetup,
    count: usize,
    kept: &mut Vec<Bare>,
) -> anyhow::Result<()> {
    for begun in (0..count).step_by(STARTS_AT_ONCE) {
        let some = STARTS_AT_ONCE.min(count - begun);
        for _ in 0..some {
            kept.push(run_bare(setup, raw, function)?);
        }
        pool.all_asked(some).await?;
    }
    Ok(())
}

fn end_all(runs: Vec<Bare>) -> anyhow::Result<()> {
    tokio::task::block_in_place(|| runs.into_iter().try_for_each(Bare::end))
}

/// Hands on the lines of stdin, which a thread reads.
fn orders() -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel(8);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receive
}

/// Serves until stdin ends.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let text = std::fs::read(&options.setup).with_context(|| format!("cannot read {}", options.setup.display()))?;
    let setup: Setup = serde_json::from_slice(&text).with_context(|| format!("cannot read {}", options.setup.display()))?;
    let functions = described(&setup).await?;
    let pools = functions.values().map(|function| (function.function_id.clone(), Arc::default())).collect();
    let relay = Relay { shared: Arc::new(Shared { functions, pools, ..Default::default() }), null: false };
    let engine = EngineConfig { runsc: setup.runsc.clone(), ..EngineConfig::new(setup.work.join("engine")) };
    let engine = Engine::open(engine).await.context("cannot open an engine")?;
    let served = serve(&setup, &relay, &engine).await;
    engine.close().await.context("cannot close the engine")?;
    served
}

async fn serve(setup: &Setup, relay: &Relay, engine: &Engine) -> anyhow::Result<()> {
    let mut orders = orders();
    let mut containers = Vec::new();
    for function in &setup.functions {
        serve_entrypoints(relay.clone(), &function.dir.join(&setup.socket))?;
        for _ in 0..function.containers {
            containers.push(start(setup, engine, function).await?);
            pool_of(relay, &function.tag)?.all_asked(1).await.with_context(|| format!("function {}", function.tag))?;
        }
    }
    let null = Relay { null: true, ..relay.clone() };
    say(&json!({"relay": serve_clients(relay.clone()).await?, "null": serve_clients(null).await?}));
    let mut raw = Raw::new(&setup.runsc, &setup.work.join("raw"), &setup.groups)?;
    let mut kept = Vec::new();
    while let Some(order) = orders.recv().await {
        let found = obey(&order, setup, relay, &mut raw, &mut kept).await;
        if found.is_err() {
            // Nothing may be left running.
            end_all(std::mem::take(&mut kept))?;
        }
        say(&found?);
    }
    end_all(kept)?;
    for container in containers {
        container.destroy().await.context("cannot take an entrypoint down")?;
    }
    Ok(())
}

async fn obey(order: &str, setup: &Setup, relay: &Relay, raw: &mut Raw, kept: &mut Vec<Bare>) -> anyhow::Result<Value> {
    let words: Vec<&str> = order.split(' ').collect();
    let [what, tag, count] = words[..] else { bail!("{order:?} is not an order") };
    let function = setup.functions.iter().find(|function| function.tag == tag).with_context(|| format!("no function {tag:?}"))?;
    let (pool, count) = (pool_of(relay, tag)?, count.parse().with_context(|| format!("{count:?} is no number"))?);
    match what {
        "bare" => {
            let taken = bare(setup, raw, &pool, function, count).await?;
            Ok(json!({"ms": taken.as_secs_f64() * 1000.0}))
        }
        "keep" => {
            keep(setup, raw, &pool, function, count, kept).await?;
            Ok(json!({}))
        }
        _ => bail!("{order:?} is not an order"),
    }
}

fn pool_of(relay: &Relay, tag: &str) -> anyhow::Result<Arc<Pool>> {
    let id = relay.shared.functions.get(tag).map(|function| &function.function_id);
    id.and_then(|id| relay.shared.pools.get(id)).cloned().with_context(|| format!("no function {tag:?}"))
}
