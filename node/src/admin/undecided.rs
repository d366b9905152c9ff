//! What operators are told while the cluster decides nothing: lists show what this node knows, with a note; changes are refused soon, with
//! the reason. Both are noted in a header, which the command line prints.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State as Shared};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use shoal_state::State;
use tokio::time::{Instant, sleep};

use super::Failure;
use crate::api::Api;
use crate::standing::undecided;

/// The header with why nothing is decided.
pub(crate) const UNDECIDED: &str = "x-shoal-undecided";

/// How long the latest state is waited for by somebody who only looks.
const READ_PATIENCE: Duration = Duration::from_secs(2);
/// How long a change waits for a cluster that decides nothing: as long as it takes to replace a lost leader.
const CHANGE_PATIENCE: Duration = Duration::from_secs(4);
/// How often is looked meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What only looks, of what is asked by POST.
const LOOKS: [&str; 3] = ["/audit", "/explain", "/logs"];

/// Returns the latest state, or what this node knows while nothing is decided.
pub(super) async fn latest_or_known(api: &Api) -> Arc<State> {
    api.cluster.read_within(READ_PATIENCE).await
}

/// Refuses changes while nothing is decided, and notes that on every answer.
pub(super) async fn note(Shared(api): Shared<Api>, request: Request, next: Next) -> Response {
    let why_not = || undecided(api.cluster.raft());
    let changes = request.method() != Method::GET && !LOOKS.contains(&request.uri().path());
    let end = Instant::now() + CHANGE_PATIENCE;
    let mut refused = None;
    while let Some(why) = why_not().filter(|_| changes) {
        if Instant::now() >= end {
            refused = Some(Failure(StatusCode::SERVICE_UNAVAILABLE, why).into_response());
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    if let Some(refused) = refused {
        return refused;
    }
    let mut answer = next.run(request).await;
    if let Some(why) = why_not().and_then(|why| HeaderValue::from_bytes(why.as_bytes()).ok()) {
        answer.headers_mut().insert(UNDECIDED, why);
    }
    answer
}
