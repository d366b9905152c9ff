//! The way around a wire that is broken between two nodes which both reach a third.
//!
//! Where a peer is not reached directly, a stream to it goes through another peer: that one opens a stream of its own to it, says from
//! whom it comes, and passes bytes on in both directions. So everything that nodes say to each other works as long as they are
//! connected somehow, and none of it has to know how. The node in between is believed: all members hold the cluster's state alike.
//!
//! Through whom it goes, and when a stream leaves that way, is decided in [`rules`].

pub mod rules;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use quinn::{RecvStream, SendStream, VarInt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_state::NodeId;

use self::rules::OPEN_WAIT;
use crate::admission::{Admission, Member, common};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::stream::Stream;

/// The number of the streams that ask a peer for a way to another.
pub(crate) const ASKED: u8 = 250;
/// The number of the streams that come from somebody else than who has opened them.
pub(crate) const ARRIVED: u8 = 251;

/// What ends a stream whose other half has ended.
const CUT: VarInt = VarInt::from_u32(5);

/// Where a stream is to go.
#[derive(Debug, Serialize, Deserialize)]
struct Goal {
    node: NodeId,
    address: String,
    service: u8,
}

/// Where a stream comes from.
#[derive(Debug, Serialize, Deserialize)]
struct Origin {
    member: Member,
    address: SocketAddr,
    service: u8,
}

fn encode(what: &impl Serialize) -> Bytes {
    postcard::to_stdvec(what).expect("it can be written").into()
}

fn decode<T: DeserializeOwned>(peer: NodeId, frame: Option<Bytes>) -> Result<T> {
    let broken = |why: String| Error::Broken { peer, why };
    let frame = frame.ok_or_else(|| broken("it ended before it said where it is to go".into()))?;
    postcard::from_bytes(&frame).map_err(|error| broken(format!("where it is to go cannot be read: {error}")))
}

/// Opens a stream to a peer through others; none where no way was found.
pub(crate) async fn open(endpoint: &Endpoint, node: NodeId, address: &str, service: u8) -> Option<Stream> {
    if endpoint.dead_ends().lock().is_one(node, Instant::now()) {
        return None;
    }
    let connected = endpoint.connected().into_iter().map(|(peer, _, there_and_back)| (peer, there_and_back));
    for through in rules::between(node, connected) {
        let goal = Goal { node, address: address.to_owned(), service };
        match tokio::time::timeout(OPEN_WAIT, ask(endpoint, through, &goal)).await {
            Ok(Ok(stream)) => {
                endpoint.note_detour(node, through);
                endpoint.dead_ends().lock().note(node, false, Instant::now());
                return Some(stream);
            }
            Ok(Err(error)) => tracing::debug!(%node, %through, %error, "no way around"),
            Err(_) => tracing::debug!(%node, %through, "no way around in time"),
        }
    }
    endpoint.dead_ends().lock().note(node, true, Instant::now());
    None
}

async fn ask(endpoint: &Endpoint, through: NodeId, goal: &Goal) -> Result<Stream> {
    let mut stream = endpoint.open_connected(through, ASKED).await?;
    stream.send(encode(goal)).await?;
    agreed(&mut stream).await?;
    Ok(Stream::new(goal.node, stream.address(), stream.into_halves()).around(through))
}

/// Waits until the other side says that the way is open.
async fn agreed(stream: &mut Stream) -> Result<()> {
    let peer = stream.peer();
    let answer = stream.next().await?;
    answer.map(drop).ok_or_else(|| Error::Broken { peer, why: "it ended before the way was open".into() })
}

/// Leads a stream of a peer on to another one, until both have ended.
///
/// Boxed, since opening a stream may begin to serve the streams of the connection that it dials, which leads here.
pub(crate) fn lead_on(endpoint: Endpoint, stream: Stream, member: Arc<Member>) -> BoxFuture<'static, ()> {
    lead(endpoint, stream, member).boxed()
}

async fn lead(endpoint: Endpoint, mut stream: Stream, member: Arc<Member>) {
    let opened = async {
        let goal: Goal = decode(stream.peer(), stream.next().await?)?;
        let mut onward = endpoint.open_direct(goal.node, &goal.address, ARRIVED).await?;
        let origin = Origin { member: Member::clone(&member), address: stream.address(), service: goal.service };
        onward.send(encode(&origin)).await?;
        agreed(&mut onward).await?;
        stream.send(Bytes::new()).await?;
        Ok::<_, Error>(onward)
    };
    let onward = match opened.await {
        Ok(onward) => onward,
        // The peer is told; whether it hears is its affair.
        Err(error) => return drop(stream.fail(&error.to_string()).await),
    };
    let ((back, forth), (there, from_there)) = (stream.into_halves(), onward.into_halves());
    tokio::join!(pass_on(forth, there), pass_on(from_there, back));
}

/// Finds out from whom a stream comes, and for what; refuses in words.
pub(crate) async fn arrive(admission: &dyn Admission, stream: &mut Stream) -> Result<(Arc<Member>, SocketAddr, u8)> {
    let origin: Origin = decode(stream.peer(), stream.next().await?)?;
    let judged = common(&admission.myself(), &origin.member).and_then(|()| admission.admit(&origin.member));
    if let Err(why) = judged {
        stream.fail(&why).await?;
        return Err(Error::Failed { peer: origin.member.node, why });
    }
    stream.send(Bytes::new()).await?;
    Ok((Arc::new(origin.member), origin.address, origin.service))
}

/// Passes bytes on until they end, and how they ended.
async fn pass_on(mut from: RecvStream, mut to: SendStream) {
    loop {
        match from.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => {
                if to.write_chunk(chunk.bytes).await.is_err() {
                    let _ = from.stop(CUT);
                    return;
                }
            }
            Ok(None) => return drop(to.finish()),
            Err(_) => return drop(to.reset(CUT)),
        }
    }
}
