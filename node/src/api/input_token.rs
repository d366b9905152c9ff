//! The tokens that travel with inputs (`input_jwt`, `function_call_jwt`).
//!
//! They look like JWTs, because clients read an input's place in its call from the middle part. They carry no rights (who
//! shows one shows a credential beside it), so nothing is signed: where the signature would be is the id. They are as short
//! as can be, because a map sends those of all its unfinished inputs with every poll.

use std::fmt::Display;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};
use shoal_state::NotAnId;

use super::error::Error;

/// `{}`, as the head of a JWT.
const HEAD: &str = "e30";

#[derive(Serialize, Deserialize)]
struct Claims {
    idx: u32,
}

/// Makes the token of an input (or a call, at place 0) from its place in the call and its id.
pub(super) fn make(idx: u32, id: impl Display) -> String {
    format!("{HEAD}.{}.{id}", BASE64.encode(format!("{{\"idx\":{idx}}}")))
}

/// Reads a token back: the place and the id.
pub(super) fn read<Id: FromStr<Err = NotAnId>>(token: &str) -> Result<(u32, Id), Error> {
    let parts: Vec<&str> = token.split('.').collect();
    let [HEAD, claims, id] = parts[..] else { return Err(not_ours(token)) };
    let claims = BASE64.decode(claims).ok().and_then(|json| serde_json::from_slice::<Claims>(&json).ok());
    Ok((claims.ok_or_else(|| not_ours(token))?.idx, id.parse()?))
}

fn not_ours(token: &str) -> Error {
    Error::Invalid(format!("{token:?} is not the token of an input that this cluster gave out"))
}

#[cfg(test)]
mod tests {
    use shoal_state::{CallId, InputId};

    use super::*;

    #[test]
    fn a_token_is_short_and_read_back() {
        let input = InputId::from_random(7);
        let token = make(12_345, input);
        assert!(token.len() < 60, "{token} has {} bytes", token.len());
        assert_eq!(read::<InputId>(&token).unwrap(), (12_345, input));
        assert!(read::<CallId>(&token).is_err(), "an input is no call");
        for other in ["", "e30", "e30.e30", "e30.e30.in-1", "e30.!.in-1", "x.eyJpZHgiOjB9.in-1", "e30.eyJpZHgiOjB9.in-1.more"] {
            assert!(read::<InputId>(other).is_err(), "{other}");
        }
    }
}
