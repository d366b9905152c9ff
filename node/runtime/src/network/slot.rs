//! One prepared place in the network: a namespace with a veth pair into it and a raw socket on
//! the inner end, through which the sandbox's own network stack sends and receives frames.
//!
//! The namespace has no name anywhere. It is held by a descriptor, and by the sandbox that entered
//! it, so that it goes away with them, however they end; with it goes the veth pair.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    thread,
};

use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};

use super::netlink::Netlink;
use crate::{Error, Result};

/// What the interface is called inside.
pub(crate) const INSIDE_NAME: &str = "eth0";
/// The index of the first interface of every namespace.
const LOOPBACK: u32 = 1;
/// Send and receive buffers of the raw socket, as runsc itself sets them.
const SOCKET_BUFFER_BYTES: i32 = 4 << 20;

/// A slot without an address: that comes when a container claims it.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The host's end.
    pub(crate) link: String,
    pub(crate) link_index: u32,
    pub(crate) mtu: u32,
    pub(crate) hardware: [u8; 6],
    inside: Inside,
}

/// The parts that belong to the slot's namespace.
#[derive(Debug)]
struct Inside {
    index: u32,
    namespace: File,
    /// Ethernet frames of the inner end.
    frames: OwnedFd,
}

impl Slot {
    /// Makes a slot. Blocks for some milliseconds.
    pub(crate) fn prepare(link: String, hardware: [u8; 6], mtu: u32) -> Result<Self> {
        let host = Netlink::open().map_err(Error::network("open a netlink socket"))?;
        // A thread of its own enters the new namespace and ends there: no thread that others use
        // is ever in a wrong one.
        let inside = thread::scope(|scope| {
            let maker = scope.spawn(|| Inside::make(&host, &link, hardware, mtu));
            maker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let link_index = if_nametoindex(link.as_str()).map_err(Error::network(format!("find the link {link}")))?;
        harden(&link);
        host.set_up(link_index).map_err(Error::network(format!("bring up {link}")))?;
        Ok(Self { link, link_index, mtu, hardware, inside })
    }

    /// A path under which another process of root can open the namespace, while this slot lives.
    pub(crate) fn namespace_path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.inside.namespace.as_raw_fd()).into()
    }

    pub(crate) fn frames(&self) -> std::os::fd::BorrowedFd<'_> {
        self.inside.frames.as_fd()
    }

    pub(crate) fn inside_index(&self) -> u32 {
        self.inside.index
    }

    /// Removes the veth pair now instead of with the namespace. Blocks for some milliseconds.
    pub(crate) fn remove(self) -> Result<()> {
        let netlink = Netlink::open().map_err(Error::network("open a netlink socket"))?;
        match netlink.delete_link(self.link_index) {
            Err(e) if e.raw_os_error() != Some(libc::ENODEV) => Err(Error::network(format!("remove the link {}", self.link))(e)),
            _ => Ok(()),
        }
    }
}

impl Inside {
    /// Runs on a thread of its own. `host` was opened before, so it acts on the host's namespace.
    fn make(host: &Netlink, link: &str, hardware: [u8; 6], mtu: u32) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(Error::network("make a network namespace"))?;
        let path = "/proc/thread-self/ns/net";
        let namespace = File::open(path).map_err(Error::file("open", path))?;
        let netlink = Netlink::open().map_err(Error::network("open a netlink socket"))?;
        // Without it the sandbox would have no 127.0.0.1.
        netlink.set_up(LOOPBACK).map_err(Error::network("bring up a slot's loopback"))?;
        host.create_veth(link, INSIDE_NAME, hardware, namespace.as_fd(), mtu)
            .map_err(Error::network(format!("create the veth pair {link}")))?;
        let index = if_nametoindex(INSIDE_NAME).map_err(Error::network(format!("find the inner end of {link}")))?;
        netlink.set_up(index).map_err(Error::network(format!("bring up the inner end of {link}")))?;
        let frames = raw_socket(index).map_err(Error::network(format!("open a raw socket on the inner end of {link}")))?;
        Ok(Self { index, namespace, frames })
    }
}

/// Settings of the host's end. Best effort: each only narrows what the firewall allows anyway.
fn harden(link: &str) {
    let set = |file: &str, value: &str| {
        let path = format!("/proc/sys/net/{file}");
        if let Err(error) = fs::write(&path, value) {
            tracing::debug!(%path, %error, "cannot set");
        }
    };
    set(&format!("ipv6/conf/{link}/disable_ipv6"), "1");
    set(&format!("ipv4/conf/{link}/rp_filter"), "1");
}

/// A socket for all frames of an interface. Without PACKET_VNET_HDR: the sandbox cuts segments
/// itself.
fn raw_socket(index: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers. Protocol 0 receives nothing until the socket is bound.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above has just returned it, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, SOCKET_BUFFER_BYTES)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SOCKET_BUFFER_BYTES)?;

    // SAFETY: all-zero is a valid address structure of plain numbers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer and the length describe one initialized structure.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
}

fn set_option(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointer and the length describe one integer that outlives the call.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
