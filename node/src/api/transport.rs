//! Connections: one port for everything, and one unix socket for each task.
//!
//! Whoever arrives on the port shows a token with each call. Whoever arrives on a task's socket *is* that task. In front
//! of the methods stands one layer that finds out who calls, asks the policy, keeps what it refuses in the audit log, and
//! says a sentence for methods that are known but not served.
//!
//! Connections are bounded, and one on which nobody has shown a right is closed when it is silent for [`KNOWN_WITHIN`]: so
//! strangers who hold connections open keep nobody else out for long.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use shoal_proto::modal_client::modal_client_server::ModalClientServer;
use shoal_proto::task_command_router::task_command_router_server::TaskCommandRouterServer;
use shoal_runtime::ShortPath;
use shoal_state::TaskId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tower::ServiceExt as _;

use super::error::Error;
use super::{Api, Caller, Connection, Identity, Told, absent, blob, exec, health, identity, patience, policy, service};

/// The largest message that a client may send, in bytes: the clients' own limit with a margin.
const MESSAGE_BYTES_MAX: usize = 110 << 20;
/// How much of one call's message may be under way, in bytes.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// How much of one connection's messages may be under way, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// How often an idle connection is asked whether it still lives.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long connections may take to end when the node stops.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a connection may be silent of which no request was let in yet.
const KNOWN_WITHIN: Duration = Duration::from_secs(30);
/// How many connections a listener has at once. Further ones wait in the socket's queue until others end.
const CONNECTIONS_MAX: usize = 15_000;
/// Files that the node needs besides connections.
const FILES_BESIDES: u64 = 1_000;

/// How the answer to a message begins that could not be decoded.
const NOT_DECODED: &str = "failed to decode";

const SERVICE: &str = "/modal.client.ModalClient/";
/// The worker channel: whoever calls shows the channel's own token.
const CHANNEL: &str = "/modal.task_command_router.TaskCommandRouter/";

/// Where a connection came from.
#[derive(Clone)]
struct Door {
    api: Api,
    task: Option<TaskId>,
}

/// A connection, as its requests carry it along.
#[derive(Clone)]
struct Peer {
    /// None on a task's socket.
    address: Option<SocketAddr>,
    connection: Connection,
    /// What it was told of builds.
    told: Told,
    /// Whether a request was let in.
    known: Arc<AtomicBool>,
}

impl Peer {
    fn new(address: Option<SocketAddr>) -> Self {
        Self { address, connection: Connection::new(), told: Told::default(), known: Arc::default() }
    }

    fn text(&self) -> String {
        self.address.map(|address| address.to_string()).unwrap_or_default()
    }
}

fn router(api: Api, task: Option<TaskId>) -> Router {
    let service =
        ModalClientServer::new(api.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let door = Door { api: api.clone(), task };
    let channel = TaskCommandRouterServer::new(exec::Router(api.clone())).max_decoding_message_size(MESSAGE_BYTES_MAX);
    tonic::service::Routes::new(service)
        .add_service(channel)
        .into_axum_router()
        .layer(axum::middleware::from_fn_with_state(door.clone(), enter))
        .merge(health::routes(api.clone()))
        .merge(blob::routes(api).layer(axum::middleware::from_fn_with_state(door, enter_by_url)))
}

/// Returns the name of a method without its service.
fn method_of(path: &str) -> &str {
    path.strip_prefix(SERVICE).or_else(|| path.strip_prefix(CHANNEL)).unwrap_or(path)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn peer(request: &Request<Body>) -> Peer {
    request.extensions().get::<Peer>().cloned().unwrap_or_else(|| Peer::new(None))
}

/// Finds out who calls, and lets in whom the policy permits.
async fn enter(Shared(door): Shared<Door>, mut request: Request<Body>, next: Next) -> Response {
    let (path, headers, authority) =
        (request.uri().path().to_owned(), request.headers().clone(), request.uri().authority().map(ToString::to_string));
    let (peer, method) = (peer(&request), method_of(&path));
    match check(&door, &path, &headers, authority, &peer).await {
        Ok((caller, channel)) => {
            peer.known.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(caller);
            if let Some(channel) = channel {
                request.extensions_mut().insert(channel);
            }
            let began = Instant::now();
            let response = next.run(request).await;
            tracing::debug!(target: "shoal::rpc", method, ms = began.elapsed().as_secs_f64() * 1000.0, "answered");
            patience::bound(explain_undecoded(response, method), method, &headers)
        }
        Err((who, error)) => {
            door.api.note_refusal(who, method, &peer.text(), &error);
            Status::from(error).into_http()
        }
    }
}

/// Blames the request for a message that is too large or none: what decodes messages knows only numbers, and would have
/// clients send it again.
fn explain_undecoded(response: Response, method: &str) -> Response {
    let Some(status) = Status::from_header_map(response.headers()) else { return response };
    let limit = MESSAGE_BYTES_MAX >> 20;
    let error = match status.code() {
        // The clients' dicts and queues know by these words that less must be sent.
        Code::OutOfRange if method.starts_with("Dict") || method.starts_with("Queue") => {
            format!("the request to {method} is too large: a message may have {limit} MiB; send less at once (status = '413')")
        }
        Code::OutOfRange => format!(
            "the request to {method} is too large: a message may have {limit} MiB; send less at once (clients turn arguments over 2 MiB into blobs by themselves)"
        ),
        Code::Internal if status.message().starts_with(NOT_DECODED) => {
            format!("the request to {method} is not a message that this node can read: {}", status.message())
        }
        _ => return response,
    };
    Status::from(Error::Invalid(error)).into_http()
}

/// Keeps refused URLs in the audit log. A URL carries its own permission.
async fn enter_by_url(Shared(door): Shared<Door>, request: Request<Body>, next: Next) -> Response {
    let (peer, path) = (peer(&request), request.uri().path().to_owned());
    let method = format!("{} {path}", request.method());
    if request.method() == Method::PUT
        && let Err(error) = door.api.room.check()
    {
        return (StatusCode::INSUFFICIENT_STORAGE, error.to_string()).into_response();
    }
    // Bytes may come for long after the permission was found good; a bad one is answered at once.
    let known = peer.known.swap(true, Ordering::Relaxed);
    let response = next.run(request).await;
    if response.status() == StatusCode::FORBIDDEN {
        peer.known.store(known, Ordering::Relaxed);
        let refused = Error::Denied("the URL does not permit this, or has expired".to_owned());
        door.api.note_refusal(door.task.map(Identity::Task), &method, &peer.text(), &refused);
    }
    response
}

/// Checks a call before its request is read; a refusal says whose call it was, as far as that is known.
async fn check(
    door: &Door,
    path: &str,
    headers: &HeaderMap,
    authority: Option<String>,
    peer: &Peer,
) -> Result<(Caller, Option<exec::Channel>), (Option<Identity>, Error)> {
    let (method, nobody) = (method_of(path), |error| (None, error));
    let (identity, channel) = match door.task {
        _ if path.starts_with(CHANNEL) => {
            let (token, channel) = exec::holder(&door.api, headers).await.map_err(nobody)?;
            (Identity::Client(token), Some(channel))
        }
        Some(task) => (Identity::Task(task), None),
        None => (Identity::Client(token(&door.api, method, headers).await.map_err(nobody)?), None),
    };
    let mine = |error| (Some(identity), error);
    served(path).map_err(mine)?;
    policy::admit(&door.api.local(), &door.api.room, method, identity).map_err(mine)?;
    let authority = authority.unwrap_or_else(|| header(headers, "host").to_owned());
    let caller = Caller {
        identity,
        method: method.to_owned(),
        from: peer.text(),
        connection: peer.connection,
        told: peer.told.clone(),
        idempotency_key: header(headers, "x-idempotency-key").to_owned(),
        retried: header(headers, "x-retry-attempt").parse().is_ok_and(|attempt: u32| attempt > 0),
        client_version: header(headers, "x-modal-client-version").to_owned(),
        client_type: header(headers, "x-modal-client-type").to_owned(),
        authority: if door.task.is_some() { door.api.blobs.container_authority() } else { authority },
    };
    Ok((caller, channel))
}

/// Checks the token that came with a call.
async fn token(api: &Api, method: &str, headers: &HeaderMap) -> Result<shoal_state::TokenId, Error> {
    let (id, secret) = (header(headers, "x-modal-token-id"), header(headers, "x-modal-token-secret"));
    if matches!(method, "TokenFlowCreate" | "TokenFlowWait") {
        return Err(Error::Unimplemented(
            "Shoal gives out tokens on its nodes, not in a browser: run `shoal token create` as root on a node, then here the `modal token set --token-id ak-… --token-secret as-…` that it prints"
                .to_owned(),
        ));
    }
    if id.is_empty() {
        return Err(Error::Unauthenticated(
            "this call came without a token: make one on a node with `shoal token create`, then `modal token set` or MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
                .to_owned(),
        ));
    }
    identity::confirm(api, |state| identity::check_token(state, id, secret, api.now())).await
}

/// Says a sentence for a method that clients know and Shoal does not serve.
fn served(path: &str) -> Result<(), Error> {
    use shoal_proto::methods::{Standing, standing};
    match standing(path) {
        Standing::Served if path.strip_prefix(SERVICE).is_some_and(service::implements) => Ok(()),
        Standing::Served if path.starts_with(CHANNEL) => Ok(()),
        Standing::Served | Standing::Known => Err(Error::Unimplemented(absent::sentence(path))),
        Standing::Unknown => Err(Error::Unimplemented(format!("there is no method {path}"))),
    }
}

/// Makes what answers a connection. `asks`: whether an idle one is asked if it still lives; a unix socket tells that itself.
fn server(asks: bool) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(1000)
        .keep_alive_interval(asks.then_some(KEEP_ALIVE))
        .keep_alive_timeout(KEEP_ALIVE);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
}

/// Answers one connection until it ends; says whether the other side ended it.
async fn serve_connection(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    router: Router,
    stop: CancellationToken,
) -> bool {
    let (builder, known, heard) = (server(peer.address.is_some()), Arc::clone(&peer.known), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&heard);
    let service = router.map_request(move |mut request: hyper::Request<Incoming>| {
        counted.fetch_add(1, Ordering::Relaxed);
        request.extensions_mut().insert(peer.clone());
        request
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let closes = async {
        tokio::select! {
            () = stranger(&known, &heard) => {}
            () = stop.cancelled() => {}
        }
    };
    let (ended, by_us) = tokio::select! {
        ended = connection.as_mut() => (ended, false),
        () = closes => {
            connection.as_mut().graceful_shutdown();
            (tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(())), true)
        }
    };
    let Err(error) = ended else { return !by_us };
    tracing::debug!(%error, "a connection ended");
    // After a ping without an answer the client may be there all the same, behind a network that is not.
    let unanswered = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout);
    !by_us && !unanswered
}

/// Returns when a connection has said nothing for a while of which anything was let in.
async fn stranger(known: &AtomicBool, heard: &AtomicU64) {
    loop {
        let before = heard.load(Ordering::Relaxed);
        tokio::time::sleep(KNOWN_WITHIN).await;
        if known.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if heard.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// Lets this process have as many files open as it is allowed to, and returns how many connections that is good for.
pub(crate) fn raise_file_limit() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
        limit.current = before;
    }
    let files = limit.current.unwrap_or(u64::MAX);
    usize::try_from(files.saturating_sub(FILES_BESIDES).max(files / 2)).unwrap_or(usize::MAX).min(CONNECTIONS_MAX)
}

/// Answers everybody who connects to `listener`, at most `connections` at a time, until `stop`.
pub(crate) async fn serve(api: Api, listener: TcpListener, connections: usize, stop: CancellationToken) {
    let (router, room) = (router(api.clone(), None), Arc::new(Semaphore::new(connections)));
    let mut said = None;
    loop {
        if room.available_permits() == 0 && said.is_none_or(|said: Instant| said.elapsed() > KNOWN_WITHIN) {
            said = Some(Instant::now());
            tracing::warn!(
                connections,
                "as many connections are open as this node takes; more wait until some end (the limit of open files, `ulimit -n`, sets the number)"
            );
        }
        let place = tokio::select! {
            place = Arc::clone(&room).acquire_owned() => place,
            () = stop.cancelled() => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, address)) => {
                let _ = stream.set_nodelay(true);
                let (peer, lifecycle) = (Peer::new(Some(address)), api.lifecycle.clone());
                let connection = peer.connection;
                let served = serve_connection(stream, peer, router.clone(), stop.clone());
                tokio::spawn(async move {
                    let by_client = served.await;
                    lifecycle.closed(connection, by_client);
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; waiting a moment");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A task's own socket; it is answered until this is dropped.
#[derive(Debug)]
pub(crate) struct TaskDoor {
    stop: CancellationToken,
    path: PathBuf,
}

impl Drop for TaskDoor {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Answers a task on a socket of its own at `path`.
pub(crate) fn serve_task(api: Api, task: TaskId, path: &Path) -> std::io::Result<TaskDoor> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(ShortPath::to(path)?.path())?;
    let stop = CancellationToken::new();
    let (router, until) = (router(api, Some(task)), stop.clone());
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = until.cancelled() => return,
            };
            if let Ok((stream, _)) = accepted {
                let peer = Peer::new(None);
                peer.known.store(true, Ordering::Relaxed);
                tokio::spawn(serve_connection(stream, peer, router.clone(), until.clone()));
            }
        }
    });
    Ok(TaskDoor { stop, path: path.to_owned() })
}
