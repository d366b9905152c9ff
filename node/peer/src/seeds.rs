//! Equal machines that are to become one cluster, and know of each other only addresses and a secret that all were given.
//!
//! Nobody has a certificate that another one could check yet. So each side proves that it knows the secret, by a hash of it with
//! what both sides of this very TLS connection share and nobody between them does: who sits in the middle has two connections,
//! and a proof for neither.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use quinn::Connection;
use shoal_state::NodeId;

use crate::endpoint;
use crate::error::{Error, Result};
use crate::identity::ANY_HOST;
use crate::links;
use crate::stream::Stream;
use crate::tls;

/// The fewest characters of a secret.
pub const SECRET_CHARS_MIN: usize = 32;
/// How long a question and its answer may take, dialling included.
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// What a hash of the secret is for.
const CONTEXT: &str = "shoal seeds 2026-11 proof of the shared secret";
const PROOF_BYTES: usize = 32;

/// A secret that the operator gave to all machines that are to become one cluster.
#[derive(Clone)]
pub struct Secret {
    key: [u8; 32],
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

impl Secret {
    /// Takes a secret that an operator made.
    ///
    /// # Errors
    /// [`Error::NoSecret`] when it is too short to be one.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        let (chars, kinds) = (text.chars().count(), text.chars().collect::<std::collections::BTreeSet<_>>().len());
        let no = |why: String| Error::NoSecret { why };
        if chars < SECRET_CHARS_MIN {
            return Err(no(format!("it has {chars} characters, and needs {SECRET_CHARS_MIN} at least")));
        }
        if kinds < 8 {
            return Err(no(format!("it has only {kinds} different characters, and can be guessed")));
        }
        Ok(Self { key: blake3::derive_key(CONTEXT, text.as_bytes()) })
    }

    /// Proves to the other end of a connection that one side knows the secret.
    fn proof(&self, side: &[u8], connection: &Connection) -> Result<blake3::Hash> {
        let mut shared = [0; 32];
        let failed = |_| Error::Certificate { doing: "prove the secret", why: "the connection shares nothing".into() };
        connection.export_keying_material(&mut shared, b"EXPORTER-shoal-seeds", side).map_err(failed)?;
        Ok(blake3::keyed_hash(&self.key, &[side, &shared].concat()))
    }

    fn check(&self, side: &[u8], connection: &Connection, shown: &[u8]) -> Result<bool> {
        let shown: Option<[u8; PROOF_BYTES]> = shown.get(..PROOF_BYTES).and_then(|shown| shown.try_into().ok());
        // Hashes compare in constant time.
        Ok(shown.is_some_and(|shown| self.proof(side, connection).is_ok_and(|proof| proof == blake3::Hash::from(shown))))
    }
}

const ASKS: &[u8] = b"asks";
const ANSWERS: &[u8] = b"answers";

pub(crate) type Answer = Arc<dyn Fn(Bytes, SocketAddr) -> BoxFuture<'static, std::result::Result<Bytes, String>> + Send + Sync>;

/// Who answers those that know the secret.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) secret: Secret,
    pub(crate) answer: Answer,
}

/// Asks the machine at `address` (`host:port`), which must know the secret, as it must of this one.
///
/// # Errors
/// When it cannot be reached, has another secret, or says no: with its words.
pub async fn ask_seed(address: &str, secret: &Secret, question: &[u8]) -> Result<Bytes> {
    let whom = || "the seed".to_owned();
    let unreachable = |why: String| Error::Unreachable { peer: whom(), address: address.to_owned(), why };
    let refused = |why: String| Error::Refused { peer: whom(), address: address.to_owned(), why };
    let exchange = async {
        let there = links::resolve(address).await?;
        let endpoint = endpoint::outbound(there)?;
        let connecting = endpoint.connect_with(tls::seeding()?, there, ANY_HOST).map_err(|error| unreachable(error.to_string()))?;
        let connection = connecting.await.map_err(|error| unreachable(links::explain(&error)))?;
        let opened = connection.open_bi().await.map_err(|error| unreachable(links::explain(&error)))?;
        let mut stream = Stream::new(NodeId::from_random(0), connection.remote_address(), opened);
        let asked = [secret.proof(ASKS, &connection)?.as_bytes(), question].concat();
        let answered = async {
            stream.send(asked.into()).await?;
            stream.finish()?;
            stream.next().await
        };
        let mut answer = match answered.await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(unreachable("it closed the connection without an answer".into())),
            Err(Error::Failed { why, .. }) => return Err(refused(why)),
            Err(error) => return Err(unreachable(error.to_string())),
        };
        if !secret.check(ANSWERS, &connection, &answer)? {
            return Err(refused("it does not know the secret that this node was given".into()));
        }
        connection.close(0u32.into(), b"asked");
        Ok(answer.split_off(PROOF_BYTES))
    };
    let late = |_| Err(unreachable(format!("waited {ASK_DEADLINE:?} for its answer")));
    tokio::time::timeout(ASK_DEADLINE, exchange).await.unwrap_or_else(late)
}

/// Answers one question on a connection. Says whether whoever asked knew the secret.
pub(crate) async fn answer(connection: &Connection, door: Option<&Door>) -> Result<bool> {
    let none = NodeId::from_random(0);
    let broken = |error: &dyn std::fmt::Display| Error::Broken { peer: none, why: error.to_string() };
    let exchange = async {
        let opened = connection.accept_bi().await.map_err(|error| broken(&error))?;
        let mut stream = Stream::new(none, connection.remote_address(), opened);
        let Some(mut asked) = stream.next().await? else { return Ok(false) };
        let Some(door) = door else {
            stream.fail("it was started without seeds, and lets nodes in by `--join` alone").await?;
            stream.closed().await;
            return Ok(true);
        };
        if !door.secret.check(ASKS, connection, &asked)? {
            stream.fail("it was given another secret").await?;
            stream.closed().await;
            return Ok(false);
        }
        match (door.answer)(asked.split_off(PROOF_BYTES), connection.remote_address()).await {
            Ok(said) => {
                let said = [door.secret.proof(ANSWERS, connection)?.as_bytes(), &said[..]].concat();
                stream.send(said.into()).await?;
                stream.finish()?;
            }
            Err(why) => stream.fail(&why).await?,
        }
        stream.closed().await;
        Ok(true)
    };
    let late = |_| Err(Error::Late { peer: none, what: "ask as a seed", waited: ASK_DEADLINE });
    tokio::time::timeout(ASK_DEADLINE, exchange).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_can_be_guessed_is_refused_in_words() {
        for (text, why) in [("short", "it has 5 characters"), (&"ab".repeat(20), "only 2 different characters")] {
            let said = Secret::new(text).unwrap_err().to_string();
            assert!(said.contains(why) && said.contains("openssl rand"), "{said}");
        }
        let secret = Secret::new("  0123456789abcdef0123456789abcdef\n").unwrap();
        assert_eq!(secret.key, Secret::new("0123456789abcdef0123456789abcdef").unwrap().key);
        assert!(!format!("{secret:?}").contains("key"));
    }
}
