//! The one UDP socket of a node, and all that is said through it.

mod connections;
mod wire;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use quinn::TransportConfig;
use shoal_state::{BootId, NodeId, TokenId};
use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::connections::{accept, dial};
pub use self::wire::IDLE_MAX;
use self::wire::{PACKET_BYTES_MAX, socket};
pub(crate) use self::wire::{outbound, transport};
use crate::admission::{Admission, Member};
use crate::clients::{ServeClient, Tunnel};
use crate::closed::Closed;
use crate::complaints::Complaints;
use crate::detour::{self, rules::DeadEnds};
use crate::error::{Error, Result, bind};
use crate::identity::Identity;
use crate::links::{Acknowledged, Links};
use crate::seeds::{self, Door, Secret};
use crate::stream::Stream;
use crate::tls;

/// How long [`Endpoint::close`] waits for peers to hear of it.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// How often is looked whether a peer is reached directly again.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What an endpoint is opened with.
#[derive(Debug)]
pub struct Options {
    /// Where peers reach this node.
    pub address: SocketAddr,
    /// This node's key and certificate.
    pub identity: Identity,
    /// Whom it talks to.
    pub admission: Arc<dyn Admission>,
    /// Kept for the node's life, a secret: by it peers learn at once that a connection is of a former start of this node.
    pub reset_key: [u8; 32],
    /// Whether the network card may cut packets. A few cannot; without it a core moves a quarter as much.
    pub segmentation: bool,
}

/// A kind of stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Service {
    number: u8,
    name: &'static str,
}

impl Service {
    /// What a node asks that has no certificate yet. Its streams come from connections without one, and nothing else does.
    pub const JOIN: Self = Self::new(0, "joining");

    /// Names a kind of stream. Numbers are for ever.
    pub const fn new(number: u8, name: &'static str) -> Self {
        Self { number, name }
    }
}

type Serve = Arc<dyn Fn(Stream, Option<Arc<Member>>) -> BoxFuture<'static, ()> + Send + Sync>;

/// A node's end of all roads to its peers. Cheap to clone.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: quinn::Endpoint,
    admission: Arc<dyn Admission>,
    links: Arc<Links>,
    dialling: RwLock<quinn::ClientConfig>,
    services: RwLock<HashMap<u8, Serve>>,
    /// Who answers machines that know the secret of the seeds.
    door: RwLock<Option<Door>>,
    /// Who serves clients' machines.
    clients: RwLock<Option<ServeClient>>,
    /// Whether clients' machines are sent to other nodes.
    clients_away: watch::Sender<bool>,
    /// Peers that this node refused.
    refused: Complaints,
    /// Peers that this node could not reach, or that refused it.
    unreached: Complaints,
    /// Peers that are reached through others only.
    around: Complaints,
    dead_ends: Mutex<DeadEnds>,
    closed: Arc<Closed>,
    listening: Mutex<Option<AbortOnDropHandle<()>>>,
    /// Everything that serves a peer.
    tasks: TaskTracker,
    transport: Arc<TransportConfig>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("links", &self.inner.links).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Opens the socket and lets peers in from now on.
    ///
    /// # Errors
    /// [`Error::Bind`] when the port cannot be had, [`Error::Certificate`].
    pub fn open(options: Options) -> Result<Self> {
        let transport = Arc::new(transport(options.segmentation));
        let mut accepting = tls::accepting(&options.identity)?;
        accepting.transport_config(transport.clone());
        let mut dialling = tls::dialling(&options.identity)?;
        dialling.transport_config(transport.clone());
        let socket = socket(options.address).map_err(bind(options.address))?;
        let closed = Arc::<Closed>::default();
        let listening = closed.listen(&socket).inspect_err(|error| {
            tracing::debug!(%error, "that the process of a peer has ended is noticed by its silence alone");
        });
        let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &options.reset_key);
        let mut config = quinn::EndpointConfig::new(Arc::new(reset_key));
        // Ids of connections that are not of this generator are not even answered by a reset: a new start must know the old ones'.
        let ids = u64::from_le_bytes(options.reset_key[..8].try_into().expect("eight of them"));
        config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids)));
        config.max_udp_payload_size(PACKET_BYTES_MAX).expect("it is more than the least that the protocol allows");
        let endpoint =
            quinn::Endpoint::new(config, Some(accepting), socket, Arc::new(quinn::TokioRuntime)).map_err(bind(options.address))?;
        let inner = Inner {
            endpoint,
            admission: options.admission,
            links: Arc::default(),
            dialling: RwLock::new(dialling),
            services: RwLock::default(),
            door: RwLock::default(),
            clients: RwLock::default(),
            clients_away: watch::channel(false).0,
            refused: Complaints::default(),
            unreached: Complaints::default(),
            around: Complaints::default(),
            dead_ends: Mutex::default(),
            closed,
            listening: Mutex::new(listening.ok()),
            tasks: TaskTracker::new(),
            transport,
        };
        let this = Self { inner: Arc::new(inner) };
        this.inner.tasks.spawn(accept(this.clone()));
        Ok(this)
    }

    /// Returns where peers reach this node.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> Result<SocketAddr> {
        self.inner.endpoint.local_addr().map_err(bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))
    }

    /// Shows peers a renewed certificate from now on. Connections that are there go on.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn renew(&self, identity: &Identity) -> Result<()> {
        let (mut accepting, mut dialling) = (tls::accepting(identity)?, tls::dialling(identity)?);
        accepting.transport_config(self.inner.transport.clone());
        dialling.transport_config(self.inner.transport.clone());
        self.inner.endpoint.set_server_config(Some(accepting));
        *self.inner.dialling.write() = dialling;
        Ok(())
    }

    /// Answers streams of a kind from now on. The member is known wherever it has a certificate: always but for
    /// [`Service::JOIN`].
    pub fn serve<F>(&self, service: Service, serve: impl Fn(Stream, Option<Arc<Member>>) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let serve: Serve = Arc::new(move |stream, member| Box::pin(serve(stream, member)));
        self.inner.services.write().insert(service.number, serve);
    }

    /// Answers machines that know a secret, from now on.
    pub fn serve_seeds<F>(&self, secret: Secret, answer: impl Fn(Bytes, SocketAddr) -> F + Send + Sync + 'static)
    where
        F: Future<Output = std::result::Result<Bytes, String>> + Send + 'static,
    {
        let answer: seeds::Answer = Arc::new(move |question, from| Box::pin(answer(question, from)));
        *self.inner.door.write() = Some(Door { secret, answer });
    }

    /// Gives what clients' machines open to `serve` from now on: the token that they are certified for, their address, and the bytes.
    pub fn serve_clients<F>(&self, serve: impl Fn(TokenId, SocketAddr, Tunnel) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        *self.inner.clients.write() = Some(Arc::new(move |token, address, tunnel| Box::pin(serve(token, address, tunnel))));
    }

    /// Sends clients' machines to other nodes from now on, those that are there too; or takes them again.
    pub fn send_clients_away(&self, away: bool) {
        self.inner.clients_away.send_if_modified(|now| std::mem::replace(now, away) != away);
    }

    /// Asks a peer and waits for its answer, up to `patience`. Dropping the future gives up.
    ///
    /// # Errors
    /// [`Error::nothing_sent`] says of each whether the peer may have got it.
    pub async fn call(&self, node: NodeId, address: &str, service: Service, request: Bytes, patience: Duration) -> Result<Bytes> {
        let exchange = async {
            let mut stream = self.open_stream(node, address, service).await?;
            stream.send(request).await?;
            stream.finish()?;
            let answer = stream.next().await?;
            answer.ok_or_else(|| Error::Broken { peer: node, why: "it ended without an answer".into() })
        };
        let late = |_| Error::Late { peer: node, what: service.name, waited: patience };
        tokio::time::timeout(patience, exchange).await.map_err(late)?
    }

    /// Opens a stream to a peer: through another one, where it is not reached directly.
    ///
    /// # Errors
    /// When the peer cannot be reached, or refuses this node.
    pub async fn open_stream(&self, node: NodeId, address: &str, service: Service) -> Result<Stream> {
        match self.open_direct(node, address, service.number).await {
            Err(error @ Error::Unreachable { .. }) => detour::open(self, node, address, service.number).await.ok_or(error),
            direct => direct,
        }
    }

    pub(crate) async fn open_direct(&self, node: NodeId, address: &str, number: u8) -> Result<Stream> {
        let link = self.inner.links.get(node, address, || dial(self.clone(), node, address.to_owned())).await?;
        let broken = |error: &dyn std::fmt::Display| Error::Broken { peer: node, why: error.to_string() };
        let (mut send, receive) = link.connection.open_bi().await.map_err(|error| broken(&error))?;
        send.write_all(&[number]).await.map_err(|error| broken(&error))?;
        Ok(Stream::new(node, link.connection.remote_address(), (send, receive)))
    }

    /// Opens a stream to a peer that is connected.
    pub(crate) async fn open_connected(&self, node: NodeId, number: u8) -> Result<Stream> {
        let address = self.inner.links.address(node);
        let address = address.ok_or_else(|| Error::Broken { peer: node, why: "it is not connected any more".into() })?;
        self.open_direct(node, &address.to_string(), number).await
    }

    /// Says whether a stream goes through another peer though the one at its other end is reached directly again. Whoever uses one for
    /// long opens another one then: the peer between may be lost one day, and this node would not notice.
    pub fn is_outdated(&self, stream: &Stream) -> bool {
        self.is_detour(stream.peer(), stream.through())
    }

    /// Waits until a stream is outdated; for ever, if it goes directly.
    pub async fn outdated(&self, node: NodeId, through: Option<NodeId>) {
        while !self.is_detour(node, through) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Says whether a way to a peer goes through another one, though there is a direct one.
    fn is_detour(&self, node: NodeId, through: Option<NodeId>) -> bool {
        detour::rules::is_outdated(through, self.inner.links.is_up(node))
    }

    pub(crate) fn dead_ends(&self) -> &Mutex<DeadEnds> {
        &self.inner.dead_ends
    }

    /// Notes that a peer was reached through another.
    pub(crate) fn note_detour(&self, node: NodeId, through: NodeId) {
        if self.inner.around.due(node, &through.to_string()) {
            tracing::warn!(%node, %through, "a peer is not reached directly: what is said to it goes through another node");
        }
    }

    /// Returns how long ago the machine of a peer last said that nobody listens on the peer's port; none if it never did. It is a
    /// sign that the process of the peer has ended, if the peer was not heard since.
    pub fn closed(&self, node: NodeId) -> Option<Duration> {
        self.inner.closed.ago(node)
    }

    /// Returns the peers that are connected: which start of them, and how long a packet takes there and back.
    pub fn connected(&self) -> Vec<(NodeId, BootId, Duration)> {
        self.inner.links.up()
    }

    /// Returns of each peer that is connected how much it has acknowledged of what was sent to it: where that grows no more, it does not
    /// hear this node.
    pub fn acknowledged(&self) -> HashMap<NodeId, Acknowledged> {
        self.inner.links.acknowledged()
    }

    /// Ends the connections to a peer that is no member any more.
    pub fn forget(&self, node: NodeId) {
        self.inner.links.forget(node);
    }

    /// Ends all connections, and waits until nothing serves peers any more.
    pub async fn close(&self) {
        // First: what cannot be reached from now on is no complaint.
        self.inner.tasks.close();
        self.inner.endpoint.close(0u32.into(), b"the node stops");
        let ended = async {
            self.inner.tasks.wait().await;
            self.inner.endpoint.wait_idle().await;
        };
        // It holds the port.
        let listening = self.inner.listening.lock().take();
        if let Some(listening) = listening {
            listening.abort();
            let _ = listening.await;
        }
        if tokio::time::timeout(CLOSE_DEADLINE, ended).await.is_err() {
            tracing::debug!("some peers do not hear that this node stops");
        }
        // They hold what they serve from, which may hold this endpoint.
        self.inner.services.write().clear();
        *self.inner.door.write() = None;
        *self.inner.clients.write() = None;
    }
}
