//! What a door says of its nodes at its start, so that nobody learns of a misspelled name by a client that waits.

use std::io;
use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::REACH_WAIT;
use crate::stderr::say;

/// How long a node that took a connection may take to say that it is one.
const ANSWER_WAIT: Duration = Duration::from_secs(3);
/// How much of such an answer is read.
const ANSWER_BYTES_MAX: u64 = 4 << 10;
/// How much of a foreign answer is shown.
const SHOWN_CHARS_MAX: usize = 60;

/// Looks at all nodes at once, and says of each that does not answer as a node what stands in the way.
pub(super) async fn look_at_all<F>(nodes: Vec<String>, look: impl Fn(String) -> F)
where
    F: Future<Output = Result<(), String>>,
{
    let look = async |address: String| {
        let found = look(address.clone()).await;
        if let Err(why) = &found {
            say(format_args!("{address}: {why}"));
        }
        found.is_ok()
    };
    let answered = join_all(nodes.into_iter().map(look)).await;
    if answered.iter().all(|answers| !answers) {
        say("no node answers: connections wait until one does");
    }
}

/// Looks whether a node's API is at an address.
pub(super) async fn look_plainly(address: &str) -> Result<(), String> {
    let mut stream = connect(address).await?;
    let asked = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut heard = Vec::new();
    let asking = async {
        stream.write_all(asked.as_bytes()).await?;
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut heard).await
    };
    // However it ended: what was heard counts.
    let ended = tokio::time::timeout(ANSWER_WAIT, asking).await;
    judge(&heard, ended.is_err())
}

/// Says what an answer to `GET /health` means.
fn judge(heard: &[u8], late: bool) -> Result<(), String> {
    let heard = String::from_utf8_lossy(heard);
    let (head, body) = heard.split_once("\r\n\r\n").unwrap_or((&heard, ""));
    let first = head.lines().next().unwrap_or_default();
    match first.split(' ').nth(1) {
        Some("200") if body.trim() == "ok" => Ok(()),
        Some("503") if body.starts_with("this node") => Err(format!("it says: {}", body.trim())),
        _ if heard.is_empty() && late => Err(format!(
            "it takes connections and has not answered within {} s: a node that starts, or no node at all",
            ANSWER_WAIT.as_secs()
        )),
        _ if heard.is_empty() => Err("it ends connections without a word: no node of Shoal, or one that stops".to_owned()),
        _ => {
            let shown: String = first.chars().filter(|char| !char.is_control()).take(SHOWN_CHARS_MAX).collect();
            Err(format!("what answers there is no node of Shoal, it says {shown:?}: is this the address of a node's API?"))
        }
    }
}

/// Connects to `host:port`; says in words why not.
pub(super) async fn connect(address: &str) -> Result<TcpStream, String> {
    let connecting = async {
        let found: Vec<_> = tokio::net::lookup_host(address).await.map_err(|error| unknown(address, &error.to_string()))?.collect();
        TcpStream::connect(&*found).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => "nobody listens there (connection refused): is the node up, is this its port?".to_owned(),
            _ => error.to_string(),
        })
    };
    let late = || format!("no answer within {} s: is the machine up, does the network lead there?", REACH_WAIT.as_secs());
    tokio::time::timeout(REACH_WAIT, connecting).await.map_err(|_| late())?
}

/// Says that a name leads nowhere.
pub(super) fn unknown(address: &str, why: &str) -> String {
    let name = address.rsplit_once(':').map_or(address, |(name, _)| name);
    let why = why.strip_prefix("failed to lookup address information: ").unwrap_or(why);
    format!("the name {name:?} is not known here ({why})")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_node_is_known_by_its_health() {
        judge(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n", false).unwrap();
        let alone = judge(
            b"HTTP/1.1 503 Service Unavailable\r\n\r\nthis node reaches no other node of its cluster: another one may serve\n",
            false,
        );
        assert_eq!(alone.unwrap_err(), "it says: this node reaches no other node of its cluster: another one may serve");
        for (heard, late, word) in [
            (&b"HTTP/1.1 404 Not Found\r\n\r\n<html>"[..], false, "\"HTTP/1.1 404 Not Found\""),
            (b"HTTP/1.1 200 OK\r\n\r\n<html>", false, "is no node of Shoal"),
            (b"\x15\x03\x01\x00\x02\x02\x16", false, "is no node of Shoal"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", true, "\"SSH-2.0-OpenSSH_9.2\""),
            (b"", true, "has not answered within"),
            (b"", false, "without a word"),
        ] {
            let why = judge(heard, late).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
    }

    #[tokio::test]
    async fn what_stands_in_the_way_is_said_in_words() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let refused = look_plainly(&free).await.unwrap_err();
        assert!(refused.contains("nobody listens there"), "{refused}");
        let unknown = look_plainly("nope.invalid:7470").await.unwrap_err();
        assert!(unknown.contains("\"nope.invalid\" is not known here") || unknown.contains("no answer within"), "{unknown}");
    }
}
