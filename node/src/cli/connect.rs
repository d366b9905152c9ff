//! `shoal connect`: a door on a client's machine that leads to whichever node is there.
//!
//! The official client speaks to one address. Behind this door it outlives the loss of a node: its connection ends, it connects
//! anew to the same address, and comes out at another node. It does so three times within 0.7 s and then gives up, so it gets a
//! connection that ends only where a node has spoken ([`passing`]). Bytes are passed on as they are: by mutual TLS with a token of the cluster
//! ([`secure`]), or by plain TCP on a network of one's own. At its start it says which nodes do not answer, and why ([`looking`]); it goes
//! on, as they may come, unless the cluster refuses its token.

mod looking;
mod passing;
mod secure;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustix::net::sockopt;
use shoal_peer::{ConnectToken, Tunnel};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use looking::{connect, look_at_all, look_plainly};
use passing::pass_on;
use secure::{Secure, words};

use crate::stderr::say;

/// How long one node may take to let a connection in.
const REACH_WAIT: Duration = Duration::from_secs(2);
/// How long a client's connection is held while no node is reached.
const HOLD: Duration = Duration::from_secs(50);
/// How long is waited between two rounds of all nodes.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(300);
/// After so long without an answer to a packet a node is taken for lost.
const SILENT_AFTER: Duration = Duration::from_secs(4);
/// How often people are told that no node is reached.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// The port of a node's API where a URL names none.
const PORT: u16 = 7470;

/// `shoal connect`
#[derive(Debug, Args)]
pub(super) struct Connect {
    /// Nodes of the cluster: `http://HOST:PORT` or `HOST:PORT`, several with commas or spaces between them. With --token, where their
    /// peers reach them.
    #[arg(required = true, value_delimiter = ',', value_name = "URL", value_parser = address)]
    nodes: Vec<String>,
    /// Where the client finds the cluster on this machine.
    #[arg(long, default_value = "127.0.0.1:7470")]
    listen: SocketAddr,
    /// What `shoal token create` prints for this: the way to the nodes is then QUIC with mutual TLS. Without, it is plain TCP.
    #[arg(long, env = "SHOAL_CONNECT_TOKEN", hide_env_values = true)]
    token: Option<ConnectToken>,
}

/// Reads `host:port` out of a URL.
fn address(url: &str) -> Result<String, String> {
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some((scheme, _)) => return Err(format!("expected http://HOST:PORT, and not {scheme}://: nodes are reached by plain HTTP")),
        None => url,
    };
    let host = rest.trim_end_matches('/');
    if host.is_empty() || host.contains(['/', '@', ' ']) {
        return Err("expected http://HOST:PORT or HOST:PORT".to_owned());
    }
    let has_port = match host.rsplit_once(':') {
        // An address of version 6 without a port ends with its bracket.
        Some((before, port)) if !host.ends_with(']') => {
            let port: u16 = port.parse().map_err(|_| format!("{port:?} is no port"))?;
            !before.is_empty() && port > 0
        }
        _ => false,
    };
    Ok(if has_port { host.to_owned() } else { format!("{host}:{PORT}") })
}

/// The nodes, and which of them was reached last.
#[derive(Debug)]
struct Nodes {
    addresses: Vec<String>,
    last: AtomicUsize,
    told: Mutex<Option<Instant>>,
}

impl Nodes {
    fn new(addresses: Vec<String>) -> Self {
        Self { addresses, last: AtomicUsize::new(0), told: Mutex::default() }
    }

    /// Goes to the node that was reached last, else to the next that can be; none when no node was for long.
    async fn reach<T, F>(&self, how: impl Fn(String) -> F) -> Option<T>
    where
        F: Future<Output = Result<T, String>>,
    {
        let deadline = Instant::now() + HOLD;
        loop {
            let mut why = Vec::new();
            let first = self.last.load(Ordering::Relaxed);
            for at in (0..self.addresses.len()).map(|step| (first + step) % self.addresses.len()) {
                let address = &self.addresses[at];
                match how(address.clone()).await {
                    Ok(reached) => {
                        if self.last.swap(at, Ordering::Relaxed) != at {
                            say(format_args!("connections go to {address} now"));
                        }
                        return Some(reached);
                    }
                    Err(error) => why.push(format!("{address}: {error}")),
                }
            }
            self.tell(&why);
            if Instant::now() >= deadline {
                return None;
            }
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
    }

    /// Begins with the next node next time.
    fn try_next(&self) {
        let next = (self.last.load(Ordering::Relaxed) + 1) % self.addresses.len();
        self.last.store(next, Ordering::Relaxed);
    }

    fn tell(&self, why: &[String]) {
        self.tell_once(&format!("no node is reached, connections wait: {}", why.join("; ")));
    }

    /// Tells people something, and not again and again.
    fn tell_once(&self, what: &str) {
        let mut told = self.told.lock();
        if told.is_none_or(|last| last.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            say(what);
        }
    }
}

impl Connect {
    pub(super) fn run(&self) -> anyhow::Result<i32> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
        runtime.block_on(self.serve())
    }

    async fn serve(&self) -> anyhow::Result<i32> {
        let taken = || format!("cannot listen on {}: does something else listen there? --listen chooses another address", self.listen);
        let listener = TcpListener::bind(self.listen).await.with_context(taken)?;
        let at = listener.local_addr().context("cannot find out where is listened")?;
        let nodes = Arc::new(Nodes::new(self.nodes.clone()));
        let way = match &self.token {
            Some(token) => {
                let looking = tokio::spawn(look_at_all(self.nodes.clone(), greeting(token)));
                let opened = Secure::open(nodes, token.clone()).await;
                if opened.is_err() {
                    // What is wrong with each is said before what is wrong with all.
                    let _ = looking.await;
                }
                Way::Secure(opened?)
            }
            None => {
                tokio::spawn(look_at_all(self.nodes.clone(), |address| async move { look_plainly(&address).await }));
                Way::Plain(nodes)
            }
        };
        let leads = format!("MODAL_SERVER_URL=http://{at} leads to {}", self.nodes.join(", "));
        writeln!(std::io::stdout(), "{leads}").context("cannot say where the door is")?;
        let accept = async {
            loop {
                match listener.accept().await {
                    Ok((client, _)) => drop(tokio::spawn(pass_on(client, way.clone()))),
                    // Of too many files, say: those that are open go on.
                    Err(error) => {
                        say(format_args!("cannot take a connection: {error}"));
                        tokio::time::sleep(TRY_AGAIN_AFTER).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accept => Ok(1),
            why = way.refused() => Err(anyhow::anyhow!(why)),
            signal = tokio::signal::ctrl_c() => signal.map(|()| 0).context("cannot take SIGINT"),
        }
    }
}

/// How nodes are reached.
#[derive(Debug, Clone)]
enum Way {
    Plain(Arc<Nodes>),
    Secure(Secure),
}

/// A way to a node's API.
enum Reached {
    Plain(TcpStream),
    Secure(Tunnel),
}

impl Way {
    async fn reach(&self) -> Option<Reached> {
        match self {
            Self::Plain(nodes) => nodes.reach(plain).await.map(Reached::Plain),
            Self::Secure(secure) => secure.tunnel().await.map(Reached::Secure),
        }
    }

    /// Waits until the cluster refuses this machine.
    async fn refused(&self) -> String {
        match self {
            Self::Plain(_) => std::future::pending().await,
            Self::Secure(secure) => secure.refused().await,
        }
    }
}

async fn plain(address: String) -> Result<TcpStream, String> {
    let stream = connect(&address).await?;
    // Small messages count here; and a node that is lost says nothing.
    let _ = stream.set_nodelay(true);
    let _ = notice_loss(&stream);
    Ok(stream)
}

/// Looks at a node by the way that a token opens.
fn greeting(token: &ConnectToken) -> impl Fn(String) -> BoxFuture<'static, Result<(), String>> + use<> {
    let ca = token.fingerprint();
    move |address| async move { shoal_peer::greet(&address, ca).await.map_err(|error| words(&address, error)) }.boxed()
}

fn notice_loss(node: &TcpStream) -> rustix::io::Result<()> {
    let second = Duration::from_secs(1);
    sockopt::set_socket_keepalive(node, true)?;
    sockopt::set_tcp_keepidle(node, second)?;
    sockopt::set_tcp_keepintvl(node, second)?;
    sockopt::set_tcp_keepcnt(node, 3)?;
    sockopt::set_tcp_user_timeout(node, u32::try_from(SILENT_AFTER.as_millis()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn urls_are_read_as_people_write_them() {
        let read = |url: &str| address(url);
        assert_eq!(read("http://n1:7471/").unwrap(), "n1:7471");
        assert_eq!(read("n1").unwrap(), "n1:7470");
        assert_eq!(read("http://[fd00::1]").unwrap(), "[fd00::1]:7470");
        assert_eq!(read("[fd00::1]:80").unwrap(), "[fd00::1]:80");
        for bad in ["https://n1", "", "http://", "n1:port", "http://n1/path", "n1:99999"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    /// A node that says its name to each connection and ends it.
    async fn node(name: u8) -> (String, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(&[name]).await.unwrap();
            }
        });
        (address, serving)
    }

    #[tokio::test]
    async fn connections_go_to_the_next_node_when_one_is_lost() {
        let ((one, serving), (two, _other)) = (node(1).await, node(2).await);
        let way = Way::Plain(Arc::new(Nodes::new(vec![one, two])));
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = door.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((client, _)) = door.accept().await {
                tokio::spawn(pass_on(client, way.clone()));
            }
        });
        let ask = async || {
            let mut stream = TcpStream::connect(here).await.unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await.unwrap();
            said
        };
        assert_eq!(ask().await, [1]);
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        assert_eq!(ask().await, [2]);
        assert_eq!(ask().await, [2]);
    }
}
