//! Whether clients should come to this node: for load balancers in front of several, and for people.

use axum::Router;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::routing::get;

use super::Api;

/// Answers `GET /health`, to whoever asks: it says nothing of what the node does.
pub(super) fn routes(api: Api) -> Router {
    Router::new().route("/health", get(health)).with_state(api)
}

/// By the same rule clients that come by `shoal connect` are sent to other nodes.
async fn health(Shared(api): Shared<Api>) -> (StatusCode, &'static str) {
    if api.reports.is_cut_off(&api.local()) {
        (StatusCode::SERVICE_UNAVAILABLE, "this node reaches no other node of its cluster: another one may serve\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}
