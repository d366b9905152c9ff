//! A network interface of a container that ends in a socket: whole IP packets go in and out of it, nothing around them.
//!
//! The sandbox has its own TCP/IP, so such an interface needs nothing of the host: no device, no route, no rule. Whoever holds the
//! other end of the socket is the network, and sees to it who reaches whom.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    sync::Arc,
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{RcvBuf, SndBuf, SndBufForce},
};
use serde_json::{Value, json};

/// What the interface is called inside.
const NAME: &str = "eth1";
/// The largest packet. No wire bounds it: large packets cost less for each byte.
const MTU: u32 = 32 << 10;
/// How much may be on its way in one direction. What comes when it is full is lost, as on any network.
const BUFFER_BYTES: usize = 4 << 20;

/// The container's end of such an interface.
#[derive(Clone, Debug)]
pub struct Link {
    /// The container's address, and how many bits of it all have in common that it reaches.
    pub address: (Ipv6Addr, u8),
    /// The same of the old kind.
    pub address_v4: (Ipv4Addr, u8),
    /// A name for the first address, inside.
    pub name: String,
    socket: Arc<OwnedFd>,
}

impl Link {
    /// Makes an interface. Returns the container's end and the other one, which does not block; each read is one packet of at most
    /// [`Link::PACKET_BYTES_MAX`].
    ///
    /// # Errors
    /// When the system gives no sockets.
    pub fn new(address: (Ipv6Addr, u8), address_v4: (Ipv4Addr, u8), name: impl Into<String>) -> io::Result<(Self, UnixDatagram)> {
        let (inside, outside) = UnixDatagram::pair()?;
        outside.set_nonblocking(true)?;
        for end in [&inside, &outside] {
            if setsockopt(end, SndBufForce, &BUFFER_BYTES).is_err() {
                setsockopt(end, SndBuf, &BUFFER_BYTES)?;
            }
            setsockopt(end, RcvBuf, &BUFFER_BYTES)?;
        }
        Ok((Self { address, address_v4, name: name.into(), socket: Arc::new(inside.into()) }, outside))
    }

    /// The largest packet, in bytes.
    pub const PACKET_BYTES_MAX: usize = MTU as usize;

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// A line for /etc/hosts.
    pub(crate) fn hosts_line(&self) -> String {
        format!("{}\t{}\n", self.address.0, self.name)
    }

    /// What the sandbox is told of it. Without a hardware address it sends packets without frames; what the socket carries is never
    /// damaged on the way, so nobody computes checksums.
    pub(crate) fn sandbox_arguments(&self, base64: impl Fn(&[u8]) -> String) -> Value {
        let ((address, bits), (address_v4, bits_v4)) = (self.address, self.address_v4);
        let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
        let mask_v4 = u32::MAX.checked_shl(32 - u32::from(bits_v4)).unwrap_or(0);
        let network = Ipv6Addr::from(u128::from(address) & mask);
        let network_v4 = Ipv4Addr::from(u32::from(address_v4) & mask_v4);
        json!({
            "Name": NAME,
            "InterfaceIndex": 0,
            "MTU": MTU,
            "Addresses": [{"Address": address, "PrefixLen": 128}, {"Address": address_v4, "PrefixLen": 32}],
            "Routes": [
                {"Destination": {"IP": network, "Mask": base64(&mask.to_be_bytes())}, "Gateway": null},
                {"Destination": {"IP": network_v4, "Mask": base64(&mask_v4.to_be_bytes())}, "Gateway": null},
            ],
            "GSOMaxSize": 0,
            "GVisorGSOEnabled": false,
            "GVisorGRO": false,
            "TXChecksumOffload": true,
            "RXChecksumOffload": true,
            "LinkAddress": "",
            "QDisc": 1,
            "Neighbors": null,
            "NumChannels": 1,
            "ProcessorsPerChannel": 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_carries_packets_whole_and_routes_its_prefix() {
        let address: Ipv6Addr = "fd00:1:2:3:4:5:6:7".parse().unwrap();
        let (link, outside) = Link::new((address, 112), (Ipv4Addr::new(198, 18, 0, 9), 16), "i6pn").unwrap();
        rustix::io::write(&outside, b"one").unwrap();
        rustix::io::write(&outside, b"two").unwrap();
        let mut packet = [0; 16];
        assert_eq!(rustix::io::read(link.socket(), &mut packet).unwrap(), 3);
        let told = link.sandbox_arguments(|bytes| format!("{bytes:02x?}"));
        assert_eq!(told["Routes"][0]["Destination"]["IP"], "fd00:1:2:3:4:5:6:0");
        assert!(told["Routes"][0]["Destination"]["Mask"].as_str().unwrap().ends_with("ff, 00, 00]"));
        assert_eq!(told["Routes"][1]["Destination"]["IP"], "198.18.0.0");
        assert_eq!(link.hosts_line(), "fd00:1:2:3:4:5:6:7\ti6pn\n");
    }
}
