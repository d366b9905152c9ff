//! How a connection begins: the dialling node says who it is, the other one answers or refuses.

use std::time::Duration;

use bytes::Bytes;
use quinn::Connection;
use shoal_state::NodeId;

use crate::admission::{Admission, Member, common};
use crate::complaints::Complaints;
use crate::error::{Error, Result};
use crate::identity::About;
use crate::stream::Stream;
use crate::tls;

/// The form of what peers say to each other.
const FORMAT: u8 = 1;

/// How long a hello and its answer may take.
pub(crate) const HELLO_DEADLINE: Duration = Duration::from_secs(5);

fn encode(member: &Member) -> Bytes {
    let mut bytes = vec![FORMAT];
    bytes.extend(postcard::to_stdvec(member).expect("a member can be written"));
    bytes.into()
}

fn decode(bytes: &[u8]) -> std::result::Result<Member, String> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => postcard::from_bytes(rest).map_err(|error| format!("its hello cannot be read: {error}")),
        Some((format, _)) => Err(format!("it speaks form {format} of what peers say, and this node knows {FORMAT}: upgrade the older one")),
        None => Err("its hello is empty".into()),
    }
}

/// Says hello on a connection that this node has dialled; returns what the peer says of itself.
pub(crate) async fn say(connection: &Connection, admission: &dyn Admission) -> Result<Member> {
    let node = shown(connection)?;
    let opened = connection.open_bi().await.map_err(|error| Error::Broken { peer: node, why: error.to_string() })?;
    let mut stream = Stream::new(node, connection.remote_address(), opened);
    let me = admission.myself();
    let exchange = async {
        stream.send(encode(&me)).await?;
        stream.finish()?;
        stream.next().await
    };
    let late = |_| Error::Late { peer: node, what: "answer this node's hello", waited: HELLO_DEADLINE };
    let answer = tokio::time::timeout(HELLO_DEADLINE, exchange).await.map_err(late)??;
    let bad = |why| Error::Broken { peer: node, why };
    let peer = decode(&answer.ok_or_else(|| bad("it ended without a hello".into()))?).map_err(bad)?;
    judge(&me, &peer, node, admission).map_err(|why| Error::Failed { peer: node, why })?;
    Ok(peer)
}

/// Hears the hello of a peer that has dialled this node, and answers it. `None`: it was refused, and has been told.
pub(crate) async fn hear(connection: &Connection, admission: &dyn Admission, complaints: &Complaints) -> Result<Option<Member>> {
    let node = shown(connection)?;
    let exchange = async {
        let opened = connection.accept_bi().await.map_err(|error| Error::Broken { peer: node, why: error.to_string() })?;
        let mut stream = Stream::new(node, connection.remote_address(), opened);
        let said = stream.next().await?.ok_or_else(|| Error::Broken { peer: node, why: "it said nothing".into() })?;
        let me = admission.myself();
        let judged = decode(&said).and_then(|peer| judge(&me, &peer, node, admission).map(|()| peer));
        match judged {
            Ok(peer) => {
                stream.send(encode(&me)).await?;
                stream.finish()?;
                Ok(Some(peer))
            }
            Err(why) => {
                if complaints.due(node, &why) {
                    tracing::warn!(peer = %node, address = %connection.remote_address(), why, "a peer was refused");
                }
                stream.fail(&why).await?;
                stream.closed().await;
                Ok(None)
            }
        }
    };
    let late = |_| Error::Late { peer: node, what: "say hello", waited: HELLO_DEADLINE };
    tokio::time::timeout(HELLO_DEADLINE, exchange).await.map_err(late)?
}

fn shown(connection: &Connection) -> Result<NodeId> {
    let chain = tls::chain_of(connection);
    Ok(About::of(chain.first().ok_or_else(tls::unshown)?)?.node)
}

fn judge(me: &Member, peer: &Member, shown: NodeId, admission: &dyn Admission) -> std::result::Result<(), String> {
    if peer.node != shown {
        return Err(format!("it says that it is node {}, and its certificate is of node {shown}", peer.node));
    }
    common(me, peer)?;
    admission.admit(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_of_version_6_say_of_themselves_is_read() {
        shoal_state::written::hold::<Member>("a hello", include_str!("../tests/written/6/hello.txt"), 0);
    }
    use shoal_state::BootId;

    #[derive(Debug)]
    struct All;

    impl Admission for All {
        fn myself(&self) -> Member {
            member(1, 1)
        }

        fn admit(&self, _: &Member) -> std::result::Result<(), String> {
            Ok(())
        }
    }

    fn member(node: u128, generation: u32) -> Member {
        let (node, boot) = (NodeId::from_random(node), BootId::from_random(node));
        Member { cluster: [1; 16], generation, node, boot, version: 1, release: "1".into() }
    }

    #[test]
    fn a_hello_is_read_as_it_was_written_and_other_forms_are_named() {
        let me = member(1, 1);
        assert_eq!(decode(&encode(&me)).unwrap(), me);
        assert!(decode(&[9, 1]).unwrap_err().contains("form 9"));
        assert!(decode(&[]).is_err() && decode(&[FORMAT, 1]).is_err());
    }

    #[test]
    fn a_peer_is_refused_in_words() {
        let (me, node) = (All.myself(), NodeId::from_random(2));
        let judged = |peer: &Member| judge(&me, peer, node, &All).err();
        assert_eq!(judged(&member(2, 1)), None);
        assert_eq!(judged(&member(2, 2)), None, "this node is the one that was left behind, and hears it from the other");
        assert!(judged(&member(3, 1)).unwrap().contains("its certificate is of node"));
        assert!(judged(&Member { cluster: [2; 16], ..member(2, 1) }).unwrap().contains("another cluster"));
        assert!(judged(&member(2, 0)).unwrap().contains("wipe its data folder"));
        let twin = Member { boot: BootId::from_random(9), ..member(1, 1) };
        assert!(judge(&me, &twin, me.node, &All).unwrap_err().contains("copies of each other"));
    }
}
