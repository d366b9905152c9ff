//! TLS between nodes: 1.3 alone, both sides with a certificate of the cluster's CA.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::clients::Pass;
use crate::error::{Error, Result, certificate};
use crate::identity::{Certified, Identity};
use crate::join::Fingerprint;

/// What members speak.
pub(crate) const PEERS: &[u8] = b"shoal/1";
/// What a node speaks that has no certificate yet.
pub(crate) const JOINING: &[u8] = b"shoal-join/1";

/// What clients' machines speak.
pub(crate) const CLIENTS: &[u8] = b"shoal-client/1";

/// What machines speak that know a secret and have no cluster yet.
pub(crate) const SEEDING: &[u8] = b"shoal-seed/1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).map_err(certificate("trust the cluster's CA"))?;
    Ok(Arc::new(roots))
}

/// What peers that dial this node find.
pub(crate) fn accepting(identity: &Identity) -> Result<quinn::ServerConfig> {
    let doing = "prepare TLS for peers";
    // A node that joins has no certificate; what it may say without one is seen to after the handshake.
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity.ca())?, provider()).allow_unauthenticated().build();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(certificate(doing))?
        .with_client_cert_verifier(verifier.map_err(certificate(doing))?)
        .with_single_cert(identity.certified().chain(), identity.certified().key())
        .map_err(certificate(doing))?;
    tls.alpn_protocols = vec![PEERS.to_vec(), JOINING.to_vec(), SEEDING.to_vec(), CLIENTS.to_vec()];
    let crypto = QuicServerConfig::try_from(tls).map_err(certificate(doing))?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(crypto)))
}

/// How this node dials a peer.
pub(crate) fn dialling(identity: &Identity) -> Result<quinn::ClientConfig> {
    showing(identity.certified(), PEERS, "prepare TLS towards peers")
}

/// How a client's machine dials a node.
pub(crate) fn entering(pass: &Pass) -> Result<quinn::ClientConfig> {
    showing(pass.certified(), CLIENTS, "prepare TLS towards a cluster")
}

fn showing(certified: &Certified, speaks: &[u8], doing: &'static str) -> Result<quinn::ClientConfig> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(certificate(doing))?
        .with_root_certificates(roots(certified.ca())?)
        .with_client_auth_cert(certified.chain(), certified.key())
        .map_err(certificate(doing))?;
    tls.alpn_protocols = vec![speaks.to_vec()];
    client(tls, doing)
}

/// How a node dials that has no certificate and knows of the cluster only the CA's fingerprint.
pub(crate) fn joining(ca: Fingerprint) -> Result<quinn::ClientConfig> {
    let doing = "prepare TLS to join a cluster";
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(certificate(doing))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OfCa { ca, provider: provider() }))
        .with_no_client_auth();
    tls.alpn_protocols = vec![JOINING.to_vec()];
    client(tls, doing)
}

/// How a node dials that knows a secret, by which it finds out afterwards whom it has reached.
pub(crate) fn seeding() -> Result<quinn::ClientConfig> {
    let doing = "prepare TLS towards seeds";
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(certificate(doing))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody { provider: provider() }))
        .with_no_client_auth();
    tls.alpn_protocols = vec![SEEDING.to_vec()];
    client(tls, doing)
}

fn client(tls: rustls::ClientConfig, doing: &'static str) -> Result<quinn::ClientConfig> {
    let crypto = QuicClientConfig::try_from(tls).map_err(certificate(doing))?;
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}

/// Returns the certificates that the other side of a connection showed.
pub(crate) fn chain_of(connection: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    let shown = connection.peer_identity().and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
    shown.map(|chain| *chain).unwrap_or_default()
}

/// Returns what was agreed to speak on a connection.
pub(crate) fn protocol_of(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    data.protocol
}

/// How a [`ServerCertVerifier`] with a `provider` proves signatures: as rustls does.
macro_rules! signatures_of_tls13 {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("QUIC has TLS 1.3 alone".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Trusts what the CA with this fingerprint signed, when it is shown along.
#[derive(Debug)]
struct OfCa {
    ca: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OfCa {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let ca = others.iter().find(|one| Fingerprint::of(one) == self.ca).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        verifier.map_err(|_| unknown())?.verify_server_cert(leaf, others, name, ocsp, now)?;
        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures_of_tls13!();
}

/// Takes whoever is there: what is said proves who it is, bound to this connection.
#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    signatures_of_tls13!();
}

/// Makes an error of a certificate that a peer ought to have shown.
pub(crate) fn unshown() -> Error {
    Error::Certificate { doing: "find out which node a peer is", why: "it showed no certificate".into() }
}
