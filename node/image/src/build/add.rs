//! What ADD brings beyond COPY: files from addresses, archives.
//!
//! Addresses are asked by the node, so those that lead to the node itself or to services beside it (loopback,
//! link-local) are refused, also behind a redirection.

use std::io::{Read, Seek, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path as HostPath;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use shoal_storage::manifest::{Objects, Path, Tree, from_tar, read_content};

use crate::bases::hex;
use crate::error::{FileContext, Result};

use super::copy::Problem;

/// The largest file that ADD fetches.
const FETCH_BYTES_MAX: u64 = 20 << 30;
/// How many redirections are followed.
const REDIRECTIONS_MAX: usize = 10;
/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a server may say nothing.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// Whether a source of ADD is an address.
pub(super) fn is_address(source: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| source.to_ascii_lowercase().starts_with(scheme))
}

/// Whether a source of ADD is a repository, which is not supported.
pub(super) fn is_repository(source: &str) -> bool {
    let source = source.split('#').next().unwrap_or_default();
    source.starts_with("git@") || source.starts_with("git://") || (is_address(source) && source.ends_with(".git"))
}

/// The name of the file at an address.
pub(super) fn file_name(address: &str) -> Option<String> {
    let path = address.split_once("://")?.1.split(['?', '#']).next()?;
    let (_, name) = path.rsplit_once('/')?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Fetches an address into a file, and returns the file's SHA-256 (`sha256:…`).
///
/// The inner error is the user's: the server's answer, or a refusal.
pub(super) async fn fetch(address: &str, ca_bundle: Option<&HostPath>, into: &HostPath) -> Result<Result<String, Problem>> {
    let certificates = match ca_bundle {
        Some(path) => std::fs::read(path).file("read", path)?,
        None => Vec::new(),
    };
    let mut file = std::fs::File::create(into).file("create", into)?;
    let mut response = match open(address, &certificates).await {
        Ok(response) => response,
        Err(problem) => return Ok(Err(problem)),
    };
    let (mut hash, mut received) = (Sha256::new(), 0);
    loop {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(Ok(format!("sha256:{}", hex(&hash.finalize())))),
            Err(error) => return Ok(Err(format!("{address} broke off after {received} bytes: {}", innermost(&error)))),
        };
        received += chunk.len() as u64;
        if received > FETCH_BYTES_MAX {
            return Ok(Err(format!("{address} is larger than {FETCH_BYTES_MAX} bytes")));
        }
        hash.update(&chunk);
        file.write_all(&chunk).file("write", into)?;
    }
}

async fn open(address: &str, certificates: &[u8]) -> Result<reqwest::Response, Problem> {
    let mut url = reqwest::Url::parse(address).map_err(|error| format!("{address} is no address: {error}"))?;
    for _ in 0..=REDIRECTIONS_MAX {
        let client = client(&url, certificates).await?;
        let response = client.get(url.clone()).send().await.map_err(|error| format!("{url} cannot be fetched: {}", innermost(&error)))?;
        let status = response.status();
        let location = response.headers().get("location").and_then(|value| value.to_str().ok());
        match location {
            Some(location) if status.is_redirection() => {
                url = url.join(location).map_err(|error| format!("{url} leads to {location}, which is no address: {error}"))?;
            }
            _ if status.is_success() => return Ok(response),
            _ => return Err(format!("{url} cannot be fetched: the server says {status}")),
        }
    }
    Err(format!("{address} leads through more than {REDIRECTIONS_MAX} redirections"))
}

/// Makes a client that connects to the checked addresses of one host and nowhere else.
async fn client(url: &reqwest::Url, certificates: &[u8]) -> Result<reqwest::Client, Problem> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("{url} is not fetched: only http and https are"));
    }
    let host = url.host_str().ok_or_else(|| format!("{url} names no host"))?.trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    let found = tokio::net::lookup_host((host.as_str(), port)).await.map_err(|error| format!("{host} cannot be found: {error}"))?;
    let addresses: Vec<SocketAddr> = found.collect();
    if let Some(own) = addresses.iter().find(|address| is_own(address.ip())) {
        return Err(format!("{url} is not fetched: {} leads to the machine itself", own.ip()));
    }
    let certificates =
        reqwest::Certificate::from_pem_bundle(certificates).map_err(|error| format!("the CA bundle cannot be read: {error}"))?;
    // Fails when the process has one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(READ_LIMIT)
        .resolve_to_addrs(&host, &addresses)
        .tls_certs_merge(certificates);
    builder.build().map_err(|error| format!("no client can be made: {error}"))
}

fn is_own(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast(),
        IpAddr::V6(v6) => {
            let link_local = v6.segments()[0] & 0xffc0 == 0xfe80;
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || link_local
                || v6.to_ipv4_mapped().is_some_and(|v4| is_own(v4.into()))
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packed {
    Plain,
    Gzip,
    Zstd,
    /// Recognised, and not unpacked here.
    Other(&'static str),
}

/// Returns the content of the file at the root of `file` as a tree when it is an archive.
pub(super) fn unpacked(file: &Tree, objects: &impl Objects) -> Result<Option<Tree>, Problem> {
    let start = start_of(file, objects)?;
    let packed = match &start[..] {
        [0x1f, 0x8b, ..] => Packed::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packed::Zstd,
        [b'B', b'Z', b'h', ..] => Packed::Other("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packed::Other("xz"),
        _ => Packed::Plain,
    };
    let reader = || whole(file, objects);
    match packed {
        Packed::Plain => archive(reader()?, objects),
        Packed::Gzip => archive(flate2::read::MultiGzDecoder::new(reader()?), objects),
        Packed::Zstd => archive(zstd::stream::read::Decoder::new(reader()?).map_err(|error| error.to_string())?, objects),
        Packed::Other(kind) => Err(format!("an archive packed by {kind} is not unpacked: COPY it and unpack it in a RUN")),
    }
}

fn whole<'a>(file: &Tree, objects: &'a impl Objects) -> Result<Box<dyn Read + 'a>, Problem> {
    let shoal_storage::manifest::Kind::File { size, content } = &file.root().kind else {
        return Err("it is not a file".to_owned());
    };
    Ok(Box::new(read_content(*size, content, objects).map_err(|error| error.to_string())?))
}

fn start_of(file: &Tree, objects: &impl Objects) -> Result<Vec<u8>, Problem> {
    let mut start = Vec::new();
    whole(file, objects)?.take(8).read_to_end(&mut start).map_err(|error| error.to_string())?;
    Ok(start)
}

/// Reads an archive if it is one: the mark lies in its first header.
fn archive(reader: impl Read, objects: &impl Objects) -> Result<Option<Tree>, Problem> {
    let mut reader = reader;
    let mut header = Vec::new();
    if reader.by_ref().take(512).read_to_end(&mut header).is_err() || header.get(257..262) != Some(b"ustar") {
        return Ok(None);
    }
    let whole = std::io::Cursor::new(header).chain(reader);
    let changes = from_tar(whole, objects).map_err(|error| error.to_string())?;
    let mut tree = Tree::new();
    tree.apply_layer(changes).map_err(|error| error.to_string())?;
    Ok(Some(tree))
}

/// Reads a fetched file as a tree of one file.
pub(super) fn fetched(file: &HostPath, name: &str, objects: &impl Objects) -> Result<Tree, Problem> {
    use shoal_storage::manifest::{Entry, Kind, put_content};
    let mut opened = std::fs::File::open(file).map_err(|error| error.to_string())?;
    opened.rewind().map_err(|error| error.to_string())?;
    let (size, content) = put_content(opened, name, objects).map_err(|error| error.to_string())?;
    Path::parse(name).map_err(|error| error.to_string())?;
    Ok(Tree::of(Entry::new(Kind::File { size, content }, 0o600)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_storage::manifest::{Entry, Kind, Memory, put_content};

    #[test]
    fn what_a_source_is() {
        assert!(is_address("HTTPS://a.example/x") && !is_address("http.txt"));
        assert!(is_repository("https://a.example/x.git#main") && !is_repository("https://a.example/x.tar"));
        assert_eq!(file_name("https://a.example/d/x.tar?y=/z").as_deref(), Some("x.tar"));
        assert_eq!(file_name("https://a.example/"), None);
    }

    #[tokio::test]
    async fn the_machine_itself_is_not_asked() {
        for address in ["http://127.0.0.1:7470/x", "http://localhost/x", "http://169.254.169.254/x", "http://[::1]/x", "http://0.0.0.0/x"] {
            let problem = open(address, b"").await.unwrap_err();
            assert!(problem.contains("leads to the machine itself"), "{problem}");
        }
    }

    #[test]
    fn archives_are_recognised_by_content() {
        let objects = Memory::default();
        let file = |bytes: &[u8]| {
            let (size, content) = put_content(bytes, "a test", &objects).unwrap();
            Tree::of(Entry::new(Kind::File { size, content }, 0o644))
        };
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        for set in [tar::Header::set_uid, tar::Header::set_gid, tar::Header::set_mtime] {
            set(&mut header, 0);
        }
        header.set_mode(0o644);
        header.set_size(1);
        builder.append_data(&mut header, "d/x", &b"y"[..]).unwrap();
        let tar = builder.into_inner().unwrap();
        let zstd = zstd::stream::encode_all(&tar[..], 1).unwrap();
        for bytes in [&tar, &zstd] {
            let tree = unpacked(&file(bytes), &objects).unwrap().unwrap();
            assert!(tree.get(&Path::parse("d/x").unwrap()).is_some());
        }
        assert_eq!(unpacked(&file(b"text"), &objects).unwrap(), None);
        assert!(unpacked(&file(b"\xfd7zXZ\0.."), &objects).unwrap_err().contains("packed by xz"));
    }
}
