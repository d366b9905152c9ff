//! Connections: one port for everything, and one unix socket for each task.
//!
//! Whoever arrives on the port shows a token with each call. Whoever arrives on a task's socket *is* that task. In front
//! of the methods stands one layer that finds out who calls, asks the policy, and says a sentence for methods that are
//! known but not served.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use shoal_proto::modal_client::modal_client_server::ModalClientServer;
use shoal_state::TaskId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::error::Error;
use super::{Api, Caller, Identity, blob, identity};

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

const SERVICE: &str = "/modal.client.ModalClient/";

/// Where a connection came from.
#[derive(Clone)]
struct Door {
    api: Api,
    task: Option<TaskId>,
}

fn router(api: Api, task: Option<TaskId>) -> Router {
    let service =
        ModalClientServer::new(api.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let door = Door { api: api.clone(), task };
    tonic::service::Routes::new(service)
        .into_axum_router()
        .layer(axum::middleware::from_fn_with_state(door, enter))
        .merge(blob::routes(api))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Finds out who calls, and lets in whom the policy permits.
async fn enter(Shared(door): Shared<Door>, mut request: Request<Body>, next: Next) -> Response {
    let (path, headers, authority) =
        (request.uri().path().to_owned(), request.headers().clone(), request.uri().authority().map(ToString::to_string));
    match check(&door, &path, &headers, authority).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            let began = Instant::now();
            let response = next.run(request).await;
            tracing::debug!(target: "shoal::rpc", method = path.rsplit('/').next(), ms = began.elapsed().as_secs_f64() * 1000.0, "answered");
            response
        }
        Err(error) => {
            tracing::info!(target: "shoal::audit", path, %error, "refused");
            Status::from(error).into_http()
        }
    }
}

async fn check(door: &Door, path: &str, headers: &HeaderMap, authority: Option<String>) -> Result<Caller, Error> {
    let method = path.strip_prefix(SERVICE).unwrap_or(path);
    let identity = match door.task {
        Some(task) => Identity::Task(task),
        None => Identity::Client(token(&door.api, headers).await?),
    };
    served(path)?;
    identity::permit(method, identity)?;
    let authority = authority.unwrap_or_else(|| header(headers, "host").to_owned());
    Ok(Caller {
        identity,
        idempotency_key: header(headers, "x-idempotency-key").to_owned(),
        client_version: header(headers, "x-modal-client-version").to_owned(),
        client_type: header(headers, "x-modal-client-type").to_owned(),
        authority: if door.task.is_some() { door.api.blobs.container_authority() } else { authority },
    })
}

/// Checks the token that came with a call; a refusal is confirmed with the latest state before it is said.
async fn token(api: &Api, headers: &HeaderMap) -> Result<shoal_state::TokenId, Error> {
    let (id, secret) = (header(headers, "x-modal-token-id"), header(headers, "x-modal-token-secret"));
    if id.is_empty() {
        return Err(Error::Unauthenticated(
            "this call came without a token: make one on a node with `shoal token create`, then `modal token set` or MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
                .to_owned(),
        ));
    }
    match identity::check_token(&api.local(), id, secret, api.now()) {
        Ok(token) => Ok(token),
        Err(_) => identity::check_token(&api.read_latest().await?, id, secret, api.now()),
    }
}

/// Says a sentence for a method that clients know and Shoal does not serve.
fn served(path: &str) -> Result<(), Error> {
    use shoal_proto::methods::{Standing, standing};
    match standing(path) {
        Standing::Served => Ok(()),
        Standing::Known => Err(Error::Unimplemented(format!("Shoal does not serve {path} yet"))),
        Standing::Unknown => Err(Error::Unimplemented(format!("there is no method {path}"))),
    }
}

fn server() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(1000)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
}

async fn serve_connection(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router, stop: CancellationToken) {
    let builder = server();
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

/// Answers everybody who connects to `listener`, until `stop`.
pub(crate) async fn serve(api: Api, listener: TcpListener, stop: CancellationToken) {
    let router = router(api, None);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve_connection(stream, router.clone(), stop.clone()));
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
    let listener = UnixListener::bind(path)?;
    let stop = CancellationToken::new();
    let (router, until) = (router(api, Some(task)), stop.clone());
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = until.cancelled() => return,
            };
            if let Ok((stream, _)) = accepted {
                tokio::spawn(serve_connection(stream, router.clone(), until.clone()));
            }
        }
    });
    Ok(TaskDoor { stop, path: path.to_owned() })
}
