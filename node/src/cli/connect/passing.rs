//! One connection of a client on its way: to a node, and to another one if that ends before it has said anything.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{HOLD, Reached, TRY_AGAIN_AFTER, Way};

/// How long is waited before what a client said is said to a node again.
const REST: Duration = Duration::from_millis(100);
/// How much of what a client says is kept until a node has answered. HTTP/2 lets it send 64 KiB of requests before it has heard
/// anything; one that says more is led on, and its connection is not moved any more.
const SAID_BYTES_MAX: usize = 256 << 10;
/// How much is read at once.
const PIECE_BYTES: usize = 16 << 10;

/// Joins a client to a node, until either of them ends.
///
/// A node whose connection ends before it has said a word is one that starts or stops: it answered nothing, and a client that sees
/// several such ends gives up. So another node, or the same one a little later, is told what the client has said so far.
pub(super) async fn pass_on(mut client: TcpStream, way: Way) {
    let _ = client.set_nodelay(true);
    let (until, mut said) = (Instant::now() + HOLD, Vec::new());
    while let Some(reached) = reach(&client, &way).await {
        // However it ends, the client connects anew, and is led to a node that is there.
        let ended = match reached {
            Reached::Plain(mut node) => through(&mut client, &mut node, &mut said).await,
            Reached::Secure(mut node) => through(&mut client, &mut node, &mut said).await,
        };
        match (ended, &way) {
            (Ok(Ended::Unheard), _) if Instant::now() < until => {}
            (Err(error), Way::Secure(secure)) if shoal_peer::was_turned_away(&error) => return secure.turned_away(),
            _ => return,
        }
        if let Way::Plain(nodes) = &way {
            nodes.try_next();
        }
        tokio::time::sleep(REST).await;
    }
}

/// Goes to a node; none when no node was reached for long, or the client has given up.
async fn reach(client: &TcpStream, way: &Way) -> Option<Reached> {
    let mut gone = [0];
    // Who gives up waiting is not waited for.
    tokio::select! {
        reached = way.reach() => reached,
        _ = async { while client.peek(&mut gone).await.is_ok_and(|bytes| bytes > 0) { tokio::time::sleep(TRY_AGAIN_AFTER).await } } => None,
    }
}

/// How a way through a node ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// One of the two has ended it.
    Over,
    /// The node has, before it said anything. All that the client said is kept.
    Unheard,
}

/// Tells a node what a client has said so far and joins the two.
async fn through<C, N>(client: &mut C, node: &mut N, said: &mut Vec<u8>) -> io::Result<Ended>
where
    C: AsyncRead + AsyncWrite + Unpin,
    N: AsyncRead + AsyncWrite + Unpin,
{
    match first_words(client, node, said).await {
        Ok(First::Heard(words)) => client.write_all(&words).await?,
        Ok(First::ClientGone) => return Ok(Ended::Over),
        Ok(First::TooMuch) => {}
        Ok(First::NodeGone) => return Ok(Ended::Unheard),
        Err(error) if shoal_peer::was_turned_away(&error) => return Err(error),
        Err(_) => return Ok(Ended::Unheard),
    }
    *said = Vec::new();
    tokio::io::copy_bidirectional(client, node).await.map(|_| Ended::Over)
}

/// What happened first.
enum First {
    Heard(Vec<u8>),
    ClientGone,
    NodeGone,
    /// The client says more than is kept.
    TooMuch,
}

/// Leads a client's words to a node until that answers. Errors are the node's.
async fn first_words<C, N>(client: &mut C, node: &mut N, said: &mut Vec<u8>) -> io::Result<First>
where
    C: AsyncRead + Unpin,
    N: AsyncRead + AsyncWrite + Unpin,
{
    node.write_all(said).await?;
    let (mut asked, mut heard) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    loop {
        tokio::select! {
            bytes = node.read(&mut heard) => {
                heard.truncate(bytes?);
                return Ok(if heard.is_empty() { First::NodeGone } else { First::Heard(heard) });
            }
            bytes = client.read(&mut asked) => {
                let Ok(bytes @ 1..) = bytes else { return Ok(First::ClientGone) };
                said.extend_from_slice(&asked[..bytes]);
                node.write_all(&asked[..bytes]).await?;
                if said.len() > SAID_BYTES_MAX {
                    return Ok(First::TooMuch);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends of what a client holds, and of what a node does.
    fn ways() -> [tokio::io::DuplexStream; 4] {
        let (client, from_client) = tokio::io::duplex(1 << 20);
        let (node, to_node) = tokio::io::duplex(1 << 20);
        [client, from_client, node, to_node]
    }

    #[tokio::test]
    async fn what_a_node_did_not_answer_is_said_to_the_next_one() {
        let [mut client, mut from_client, mut first, mut to_first] = ways();
        let mut said = Vec::new();
        client.write_all(b"one, ").await.unwrap();
        let starts = async {
            first.read_exact(&mut [0; 5]).await.unwrap();
            drop(first);
        };
        let (ended, ()) = tokio::join!(through(&mut from_client, &mut to_first, &mut said), starts);
        assert_eq!(ended.unwrap(), Ended::Unheard);

        let [_, _, mut second, mut to_second] = ways();
        client.write_all(b"two").await.unwrap();
        let answers = async {
            let mut heard = [0; 8];
            second.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"one, two");
            second.write_all(b"yes").await.unwrap();
            let mut heard = [0; 3];
            client.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"yes");
            drop((client, second));
        };
        let (ended, ()) = tokio::join!(through(&mut from_client, &mut to_second, &mut said), answers);
        // It was heard: what comes now may have been done, and is for the client to repeat.
        assert_eq!(ended.unwrap(), Ended::Over);
        assert!(said.is_empty());
    }

    #[tokio::test]
    async fn who_says_much_without_an_answer_is_led_on() {
        let [mut client, mut from_client, mut node, mut to_node] = ways();
        let (mut said, much) = (Vec::new(), vec![7; SAID_BYTES_MAX + PIECE_BYTES]);
        let talk = async {
            client.write_all(&much).await.unwrap();
            let mut heard = vec![0; much.len()];
            node.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, much);
            drop((client, node));
        };
        let (ended, ()) = tokio::join!(through(&mut from_client, &mut to_node, &mut said), talk);
        assert_eq!(ended.unwrap(), Ended::Over);
    }
}
