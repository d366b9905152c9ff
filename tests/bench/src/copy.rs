//! A file over one TCP connection with TLS, to a file that is synced: what a transfer between nodes is held against.
//!
//! `copy-serve` writes its certificate to a file and serves one copy after another; `copy-fetch` reads one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::json;
use tokio::fs::File;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::say;

/// What the certificate is for.
const NAME: &str = "copy.bench";
/// How much is read and written at once, in bytes.
const PIECE_BYTES: usize = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where it listens.
    #[arg(long)]
    listen: String,
    /// What it serves.
    #[arg(long)]
    file: PathBuf,
    /// Where its certificate goes, in PEM.
    #[arg(long)]
    certificate: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// Who serves.
    #[arg(long)]
    from: String,
    /// Its certificate.
    #[arg(long)]
    certificate: PathBuf,
    /// Where the copy goes.
    #[arg(long)]
    to: PathBuf,
}

/// Serves until it is killed; says when it listens.
pub(crate) async fn serve(options: Serve) -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).context("cannot make a certificate")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    let listener = TcpListener::bind(&options.listen).await.with_context(|| format!("cannot listen at {}", options.listen))?;
    std::fs::write(&options.certificate, made.cert.pem())?;
    say(&json!({ "ready": true }));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        let mut stream = acceptor.accept(connection).await.context("a handshake failed")?;
        let mut file = BufReader::with_capacity(PIECE_BYTES, File::open(&options.file).await?);
        tokio::io::copy_buf(&mut file, &mut stream).await.context("a copy broke off")?;
        stream.shutdown().await?;
    }
}

/// Fetches the file and says how long that took.
pub(crate) async fn fetch(options: Fetch) -> anyhow::Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&options.certificate)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let began = Instant::now();
    let connection = TcpStream::connect(&options.from).await.with_context(|| format!("cannot reach {}", options.from))?;
    connection.set_nodelay(true)?;
    let stream =
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME)?, connection).await.context("the handshake failed")?;
    let mut file = File::create(&options.to).await?;
    let bytes = tokio::io::copy_buf(&mut BufReader::with_capacity(PIECE_BYTES, stream), &mut file).await.context("the copy broke off")?;
    file.flush().await?;
    file.sync_data().await?;
    say(&json!({ "bytes": bytes, "seconds": began.elapsed().as_secs_f64() }));
    Ok(())
}
