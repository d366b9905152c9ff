//! The one UDP socket of a node, and all that is said through it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use quinn::{Connection, IdleTimeout, TransportConfig, VarInt};
use shoal_state::{BootId, NodeId, TokenId};
use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::admission::{Admission, Member};
use crate::clients::{self, ServeClient, Tunnel};
use crate::closed::Closed;
use crate::complaints::Complaints;
use crate::detour::{self, DeadEnds};
use crate::error::{Error, Result, bind};
use crate::hello;
use crate::identity::{Identity, host};
use crate::links::{self, Acknowledged, Link, Links};
use crate::seeds::{self, Door, Secret};
use crate::stream::Stream;
use crate::tls;

/// How long dialling a peer may take, hello included.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// After how long without a packet a connection is given up: then what is said to the peer goes through another. On wires on which packets
/// take long it is longer by itself.
const IDLE_MAX: Duration = Duration::from_secs(3);
/// How often a quiet connection is kept alive.
const KEEP_ALIVE: Duration = Duration::from_millis(700);
/// How long [`Endpoint::close`] waits for peers to hear of it.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// How often is looked whether a peer is reached directly again.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How many streams a peer may have open to this node at once. It waits with further ones.
const STREAMS_MAX: u32 = 1024;
/// Windows of flow control, in bytes: measured to fill a fast link.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
/// What the kernel may hold of packets, in bytes; it gives less where its limit is lower.
const SOCKET_BYTES: usize = 4 << 20;
/// The longest packets that are tried. Ten of them go to the kernel at once, and 64 KiB is the most it takes.
const PACKET_BYTES_MAX: u16 = 6000;

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
    dead_ends: DeadEnds,
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
            dead_ends: DeadEnds::default(),
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
        through.is_some() && self.inner.links.is_up(node)
    }

    pub(crate) fn dead_ends(&self) -> &DeadEnds {
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
        self.inner.endpoint.close(0u32.into(), b"the node stops");
        self.inner.tasks.close();
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

pub(crate) fn transport(segmentation: bool) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut packets = quinn::MtuDiscoveryConfig::default();
    packets.upper_bound(PACKET_BYTES_MAX);
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_MAX).expect("it is short")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(CONNECTION_WINDOW.into())
        .enable_segmentation_offload(segmentation)
        .mtu_discovery_config(Some(packets));
    transport
}

fn socket(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    // Less is slower, and no reason not to run.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BYTES);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES);
    Ok(socket)
}

/// Opens an endpoint that only dials, towards one address.
pub(crate) fn outbound(to: SocketAddr) -> Result<quinn::Endpoint> {
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0u16; 8], 0)),
    };
    quinn::Endpoint::client(any).map_err(bind(any))
}

async fn dial(endpoint: Endpoint, node: NodeId, address: String) -> Result<Link> {
    let reached = dial_once(endpoint.clone(), node, address).await;
    match &reached {
        Err(error) if endpoint.inner.unreached.due(node, &error.to_string()) => tracing::warn!(%node, %error, "a peer is not reached"),
        Ok(_) => {
            let (was_unreached, was_around) = (endpoint.inner.unreached.over(node), endpoint.inner.around.over(node));
            if was_unreached || was_around {
                tracing::info!(%node, "a peer is reached again");
            }
        }
        _ => {}
    }
    reached
}

async fn dial_once(endpoint: Endpoint, node: NodeId, address: String) -> Result<Link> {
    let peer = || format!("node {node}");
    let unreachable = |why: String| Error::Unreachable { peer: peer(), address: address.clone(), why };
    let reaching = async {
        let there = links::resolve(&address).await?;
        endpoint.inner.closed.note(node, there);
        let config = endpoint.inner.dialling.read().clone();
        let connecting =
            endpoint.inner.endpoint.connect_with(config, there, &host(node)).map_err(|error| unreachable(error.to_string()))?;
        let connection = connecting.await.map_err(|error| unreachable(links::explain(&error)))?;
        let member = hello::say(&connection, &*endpoint.inner.admission).await.map_err(|error| match error {
            Error::Failed { why, .. } => Error::Refused { peer: peer(), address: address.clone(), why },
            other => unreachable(connection.close_reason().map_or_else(|| other.to_string(), |error| links::explain(&error))),
        })?;
        Ok(Link { connection, member: Arc::new(member) })
    };
    let reached = tokio::time::timeout(DIAL_DEADLINE, reaching).await;
    let link = reached.unwrap_or_else(|_| Err(unreachable(format!("nobody answered within {DIAL_DEADLINE:?}"))))?;
    // The peer may ask on the same connection.
    endpoint.inner.tasks.spawn(streams(endpoint.clone(), link.connection.clone(), Some(link.member.clone())));
    Ok(link)
}

/// Lets peers in until the endpoint is closed.
async fn accept(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.inner.endpoint.accept().await {
        endpoint.inner.tasks.spawn(greet(endpoint.clone(), incoming));
    }
}

async fn greet(endpoint: Endpoint, incoming: quinn::Incoming) {
    let address = incoming.remote_address();
    let connection = match incoming.await {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%address, %error, "somebody began to connect and did not come through"),
    };
    match tls::protocol_of(&connection).as_deref() {
        Some(tls::JOINING) => return streams(endpoint, connection, None).await,
        Some(tls::CLIENTS) => {
            let serve = endpoint.inner.clients.read().clone();
            return clients::let_in(&connection, serve, endpoint.inner.clients_away.subscribe()).await;
        }
        Some(tls::SEEDING) => {
            let door = endpoint.inner.door.read().clone();
            let known = seeds::answer(&connection, door.as_ref()).await;
            if matches!(known, Ok(false)) && endpoint.inner.refused.due(NodeId::from_random(0), &address.ip().to_string()) {
                tracing::warn!(%address, "somebody asked as a seed of this cluster, with another secret");
            }
            return;
        }
        _ => {}
    }
    match hello::hear(&connection, &*endpoint.inner.admission, &endpoint.inner.refused).await {
        Ok(Some(member)) => {
            let link = Link { connection, member: Arc::new(member) };
            endpoint.inner.closed.note(link.member.node, address);
            endpoint.inner.links.accepted(&link);
            streams(endpoint, link.connection, Some(link.member)).await;
        }
        Ok(None) => connection.close(1u32.into(), b"refused"),
        Err(error) => {
            tracing::debug!(%address, %error, "a connection without a hello");
            connection.close(1u32.into(), b"no hello");
        }
    }
}

/// Serves the streams that the other side opens, until the connection ends.
async fn streams(endpoint: Endpoint, connection: Connection, member: Option<Arc<Member>>) {
    while let Ok((send, mut receive)) = connection.accept_bi().await {
        let (endpoint, member, address) = (endpoint.clone(), member.clone(), connection.remote_address());
        let tasks = endpoint.inner.tasks.clone();
        tasks.spawn(async move {
            let number = match &member {
                // Without a certificate there is one thing to ask, and it is not named.
                None => Service::JOIN.number,
                Some(_) => {
                    let mut number = [0];
                    match receive.read_exact(&mut number).await {
                        Ok(()) if number[0] != Service::JOIN.number => number[0],
                        _ => return,
                    }
                }
            };
            let node = member.as_ref().map_or(NodeId::from_random(0), |member| member.node);
            let mut stream = Stream::new(node, address, (send, receive));
            let (mut number, mut member) = (number, member);
            match (number, &member) {
                (detour::ASKED, Some(member)) => return detour::lead_on(endpoint, stream, member.clone()).await,
                (detour::ARRIVED, Some(_)) => match detour::arrive(&*endpoint.inner.admission, &mut stream).await {
                    Ok((origin, address, service)) => {
                        stream = Stream::new(origin.node, address, stream.into_halves());
                        (number, member) = (service, Some(origin));
                    }
                    Err(error) => return tracing::debug!(peer = %node, %error, "a stream through a peer did not arrive"),
                },
                _ => {}
            }
            let serve = endpoint.inner.services.read().get(&number).cloned();
            match serve {
                Some(serve) => serve(stream, member).await,
                // The peer is told; whether it hears is its affair.
                None => drop(stream.fail("this node does not do that yet: it is starting, or older").await),
            }
        });
    }
}
