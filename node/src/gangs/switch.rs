//! Carries packets between the containers of a gang: from one interface to another on this node, and to other nodes on the road
//! between them, which is encrypted and goes around broken wires.
//!
//! A container's packets come from its own address, go to addresses of its own gang, and nowhere else: what is not so is dropped. Of
//! what another node brings it must be the node of the sender. As in any network, what comes faster than it can go is lost.

use std::collections::HashMap;
use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use shoal_peer::{Endpoint, Service, Stream};
use shoal_raft::Raft;
use shoal_runtime::Link;
use shoal_state::{GangId, NodeId};
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Member;

/// Packets between containers of gangs.
const PACKETS: Service = Service::new(21, "carry packets between the containers of a gang");
/// How many bits the addresses of a gang have in common.
pub(super) const PREFIX_BITS: u8 = 112;
/// The same of the old kind.
pub(super) const PREFIX_BITS_V4: u8 = 16;
/// How many packets may wait for the road to a node. More are lost.
const ROAD_PACKETS_MAX: usize = 256;
/// Between two tries to open the road to a node. What comes meanwhile is lost.
const ROAD_AGAIN: Duration = Duration::from_millis(500);
/// How long nothing must have gone along a road until it is closed.
const ROAD_IDLE: Duration = Duration::from_secs(60);
/// What stands before a packet on the road: the gang, the ranks of the sender and of the receiver.
const HEAD_BYTES: usize = 20;

/// A container's interface, as the switch sees it.
#[derive(Debug)]
struct Port {
    gang: GangId,
    rank: u16,
    address: Ipv6Addr,
    nodes: Vec<Option<NodeId>>,
    socket: UnixDatagram,
}

impl Port {
    /// Gives the container a packet, if it takes it.
    fn give(&self, packet: &[u8]) {
        if let Err(error) = self.socket.try_send(packet) {
            tracing::trace!(gang = %self.gang, rank = self.rank, %error, "a packet for a container of a gang is lost");
        }
    }

    /// Finds out to which rank a packet of the container's goes; none when it may not go anywhere.
    fn destination(&self, packet: &[u8]) -> Option<u16> {
        let version = packet.first()? >> 4;
        let (from, to) = match version {
            6 => (packet.get(8..24)?, packet.get(24..40)?),
            4 => (packet.get(12..16)?, packet.get(16..20)?),
            _ => return None,
        };
        let own_v6 = self.address.octets();
        let own_v4 = Member::address_v4(self.rank).octets();
        let own: &[u8] = if version == 6 { &own_v6 } else { &own_v4 };
        let prefix = own.len() - 2;
        let rank = u16::from_be_bytes([to[prefix], to[prefix + 1]]).checked_sub(1)?;
        let is_own = from == own && to[..prefix] == own[..prefix];
        (is_own && usize::from(rank) < self.nodes.len()).then_some(rank)
    }
}

type Ports = Arc<Mutex<HashMap<(GangId, u16), Arc<Port>>>>;

/// The interfaces of this node's containers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Switch {
    endpoint: Endpoint,
    raft: Raft,
    ports: Ports,
    roads: Arc<Mutex<HashMap<NodeId, mpsc::Sender<Bytes>>>>,
}

/// Keeps an interface connected.
pub(crate) struct Plug {
    ports: Ports,
    port: (GangId, u16),
    _reading: AbortOnDropHandle<()>,
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.ports.lock().remove(&self.port);
    }
}

impl Switch {
    pub(super) fn new(endpoint: Endpoint, raft: Raft) -> Self {
        Self { endpoint, raft, ports: Ports::default(), roads: Arc::default() }
    }

    /// Takes what other nodes bring, from now on.
    pub(super) fn serve(&self, endpoint: &Endpoint) {
        let switch = self.clone();
        endpoint.serve(PACKETS, move |stream, _| take(switch.ports.clone(), stream));
    }

    /// Connects a container: `socket` is the other end of its interface.
    pub(super) fn plug(&self, member: &Member, address: Ipv6Addr, socket: std::os::unix::net::UnixDatagram) -> io::Result<Plug> {
        let socket = UnixDatagram::from_std(socket)?;
        let port = Port { gang: member.gang, rank: member.rank, address, nodes: member.nodes.clone(), socket };
        let (key, port) = ((member.gang, member.rank), Arc::new(port));
        self.ports.lock().insert(key, port.clone());
        let reading = tokio::spawn(self.clone().read(port));
        Ok(Plug { ports: self.ports.clone(), port: key, _reading: AbortOnDropHandle::new(reading) })
    }

    /// Carries what a container sends, until its interface is gone.
    async fn read(self, port: Arc<Port>) {
        let mut buffer = vec![0; Link::PACKET_BYTES_MAX];
        loop {
            match port.socket.recv(&mut buffer).await {
                Ok(length) => self.carry(&port, &buffer[..length]),
                Err(error) => {
                    return tracing::debug!(gang = %port.gang, rank = port.rank, %error, "the interface of a container is gone");
                }
            }
        }
    }

    fn carry(&self, port: &Port, packet: &[u8]) {
        let Some(rank) = port.destination(packet) else { return };
        match port.nodes.get(usize::from(rank)).copied().flatten() {
            Some(node) if node == self.raft.node() => {
                let to = self.ports.lock().get(&(port.gang, rank)).cloned();
                if let Some(to) = to {
                    to.give(packet);
                }
            }
            Some(node) => {
                let mut framed = BytesMut::with_capacity(HEAD_BYTES + packet.len());
                framed.put_u128(port.gang.bits());
                framed.put_u16(port.rank);
                framed.put_u16(rank);
                framed.extend_from_slice(packet);
                // Full: lost.
                let _ = self.road(node).try_send(framed.freeze());
            }
            None => {}
        }
    }

    /// Returns the road to a node; it is opened when something goes along it.
    fn road(&self, node: NodeId) -> mpsc::Sender<Bytes> {
        let mut roads = self.roads.lock();
        if let Some(road) = roads.get(&node).filter(|road| !road.is_closed()) {
            return road.clone();
        }
        let (sender, waiting) = mpsc::channel(ROAD_PACKETS_MAX);
        roads.insert(node, sender.clone());
        tokio::spawn(drive(self.endpoint.clone(), self.raft.clone(), node, waiting));
        sender
    }
}

/// Brings packets to a node, until there are none for a while or it is no member any more.
async fn drive(endpoint: Endpoint, raft: Raft, node: NodeId, mut waiting: mpsc::Receiver<Bytes>) {
    while let Some(address) = raft.local().members.get(&node).map(|member| member.address.clone()) {
        match endpoint.open_stream(node, &address, PACKETS).await {
            Ok(mut stream) => loop {
                match tokio::time::timeout(ROAD_IDLE, waiting.recv()).await {
                    Ok(Some(packet)) => {
                        if stream.send(packet).await.is_err() {
                            break;
                        }
                    }
                    Ok(None) | Err(_) => return,
                }
            },
            Err(error) => tracing::debug!(%node, %error, "cannot bring packets between containers of a gang"),
        }
        tokio::time::sleep(ROAD_AGAIN).await;
        while waiting.try_recv().is_ok() {}
    }
}

/// Takes what a node brings.
async fn take(ports: Ports, mut stream: Stream) {
    let from = stream.peer();
    while let Ok(Some(frame)) = stream.next().await {
        if frame.len() <= HEAD_BYTES {
            continue;
        }
        let (head, packet) = frame.split_at(HEAD_BYTES);
        let gang = GangId::from_random(u128::from_be_bytes(head[..16].try_into().expect("sixteen of them")));
        let (sender, receiver) = (u16::from_be_bytes([head[16], head[17]]), u16::from_be_bytes([head[18], head[19]]));
        let port = ports.lock().get(&(gang, receiver)).cloned();
        if let Some(port) = port.filter(|port| port.nodes.get(usize::from(sender)).copied().flatten() == Some(from)) {
            port.give(packet);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::Place;
    use super::*;

    fn port(rank: u16) -> (Member, Port) {
        let node = Some(NodeId::from_random(1));
        let place = Place { gang: GangId::from_random(5), rank, nodes: vec![node; 3] };
        let member = Member { place, cluster: [1; 16] };
        let (socket, _) = UnixDatagram::pair().unwrap();
        let port = Port { gang: member.gang, rank, address: member.address(rank), nodes: member.nodes.clone(), socket };
        (member, port)
    }

    fn packet_v6(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
        [&[0x60, 0, 0, 0, 0, 0, 59, 64][..], &from.octets(), &to.octets()].concat()
    }

    fn packet_v4(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        [&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0][..], &from.octets(), &to.octets()].concat()
    }

    #[tokio::test]
    async fn packets_go_from_ones_own_address_to_ones_own_gang_and_nowhere_else() {
        let (member, port) = port(1);
        let own = member.address(1);
        assert_eq!(port.destination(&packet_v6(own, member.address(2))), Some(2));
        assert_eq!(port.destination(&packet_v6(own, member.address(3))), None, "there are three");
        assert_eq!(port.destination(&packet_v6(member.address(0), member.address(2))), None, "a forged sender");
        let mut other = member.clone();
        other.place.gang = GangId::from_random(6);
        assert_eq!(port.destination(&packet_v6(own, other.address(0))), None, "another gang");
        assert_eq!(port.destination(&packet_v6(own, "ff02::2".parse().unwrap())), None);
        let v4 = Member::address_v4;
        assert_eq!(port.destination(&packet_v4(v4(1), v4(0))), Some(0));
        assert_eq!(port.destination(&packet_v4(v4(2), v4(0))), None);
        assert_eq!(port.destination(&packet_v4(v4(1), Ipv4Addr::new(10, 0, 0, 1))), None);
        assert_eq!(port.destination(&[0x60, 0]), None);
    }
}
