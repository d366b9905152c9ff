//! How long clients are to go on trying what will heal by itself.
//!
//! The answer to what will heal (`Error::Heals`) carries a retry policy, which has clients try again without using up the few tries
//! that they have, and tell their users the sentence of the answer now and then. It is taken off again where the client's own tries
//! will do, so that nobody reads of a wait of a second; where the client is leaving; and where it was patient for [`PATIENCE`].

use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use prost::Message as _;
use shoal_proto::modal_client as pb;
use tonic::Code;

/// For how long clients go on trying. By then somebody will have to look.
const PATIENCE: Duration = Duration::from_secs(60 * 60);
/// After how long a client tries again. What heals was waited for here before.
const TRY_AFTER_SECONDS: f32 = 0.25;
/// From which of its own tries on a client is told to be patient; they have four.
const FROM_TRY: u32 = 2;
/// What a client says as it leaves: nobody waits for that.
const LEAVING: [&str; 1] = ["AppClientDisconnect"];

const DETAILS: &str = "grpc-status-details-bin";
const POLICY_TYPE: &str = "type.googleapis.com/modal.client.RPCRetryPolicy";

/// Returns the details of an answer that has clients try again.
pub(super) fn policy(code: Code, message: &str) -> Bytes {
    let value = pb::RpcRetryPolicy { retry_after_secs: TRY_AFTER_SECONDS }.encode_to_vec();
    let policy = prost_types::Any { type_url: POLICY_TYPE.to_owned(), value };
    pb::RpcStatus { code: code.into(), message: message.to_owned(), details: vec![policy] }.encode_to_vec().into()
}

/// Takes the policy off an answer where it is not for this client, or not yet, or no longer.
pub(super) fn bound(mut response: Response, method: &str, asked: &HeaderMap) -> Response {
    if response.headers().contains_key(DETAILS) && !is_for(method, asked) {
        response.headers_mut().remove(DETAILS);
    }
    response
}

fn is_for(method: &str, asked: &HeaderMap) -> bool {
    let number = |name: &str| asked.get(name)?.to_str().ok()?.parse::<f64>().ok();
    let waited = number("x-throttle-retry-delay").unwrap_or_default();
    let tried = number("x-retry-attempt").unwrap_or_default();
    tried >= f64::from(FROM_TRY) && waited < PATIENCE.as_secs_f64() && !LEAVING.contains(&method)
}

#[cfg(test)]
mod tests {
    use super::super::error::Error;
    use super::*;

    /// Says whether the answer to a method has the client be patient that asks with such headers.
    fn patient(error: Error, method: &str, headers: &[(&'static str, &str)]) -> bool {
        let asked = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let answer = bound(tonic::Status::from(error).into_http(), method, &asked);
        let Some(details) = answer.headers().get(DETAILS) else { return false };
        let status = tonic::Status::from_header_map(answer.headers()).unwrap();
        let told = pb::RpcStatus::decode(status.details()).unwrap();
        assert!(!details.is_empty() && told.message == status.message() && told.details[0].type_url == POLICY_TYPE);
        pb::RpcRetryPolicy::decode(&*told.details[0].value).unwrap().retry_after_secs > 0.0
    }

    #[test]
    fn clients_are_patient_after_tries_of_their_own_and_not_for_ever() {
        let heals = || Error::Heals("waited 10.0 s for a leader".to_owned());
        for (patience, method, headers) in [
            (false, "FunctionMap", &[][..]),
            (false, "FunctionMap", &[("x-retry-attempt", "1")]),
            (true, "FunctionMap", &[("x-retry-attempt", "2")]),
            (true, "FunctionMap", &[("x-retry-attempt", "2"), ("x-throttle-retry-delay", "3599.5")]),
            (false, "FunctionMap", &[("x-retry-attempt", "2"), ("x-throttle-retry-delay", "3600.1")]),
            (false, "AppClientDisconnect", &[("x-retry-attempt", "2")]),
        ] {
            assert_eq!(patient(heals(), method, headers), patience, "{method} {headers:?}");
        }
        assert!(!patient(Error::Unavailable("the node stops".to_owned()), "FunctionMap", &[("x-retry-attempt", "2")]));
    }
}
