//! How QUIC is spoken: its windows and its times, and the sockets under it.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use quinn::{IdleTimeout, TransportConfig, VarInt};

use crate::error::{Result, bind};

/// After how long without a packet a connection is given up: then what is said to the peer goes through another. On wires on which packets
/// take long it is longer by itself.
pub const IDLE_MAX: Duration = Duration::from_secs(3);
/// How often a quiet connection is kept alive.
const KEEP_ALIVE: Duration = Duration::from_millis(700);
/// How many streams a peer may have open to this node at once. It waits with further ones.
const STREAMS_MAX: u32 = 1024;
/// Windows of flow control, in bytes: measured to fill a fast link.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
/// What the kernel may hold of packets, in bytes; it gives less where its limit is lower.
const SOCKET_BYTES: usize = 4 << 20;
/// The longest packets that are tried. Ten of them go to the kernel at once, and 64 KiB is the most it takes.
pub(super) const PACKET_BYTES_MAX: u16 = 6000;

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

pub(super) fn socket(address: SocketAddr) -> std::io::Result<UdpSocket> {
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
