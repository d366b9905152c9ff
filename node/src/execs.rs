//! Processes in containers of any node: what is asked goes to the node that has the container.
//!
//! Which node that is says the channel that the client was given. So a process of a container that has ended is found too, as long
//! as its node remembers it.

mod readings;

use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _, try_unfold};
use serde::{Deserialize, Serialize};
use shoal_peer::{Service, Stream};
use shoal_state::{NodeId, TaskId};
use shoal_worker::execs::{Error as Fault, Exit, Fd, Spec, Write};

use crate::api::{Api, Error};

pub(crate) use readings::Readings;

/// Processes in the containers of a node.
const EXECS: Service = Service::new(11, "run processes in its containers");
/// How long a start waits for a container that is still being started.
const START_WAIT: Duration = Duration::from_secs(45);
/// How much longer than what is waited for a node may take to answer.
const PEER_WAIT: Duration = Duration::from_secs(10);
/// How long a write may take at most, by what the stdin of a process waits for.
const WRITE_WAIT: Duration = Duration::from_secs(45);

/// The name of a container's first process; others have one of their own.
pub(crate) const FIRST: &str = "";

/// Marks of the pieces of an output on the road between nodes.
const DATA: u8 = 0;
const FAULT: u8 = 1;

/// What is asked of the node that has a container.
#[derive(Debug, Serialize, Deserialize)]
enum Asked {
    Start(Spec),
    Wait {
        task: TaskId,
        exec: String,
        wait_ms: u64,
    },
    Write {
        task: TaskId,
        exec: String,
        write: Write,
    },
    Stdin {
        task: TaskId,
        exec: String,
    },
    /// Begins a stream of writes.
    Stream {
        task: TaskId,
        exec: String,
    },
    /// Answered with pieces, until its end.
    Read {
        task: TaskId,
        exec: String,
        fd: Fd,
        offset: u64,
    },
    /// The next message for a stdin, by its number.
    Put {
        task: TaskId,
        exec: String,
        number: u64,
        data: Vec<u8>,
        eof: bool,
    },
    /// The next message for the terminal of a container's first process.
    Type {
        task: TaskId,
        number: u64,
        data: Vec<u8>,
        eof: bool,
        even_if_idle: bool,
    },
}

impl Asked {
    /// How long its answer may take.
    fn patience(&self) -> Duration {
        PEER_WAIT
            + match self {
                Self::Start(_) => START_WAIT,
                Self::Wait { wait_ms, .. } => Duration::from_millis(*wait_ms),
                Self::Write { .. } | Self::Put { .. } | Self::Type { .. } => WRITE_WAIT,
                _ => Duration::ZERO,
            }
    }
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Done,
    Ended(Option<Exit>),
    Stdin {
        taken: u64,
        closed: bool,
    },
    Stream(u64),
    /// Whether what was typed was taken.
    Typed(bool),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let said = fault.to_string();
        match fault {
            Fault::Unknown { .. } | Fault::NoContainer { .. } => Self::NotFound(said),
            Fault::Invalid { .. } | Fault::NotRun { .. } => Self::Invalid(said),
            Fault::NotYet { .. } | Fault::Stuck { .. } => Self::Unavailable(said),
            Fault::TooMany { .. } | Fault::Disk { .. } => Self::Exhausted(said),
            Fault::Ahead { .. } | Fault::Closed { .. } | Fault::Overtaken { .. } | Fault::NotKept { .. } => Self::Precondition(said),
        }
    }
}

/// Answers for the containers of this node from now on.
pub(crate) fn serve(api: &Api) {
    let served = api.clone();
    api.peers.endpoint.serve(EXECS, move |stream, _| answer(stream, served.clone()));
}

async fn answer(mut stream: Stream, api: Api) {
    let Ok(Some(asked)) = stream.next().await else { return };
    let done = match postcard::from_bytes(&asked) {
        Err(error) => stream.fail(&error.to_string()).await,
        Ok(Asked::Read { task, exec, fd, offset }) => pass_on(&api, &mut stream, (task, &exec), fd, offset).await,
        Ok(asked) => {
            let told = tokio::select! {
                told = here(&api, asked) => told,
                () = stream.closed() => return,
            };
            stream.send(written(&told)).await.and_then(|()| stream.finish())
        }
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a node did not wait for a process");
    }
}

/// Sends what a process prints to another node.
async fn pass_on(api: &Api, stream: &mut Stream, of: (TaskId, &str), fd: Fd, mut offset: u64) -> shoal_peer::Result<()> {
    loop {
        let read = async {
            let session = api.execs.get(of.0, of.1)?;
            session.read(fd, offset).await
        };
        let read = tokio::select! {
            read = read => read,
            () = stream.closed() => return Ok(()),
        };
        match read {
            Ok(Some(data)) => {
                offset += data.len() as u64;
                stream.send(marked(DATA, &data)).await?;
            }
            Ok(None) => return stream.finish(),
            Err(fault) => {
                stream.send(marked(FAULT, &written(&fault))).await?;
                return stream.finish();
            }
        }
    }
}

fn marked(mark: u8, bytes: &[u8]) -> Bytes {
    let mut piece = BytesMut::with_capacity(1 + bytes.len());
    piece.put_u8(mark);
    piece.extend_from_slice(bytes);
    piece.freeze()
}

fn written(told: &impl Serialize) -> Bytes {
    postcard::to_stdvec(told).expect("what nodes tell each other can be written").into()
}

/// Answers what is asked of a container of this node.
async fn here(api: &Api, asked: Asked) -> Result<Told, Fault> {
    Ok(match asked {
        Asked::Start(spec) => {
            let task = spec.task;
            if let Ok(session) = api.execs.get(task, &spec.exec) {
                // An earlier try of this very start.
                session.started().await?;
                return Ok(Told::Done);
            }
            let running = match api.worker.get() {
                Some(worker) => worker.running(task, START_WAIT).await,
                None => None,
            };
            let lives = || api.local().tasks.get(&task).is_some_and(|task| task.stopping.is_none());
            let container = running.ok_or_else(|| if lives() { Fault::NotYet { task } } else { Fault::NoContainer { task } })?;
            api.execs.start(spec, &container).await?;
            Told::Done
        }
        Asked::Wait { task, exec, wait_ms } => Told::Ended(api.execs.get(task, &exec)?.wait(Duration::from_millis(wait_ms)).await),
        Asked::Write { task, exec, write } => {
            api.execs.get(task, &exec)?.write(write).await?;
            Told::Done
        }
        Asked::Stdin { task, exec } => {
            let (taken, closed) = api.execs.get(task, &exec)?.stdin().await;
            Told::Stdin { taken, closed }
        }
        Asked::Stream { task, exec } => Told::Stream(api.execs.get(task, &exec)?.stream().await?),
        Asked::Put { task, exec, number, data, eof } => {
            api.execs.get(task, &exec)?.put(number, data, eof).await?;
            Told::Done
        }
        Asked::Type { task, even_if_idle, .. } if !even_if_idle && api.tasks.is_idle(task) => Told::Typed(false),
        Asked::Type { task, number, data, eof, .. } => {
            let keyboard = match api.worker.get() {
                Some(worker) => worker.keyboard(task).await,
                None => None,
            };
            keyboard.ok_or(Fault::NoContainer { task })?.put(number, data, eof).await?;
            Told::Typed(true)
        }
        Asked::Read { .. } => Told::Done,
    })
}

/// Returns where another node is reached; none for this one.
fn road(api: &Api, node: NodeId) -> Result<Option<String>, Error> {
    if node == api.cluster.node {
        return Ok(None);
    }
    let left = || Error::NotFound(format!("node {node}, which had the container, has left the cluster"));
    api.local().members.get(&node).map(|member| Some(member.address.clone())).ok_or_else(left)
}

async fn ask(api: &Api, node: NodeId, asked: Asked) -> Result<Told, Error> {
    let Some(address) = road(api, node)? else { return Ok(here(api, asked).await?) };
    let answer = api.peers.endpoint.call(node, &address, EXECS, written(&asked), asked.patience()).await;
    let answer = answer.map_err(|error| Error::Unavailable(error.to_string()))?;
    let told: Result<Told, Fault> = postcard::from_bytes(&answer).map_err(not_understood(node))?;
    Ok(told?)
}

fn not_understood(node: NodeId) -> impl Fn(postcard::Error) -> Error {
    move |error| Error::failed(format!("cannot understand what node {node} says of a process"))(error)
}

/// A process in a container of some node.
#[derive(Debug, Clone)]
pub(crate) struct At {
    /// The node that has the container.
    pub(crate) node: NodeId,
    /// The container's task.
    pub(crate) task: TaskId,
    /// The name of the process.
    pub(crate) exec: String,
}

/// Starts a process; once for each name.
pub(crate) async fn start(api: &Api, node: NodeId, spec: Spec) -> Result<(), Error> {
    ask(api, node, Asked::Start(spec)).await.map(drop)
}

/// Returns how a process ended, if it has.
pub(crate) async fn poll(api: &Api, at: At) -> Result<Option<Exit>, Error> {
    match ask(api, at.node, Asked::Wait { task: at.task, exec: at.exec, wait_ms: 0 }).await? {
        Told::Ended(exit) => Ok(exit),
        _ => Ok(None),
    }
}

/// Waits for the end of a process, at most so long; and a moment longer for who reads through this node what it printed.
pub(crate) async fn wait(api: &Api, at: At, wait: Duration) -> Result<Option<Exit>, Error> {
    let (asked, wait_ms) = (Instant::now(), u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    match ask(api, at.node, Asked::Wait { task: at.task, exec: at.exec.clone(), wait_ms }).await? {
        Told::Ended(Some(exit)) => {
            api.readings.passed_on(&at, asked).await;
            Ok(Some(exit))
        }
        _ => Ok(None),
    }
}

/// Writes to the stdin of a process.
pub(crate) async fn write(api: &Api, at: At, write: Write) -> Result<(), Error> {
    ask(api, at.node, Asked::Write { task: at.task, exec: at.exec, write }).await.map(drop)
}

/// Writes the next message to the stdin of a process: one of a number that was taken is not taken again.
pub(crate) async fn put(api: &Api, at: At, number: u64, data: Vec<u8>, eof: bool) -> Result<(), Error> {
    ask(api, at.node, Asked::Put { task: at.task, exec: at.exec, number, data, eof }).await.map(drop)
}

/// A message for the terminal of a container's first process: one of a number that was taken is not taken again.
#[derive(Debug, Clone)]
pub(crate) struct Typed {
    /// Its number.
    pub(crate) number: u64,
    /// What is typed.
    pub(crate) data: Vec<u8>,
    /// Whether nothing comes after.
    pub(crate) eof: bool,
}

/// Types into a container; false if it works on nothing, and is to be typed into only if it does.
pub(crate) async fn type_into(api: &Api, node: NodeId, task: TaskId, typed: Typed, even_if_idle: bool) -> Result<bool, Error> {
    let Typed { number, data, eof } = typed;
    let told = ask(api, node, Asked::Type { task, number, data, eof, even_if_idle }).await?;
    Ok(matches!(told, Told::Typed(true)))
}

/// Returns how much of its stdin a process has taken, and whether that is closed.
pub(crate) async fn stdin(api: &Api, at: At) -> Result<(u64, bool), Error> {
    match ask(api, at.node, Asked::Stdin { task: at.task, exec: at.exec }).await? {
        Told::Stdin { taken, closed } => Ok((taken, closed)),
        _ => Ok((0, true)),
    }
}

/// Begins a stream of writes.
pub(crate) async fn stream(api: &Api, at: At) -> Result<u64, Error> {
    match ask(api, at.node, Asked::Stream { task: at.task, exec: at.exec }).await? {
        Told::Stream(stream) => Ok(stream),
        _ => Ok(0),
    }
}

/// Reads what a process prints, from a place on to the end. Its end is kept back from who waits for it ([`wait`]) until this was read,
/// or dropped.
pub(crate) async fn read(api: &Api, at: At, fd: Fd, offset: u64) -> Result<BoxStream<'static, Result<Vec<u8>, Error>>, Error> {
    let reading = api.readings.enter(&at);
    let pieces = pieces(api, at, fd, offset).await?;
    Ok(pieces.inspect_ok(move |data| reading.passed(data.len())).boxed())
}

async fn pieces(api: &Api, at: At, fd: Fd, offset: u64) -> Result<BoxStream<'static, Result<Vec<u8>, Error>>, Error> {
    let Some(address) = road(api, at.node)? else {
        let session = api.execs.get(at.task, &at.exec)?;
        let pieces = try_unfold((session, offset), move |(session, offset)| async move {
            let read = session.read(fd, offset).await?;
            Ok(read.map(|data| {
                let next = offset + data.len() as u64;
                (data, (session, next))
            }))
        });
        return Ok(pieces.boxed());
    };
    let unreachable = |error: shoal_peer::Error| Error::Unavailable(error.to_string());
    let node = at.node;
    let mut stream = api.peers.endpoint.open_stream(node, &address, EXECS).await.map_err(unreachable)?;
    stream.send(written(&Asked::Read { task: at.task, exec: at.exec, fd, offset })).await.map_err(unreachable)?;
    let pieces = try_unfold(stream, move |mut stream| async move {
        let Some(piece) = stream.next().await.map_err(unreachable)? else { return Ok(None) };
        match piece.split_first() {
            Some((&DATA, data)) => Ok(Some((data.to_vec(), stream))),
            Some((_, fault)) => Err(postcard::from_bytes::<Fault>(fault).map_err(not_understood(node))?.into()),
            None => Ok(None),
        }
    });
    Ok(pieces.boxed())
}

#[cfg(test)]
mod tests {
    use shoal_state::written::hold;

    use super::*;

    #[test]
    fn what_nodes_of_earlier_versions_ask_and_tell_of_processes_is_understood() {
        hold::<Asked>("what is asked of a process", include_str!("../tests/written/6/execs-asked.txt"), 0);
        hold::<Result<Told, Fault>>("what is told of a process", include_str!("../tests/written/6/execs-told.txt"), 0);
        hold::<Asked>("what is typed", include_str!("../tests/written/7/execs-asked.txt"), 0);
        hold::<Result<Told, Fault>>("whether it was taken", include_str!("../tests/written/7/execs-told.txt"), 0);
        for (line, mark) in include_str!("../tests/written/6/execs-pieces.txt").lines().zip([DATA, FAULT]) {
            assert_eq!(shoal_state::written::bytes(line)[0], mark, "{line}");
        }
    }
}
