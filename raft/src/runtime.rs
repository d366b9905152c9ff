//! The thread on which Raft runs, apart from everything else, so that a busy data path can't delay a heartbeat.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Error, Result, Stop, with_causes};
use crate::forward::{self, FORWARDS_QUEUED_MAX, Forward};
use crate::heard::Heard;
use crate::log::LogStore;
use crate::machine::Machine;
use crate::meta::Meta;
use crate::network::Links;
use crate::options::Options;
use crate::part::{Part, Parts, Stores, Wish};
use crate::snapshot::Folder;
use crate::types::Peer;
use crate::view::View;

/// Threads for Raft's tasks: one may be busy with applying while another answers a heartbeat.
const WORKERS: usize = 2;

/// How long work on the disk may go on after Raft was shut down, before the thread ends without it.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

/// A running Raft, as the handle needs it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) part: watch::Receiver<Part>,
    pub(crate) wishes: mpsc::Sender<Wish>,
    pub(crate) machine: Machine,
    pub(crate) view: Arc<View>,
    pub(crate) stop: Stop,
    pub(crate) heard: Heard,
    pub(crate) forwards: mpsc::Sender<Forward>,
}

/// The thread. Dropping it ends it without a farewell, which loses nothing that was acknowledged.
#[derive(Debug)]
pub(crate) struct Thread {
    close: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
}

impl Thread {
    /// Starts the thread, opens everything on it, and returns when Raft runs.
    pub(crate) async fn start(options: Options) -> Result<(Self, Running)> {
        let (close, closing) = watch::channel(false);
        let (ending, ended) = watch::channel(false);
        let (ready, opened) = oneshot::channel();
        let body = move || {
            run(options, ready, closing);
            ending.send_replace(true);
        };
        let started = thread::Builder::new().name("raft".into()).spawn(body);
        started.map_err(|error| Error::Thread(Arc::new(error)))?;
        let opened = opened.await.unwrap_or_else(|_| Err(Error::Stopped { why: "its thread ended while it was opened".into() }));
        Ok((Self { close, ended }, opened?))
    }

    /// Asks the thread to end, and waits until its files are closed.
    pub(crate) async fn end(&self) {
        self.close.send_replace(true);
        // An error says that the thread is gone, which is what was waited for.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

fn run(options: Options, ready: oneshot::Sender<Result<Running>>, closing: watch::Receiver<bool>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).thread_name("raft").enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(Error::Thread(Arc::new(error))));
            return;
        }
    };
    runtime.block_on(serve(options, ready, closing));
    runtime.shutdown_timeout(DISK_PATIENCE);
}

async fn serve(options: Options, ready: oneshot::Sender<Result<Running>>, closing: watch::Receiver<bool>) {
    let opened = open(options).await;
    let (meta, parts, running) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if ready.send(Ok(running)).is_err() {
        return;
    }
    // Either somebody asks for the end, or all handles are gone.
    parts.run(closing).await;
    let synced = tokio::task::spawn_blocking(move || meta.sync()).await;
    if let Ok(Err(error)) = synced {
        tracing::warn!(error = with_causes(&error), "the last hints about Raft's log did not reach the disk");
    }
}

async fn open(options: Options) -> Result<(Meta, Parts, Running)> {
    let Options { dir, node, address, transport, tuning } = options;
    let unusable = |why: String| Error::Unusable { dir: dir.clone(), why };
    let stop = Stop::default();
    tuning.config().map_err(|error| unusable(error.to_string()))?;
    let meta = Meta::open(&dir.join("meta"), node).map_err(|error| unusable(with_causes(&error)))?;
    let log = LogStore::open(&dir.join("log"), tuning.segment_bytes, meta.clone(), stop.clone())
        .map_err(|error| unusable(with_causes(&error)))?;
    let (folder, newest) = Folder::open(&dir.join("snapshots"), log.first_index()).map_err(|error| unusable(with_causes(&error)))?;
    let machine = Machine::new(folder, newest, stop.clone());
    let heard = Heard::default();
    let links = Links { transport: transport.clone(), heard: heard.clone() };
    let me = Peer { node, address };
    let stores = Stores { me, log, machine: machine.clone(), links, tuning, stop: stop.clone() };
    let begun = Parts::begin(stores).await;
    let (parts, part, wishes) = begun.map_err(|error| match error {
        Error::Stopped { why } => unusable(stop.why(|| why)),
        other => other,
    })?;
    let view = machine.view();
    let (forwards, forwarded) = mpsc::channel(FORWARDS_QUEUED_MAX);
    tokio::spawn(forward::run(transport, view.clone(), forwarded));
    Ok((meta, parts, Running { part, wishes, machine, view, stop, heard, forwards }))
}
