//! Asking to be let into a cluster: the one thing that a node does without a certificate.
//!
//! The token that an operator carries over says what the cluster's CA is. So the joining node knows whom it speaks to before it
//! shows the secret, and the cluster knows by the secret that the node may come.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::endpoint;
use crate::error::{Error, Result};
use crate::identity::{ANY_HOST, About};
use crate::links;
use crate::stream::Stream;
use crate::tls;

/// What every token that lets a node join begins with.
const PREFIX: &str = "shoal-join-";
/// What every token that lets a client's machine connect begins with.
const CONNECT_PREFIX: &str = "shoal-connect-";

/// How long the whole exchange may take.
const JOIN_DEADLINE: Duration = Duration::from_secs(30);

/// How long a node may take to let a connection in.
const MEET_DEADLINE: Duration = Duration::from_secs(10);
/// How long a node may take to answer a greeting.
const GREET_DEADLINE: Duration = Duration::from_secs(3);

/// The blake3 digest of a CA's certificate.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(crate) fn of(ca: &CertificateDer<'_>) -> Self {
        Self(*blake3::hash(ca).as_bytes())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What lets a node join: which CA the cluster has, and a secret that the cluster knows.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The cluster's CA.
    pub fingerprint: Fingerprint,
    /// The secret.
    pub secret: String,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// Writes the secret out.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}.{}", self.fingerprint, self.secret)
    }
}

impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let no = |why| Error::NoToken { why };
        let rest = text.trim().strip_prefix(PREFIX).ok_or(no("it does not begin with \"shoal-join-\""))?;
        let (fingerprint, secret) = parts(rest).map_err(no)?;
        Ok(Self { fingerprint, secret })
    }
}

/// What lets a client's machine connect: which CA the cluster has, and a token of its own (`ID.SECRET`).
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectToken(JoinToken);

impl ConnectToken {
    /// Puts both together.
    pub fn new(fingerprint: Fingerprint, secret: String) -> Self {
        Self(JoinToken { fingerprint, secret })
    }

    /// Returns the cluster's CA.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint
    }

    /// Returns the token's id and secret.
    pub fn secret(&self) -> &str {
        &self.0.secret
    }
}

impl fmt::Debug for ConnectToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectToken").field("fingerprint", &self.0.fingerprint).finish_non_exhaustive()
    }
}

/// Writes the secret out.
impl fmt::Display for ConnectToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{CONNECT_PREFIX}{}.{}", self.0.fingerprint, self.0.secret)
    }
}

impl FromStr for ConnectToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let no = |why| Error::NoConnectToken { why };
        let rest = text.trim().strip_prefix(CONNECT_PREFIX).ok_or(no("it does not begin with \"shoal-connect-\""))?;
        let (fingerprint, secret) = parts(rest).map_err(no)?;
        Ok(Self::new(fingerprint, secret))
    }
}

fn parts(rest: &str) -> std::result::Result<(Fingerprint, String), &'static str> {
    let (fingerprint, secret) = rest.split_once('.').ok_or("a part of it is missing")?;
    let bytes = URL_SAFE_NO_PAD.decode(fingerprint).ok().and_then(|bytes| bytes.try_into().ok());
    let fingerprint = Fingerprint(bytes.ok_or("what it says of the cluster's CA cannot be read")?);
    if secret.is_empty() {
        return Err("its secret is missing");
    }
    Ok((fingerprint, secret.to_owned()))
}

/// What the cluster said, and the CA that it said it with.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The answer to the request.
    pub answer: Bytes,
    /// The cluster's CA (DER).
    pub ca: Vec<u8>,
}

/// Sends a request to the node at `address` (`host:port`), which must have a certificate of this CA; returns its answer.
///
/// # Errors
/// When the node cannot be reached, is of another cluster, or refuses: with its words.
pub async fn join(address: &str, ca: Fingerprint, request: Bytes) -> Result<Joined> {
    let unreachable = |why: String| unreachable(address, why);
    let exchange = async {
        let (endpoint, connection) = meet(address, ca).await?;
        let chain = tls::chain_of(&connection);
        let (Some(leaf), Some(authority)) = (chain.first(), chain.iter().find(|one| Fingerprint::of(one) == ca)) else {
            return Err(Error::Stranger { address: address.to_owned() });
        };
        let (node, authority) = (About::of(leaf)?.node, authority.to_vec());
        let opened = connection.open_bi().await.map_err(|error| unreachable(links::explain(&error)))?;
        let mut stream = Stream::new(node, connection.remote_address(), opened);
        let answered = async {
            stream.send(request).await?;
            stream.finish()?;
            stream.next().await
        };
        let answer = match answered.await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(unreachable("it closed the connection without an answer".into())),
            Err(Error::Failed { why, .. }) => return Err(Error::Refused { peer: whom(), address: address.to_owned(), why }),
            Err(error) => return Err(unreachable(error.to_string())),
        };
        connection.close(0u32.into(), b"joined");
        // The other side should hear that it is over.
        let _idle = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        Ok(Joined { answer, ca: authority })
    };
    tokio::time::timeout(JOIN_DEADLINE, exchange)
        .await
        .unwrap_or_else(|_| Err(unreachable(format!("waited {JOIN_DEADLINE:?} for its answer"))))
}

/// Looks whether a node with a certificate of this CA answers at `address` (`host:port`), and asks it for nothing.
///
/// # Errors
/// When none does.
pub async fn greet(address: &str, ca: Fingerprint) -> Result<()> {
    let greeting = async {
        let (endpoint, connection) = meet(address, ca).await?;
        connection.close(0u32.into(), b"greeted");
        let _idle = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        Ok(())
    };
    let late = |_| Err(unreachable(address, links::explain(&quinn::ConnectionError::TimedOut)));
    tokio::time::timeout(GREET_DEADLINE, greeting).await.unwrap_or_else(late)
}

/// Connects to a node that must have a certificate of this CA.
async fn meet(address: &str, ca: Fingerprint) -> Result<(quinn::Endpoint, quinn::Connection)> {
    let there = links::resolve(address).await?;
    let endpoint = endpoint::outbound(there)?;
    let connecting = endpoint.connect_with(tls::joining(ca)?, there, ANY_HOST);
    let connecting = connecting.map_err(|error| unreachable(address, error.to_string()))?;
    // Nothing is repeated here; who asks again does so, and people should not wait for long to hear of a wrong address.
    let connected = tokio::time::timeout(MEET_DEADLINE, connecting).await.unwrap_or(Err(quinn::ConnectionError::TimedOut));
    let connection = connected.map_err(|error| match is_stranger(&error) {
        true => Error::Stranger { address: address.to_owned() },
        false => unreachable(address, links::explain(&error)),
    })?;
    Ok((endpoint, connection))
}

fn whom() -> String {
    "a node of the cluster".to_owned()
}

fn unreachable(address: &str, why: String) -> Error {
    Error::Unreachable { peer: whom(), address: address.to_owned(), why }
}

/// Says whether a handshake failed because the other side's certificate is not of the CA that was asked for.
fn is_stranger(error: &quinn::ConnectionError) -> bool {
    matches!(error, quinn::ConnectionError::TransportError(error) if error.reason.contains("cluster") || error.to_string().contains("certificate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written() {
        let token = JoinToken { fingerprint: Fingerprint([7; 32]), secret: "sn-abc.def".into() };
        assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!(" {token}\n").parse::<JoinToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains("sn-abc"), "the secret is in the debug form");
        let token = ConnectToken::new(Fingerprint([7; 32]), "ak-abc.as-def".into());
        assert_eq!(token.to_string().parse::<ConnectToken>().unwrap(), token);
        assert!(token.to_string().parse::<JoinToken>().is_err(), "it lets no node join");
        assert!(!format!("{token:?}").contains("as-def"), "the secret is in the debug form");
    }

    #[test]
    fn what_is_no_token_is_refused_with_what_to_do() {
        for (text, why) in [
            ("ak-abc:as-def", "does not begin with"),
            ("shoal-join-abc", "a part of it is missing"),
            ("shoal-join-abc.def", "cannot be read"),
            ("shoal-join-BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc.", "secret is missing"),
        ] {
            let said = text.parse::<JoinToken>().unwrap_err().to_string();
            assert!(said.contains(why) && said.contains("shoal token create --node"), "{said}");
        }
    }
}
