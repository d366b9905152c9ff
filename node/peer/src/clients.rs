//! The road of clients' machines into a cluster: QUIC with mutual TLS, as between nodes, and a stream for each connection.
//!
//! A client's machine shows a token of the cluster once and gets a certificate for a key of its own, good for some days. What it says
//! is the token's id: a node that lets it in looks whether the token is still good. Nothing else can be done with it: it names no node,
//! and is none of a server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use quinn::{Connection, IdleTimeout, TransportConfig, VarInt};
use shoal_state::TokenId;
use tokio::io::Join;
use tokio::sync::watch;

use crate::endpoint;
use crate::error::{Error, Result};
use crate::identity::{ANY_HOST, Certified, Identity, Request, client_of};
use crate::links;
use crate::tls;

/// How long dialling one node may take.
const DIAL_DEADLINE: Duration = Duration::from_secs(3);
/// After how long without a packet a node is given up.
const SILENT_AFTER: Duration = Duration::from_secs(4);
/// How often a quiet connection is kept alive.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// What ends a connection or a stream of a client that may not come.
const NOT_LET_IN: VarInt = VarInt::from_u32(3);

/// What ends a connection of a client that another node must serve.
const ELSEWHERE: VarInt = VarInt::from_u32(4);

/// Bytes in both directions.
pub type Tunnel = Join<quinn::RecvStream, quinn::SendStream>;

/// Takes what a client's machine opens: its token, where it comes from, and the bytes.
pub(crate) type ServeClient = Arc<dyn Fn(TokenId, SocketAddr, Tunnel) -> BoxFuture<'static, ()> + Send + Sync>;

/// What lets a client's machine in: a key, and a certificate of the cluster's CA that names a token.
#[derive(Debug)]
pub struct Pass(Certified);

impl Pass {
    /// Puts a key (PEM), its certificate (DER) and the CA's (DER) together.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn new(key: &str, leaf: &[u8], ca: &[u8]) -> Result<Self> {
        Certified::new(key, leaf, ca).map(Self)
    }

    /// Makes a key; returns the request to have it certified, and the key (PEM), which is a secret.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn ask() -> Result<(Request, String)> {
        Identity::ask()
    }

    /// Returns when another one should be asked for, in seconds since 1970.
    pub fn renew_at(&self) -> i64 {
        self.0.renew_at()
    }

    pub(crate) fn certified(&self) -> &Certified {
        &self.0
    }
}

/// A connection from a client's machine to a node. Dropping it, and all tunnels, ends it.
#[derive(Debug)]
pub struct Entry {
    connection: Connection,
    _endpoint: quinn::Endpoint,
}

impl Entry {
    /// Connects to the node at `address` (`host:port`).
    ///
    /// # Errors
    /// When the node cannot be reached, is of another cluster, or does not let this machine in.
    pub async fn open(address: &str, pass: &Pass) -> Result<Self> {
        let unreachable = |why: String| Error::Unreachable { peer: "a node of the cluster".to_owned(), address: address.to_owned(), why };
        let opening = async {
            let there = links::resolve(address).await?;
            let endpoint = endpoint::outbound(there)?;
            let mut config = tls::entering(pass)?;
            config.transport_config(Arc::new(transport()));
            let connecting = endpoint.connect_with(config, there, ANY_HOST).map_err(|error| unreachable(error.to_string()))?;
            let connection = connecting.await.map_err(|error| unreachable(links::explain(&error)))?;
            Ok(Self { connection, _endpoint: endpoint })
        };
        let late = |_| unreachable(format!("no answer within {} s", DIAL_DEADLINE.as_secs()));
        tokio::time::timeout(DIAL_DEADLINE, opening).await.map_err(late)?
    }

    /// Opens a tunnel to the node's API.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn tunnel(&self) -> Result<Tunnel> {
        let (send, receive) = self.connection.open_bi().await.map_err(|error| self.ended(&error))?;
        Ok(tokio::io::join(receive, send))
    }

    /// Returns why the connection has ended, if it has.
    pub fn end(&self) -> Option<String> {
        self.connection.close_reason().map(|error| words(&error))
    }

    /// Waits until the connection has ended, and returns why.
    pub async fn ended_by(&self) -> String {
        words(&self.connection.closed().await)
    }

    /// Says whether the node has ended the connection because it cannot serve clients now: another one is to be tried.
    pub fn was_sent_elsewhere(&self) -> bool {
        matches!(self.connection.close_reason(), Some(quinn::ConnectionError::ApplicationClosed(closed)) if closed.error_code == ELSEWHERE)
    }

    fn ended(&self, error: &quinn::ConnectionError) -> Error {
        let (peer, address) = ("a node of the cluster".to_owned(), self.connection.remote_address().to_string());
        Error::Unreachable { peer, address, why: words(error) }
    }
}

fn words(error: &quinn::ConnectionError) -> String {
    match error {
        quinn::ConnectionError::ApplicationClosed(closed) => String::from_utf8_lossy(&closed.reason).into_owned(),
        other => links::explain(other),
    }
}

fn transport() -> TransportConfig {
    let mut transport = endpoint::transport(true);
    transport.max_idle_timeout(Some(IdleTimeout::try_from(SILENT_AFTER).expect("it is short"))).keep_alive_interval(Some(KEEP_ALIVE));
    transport
}

/// Gives what a client's machine opens to whoever serves it, until the connection ends or clients are sent `away`.
pub(crate) async fn let_in(connection: &Connection, serve: Option<ServeClient>, mut away: watch::Receiver<bool>) {
    let token = tls::chain_of(connection).first().and_then(|leaf| client_of(leaf));
    let Some(token) = token else {
        return connection.close(NOT_LET_IN, b"this machine showed no certificate of a client");
    };
    let Some(serve) = serve else {
        return connection.close(ELSEWHERE, b"this node is starting or stopping, another one may serve");
    };
    loop {
        tokio::select! {
            opened = connection.accept_bi() => match opened {
                Ok((send, receive)) => drop(tokio::spawn(serve(token, connection.remote_address(), tokio::io::join(receive, send)))),
                Err(_) => return,
            },
            _ = away.wait_for(|away| *away) => return connection.close(ELSEWHERE, b"this node does not reach its cluster or stops, another one may serve"),
        }
    }
}

/// Ends a tunnel: its token is good no more.
pub fn turn_away(tunnel: &mut Tunnel) {
    let _ = tunnel.writer_mut().reset(NOT_LET_IN);
    let _ = tunnel.reader_mut().stop(NOT_LET_IN);
}

/// Says whether a tunnel was ended by [`turn_away`].
pub fn was_turned_away(error: &std::io::Error) -> bool {
    let inner = error.get_ref();
    let read = inner.and_then(|error| error.downcast_ref::<quinn::ReadError>());
    let written = inner.and_then(|error| error.downcast_ref::<quinn::WriteError>());
    matches!(read, Some(quinn::ReadError::Reset(NOT_LET_IN))) || matches!(written, Some(quinn::WriteError::Stopped(NOT_LET_IN)))
}
