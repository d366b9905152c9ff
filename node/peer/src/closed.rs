//! Ports of peers at which nobody listens any more, in the words of their machines.
//!
//! A process that ends takes its port along, however it ends. As long as its machine lives, that answers what is still sent there with
//! "port unreachable" (ICMP), which Linux keeps beside the socket for whoever wants to know. So a peer whose process is gone is told
//! apart from one that stands still or whose wire is slow or cut: these two are silent and nothing else.
//!
//! Anybody on the way can forge such a message, and a firewall may be set to send it. So it says something about a peer that is not
//! heard besides, by nobody, and nothing about one that is.

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
use parking_lot::Mutex;
use shoal_state::NodeId;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::task::AbortOnDropHandle;

/// Room for what comes with a message: what went wrong, who said so, and what else was asked for with this socket.
const ABOUT_BYTES: usize = 512;

/// Where peers listened last, and when their machines last said that nobody does. There are as many as members ever were.
#[derive(Debug, Default)]
pub(crate) struct Closed {
    peers: Mutex<HashMap<NodeId, (SocketAddr, Option<Instant>)>>,
}

impl Closed {
    /// Notes where a peer listens.
    pub(crate) fn note(&self, node: NodeId, address: SocketAddr) {
        self.peers.lock().entry(node).or_insert((address, None)).0 = address;
    }

    /// Returns how long ago the machine of a peer last said that nobody listens on its port; none if it never did.
    pub(crate) fn ago(&self, node: NodeId) -> Option<Duration> {
        self.peers.lock().get(&node)?.1.map(|said| said.elapsed())
    }

    fn said(&self, address: SocketAddr) {
        let same = |other: &SocketAddr| other.port() == address.port() && other.ip().to_canonical() == address.ip().to_canonical();
        for (at, said) in self.peers.lock().values_mut() {
            if same(at) {
                *said = Some(Instant::now());
            }
        }
    }

    /// Listens to what machines say about what this socket sends, until the handle is dropped.
    ///
    /// # Errors
    /// When the system keeps no such messages. Then silence is all that tells of the end of a peer.
    pub(crate) fn listen(self: &Arc<Self>, socket: &UdpSocket) -> std::io::Result<AbortOnDropHandle<()>> {
        // A socket for IPv6 may carry IPv4 too, and one for IPv4 knows nothing of the other.
        let (four, six) = (setsockopt(socket, Ipv4RecvErr, &true), setsockopt(socket, Ipv6RecvErr, &true));
        four.or(six)?;
        let messages = OwnedFd::from(socket.try_clone()?);
        // SAFETY: the descriptor is owned, and nothing closes or replaces it before the AsyncFd.
        let messages = unsafe { AsyncFd::register_with_interest(messages, Interest::ERROR) }?;
        let closed = self.clone();
        Ok(AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok(mut ready) = messages.ready(Interest::ERROR).await {
                loop {
                    match next(messages.get_ref()) {
                        Ok(Some(address)) => closed.said(address),
                        Ok(None) => {}
                        Err(Errno::EINTR) => {}
                        Err(_) => break,
                    }
                }
                ready.clear_ready();
            }
        })))
    }
}

/// Takes the next message; returns what it is about if it says that nobody listens there.
fn next(socket: &OwnedFd) -> nix::Result<Option<SocketAddr>> {
    // Of what was sent nothing is of interest.
    let (mut sent, mut about) = ([0], vec![0; ABOUT_BYTES]);
    let mut into = [IoSliceMut::new(&mut sent)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut into, Some(&mut about), flags)?;
    let is_closed = |error: &nix::libc::sock_extended_err| {
        let by_machine = matches!(error.ee_origin, nix::libc::SO_EE_ORIGIN_ICMP | nix::libc::SO_EE_ORIGIN_ICMP6);
        by_machine && i32::try_from(error.ee_errno) == Ok(Errno::ECONNREFUSED as i32)
    };
    let closed = message.cmsgs()?.any(|about| match about {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => is_closed(&error),
        _ => false,
    });
    let address = message.address.as_ref().filter(|_| closed).and_then(|address| {
        let four = address.as_sockaddr_in().map(|four| SocketAddr::V4(SocketAddrV4::from(*four)));
        four.or_else(|| address.as_sockaddr_in6().map(|six| SocketAddr::V6(SocketAddrV6::from(*six))))
    });
    Ok(address)
}
