//! The few requests to the kernel's network configuration that slots need, as netlink messages:
//! a veth pair, "up", an address, removal. A message costs about 0.1 ms; an `ip` process 3 ms.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::sys::{
    socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike},
};

/// How long the kernel may take to answer. It answers at once, unless something holds its one
/// lock for network configuration.
const ANSWER_SECONDS: i64 = 10;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;

const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_INFO: u16 = 18;
const LINK_NAMESPACE_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const ADDRESS_PEER: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_LABEL: u16 = 3;

const ERROR_TYPE: u16 = 2;
const HEADER_BYTES: usize = 16;
const INTERFACE_UP: u32 = 1;

/// A netlink socket. It belongs to the network namespace of the thread that opened it.
pub(crate) struct Netlink(OwnedFd);

/// One request under construction.
struct Message(Vec<u8>);

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let kind = SockProtocol::NetlinkRoute;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, kind)?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
        Ok(Self(fd))
    }

    /// Makes a veth pair: `name` here, `peer` with its hardware address in another namespace.
    pub(crate) fn create_veth(
        &self,
        name: &str,
        peer: &str,
        peer_hardware: [u8; 6],
        peer_namespace: BorrowedFd<'_>,
        mtu: u32,
    ) -> io::Result<()> {
        let mut message = Message::new(NEW_LINK, CREATE | EXCLUSIVE);
        message.interface(0, 0, 0);
        message.text(LINK_NAME, name);
        message.attribute(LINK_MTU, &mtu.to_ne_bytes());
        message.nested(LINK_INFO, |info| {
            info.text(INFO_KIND, "veth");
            info.nested(INFO_DATA, |data| {
                data.nested(VETH_PEER, |end| {
                    end.interface(0, 0, 0);
                    end.text(LINK_NAME, peer);
                    end.attribute(LINK_ADDRESS, &peer_hardware);
                    end.attribute(LINK_MTU, &mtu.to_ne_bytes());
                    end.attribute(LINK_NAMESPACE_FD, &peer_namespace.as_raw_fd().to_ne_bytes());
                });
            });
        });
        self.transact(message)
    }

    pub(crate) fn set_up(&self, index: u32) -> io::Result<()> {
        let mut message = Message::new(NEW_LINK, 0);
        message.interface(index, INTERFACE_UP, INTERFACE_UP);
        self.transact(message)
    }

    /// Removes an interface, and with a veth its peer.
    pub(crate) fn delete_link(&self, index: u32) -> io::Result<()> {
        let mut message = Message::new(DELETE_LINK, 0);
        message.interface(index, 0, 0);
        self.transact(message)
    }

    /// Gives an interface the address `own`, with `peer`, the one other address at the far end, to
    /// which a route then leads.
    pub(crate) fn add_peer(&self, index: u32, own: Ipv4Addr, peer: Ipv4Addr) -> io::Result<()> {
        self.transact(Message::address(NEW_ADDRESS, CREATE | EXCLUSIVE, index, own, peer))
    }

    /// Gives an interface one address, under a label by which it can be found again. The label has
    /// to start with the interface's name and a colon.
    pub(crate) fn add_labelled(&self, index: u32, own: Ipv4Addr, label: &str) -> io::Result<()> {
        let mut message = Message::address(NEW_ADDRESS, CREATE | EXCLUSIVE, index, own, own);
        message.text(ADDRESS_LABEL, label);
        self.transact(message)
    }

    pub(crate) fn delete_address(&self, index: u32, own: Ipv4Addr) -> io::Result<()> {
        self.transact(Message::address(DELETE_ADDRESS, 0, index, own, own))
    }

    /// Sends a request and waits for the kernel's verdict.
    fn transact(&self, message: Message) -> io::Result<()> {
        let request = message.finish();
        send(self.0.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let length = recv(self.0.as_fd().as_raw_fd(), &mut answer, MsgFlags::empty())?;
        verdict(&answer[..length])
    }
}

/// Reads the error number of an acknowledgement; 0 is success.
fn verdict(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    let number = answer.get(HEADER_BYTES..HEADER_BYTES + 4);
    match (kind, number) {
        (Some(ERROR_TYPE), Some(&[a, b, c, d])) => match i32::from_ne_bytes([a, b, c, d]) {
            0 => Ok(()),
            negative => Err(io::Error::from_raw_os_error(-negative)),
        },
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no acknowledgement")),
    }
}

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | ACK | flags).to_ne_bytes());
        Self(bytes)
    }

    fn address(kind: u16, flags: u16, index: u32, own: Ipv4Addr, peer: Ipv4Addr) -> Self {
        let mut message = Self::new(kind, flags);
        // Family, prefix length, flags, scope, interface.
        message.0.extend([libc::AF_INET as u8, 32, 0, 0]);
        message.0.extend(index.to_ne_bytes());
        message.attribute(ADDRESS_LOCAL, &own.octets());
        message.attribute(ADDRESS_PEER, &peer.octets());
        message
    }

    /// The fixed part of a message about an interface.
    fn interface(&mut self, index: u32, flags: u32, changed: u32) {
        self.0.extend([0; 4]);
        self.0.extend(index.to_ne_bytes());
        self.0.extend(flags.to_ne_bytes());
        self.0.extend(changed.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = (4 + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.pad();
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Attributes start at multiples of four bytes.
    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nests_know_their_length() {
        let mut message = Message::new(NEW_LINK, 0);
        message.nested(LINK_INFO, |info| info.text(INFO_KIND, "veth"));
        let bytes = message.finish();
        assert_eq!(bytes.len(), HEADER_BYTES + 4 + 12);
        assert_eq!(bytes[..4], 32u32.to_ne_bytes());
        assert_eq!(bytes[16..18], 16u16.to_ne_bytes());
        assert_eq!(bytes[20..22], 9u16.to_ne_bytes());
    }

    #[test]
    fn the_kernels_no_is_an_error_with_its_number() {
        let mut answer = vec![0; 20];
        answer[4..6].copy_from_slice(&ERROR_TYPE.to_ne_bytes());
        assert!(verdict(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-libc::EEXIST).to_ne_bytes());
        assert_eq!(verdict(&answer).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        assert!(verdict(&answer[..10]).is_err());
    }
}
