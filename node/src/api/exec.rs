//! The worker channel: processes that clients start in running containers.
//!
//! A client asks for the way to a container ([`access`]), and comes back on a connection of its own with the token that it was given.
//! The token names who it was given to, the task and the task's node; it is signed with the cluster's key, so that any node takes it,
//! and it is no better than its holder: a token that was revoked ends its channels too.

use std::time::Duration;

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use shoal_proto::modal_client as pb;
use shoal_proto::task_command_router as rpb;
use shoal_proto::task_command_router::task_command_router_server::TaskCommandRouter;
use shoal_state::{NodeId, SecretId, TaskId, TokenId};
use shoal_worker::execs::{Exit, Fd, Printed, Spec, Terminal, Write};
use subtle::ConstantTimeEq as _;
use tonic::{Request, Response, Status, Streaming};

use super::error::Error;
use super::{Api, Caller, Identity, identity, policy, secret, token};
use crate::audit::{Event, What};
use crate::execs::{self, At};
use crate::terminals;

/// How long a token is good for; clients ask for another by themselves.
const TOKEN_LIFE: Duration = Duration::from_secs(20 * 60);
/// What the signature of a token is for.
const PURPOSE: &str = "shoal worker channel";
/// How long a wait for the end of a process is held: clients give it a minute, and ask again.
pub(super) const WAIT_HELD: Duration = Duration::from_secs(50);
/// Host names by which clients mean their own machine: to these alone they speak without TLS.
const OWN_MACHINE: [&str; 4] = ["localhost", "127.0.0.1", "[::1]", "172.21.0.1"];
/// What clients in Python call themselves.
const PYTHON: &str = "1";
/// What clients in JavaScript and Go call themselves: of an https URL to their own machine they take the address, and speak plainly.
const PLAIN_BY_HTTPS: [&str; 2] = ["8", "9"];

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claims {
    /// The token that it was given to.
    sub: String,
    task: String,
    node: String,
    /// When it ends, in seconds since 1970.
    exp: u64,
}

/// The container that a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Channel {
    task: TaskId,
    node: NodeId,
}

/// Shows the way to a container.
pub(super) async fn access(
    api: &Api,
    caller: &Caller,
    request: pb::TaskGetCommandRouterAccessRequest,
) -> Result<pb::TaskGetCommandRouterAccessResponse, Error> {
    let id: TaskId = request.task_id.parse()?;
    let token = check_client(caller)?;
    let node = node_of(api, id).await?;
    if caller.client_type == PYTHON && is_before_plain(&caller.client_version) {
        return Err(Error::Precondition("this client reaches containers by the server".to_owned()));
    }
    let exp = api.now().0 / 1000 + TOKEN_LIFE.as_secs();
    let claims = Claims { sub: token.to_string(), task: id.to_string(), node: node.to_string(), exp };
    Ok(pb::TaskGetCommandRouterAccessResponse { jwt: sign(api, &claims), url: url(&caller.authority, &caller.client_type)? })
}

/// Lets clients pass, by their token.
pub(super) fn check_client(caller: &Caller) -> Result<TokenId, Error> {
    match caller.identity {
        Identity::Client(token) => Ok(token),
        Identity::Task(_) => {
            Err(Error::Unimplemented("Shoal does not let containers run processes in other containers yet: do it from a client".to_owned()))
        }
    }
}

/// Finds the node that has a container.
pub(super) async fn node_of(api: &Api, id: TaskId) -> Result<NodeId, Error> {
    let state = api.read_latest_unless(|state| state.tasks.contains_key(&id)).await?;
    let absent = || Error::NotFound(format!("Container '{id}' not found: it has ended, or never was"));
    state.tasks.get(&id).map(|task| task.node).ok_or_else(absent)
}

/// Returns the URL by which a client reaches this node's worker channel: the one that it came by.
fn url(authority: &str, client_type: &str) -> Result<String, Error> {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    if !OWN_MACHINE.contains(&host) {
        return Err(Error::Precondition(format!(
            "clients want TLS for processes in containers unless the server is on their own machine, and '{host}' is not: run `shoal connect` on the client's machine, and use the URL that it prints"
        )));
    }
    let scheme = if PLAIN_BY_HTTPS.contains(&client_type) { "https" } else { "http" };
    Ok(format!("{scheme}://{authority}"))
}

/// Says whether a client in Python takes TLS alone for processes in containers, even on its own machine, and goes by the server's methods
/// ([`super::exec_by_server`]) where it is refused: so do those before 1.4.
fn is_before_plain(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else { return false };
    (major, minor) < (1, 4)
}

fn sign(api: &Api, claims: &Claims) -> String {
    let claims = serde_json::to_string(claims).expect("claims can be written");
    token::jwt(&claims, |signed| api.sealing.sign(PURPOSE, signed))
}

/// Reads a token back, if its signature is `sign`'s and it has not expired.
fn read(token: &str, now_seconds: u64, sign: impl Fn(&[u8]) -> [u8; 32]) -> Result<(TokenId, Channel), Error> {
    let refused = |why: &str| Error::Unauthenticated(format!("the token of this connection {why}: ask for the container again"));
    let (signed, signature) = token.rsplit_once('.').ok_or_else(|| refused("is none"))?;
    let signature = BASE64.decode(signature).map_err(|_| refused("is none"))?;
    if !bool::from(signature.ct_eq(&sign(signed.as_bytes()))) {
        return Err(refused("is not one of this cluster"));
    }
    let claims = signed.split_once('.').and_then(|(_, claims)| BASE64.decode(claims).ok());
    let claims: Claims = claims.and_then(|claims| serde_json::from_slice(&claims).ok()).ok_or_else(|| refused("cannot be read"))?;
    if claims.exp <= now_seconds {
        return Err(refused("has expired"));
    }
    Ok((claims.sub.parse()?, Channel { task: claims.task.parse()?, node: claims.node.parse()? }))
}

/// Finds out whose connection a call of the worker channel came on, and for which container it is.
pub(super) async fn holder(api: &Api, headers: &HeaderMap) -> Result<(TokenId, Channel), Error> {
    let shown = headers.get("authorization").and_then(|value| value.to_str().ok()).and_then(|value| value.strip_prefix("Bearer "));
    let none = || {
        Error::Unauthenticated("this call came without the token of a worker channel: clients ask for one by themselves, with a token that `shoal token create` on a node makes".to_owned())
    };
    let (token, channel) = read(shown.ok_or_else(none)?, api.now().0 / 1000, |signed| api.sealing.sign(PURPOSE, signed))?;
    identity::confirm(api, |state| identity::check_still_good(state, token, api.now())).await?;
    Ok((token, channel))
}

/// The methods of the worker channel.
pub(super) struct Router(pub(super) Api);

/// One call on it.
struct Call {
    caller: Caller,
    channel: Channel,
}

impl Call {
    fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let missing = || Status::unauthenticated("this call did not pass the door");
        let extensions = request.extensions();
        let caller = extensions.get::<Caller>().cloned().ok_or_else(missing)?;
        let channel = extensions.get::<Channel>().copied().ok_or_else(missing)?;
        Ok(Self { caller, channel })
    }

    /// Checks that a request is about the container of its connection; returns the process that it names.
    fn at(&self, task: &str, exec: &str) -> Result<At, Error> {
        if task.parse::<TaskId>()? != self.channel.task {
            return Err(Error::Denied(format!("this connection is for container {}, and not for {task}", self.channel.task)));
        }
        Ok(At { node: self.channel.node, task: self.channel.task, exec: exec.to_owned() })
    }

    /// Asks the policy, and the channel; a refusal goes to the audit log.
    async fn permit(&self, api: &Api, request: &impl policy::Names, named: (&str, &str)) -> Result<At, Error> {
        let permitted = match policy::permit(api, &self.caller, request).await {
            Ok(()) => self.at(named.0, named.1),
            Err(refused) => Err(refused),
        };
        if let Err(error) = &permitted {
            api.note_refusal(Some(self.caller.identity), &self.caller.method, &self.caller.from, error);
        }
        permitted
    }
}

fn printed(keeps: bool) -> Printed {
    if keeps { Printed::Kept } else { Printed::Dropped }
}

fn terminal(info: &pb::PtyInfo) -> Terminal {
    let size = terminals::size(info);
    Terminal { rows: size.rows, columns: size.columns, hangs_up: !info.no_terminate_on_idle_stdin }
}

/// Returns what a process's environment has beyond its container's: the terminal's, then secrets, then what was asked for.
fn variables(api: &Api, request: &rpb::TaskExecStartRequest) -> Result<Vec<(String, String)>, Error> {
    use pb::secret_source::Source;
    let mut variables: Vec<_> = request.pty_info.iter().flat_map(terminals::variables).collect();
    let state = api.local();
    let ids: Result<Vec<SecretId>, _> = request.secret_ids.iter().map(|id| id.parse()).collect();
    variables.extend(secret::open_all(api, &state, &ids?)?);
    for source in request.secret_sources.iter().filter_map(|source| source.source.as_ref()) {
        match source {
            Source::SecretId(id) => variables.extend(secret::open_all(api, &state, &[id.parse()?])?),
            Source::Env(map) => variables.extend(map.contents.clone()),
        }
    }
    variables.extend(request.env.clone());
    Ok(variables)
}

/// Returns the process that a client wants.
pub(super) fn spec(api: &Api, at: &At, request: rpb::TaskExecStartRequest) -> Result<Spec, Error> {
    if !request.container_id.is_empty() {
        return Err(Error::Unimplemented("Shoal has no containers beside the main one of a sandbox yet".to_owned()));
    }
    Ok(Spec {
        task: at.task,
        exec: at.exec.clone(),
        env: variables(api, &request)?,
        cwd: request.workdir.clone().filter(|workdir| !workdir.is_empty()),
        terminal: request.pty_info.as_ref().filter(|info| info.enabled).map(terminal),
        stdout: printed(request.stdout_config() == rpb::TaskExecStdoutConfig::Pipe),
        stderr: match request.stderr_config() {
            rpb::TaskExecStderrConfig::Devnull => Printed::Dropped,
            rpb::TaskExecStderrConfig::Pipe => Printed::Kept,
            rpb::TaskExecStderrConfig::Stdout => Printed::WithStdout,
        },
        timeout: request.timeout_secs.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into())),
        argv: request.command_args,
    })
}

/// Starts a process, and notes who did.
pub(super) async fn run(api: &Api, caller: &Caller, node: NodeId, spec: Spec) -> Result<(), Error> {
    let (what, who) = (What::Executed, caller.identity.to_string());
    let why = format!("ran in container {}: {}", spec.task, spec.argv.join(" "));
    execs::start(api, node, spec).await?;
    api.audit.note(Event { what, who, method: &caller.method, from: caller.from.clone(), why });
    Ok(())
}

async fn start(api: &Api, call: &Call, request: rpb::TaskExecStartRequest) -> Result<rpb::TaskExecStartResponse, Error> {
    let at = call.permit(api, &request, (&request.task_id, &request.exec_id)).await?;
    run(api, &call.caller, at.node, spec(api, &at, request)?).await?;
    Ok(rpb::TaskExecStartResponse {})
}

async fn write_on(api: &Api, call: &Call, mut requests: Streaming<rpb::TaskExecStdinWriteStreamRequest>) -> Result<(), Status> {
    use rpb::task_exec_stdin_write_stream_request::Payload;
    let first = requests.message().await?.and_then(|request| request.payload);
    let Some(Payload::Start(begin)) = first else {
        return Err(Error::Invalid("a stream of writes begins with the process that it is for".to_owned()).into());
    };
    let at = call.permit(api, &begin, (&begin.task_id, &begin.exec_id)).await?;
    let stream = Some(execs::stream(api, at.clone()).await?);
    let mut offset = begin.offset;
    while let Some(request) = requests.message().await? {
        match request.payload {
            Some(Payload::Data(data)) => {
                let length = data.len() as u64;
                execs::write(api, at.clone(), Write { stream, offset, data: data.into(), eof: false }).await?;
                offset += length;
            }
            Some(Payload::End(_)) => {
                execs::write(api, at.clone(), Write { stream, offset, data: Vec::new(), eof: true }).await?;
                return Ok(());
            }
            Some(Payload::Start(_)) | None => return Err(Error::Invalid("a stream of writes begins once".to_owned()).into()),
        }
    }
    // Without its end it stays open: the client goes on with another stream.
    Ok(())
}

#[tonic::async_trait]
impl TaskCommandRouter for Router {
    async fn task_exec_start(&self, request: Request<rpb::TaskExecStartRequest>) -> Result<Response<rpb::TaskExecStartResponse>, Status> {
        let call = Call::of(&request)?;
        Ok(Response::new(start(&self.0, &call, request.into_inner()).await?))
    }

    async fn task_exec_stdio_read(
        &self,
        request: Request<rpb::TaskExecStdioReadRequest>,
    ) -> Result<Response<tonic::codegen::BoxStream<rpb::TaskExecStdioReadResponse>>, Status> {
        let (call, request) = (Call::of(&request)?, request.into_inner());
        let at = call.permit(&self.0, &request, (&request.task_id, &request.exec_id)).await?;
        let fd = match request.file_descriptor() {
            rpb::TaskExecStdioFileDescriptor::Stdout => Fd::Stdout,
            rpb::TaskExecStdioFileDescriptor::Stderr => Fd::Stderr,
        };
        let pieces = execs::read(&self.0, at, fd, request.offset).await?;
        let pieces = pieces.map(|piece| match piece {
            Ok(data) => Ok(rpb::TaskExecStdioReadResponse { data: data.into() }),
            Err(error) => Err(Status::from(error)),
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn task_exec_stdin_write(
        &self,
        request: Request<rpb::TaskExecStdinWriteRequest>,
    ) -> Result<Response<rpb::TaskExecStdinWriteResponse>, Status> {
        let (call, request) = (Call::of(&request)?, request.into_inner());
        let at = call.permit(&self.0, &request, (&request.task_id, &request.exec_id)).await?;
        let write = Write { stream: None, offset: request.offset, data: request.data.into(), eof: request.eof };
        execs::write(&self.0, at, write).await?;
        Ok(Response::new(rpb::TaskExecStdinWriteResponse {}))
    }

    async fn task_exec_stdin_write_stream(
        &self,
        request: Request<Streaming<rpb::TaskExecStdinWriteStreamRequest>>,
    ) -> Result<Response<rpb::TaskExecStdinWriteStreamResponse>, Status> {
        let call = Call::of(&request)?;
        write_on(&self.0, &call, request.into_inner()).await?;
        Ok(Response::new(rpb::TaskExecStdinWriteStreamResponse {}))
    }

    async fn task_exec_stdin_status(
        &self,
        request: Request<rpb::TaskExecStdinStatusRequest>,
    ) -> Result<Response<rpb::TaskExecStdinStatusResponse>, Status> {
        let (call, request) = (Call::of(&request)?, request.into_inner());
        let at = call.permit(&self.0, &request, (&request.task_id, &request.exec_id)).await?;
        let (num_bytes_written, closed) = execs::stdin(&self.0, at).await?;
        Ok(Response::new(rpb::TaskExecStdinStatusResponse { num_bytes_written, closed }))
    }

    async fn task_exec_poll(&self, request: Request<rpb::TaskExecPollRequest>) -> Result<Response<rpb::TaskExecPollResponse>, Status> {
        use rpb::task_exec_poll_response::ExitStatus;
        let (call, request) = (Call::of(&request)?, request.into_inner());
        let at = call.permit(&self.0, &request, (&request.task_id, &request.exec_id)).await?;
        let exit_status = execs::poll(&self.0, at).await?.map(|exit| match exit {
            Exit::Code(code) => ExitStatus::Code(code),
            Exit::Signal(signal) => ExitStatus::Signal(signal),
        });
        Ok(Response::new(rpb::TaskExecPollResponse { exit_status }))
    }

    async fn task_exec_wait(&self, request: Request<rpb::TaskExecWaitRequest>) -> Result<Response<rpb::TaskExecWaitResponse>, Status> {
        use rpb::task_exec_wait_response::ExitStatus;
        let (call, request) = (Call::of(&request)?, request.into_inner());
        let at = call.permit(&self.0, &request, (&request.task_id, &request.exec_id)).await?;
        let exit = execs::wait(&self.0, at, WAIT_HELD).await?;
        let exit_status = match exit {
            Some(Exit::Code(code)) => ExitStatus::Code(code),
            Some(Exit::Signal(signal)) => ExitStatus::Signal(signal),
            None => return Err(Error::Late(format!("process {} still runs", request.exec_id)).into()),
        };
        Ok(Response::new(rpb::TaskExecWaitResponse { exit_status: Some(exit_status) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_sent_back_by_the_way_it_came() {
        assert_eq!(url("127.0.0.1:7470", "1").unwrap(), "http://127.0.0.1:7470");
        assert_eq!(url("localhost:18200", "1").unwrap(), "http://localhost:18200");
        assert_eq!(url("[::1]:7470", "1").unwrap(), "http://[::1]:7470");
        assert_eq!(url("localhost:7470", "8").unwrap(), "https://localhost:7470", "JavaScript speaks plainly to it");
        let said = url("node1.example:7470", "1").unwrap_err().to_string();
        assert!(said.contains("'node1.example'") && said.contains("shoal connect"), "{said}");
    }

    #[test]
    fn clients_before_one_point_four_go_by_the_server() {
        for (version, before) in
            [("1.2.6", true), ("1.3.5", true), ("1.4.3", false), ("1.6.4", false), ("2.0.0", false), ("1.3.0.dev2", true), ("", false)]
        {
            assert_eq!(is_before_plain(version), before, "{version}");
        }
    }

    fn token(claims: &Claims, key: u8) -> String {
        let signed = format!("e30.{}", BASE64.encode(serde_json::to_string(claims).unwrap()));
        format!("{signed}.{}", BASE64.encode([key; 32]))
    }

    #[test]
    fn a_token_is_good_for_its_time_and_its_cluster() {
        let (holder, task, node) = (TokenId::from_random(1), TaskId::from_random(2), NodeId::from_random(3));
        let claims = Claims { sub: holder.to_string(), task: task.to_string(), node: node.to_string(), exp: 1000 };
        let read_at = |text: &str, now| read(text, now, |_| [7; 32]);
        assert_eq!(read_at(&token(&claims, 7), 999).unwrap(), (holder, Channel { task, node }));
        for (text, now, why) in [
            (token(&claims, 7), 1000, "has expired"),
            (token(&claims, 8), 999, "is not one of this cluster"),
            (String::new(), 999, "is none"),
            ("a.b.!".to_owned(), 999, "is none"),
            (format!("x.{}", BASE64.encode([7; 32])), 999, "cannot be read"),
        ] {
            let error = read_at(&text, now).unwrap_err();
            assert!(matches!(error, Error::Unauthenticated(_)) && error.to_string().contains(why), "{text}: {error}");
        }
    }
}
