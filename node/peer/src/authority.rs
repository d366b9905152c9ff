//! The cluster's own CA.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use shoal_state::{NodeId, TokenId};

use crate::error::{Error, Result, certificate};
use crate::identity::{self, Request};
use crate::join::Fingerprint;

/// How long the CA's own certificate is good, in days: longer than any cluster.
const CA_DAYS: i64 = 100 * 365;
/// How long a node's certificate is good, in days. It is renewed at half of that.
pub(crate) const LEAF_DAYS: i64 = 30;
/// How long the certificate of a client's machine is good, in days. It asks for another one at half of that.
const CLIENT_DAYS: i64 = 7;
/// How far a certificate reaches into the past, in days: clocks differ.
const PAST_DAYS: i64 = 1;

/// Signs certificates of nodes.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    key: String,
}

impl Authority {
    /// Makes the CA of a new cluster. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn make(now: i64) -> Result<Self> {
        let key = KeyPair::generate().map_err(certificate("make the key of the cluster's CA"))?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = named("shoal cluster");
        validity(&mut params, now, CA_DAYS)?;
        let made = params.self_signed(&key).map_err(certificate("make the certificate of the cluster's CA"))?;
        let (certificate, text) = (made.der().clone(), key.serialize_pem());
        Ok(Self { issuer: Issuer::new(params, key), certificate, key: text })
    }

    /// Reads a CA from its key (PEM) and its certificate (DER).
    ///
    /// # Errors
    /// When one of them cannot be read, or the key is another one's.
    pub fn read(key: &str, ca: &[u8]) -> Result<Self> {
        let pair = KeyPair::from_pem(key).map_err(certificate("read the key of the cluster's CA"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(ca).map_err(certificate("read the certificate of the cluster's CA"))?;
        if parsed.public_key().subject_public_key.data != pair.public_key_raw() {
            let why = "it is not the one that the CA's certificate is of".to_owned();
            return Err(Error::Certificate { doing: "use the key of the cluster's CA", why });
        }
        let ca = CertificateDer::from(ca.to_vec());
        let issuer = Issuer::from_ca_cert_der(&ca, pair).map_err(certificate("read the certificate of the cluster's CA"))?;
        Ok(Self { issuer, certificate: ca, key: key.to_owned() })
    }

    /// Returns the CA's key, as [`Self::read`] takes it. It is a secret.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the CA's certificate (DER).
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Returns what a token that lets a node join says of this CA.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Certifies that whoever holds the request's key is this node. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// When the request is no request, or is not signed with its own key.
    pub fn certify(&self, node: NodeId, request: &Request, now: i64) -> Result<Vec<u8>> {
        let names = vec![identity::host(node), identity::ANY_HOST.to_owned()];
        let uses = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign("shoal node", names, uses, request, now, LEAF_DAYS)
    }

    /// Certifies that whoever holds the request's key has shown a token. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// When the request is no request, or is not signed with its own key.
    pub fn certify_client(&self, token: TokenId, request: &Request, now: i64) -> Result<Vec<u8>> {
        let names = vec![identity::client_host(token)];
        self.sign("shoal client", names, vec![ExtendedKeyUsagePurpose::ClientAuth], request, now, CLIENT_DAYS)
    }

    fn sign(
        &self,
        common_name: &str,
        names: Vec<String>,
        uses: Vec<ExtendedKeyUsagePurpose>,
        request: &Request,
        now: i64,
        days: i64,
    ) -> Result<Vec<u8>> {
        let request = CertificateSigningRequestDer::from(request.0.as_slice());
        // What the request says of itself counts for nothing: its key is all that is taken.
        let mut request = CertificateSigningRequestParams::from_der(&request).map_err(certificate("read a request for a certificate"))?;
        let mut params = CertificateParams::new(names).map_err(certificate("name the holder in a certificate"))?;
        params.distinguished_name = named(common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = uses;
        validity(&mut params, now, days)?;
        request.params = params;
        let signed = request.signed_by(&self.issuer).map_err(certificate("sign a certificate"))?;
        Ok(signed.der().to_vec())
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::CommonName, name);
    full
}

fn validity(params: &mut CertificateParams, now: i64, days: i64) -> Result<()> {
    let day = |days: i64| {
        let at = x509_parser::time::ASN1Time::from_timestamp(now + days * 86_400);
        at.map(|at| at.to_datetime()).map_err(certificate("write a date into a certificate"))
    };
    (params.not_before, params.not_after) = (day(-PAST_DAYS)?, day(days)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn a_ca_is_the_same_after_it_was_written_and_read() {
        let ca = Authority::make(1_800_000_000).unwrap();
        let read = Authority::read(ca.key(), ca.certificate()).unwrap();
        assert_eq!(read.fingerprint(), ca.fingerprint());
        let node = NodeId::from_random(7);
        let (request, key) = Identity::ask().unwrap();
        let leaf = read.certify(node, &request, 1_800_000_000).unwrap();
        let identity = Identity::new(&key, &leaf, ca.certificate()).unwrap();
        assert_eq!(identity.node(), node);
        let other = Authority::make(1_800_000_000).unwrap();
        assert!(other.fingerprint() != ca.fingerprint());
        let error = Authority::read(other.key(), ca.certificate()).unwrap_err().to_string();
        assert!(error.contains("not the one that the CA's certificate is of"), "{error}");
    }

    #[test]
    fn a_request_that_is_none_is_refused_in_words() {
        let ca = Authority::make(1_800_000_000).unwrap();
        let error = ca.certify(NodeId::from_random(7), &Request(b"what".to_vec()), 1_800_000_000).unwrap_err();
        assert!(error.to_string().starts_with("cannot read a request for a certificate"), "{error}");
    }
}
