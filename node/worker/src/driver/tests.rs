//! The driver, with containers that are played by this test. What they do is the name of their program.

use std::io::{PipeWriter, Write, pipe};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use shoal_runtime::{Container, ContainerId, ContainerSpec, Error, Exit, ExitStatus, Result, Stdio};
use shoal_state::imbl::OrdMap;
use shoal_state::model::{App, AppState, Environment, Task, TaskEnd};
use shoal_state::{AppId, BootId, CallId, Command, EnvironmentId, FunctionId, InputId, NodeId, State, TaskId, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::{Config, ContainerPlan, Driver, Ended, Engines, Failure, Phase, Provider, Running};
use crate::log::{Filter, LogStore, Stream};

const SOON: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_millis(900);
const HELLO_WAIT: Duration = Duration::from_millis(900);

fn node() -> NodeId {
    NodeId::from_random(1)
}

fn app() -> AppId {
    AppId::from_random(1)
}

fn ta(number: u128) -> TaskId {
    TaskId::from_random(number)
}

/// A container that is played.
struct Played {
    stdio: Mutex<Option<Stdio>>,
    stdout: Mutex<Option<PipeWriter>>,
    stderr: Mutex<Option<PipeWriter>>,
    exit: watch::Sender<Option<Exit>>,
    program: String,
    destroyed: Arc<Mutex<Vec<String>>>,
}

impl Played {
    fn print(&self, text: &str) {
        self.stdout.lock().as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn end(&self, status: ExitStatus, oom: bool) {
        drop((self.stdout.lock().take(), self.stderr.lock().take()));
        self.exit.send_if_modified(|exit| exit.replace(Exit { status, oom, disk: None }).is_none());
    }
}

impl Running for Played {
    fn readers(&self) -> Vec<u32> {
        vec![7, 8]
    }

    fn take_stdio(&self) -> Option<Stdio> {
        self.stdio.lock().take()
    }

    fn start(&self) -> BoxFuture<'_, Result<()>> {
        match self.program.as_str() {
            "prints" => {
                self.print("hello\n");
                self.stderr.lock().as_mut().unwrap().write_all(b"half a li").unwrap();
                self.end(ExitStatus::Code(0), false);
            }
            "progresses" => {
                let mut out = self.stdout.lock().as_ref().unwrap().try_clone().unwrap();
                // Until nobody reads any more.
                std::thread::spawn(move || {
                    while out.write_all(b"\r50 %").is_ok() {
                        std::thread::sleep(Duration::from_millis(3));
                    }
                });
            }
            "eats" => self.end(ExitStatus::Signal(9), true),
            "panics" => panic!("on purpose"),
            _ => {}
        }
        async { Ok(()) }.boxed()
    }

    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<()>> {
        assert_eq!(signal, libc::SIGINT);
        if self.program != "stubborn" {
            self.print("bye\n");
            self.end(ExitStatus::Code(0), false);
        }
        async { Ok(()) }.boxed()
    }

    fn exit(&self) -> BoxFuture<'_, Result<Exit>> {
        let mut exit = self.exit.subscribe();
        async move { Ok(exit.wait_for(Option::is_some).await.unwrap().unwrap()) }.boxed()
    }

    fn kill(&self) -> BoxFuture<'_, Result<Exit>> {
        self.end(ExitStatus::Signal(9), false);
        self.exit()
    }

    fn destroy(&self) -> BoxFuture<'_, Result<()>> {
        drop((self.stdout.lock().take(), self.stderr.lock().take()));
        self.destroyed.lock().push(self.program.clone());
        async { Ok(()) }.boxed()
    }

    fn container(self: Arc<Self>) -> Option<Arc<Container>> {
        None
    }
}

/// The node, the engine and the cluster in one.
struct World {
    state: watch::Sender<State>,
    made: Mutex<Vec<Arc<Played>>>,
    ends: mpsc::UnboundedSender<(TaskId, Ended)>,
    destroyed: Arc<Mutex<Vec<String>>>,
    startup_timeout: Option<Duration>,
    report_failures: Mutex<u32>,
    /// Whose reads were to wait how long.
    hurried: Mutex<Vec<(Vec<u32>, Duration)>>,
}

struct Stage(Arc<World>);

impl Engines for Stage {
    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<Arc<dyn Running>>> {
        async move {
            let program = spec.argv[0].clone();
            if program == "impossible" {
                let path = "/image".into();
                return Err(Error::File { action: "open", path, source: std::io::ErrorKind::NotFound.into() });
            }
            let ((stdout, out), (stderr, err)) = (pipe().unwrap(), pipe().unwrap());
            let stdio = Stdio { stdin: None, stdout: OwnedFd::from(stdout), stderr: OwnedFd::from(stderr) };
            let (stdio, stdout, stderr) = (Mutex::new(Some(stdio)), Mutex::new(Some(out)), Mutex::new(Some(err)));
            let exit = watch::Sender::new(None);
            let played = Arc::new(Played { stdio, stdout, stderr, exit, program, destroyed: self.0.destroyed.clone() });
            self.0.made.lock().push(played.clone());
            let running: Arc<dyn Running> = played;
            Ok(running)
        }
        .boxed()
    }
}

impl Provider for Stage {
    fn prepare(&self, _: TaskId, task: Task) -> BoxFuture<'_, std::result::Result<ContainerPlan, Failure>> {
        async move {
            let program = ["waits", "prints", "stubborn", "eats", "panics", "impossible", "unknown image", "slow image", "progresses"]
                [usize::try_from(task.function.bits()).unwrap()];
            match program {
                "unknown image" => return Err("image im-1 is missing".into()),
                "slow image" => std::future::pending().await,
                _ => {}
            }
            let spec = ContainerSpec::new("/", [program]);
            Ok(ContainerPlan { startup_timeout: self.0.startup_timeout, ..ContainerPlan::new(spec) })
        }
        .boxed()
    }

    fn ended(&self, id: TaskId, generation: u64, end: Ended) -> BoxFuture<'_, std::result::Result<(), Failure>> {
        async move {
            let mut failures = self.0.report_failures.lock();
            if *failures > 0 {
                *failures -= 1;
                return Err("no leader".into());
            }
            let command = Command::EndTask { id, generation, end: TaskEnd { at: Timestamp(0), how: end.how.clone() } };
            self.0.ends.send((id, end)).unwrap();
            self.0.state.send_modify(|state| drop(state.apply(&command)));
            Ok(())
        }
        .boxed()
    }

    fn is_to_end(&self, readers: &[u32], patience: Duration) {
        self.0.hurried.lock().push((readers.to_vec(), patience));
    }
}

const WAITS: u128 = 0;
const PRINTS: u128 = 1;
const STUBBORN: u128 = 2;
const EATS: u128 = 3;
const PANICS: u128 = 4;
const IMPOSSIBLE: u128 = 5;
const UNKNOWN_IMAGE: u128 = 6;
const SLOW_IMAGE: u128 = 7;
const PROGRESSES: u128 = 8;

struct Test {
    world: Arc<World>,
    driver: Driver,
    ends: mpsc::UnboundedReceiver<(TaskId, Ended)>,
    logs: LogStore,
    _dir: tempfile::TempDir,
}

impl Test {
    fn new() -> Self {
        Self::with(None, State::default())
    }

    fn with(startup_timeout: Option<Duration>, mut state: State) -> Self {
        // An app goes with its environment, so there is one.
        let environment = Environment::new(EnvironmentId::from_random(1), "main", Timestamp(0));
        let record = App::new(environment.id, AppState::Ephemeral, Timestamp(0));
        state.environments = OrdMap::unit(environment.id, environment);
        state.apps = OrdMap::unit(app(), record);
        let dir = tempfile::tempdir().unwrap();
        let logs = LogStore::open(dir.path()).unwrap();
        let (ends, received) = mpsc::unbounded_channel();
        let state = watch::Sender::new(state);
        let (made, destroyed, report_failures, hurried) = Default::default();
        let world = Arc::new(World { state, made, ends, destroyed, startup_timeout, report_failures, hurried });
        let config =
            Config { grace: GRACE, grace_app_stopped: GRACE / 3, hello_wait: HELLO_WAIT, ..Config::new(node(), BootId::from_random(1)) };
        let seen = world.clone();
        let driver = Driver::start(
            config,
            move || Arc::new(seen.state.borrow().clone()),
            world.state.subscribe(),
            Arc::new(Stage(world.clone())),
            Arc::new(Stage(world.clone())),
            logs.clone(),
        );
        Self { world, driver, ends: received, logs, _dir: dir }
    }

    fn assign(&self, number: u128, program: u128) {
        self.world.state.send_modify(|state| drop(state.tasks.insert(ta(number), task(program, 1))));
    }

    fn apply(&self, command: Command) {
        self.world.state.send_modify(|state| drop(state.apply(&command).unwrap()));
    }

    async fn until_phase(&self, number: u128, phase: Phase) {
        let mut statuses = self.driver.handle.statuses.clone();
        let reached = statuses.wait_for(|all| all.get(&ta(number)).is_some_and(|status| status.phase == phase));
        timeout(SOON, reached).await.unwrap().unwrap();
    }

    async fn end(&mut self) -> (TaskId, String) {
        let (task, end) = timeout(SOON, self.ends.recv()).await.unwrap().unwrap();
        (task, end.how)
    }

    fn printed(&self) -> Vec<(Stream, String)> {
        let batch = self.logs.fetch(&Filter::app(app()), 100).unwrap();
        batch.entries.into_iter().map(|entry| (entry.stream, entry.data)).collect()
    }
}

fn task(program: u128, boot: u128) -> Task {
    Task::new((FunctionId::from_random(program), app()), (node(), BootId::from_random(boot)), Timestamp(0))
}

#[tokio::test]
async fn a_container_lives_prints_and_ends_and_all_it_printed_is_there_before_its_end_is_reported() {
    let mut test = Test::new();
    test.assign(1, PRINTS);
    let (task, end) = timeout(SOON, test.ends.recv()).await.unwrap().unwrap();
    assert_eq!((task, end.how.as_str(), end.exit.unwrap().success()), (ta(1), "exit code 0", true));
    let mut printed = test.printed();
    printed.sort();
    assert_eq!(printed, [(Stream::Stdout, "hello\n".into()), (Stream::Stderr, "half a li".into())]);
    let phases: Vec<Phase> = end.phases.iter().map(|time| time.phase).collect();
    assert_eq!(phases, [Phase::Preparing, Phase::Creating, Phase::Starting, Phase::Loading, Phase::Draining, Phase::Ended]);
    assert_eq!(*test.world.destroyed.lock(), ["prints"]);
    test.driver.handle().wait_until_app_gone(app(), SOON).await.unwrap();
    assert_eq!(test.world.made.lock().len(), 1, "made once");
}

#[tokio::test]
async fn a_line_that_never_ends_is_seen_while_it_goes_on() {
    let test = Test::new();
    test.assign(1, PROGRESSES);
    let seen = async {
        while test.printed().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, seen).await.expect("a progress bar that moves on is shown");
    assert!(test.printed()[0].1.starts_with("\r50 %"), "{:?}", test.printed());
}

#[tokio::test]
async fn a_task_that_is_to_stop_gets_its_signal_and_what_ignores_it_is_killed_after_the_grace() {
    let mut test = Test::new();
    test.assign(1, WAITS);
    test.until_phase(1, Phase::Loading).await;
    test.driver.handle().ready(ta(1)).await;
    test.until_phase(1, Phase::Ready).await;
    test.apply(Command::StopTask { id: ta(1), why: "idle for 60 s".into() });
    assert_eq!(test.end().await, (ta(1), "stopped: idle for 60 s".into()));
    assert_eq!(test.printed(), [(Stream::Stdout, "bye\n".into())], "an ordinary stop says nothing to the user");

    test.assign(2, STUBBORN);
    test.until_phase(2, Phase::Loading).await;
    test.apply(Command::StopTask { id: ta(2), why: "idle".into() });
    test.until_phase(2, Phase::Stopping).await;
    let early = test.driver.handle().wait_until_app_gone(app(), Duration::ZERO).await.unwrap_err();
    assert_eq!(early.tasks, [(ta(2), Phase::Stopping)]);
    test.world.hurried.lock().clear();
    assert_eq!(test.end().await, (ta(2), "killed: it did not stop within 0.9 s (idle)".into()));
    assert_eq!(test.world.hurried.lock()[..1], [(vec![7, 8], Duration::ZERO)], "a killed container waits for none of its files");
}

#[tokio::test]
async fn a_container_that_is_to_stop_waits_for_its_files_no_longer_than_its_hooks_may_need() {
    let mut test = Test::new();
    test.assign(1, WAITS);
    test.until_phase(1, Phase::Loading).await;
    assert!(test.world.hurried.lock().is_empty());
    test.apply(Command::StopTask { id: ta(1), why: "idle".into() });
    test.end().await;
    assert_eq!(test.world.hurried.lock()[0], (vec![7, 8], super::life::ENDING_READ_WAIT));
}

#[tokio::test]
async fn a_stopped_app_shortens_the_grace_of_a_container_that_stops_already() {
    let mut test = Test::new();
    test.assign(1, STUBBORN);
    test.until_phase(1, Phase::Loading).await;
    test.apply(Command::StopTask { id: ta(1), why: "idle".into() });
    test.until_phase(1, Phase::Stopping).await;
    test.apply(Command::StopApp { id: app(), at: Timestamp(1), why: "by user".into() });
    let (_, how) = test.end().await;
    assert_eq!(how, "killed: it did not stop within 0.3 s (idle)");
}

#[tokio::test]
async fn what_cannot_run_ends_with_a_sentence_that_the_user_sees() {
    let table = [
        (UNKNOWN_IMAGE, "cannot prepare the container: image im-1 is missing"),
        (IMPOSSIBLE, "cannot create the container: cannot open /image: entity not found"),
        (EATS, "killed: out of memory"),
    ];
    for (program, how) in table {
        let mut test = Test::new();
        test.assign(1, program);
        assert_eq!(test.end().await, (ta(1), how.into()));
        assert_eq!(test.printed(), [(Stream::System, format!("[container ended: {how}]\n"))]);
    }
    let mut test = Test::new();
    test.assign(1, PANICS);
    assert_eq!(test.end().await.1, "the node failed to take care of the container");
}

#[tokio::test]
async fn a_program_that_does_not_ask_for_inputs_in_time_is_killed() {
    let mut test = Test::with(Some(Duration::from_millis(50)), State::default());
    test.assign(1, WAITS);
    test.until_phase(1, Phase::Loading).await;
    test.driver.handle.hello(ta(1)).await;
    assert_eq!(test.end().await.1, "killed: it did not start within 0.05 s");
    // One that never says hello had the time for that besides.
    test.assign(2, WAITS);
    assert_eq!(test.end().await.1, "killed: it did not start within 0.95 s");
}

#[tokio::test]
async fn orders_reach_a_task_in_every_phase() {
    let mut test = Test::new();
    test.assign(1, SLOW_IMAGE);
    test.until_phase(1, Phase::Preparing).await;
    test.apply(Command::StopTask { id: ta(1), why: "app stopped".into() });
    assert_eq!(test.end().await.1, "stopped before it started: app stopped");

    test.assign(2, WAITS);
    test.until_phase(2, Phase::Loading).await;
    test.driver.handle().kill(ta(2), "an input ran longer than 1 s").await;
    assert_eq!(test.end().await.1, "killed: an input ran longer than 1 s");
}

#[tokio::test]
async fn tasks_of_an_earlier_start_end_and_reports_are_tried_again() {
    let mut state = State::default();
    state.tasks.insert(ta(1), task(WAITS, 99));
    let mut stopping = task(WAITS, 1);
    stopping.stopping = Some("idle".into());
    state.tasks.insert(ta(2), stopping);
    let mut test = Test::with(None, state);
    *test.world.report_failures.lock() = 1;
    let mut ends = [test.end().await, test.end().await];
    ends.sort();
    assert_eq!(ends, [(ta(1), "node restarted".into()), (ta(2), "stopped before it started: idle".into())]);
    assert!(test.world.made.lock().is_empty());
}

#[tokio::test]
async fn a_container_whose_task_is_gone_is_killed_and_its_place_is_free() {
    let mut test = Test::new();
    test.assign(1, WAITS);
    test.until_phase(1, Phase::Loading).await;
    test.apply(Command::EndTask { id: ta(1), generation: 1, end: TaskEnd { at: Timestamp(1), how: String::new() } });
    assert_eq!(test.end().await.1, "killed: the cluster no longer knows the task");
    let mut statuses = test.driver.handle.statuses.clone();
    timeout(SOON, statuses.wait_for(|all| all.is_empty())).await.unwrap().unwrap();
}

#[tokio::test]
async fn lines_carry_the_input_that_the_task_has() {
    let test = Test::new();
    test.assign(1, WAITS);
    test.until_phase(1, Phase::Loading).await;
    let (input, call) = (InputId::from_random(5), CallId::from_random(6));
    let played = test.world.made.lock()[0].clone();
    let begin = test.logs.end();
    test.driver.handle().set_input(ta(1), Some((input, call)));
    played.print("for the input\n");
    let batch = test.logs.follow(&Filter::default(), begin, SOON).await.unwrap();
    assert_eq!((batch.entries[0].input, batch.entries[0].call), (Some(input), Some(call)));
    test.driver.handle().set_input(ta(1), None);
    played.print("prompt> ");
    let batch = test.logs.follow(&Filter::default(), batch.cursor, SOON).await.unwrap();
    assert_eq!((batch.entries[0].input, batch.entries[0].data.as_str()), (None, "prompt> "), "an unfinished line is shown soon");
}

#[tokio::test]
async fn a_shutdown_stops_all_and_starts_nothing() {
    let mut test = Test::new();
    test.assign(1, WAITS);
    test.until_phase(1, Phase::Loading).await;
    timeout(SOON, test.driver.handle().shutdown(GRACE)).await.unwrap();
    assert_eq!(test.end().await.1, "stopped: the node stops");
    assert!(test.driver.handle().containers().is_empty());
    test.assign(2, WAITS);
    test.driver.handle().kill(ta(9), "a request that is answered after the assignment was seen").await;
    assert!(test.driver.handle().engine_container(ta(2)).await.is_none());
    assert_eq!(test.world.made.lock().len(), 1);
}

/// The node and the cluster, with containers that are real.
struct Real(Arc<World>, fn() -> ContainerSpec);

impl Provider for Real {
    fn prepare(&self, _: TaskId, _: Task) -> BoxFuture<'_, std::result::Result<ContainerPlan, Failure>> {
        async move { Ok(ContainerPlan::new((self.1)())) }.boxed()
    }

    fn ended(&self, id: TaskId, generation: u64, end: Ended) -> BoxFuture<'_, std::result::Result<(), Failure>> {
        async move { Stage(self.0.clone()).ended(id, generation, end).await }.boxed()
    }
}

/// Begins a test with gVisor. Needs root and the pinned runsc; none where they are not there.
async fn real(spec: fn() -> ContainerSpec) -> Option<(Test, tempfile::TempDir)> {
    let dir = tempfile::tempdir().unwrap();
    let config = shoal_runtime::EngineConfig { network: None, ..shoal_runtime::EngineConfig::new(dir.path().join("engine")) };
    let engine = match shoal_runtime::Engine::open(config).await {
        Ok(engine) => engine,
        Err(reason) => {
            println!("skipped: no engine here: {reason}");
            return None;
        }
    };
    let mut test = Test::new();
    let world = test.world.clone();
    test.driver = Driver::start(
        Config::new(node(), BootId::from_random(1)),
        move || Arc::new(world.state.borrow().clone()),
        test.world.state.subscribe(),
        Arc::new(engine),
        Arc::new(Real(test.world.clone(), spec)),
        test.logs.clone(),
    );
    Some((test, dir))
}

/// The whole way with gVisor.
#[tokio::test]
async fn a_real_container_prints_stops_by_its_signal_and_leaves_nothing() {
    let script =
        || ContainerSpec::new("/", ["/bin/sh", "-c", "trap 'echo hooks ran; exit 0' INT; echo started; while :; do sleep 0.05; done"]);
    let Some((mut test, _dir)) = real(script).await else { return };
    test.assign(1, WAITS);
    let batch = test.logs.follow(&Filter::app(app()), crate::log::Cursor::START, SOON).await.unwrap();
    assert_eq!(batch.entries.first().map(|entry| entry.data.as_str()), Some("started\n"));
    let container: Arc<Container> = test.driver.handle().engine_container(ta(1)).await.unwrap();
    let _: ContainerId = container.id();
    drop(container);
    assert!(test.driver.handle().keyboard(ta(1)).await.is_none(), "it has no terminal");
    test.apply(Command::StopTask { id: ta(1), why: "idle".into() });
    assert_eq!(test.end().await.1, "stopped: idle");
    assert_eq!(test.printed().last().map(|(_, text)| text.as_str()), Some("hooks ran\n"));
}

#[tokio::test]
async fn who_types_into_the_terminal_of_a_real_container_is_read_and_echoed_and_signals_it() {
    let script = || {
        let script = "trap 'echo was interrupted; exit 3' INT; stty size; echo ready; read line; echo \"read <$line>\"; while :; do sleep 0.05; done";
        let size = shoal_runtime::TerminalSize { rows: 33, columns: 101 };
        ContainerSpec { terminal: Some(size), ..ContainerSpec::new("/", ["/bin/sh", "-c", script]) }
    };
    let Some((mut test, _dir)) = real(script).await else { return };
    let shown = async |test: &Test, text: &str| {
        let seen = async {
            while !test.printed().iter().map(|(_, data)| data.as_str()).collect::<String>().contains(text) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(SOON, seen).await.is_ok(), "{text:?} in {:?}", test.printed());
    };
    test.assign(1, WAITS);
    shown(&test, "33 101\r\nready\r\n").await;
    let keyboard = test.driver.handle().keyboard(ta(1)).await.unwrap();
    keyboard.put(1, b"wor".to_vec(), false).await.unwrap();
    keyboard.put(1, b"wor".to_vec(), false).await.unwrap();
    keyboard.put(2, b"ds\r".to_vec(), false).await.unwrap();
    shown(&test, "words\r\nread <words>\r\n").await;
    keyboard.connect();
    keyboard.connect();
    let asked = test.logs.fetch(&super::Keyboard::asked_in(app()), 100).unwrap().entries;
    assert!(asked.len() == 1 && asked[0].asks_for_a_terminal() && asked[0].task == ta(1), "{asked:?}");
    keyboard.put(3, b"\x03".to_vec(), false).await.unwrap();
    assert_eq!(test.end().await.1, "exit code 3");
    shown(&test, "^Cwas interrupted\r\n").await;
    assert!(test.printed().iter().all(|(stream, _)| *stream != Stream::Stderr));
    let gone = keyboard.put(4, b"x".to_vec(), false).await;
    assert_eq!(gone, Err(crate::execs::Error::NoContainer { task: ta(1) }));
    assert!(test.driver.handle().keyboard(ta(1)).await.is_none());
}
