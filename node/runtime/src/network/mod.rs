//! The network of containers.
//!
//! Each container has a namespace with a veth pair of its own, and the host *routes* to it: the
//! host's end carries the gateway address with the container's as its one peer. There is no
//! bridge, so whatever a container sends passes the host's IP rules, those for its neighbours
//! too, and one firewall table (see [`firewall`]) holds the whole policy.
//!
//! ```text
//!   sandbox's own TCP/IP  <- frames -> eth0 (in the namespace) <- veth -> sh……v…… (on the host)
//!   10.x.0.2/32, default via 10.x.0.1                             10.x.0.1 peer 10.x.0.2/32
//! ```
//!
//! Making a namespace and a veth pair takes some milliseconds, so slots are prepared ahead by a
//! background task; a claim then only sets an address.
//!
//! Caveats: containers have no IPv6, but for the addresses of a [`link`]. Opening a network switches the machine's IP forwarding on, and
//! nothing here keeps it from forwarding for others; a firewall of its own has to. The gateway address sits on the loopback interface as well,
//! so that the node can listen on it before the first slot exists.

pub(crate) mod firewall;
pub(crate) mod link;
pub(crate) mod netlink;
pub(crate) mod resolver;
pub(crate) mod slot;
pub(crate) mod subnet;

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use base64::Engine as _;
use nix::net::if_::{if_nameindex, if_nametoindex};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex as AsyncMutex, mpsc},
    task::JoinHandle,
};

use self::{
    firewall::Rules,
    link::Link,
    netlink::Netlink,
    resolver::Resolver,
    slot::{INSIDE_NAME, Slot},
    subnet::{Addresses, Subnet},
};
use crate::{Error, NetworkMode, Result, blocking, identity::Tag, spec};

/// The MTU where the machine has no default route.
const MTU_DEFAULT: u32 = 1500;
/// How often a subnet is chosen anew because another engine has just taken it.
const SUBNET_TRIES: usize = 16;
/// How long the refilling task rests after it could not prepare a slot.
const REFILL_PAUSE: Duration = Duration::from_secs(1);

/// How containers are connected. `Default` suits a node on an ordinary machine.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// A private /16 for containers, by any address in it. `None`: one in 10.64.0.0/10 that the
    /// machine does not use.
    pub subnet: Option<Ipv4Addr>,
    /// The address under which containers reach the node. `None`: the first one of the subnet.
    pub gateway: Option<Ipv4Addr>,
    /// TCP ports of the node that containers may reach at the gateway address.
    pub node_ports: Vec<u16>,
    /// DNS servers for containers. `None`: those of the machine.
    pub resolvers: Option<Vec<Ipv4Addr>>,
    /// Networks no container may reach, such as "169.254.0.0/16", where clouds keep credentials.
    pub blocked: Vec<String>,
    /// How many slots are kept ready.
    pub slots_ahead: usize,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            subnet: None,
            gateway: None,
            node_ports: vec![7470, 7480],
            resolvers: None,
            blocked: vec!["169.254.0.0/16".into()],
            slots_ahead: 4,
        }
    }
}

/// The engine's side of all containers' networks.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) gateway: Ipv4Addr,
    pub(crate) subnet: Subnet,
    pub(crate) resolver: Resolver,
    tag: Tag,
    addresses: Mutex<Addresses>,
    maker: Arc<Maker>,
    ready: AsyncMutex<mpsc::Receiver<Slot>>,
    refill: Mutex<Option<JoinHandle<()>>>,
}

/// Makes slots with names that no other has.
#[derive(Debug)]
struct Maker {
    tag: Tag,
    mtu: u32,
    next: AtomicU32,
}

/// A slot with an address: a container's network.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) slot: Slot,
    pub(crate) address: Ipv4Addr,
    gateway: Ipv4Addr,
}

impl Network {
    /// Sets up what all containers share, and starts preparing slots. Leftovers must be gone.
    pub(crate) async fn open(tag: Tag, config: &NetworkConfig) -> Result<Self> {
        let resolver = match &config.resolvers {
            Some(servers) => Resolver::of_servers(servers),
            // Without any, names do not resolve in containers; `doctor` says why.
            None => Resolver::of_machine().unwrap_or_else(|| Resolver::of_servers(&[])),
        };
        let local_resolvers = local_addresses(&resolver.servers)?;
        let config_for_rules = config.clone();
        let servers = resolver.servers.clone();
        let rules = blocking(move || {
            let config = config_for_rules;
            let (subnet, gateway) = settle(tag, &config, &servers)?;
            let (node_ports, blocked) = (config.node_ports, config.blocked);
            let rules = Rules { tag, subnet, gateway, node_ports, local_resolvers, blocked };
            let forward = "/proc/sys/net/ipv4/ip_forward";
            fs::write(forward, "1").map_err(Error::file("write", forward))?;
            rules.apply().map(|()| rules)
        })
        .await?;
        let Rules { subnet, gateway, .. } = rules;

        let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let maker = Arc::new(Maker { tag, mtu: mtu_of(&routes), next: AtomicU32::new(0) });
        // The slot that waits for room in the channel is one of those ahead.
        let (sender, receiver) = mpsc::channel(config.slots_ahead.saturating_sub(1).max(1));
        let refill = (config.slots_ahead > 0).then(|| tokio::spawn(refill(maker.clone(), sender)));
        Ok(Self {
            gateway,
            subnet,
            resolver,
            tag,
            addresses: Mutex::new(Addresses::new(subnet)),
            maker,
            ready: AsyncMutex::new(receiver),
            refill: Mutex::new(refill),
        })
    }

    /// Takes a prepared slot, or makes one.
    pub(crate) async fn slot(&self) -> Result<Slot> {
        let ready = self.ready.lock().await.try_recv();
        match ready {
            Ok(slot) => Ok(slot),
            Err(_) => {
                let maker = self.maker.clone();
                blocking(move || maker.make()).await
            }
        }
    }

    /// Takes a slot and gives it an address.
    pub(crate) async fn claim(&self, mode: NetworkMode) -> Result<Claim> {
        self.connect(self.slot().await?, mode).await
    }

    /// Gives a slot an address.
    pub(crate) async fn connect(&self, slot: Slot, mode: NetworkMode) -> Result<Claim> {
        let address = self.addresses.lock().take(mode)?;
        let claim = Claim { slot, address, gateway: self.gateway };
        let set = Netlink::open().and_then(|n| n.add_peer(claim.slot.link_index, self.gateway, address));
        if let Err(source) = set {
            let action = format!("give {} the address of a container", claim.slot.link);
            let _ = self.release(claim).await;
            return Err(Error::Network { action, source });
        }
        Ok(claim)
    }

    /// Removes a container's network.
    pub(crate) async fn release(&self, claim: Claim) -> Result<()> {
        let address = claim.address;
        let removed = blocking(move || claim.slot.remove()).await;
        // Only now: a packet to the address must not find the old link.
        self.addresses.lock().give_back(address);
        removed
    }

    /// Replaces the networks that no container may reach. In force for new connections at once.
    pub(crate) async fn set_blocked(&self, networks: Vec<String>) -> Result<()> {
        let tag = self.tag;
        blocking(move || firewall::set_blocked(tag, &networks)).await
    }

    /// Removes what is shared. Containers must be gone.
    pub(crate) async fn close(&self) -> Result<()> {
        let mut ready = self.ready.lock().await;
        ready.close();
        // This also waits for the slot that the refilling task is making.
        while let Some(slot) = ready.recv().await {
            blocking(move || slot.remove()).await?;
        }
        let refill = self.refill.lock().take();
        if let Some(task) = refill {
            let _ = task.await;
        }
        let tag = self.tag;
        blocking(move || remove_shared(tag)).await.map(drop)
    }
}

impl Claim {
    pub(crate) fn addresses(&self) -> spec::Addresses {
        spec::Addresses { own: self.address, gateway: self.gateway }
    }

    /// What the sandbox's network stack is to be like, for containerManager.SetNetworkArgs.
    /// The descriptors that go with it are the slot's `frames` and the link's socket.
    pub(crate) fn sandbox_arguments(&self, restores: bool, link: Option<&Link>) -> Value {
        let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let net = |ip: Ipv4Addr, bits: u32| {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            json!({"IP": ip, "Mask": base64(&mask.to_be_bytes())})
        };
        let direct = |destination: Value| json!({"Destination": destination, "Gateway": null});
        let mut arguments = json!({
            "LoopbackLinks": [{
                "Name": "lo",
                "Addresses": [
                    {"Address": "127.0.0.1", "PrefixLen": 8},
                    {"Address": "::1", "PrefixLen": 128},
                ],
                "Routes": [
                    direct(net(Ipv4Addr::new(127, 0, 0, 0), 8)),
                    direct(json!({"IP": "::1", "Mask": base64(&[0xff; 16])})),
                ],
                "GVisorGRO": false,
            }],
            "FDBasedLinks": [{
                "Name": INSIDE_NAME,
                "InterfaceIndex": self.slot.inside_index(),
                "MTU": self.slot.mtu,
                "Addresses": [{"Address": self.address, "PrefixLen": 32}],
                // The gateway is no neighbour by the address, so a route says that it is.
                "Routes": [direct(net(self.gateway, 32))],
                "GSOMaxSize": 65536,
                "GVisorGSOEnabled": true,
                "GVisorGRO": false,
                "TXChecksumOffload": false,
                "RXChecksumOffload": true,
                "LinkAddress": base64(&self.slot.hardware),
                "QDisc": 1,
                "Neighbors": null,
                "NumChannels": 1,
                "ProcessorsPerChannel": 0,
            }],
            "Defaultv4Gateway": {
                "Route": {"Destination": net(Ipv4Addr::UNSPECIFIED, 0), "Gateway": self.gateway},
                "Name": INSIDE_NAME,
            },
            "PCAP": false,
            "LogPackets": false,
            "NATBlob": false,
            "IsRestore": restores,
        });
        if let (Some(link), Some(links)) = (link, arguments["FDBasedLinks"].as_array_mut()) {
            links.push(link.sandbox_arguments(base64));
        }
        arguments
    }
}

impl Maker {
    fn make(&self) -> Result<Slot> {
        // 24 bits, as many as fit into the name; wraps after sixteen million containers.
        let number = self.next.fetch_add(1, Ordering::Relaxed) & 0xff_ffff;
        let [_, a, b, c] = number.to_be_bytes();
        let [t, u, _] = self.tag.bytes();
        // The first byte marks an address that no manufacturer gave.
        Slot::prepare(self.tag.link(number), [0x02, t, u, a, b, c], self.mtu)
    }
}

/// Keeps the channel full until nobody takes from it any more.
async fn refill(maker: Arc<Maker>, ready: mpsc::Sender<Slot>) {
    loop {
        // Only with room ahead: a slot must not be lost in a cancelled send.
        let Ok(room) = ready.reserve().await else { return };
        let maker = maker.clone();
        match blocking(move || maker.make()).await {
            Ok(slot) => room.send(slot),
            Err(error) => {
                tracing::warn!(%error, "cannot prepare a network slot ahead");
                drop(room);
                tokio::time::sleep(REFILL_PAUSE).await;
            }
        }
    }
}

/// Decides the subnet and puts the gateway's address in place. Another engine on this machine may
/// take the same subnet at the same time: one of the two is then told so, and takes the next.
fn settle(tag: Tag, config: &NetworkConfig, resolvers: &[Ipv4Addr]) -> Result<(Subnet, Ipv4Addr)> {
    let netlink = Netlink::open().map_err(Error::network("open a netlink socket"))?;
    for _ in 0..SUBNET_TRIES {
        let subnet = match config.subnet {
            Some(base) => Subnet::new(base),
            None => Subnet::choose_here(tag.bytes()[0], resolvers)?,
        };
        let gateway = config.gateway.unwrap_or_else(|| subnet.gateway());
        match netlink.add_labelled(loopback()?, gateway, &tag.gateway_label()) {
            Ok(()) => return Ok((subnet, gateway)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && config.gateway.is_none() => {
                tracing::debug!(%gateway, "this gateway address is taken");
            }
            Err(e) => {
                return Err(Error::network(format!("give the loopback the address {gateway}"))(e));
            }
        }
    }
    Err(Error::NoFreeAddress { subnet: "the range for containers' networks".into() })
}

/// Removes what all containers share, and every link with this instance's name; says how many of these there were. Forwarding
/// stays on: others may have come to need it.
pub(crate) fn remove_shared(tag: Tag) -> Result<usize> {
    let netlink = Netlink::open().map_err(Error::network("open a netlink socket"))?;
    let links = links(tag)?;
    for (index, name) in &links {
        match netlink.delete_link(*index) {
            Err(e) if e.raw_os_error() != Some(libc::ENODEV) => {
                return Err(Error::network(format!("remove the link {name}"))(e));
            }
            _ => {}
        }
    }
    let label = tag.gateway_label();
    for (_, address) in addresses()?.into_iter().filter(|(name, _)| *name == label) {
        netlink.delete_address(loopback()?, address).map_err(Error::network(format!("remove the address {address}")))?;
    }
    firewall::remove(tag)?;
    Ok(links.len())
}

/// The links that carry this instance's name.
pub(crate) fn links(tag: Tag) -> Result<Vec<(u32, String)>> {
    let all = if_nameindex().map_err(Error::network("list network links"))?;
    let prefix = tag.link_prefix();
    Ok(all
        .iter()
        .map(|link| (link.index(), link.name().to_string_lossy().into_owned()))
        .filter(|(_, name)| name.starts_with(&prefix))
        .collect())
}

fn loopback() -> Result<u32> {
    if_nametoindex("lo").map_err(Error::network("find the loopback interface"))
}

/// The IPv4 addresses of this machine, with their labels, which mostly are interface names.
pub(crate) fn addresses() -> Result<Vec<(String, Ipv4Addr)>> {
    let all = nix::ifaddrs::getifaddrs().map_err(Error::network("list addresses"))?;
    let v4 = all.filter_map(|found| {
        let address = SocketAddrV4::from(*found.address?.as_sockaddr_in()?);
        Some((found.interface_name, *address.ip()))
    });
    Ok(v4.collect())
}

/// Those of the given addresses that are this machine's own.
fn local_addresses(of: &[Ipv4Addr]) -> Result<Vec<Ipv4Addr>> {
    let own = addresses()?;
    let is_own = |address: &Ipv4Addr| own.iter().any(|(_, own)| own == address);
    Ok(of.iter().copied().filter(is_own).collect())
}

/// The MTU of the interface that leads to the world.
fn mtu_of(routes: &str) -> u32 {
    subnet::default_interface(routes)
        .and_then(|name| fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok())
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(MTU_DEFAULT)
}
