//! Processes in running containers, for clients before 1.4: they have no channel to the container, and ask the server for each thing. So
//! does a client of any version that types into the terminal of a container's first process (`modal run -i`).
//!
//! What they are given as the name of a process says where it is, so any node answers for it: the task, the task's node, and a name that
//! nobody guesses. It is otherwise as on the worker channel ([`super::exec`]): the output is kept, the index of a batch is the place in
//! it, and each message for a stdin is taken once by its own index.

use std::time::Duration;

use futures::StreamExt as _;
use shoal_proto::modal_client as pb;
use shoal_proto::task_command_router as rpb;
use shoal_state::{Digest, TaskId};
use shoal_worker::execs::{Exit, Fd};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::error::Error;
use super::exec::{self, WAIT_HELD};
use super::{Api, Caller, typing};
use crate::execs::{self, At, Typed};

/// How long one stream of output may last, whatever the client asks.
const STREAM_MAX: Duration = Duration::from_secs(55);
/// Batches that may wait for the client. Beyond it nothing more is read.
const QUEUE: usize = 16;
/// What a shell gives for the end by a signal, besides its number.
const BY_SIGNAL: i32 = 128;

/// Returns what of a process's name is that of its task.
pub(super) fn task_of(exec: &str) -> &str {
    exec.split('/').next().unwrap_or_default()
}

pub(super) fn named(at: &At) -> String {
    format!("{}/{}/{}", at.task, at.node, at.exec)
}

/// Reads where a process is from its name.
fn at(exec: &str) -> Result<At, Error> {
    let unknown = || Error::NotFound(format!("there is no process '{exec}': none was started by that name"));
    let mut parts = exec.splitn(3, '/');
    let (Some(task), Some(node), Some(name)) = (parts.next(), parts.next(), parts.next()) else { return Err(unknown()) };
    let (task, node) = (task.parse().map_err(|_| unknown())?, node.parse().map_err(|_| unknown())?);
    Ok(At { node, task, exec: name.to_owned() })
}

fn code(exit: Exit) -> i32 {
    match exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => BY_SIGNAL + signal,
    }
}

/// Puts a request as one of the worker channel.
fn as_on_the_channel(request: pb::ContainerExecRequest, exec: &str) -> rpb::TaskExecStartRequest {
    use rpb::{TaskExecStderrConfig as Stderr, TaskExecStdoutConfig as Stdout};
    let drops = |option: pb::ExecOutputOption| option == pb::ExecOutputOption::Devnull;
    let stdout = if drops(request.stdout_output()) { Stdout::Devnull } else { Stdout::Pipe };
    let stderr = if drops(request.stderr_output()) { Stderr::Devnull } else { Stderr::Pipe };
    rpb::TaskExecStartRequest {
        task_id: request.task_id,
        exec_id: exec.to_owned(),
        command_args: request.command,
        stdout_config: stdout.into(),
        stderr_config: stderr.into(),
        timeout_secs: Some(request.timeout_secs),
        workdir: request.workdir,
        secret_ids: request.secret_ids,
        pty_info: request.pty_info,
        runtime_debug: request.runtime_debug,
        ..Default::default()
    }
}

pub(super) async fn start(api: &Api, caller: &Caller, request: pb::ContainerExecRequest) -> Result<pb::ContainerExecResponse, Error> {
    exec::check_client(caller)?;
    let id: TaskId = request.task_id.parse()?;
    if request.terminate_container_on_exit {
        return Err(Error::Unimplemented(format!(
            "Shoal does not end container {id} with a process in it: end it by `modal container stop {id}`"
        )));
    }
    let node = exec::node_of(api, id).await?;
    // The same for each try of one call.
    let name = Digest::of(&[caller.identity.scope().as_slice(), caller.key().as_bytes()].concat()).to_string();
    let at = At { node, task: id, exec: name };
    let spec = exec::spec(api, &at, as_on_the_channel(request, &at.exec))?;
    exec::run(api, caller, node, spec).await?;
    Ok(pb::ContainerExecResponse { exec_id: named(&at) })
}

pub(super) async fn output(
    api: &Api,
    caller: &Caller,
    request: pb::ContainerExecGetOutputRequest,
) -> Result<tonic::codegen::BoxStream<pb::RuntimeOutputBatch>, Error> {
    exec::check_client(caller)?;
    let at = at(&request.exec_id)?;
    let wait = Duration::try_from_secs_f32(request.timeout.max(0.0)).unwrap_or_default().min(STREAM_MAX);
    let (send, receive) = mpsc::channel(QUEUE);
    let (api, told) = (api.clone(), send.clone());
    tokio::spawn(async move {
        if let Err(error) = pass_on(&api, at, &request, Instant::now() + wait, send).await {
            let _ = told.send(Err(error.into())).await;
        }
    });
    Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receive)))
}

/// Sends what a process prints on one stream, and at its end how it ended; until a time, or until nobody listens any more.
async fn pass_on(
    api: &Api,
    at: At,
    request: &pb::ContainerExecGetOutputRequest,
    until: Instant,
    send: mpsc::Sender<Result<pb::RuntimeOutputBatch, Status>>,
) -> Result<(), Error> {
    let (number, mut place) = (request.file_descriptor, request.last_batch_index);
    let fd = if request.file_descriptor() == pb::FileDescriptor::Stderr { Fd::Stderr } else { Fd::Stdout };
    let batch = |place: u64, data: Vec<u8>| {
        let text = if request.get_raw_bytes { String::new() } else { String::from_utf8_lossy(&data).into_owned() };
        let bytes = if request.get_raw_bytes { data.into() } else { Vec::new().into() };
        let items = vec![pb::RuntimeOutputMessage { file_descriptor: number, message: text, message_bytes: bytes }];
        pb::RuntimeOutputBatch { items, batch_index: place, ..Default::default() }
    };
    let mut pieces = execs::read(api, at.clone(), fd, place).await?;
    // Clients take this as a sign that it runs.
    if send.send(Ok(batch(place, Vec::new()))).await.is_err() {
        return Ok(());
    }
    loop {
        let piece = tokio::select! {
            piece = timeout_at(until, pieces.next()) => piece,
            () = send.closed() => return Ok(()),
        };
        match piece {
            Ok(Some(piece)) => {
                let piece = piece?;
                place += piece.len() as u64;
                if send.send(Ok(batch(place, piece))).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => break,
            // The client asks anew.
            Err(_) => return Ok(()),
        }
    }
    // It prints nothing more on this stream, and may run still.
    let left = until.saturating_duration_since(Instant::now());
    let exit = tokio::select! {
        exit = execs::wait(api, at, left) => exit?,
        () = send.closed() => return Ok(()),
    };
    if let Some(exit) = exit {
        let end = pb::RuntimeOutputBatch { batch_index: place, exit_code: Some(code(exit)), ..Default::default() };
        let _ = send.send(Ok(end)).await;
    }
    Ok(())
}

pub(super) async fn put(api: &Api, caller: &Caller, request: pb::ContainerExecPutInputRequest) -> Result<(), Error> {
    exec::check_client(caller)?;
    let at = at(&request.exec_id)?;
    let nothing = || Error::Invalid(format!("nothing was said of what to write to process {}", request.exec_id));
    let input = request.input.clone().ok_or_else(nothing)?;
    if at.exec == execs::FIRST {
        let typed = Typed { number: input.message_index, data: input.message.into(), eof: input.eof };
        return typing::put(api, caller.connection, at.task, typed).await;
    }
    execs::put(api, at, input.message_index, input.message.into(), input.eof).await
}

pub(super) async fn wait(
    api: &Api,
    caller: &Caller,
    request: pb::ContainerExecWaitRequest,
) -> Result<pb::ContainerExecWaitResponse, Error> {
    exec::check_client(caller)?;
    let wait = Duration::try_from_secs_f32(request.timeout.max(0.0)).unwrap_or_default().min(WAIT_HELD);
    let exit = execs::wait(api, at(&request.exec_id)?, wait).await?;
    Ok(pb::ContainerExecWaitResponse { exit_code: exit.map(code), completed: exit.is_some() })
}

#[cfg(test)]
mod tests {
    use shoal_state::NodeId;

    use super::*;

    #[test]
    fn the_name_of_a_process_says_where_it_is() {
        let of = At { node: NodeId::from_random(7), task: TaskId::from_random(8), exec: "abc/d".to_owned() };
        let name = named(&of);
        assert_eq!(task_of(&name), of.task.to_string());
        let back = at(&name).unwrap();
        assert_eq!((back.node, back.task, back.exec), (of.node, of.task, of.exec));
        for wrong in ["", "ta-1", "ta-1/no-2", "a/b/c"] {
            assert!(matches!(at(wrong), Err(Error::NotFound(_))), "{wrong}");
        }
    }

    #[test]
    fn a_signal_is_told_as_shells_tell_it() {
        assert_eq!((code(Exit::Code(7)), code(Exit::Signal(9))), (7, 137));
    }
}
