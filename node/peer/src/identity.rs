//! What a node is: a key, and a certificate of the cluster's CA that says which node holds it.

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use shoal_state::{NodeId, TokenId};

use crate::error::{Error, Result, certificate};
use crate::join::Fingerprint;

/// What the names of all nodes end with.
const SUFFIX: &str = ".node.shoal";
/// What the names of clients' machines end with.
const CLIENT_SUFFIX: &str = ".client.shoal";
/// A name that every node has: for those that do not know yet which node they will find.
pub(crate) const ANY_HOST: &str = "any.node.shoal";

/// A node's request for a certificate (a PKCS#10 request, DER).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request(pub Vec<u8>);

/// A key with its certificate, and the CA that its holder trusts.
#[derive(Debug)]
pub(crate) struct Certified {
    key: PrivatePkcs8KeyDer<'static>,
    leaf: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    renew_at: i64,
}

impl Clone for Certified {
    fn clone(&self) -> Self {
        let Self { key, leaf, ca, renew_at } = self;
        Self { key: key.clone_key(), leaf: leaf.clone(), ca: ca.clone(), renew_at: *renew_at }
    }
}

impl Certified {
    /// Puts a key (PEM), its certificate (DER) and the CA's (DER) together.
    pub(crate) fn new(key: &str, leaf: &[u8], ca: &[u8]) -> Result<Self> {
        let key = KeyPair::from_pem(key).map_err(certificate("read this machine's key"))?;
        let leaf = CertificateDer::from(leaf.to_vec());
        let (from, until) = validity_of(&leaf)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok(Self { key, leaf, ca: CertificateDer::from(ca.to_vec()), renew_at: from + (until - from) / 2 })
    }

    pub(crate) fn renew_at(&self) -> i64 {
        self.renew_at
    }

    pub(crate) fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }

    /// Returns what is shown to the other side: the certificate and the CA's.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.leaf.clone(), self.ca.clone()]
    }
}

/// A node's key and certificate, and the CA that it trusts.
#[derive(Debug, Clone)]
pub struct Identity {
    node: NodeId,
    certified: Certified,
}

impl Identity {
    /// Makes a key; returns the request to have it certified, and the key (PEM), which is a secret.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn ask() -> Result<(Request, String)> {
        let key = KeyPair::generate().map_err(certificate("make this node's key"))?;
        Ok((request(&key)?, key.serialize_pem()))
    }

    /// Returns the request to have an existing key (PEM) certified anew.
    ///
    /// # Errors
    /// When the key cannot be read.
    pub fn ask_again(key: &str) -> Result<Request> {
        request(&KeyPair::from_pem(key).map_err(certificate("read this node's key"))?)
    }

    /// Puts a key (PEM), its certificate (DER) and the CA's (DER) together.
    ///
    /// # Errors
    /// When one of them cannot be read, or the certificate names no node.
    pub fn new(key: &str, leaf: &[u8], ca: &[u8]) -> Result<Self> {
        let certified = Certified::new(key, leaf, ca)?;
        Ok(Self { node: About::of(&certified.leaf)?.node, certified })
    }

    /// Returns which node this is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Returns when the certificate should be renewed: half-way through its life, in seconds since 1970.
    pub fn renew_at(&self) -> i64 {
        self.certified.renew_at
    }

    /// Returns what a token that lets a node join says of the CA.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certified.ca)
    }

    /// Returns the certificate of the CA (DER).
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.certified.ca
    }

    pub(crate) fn certified(&self) -> &Certified {
        &self.certified
    }
}

fn request(key: &KeyPair) -> Result<Request> {
    let failed = || certificate("make a request for a certificate");
    let params = CertificateParams::new(vec![ANY_HOST.to_owned()]).map_err(failed())?;
    let request = params.serialize_request(key).map_err(failed())?;
    Ok(Request(request.der().to_vec()))
}

/// Returns the name of a node in its certificate. Upper and lower case mean the same in names, so it is no id as people see it.
pub(crate) fn host(node: NodeId) -> String {
    format!("{:032x}{SUFFIX}", node.bits())
}

/// Returns the name in the certificate of a client's machine that showed a token.
pub(crate) fn client_host(token: TokenId) -> String {
    format!("{:032x}{CLIENT_SUFFIX}", token.bits())
}

/// Returns the token that the certificate of a client's machine names; none in a node's.
pub(crate) fn client_of(leaf: &CertificateDer<'_>) -> Option<TokenId> {
    names_of(leaf).ok()?.iter().find_map(|name| bits_of(name, CLIENT_SUFFIX)).map(TokenId::from_random)
}

/// Returns from when and until when a certificate is good, in seconds since 1970.
fn validity_of(leaf: &CertificateDer<'_>) -> Result<(i64, i64)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(certificate("read a certificate"))?;
    let validity = parsed.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

fn names_of(leaf: &CertificateDer<'_>) -> Result<Vec<String>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(certificate("read a certificate"))?;
    let names = parsed.subject_alternative_name().map_err(certificate("read the names in a certificate"))?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let named = names.filter_map(|name| match name {
        x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    Ok(named.collect())
}

/// What a node's certificate says.
pub(crate) struct About {
    pub(crate) node: NodeId,
}

impl About {
    /// Reads a certificate. Whether it is to be trusted was found out before.
    pub(crate) fn of(leaf: &CertificateDer<'_>) -> Result<Self> {
        let node = names_of(leaf)?.iter().find_map(|name| bits_of(name, SUFFIX)).map(NodeId::from_random);
        let unnamed = || Error::Certificate { doing: "find a node's id in its certificate", why: "it has no such name".into() };
        Ok(Self { node: node.ok_or_else(unnamed)? })
    }
}

fn bits_of(name: &str, suffix: &str) -> Option<u128> {
    let bits = name.strip_suffix(suffix).filter(|digits| digits.len() == 32)?;
    u128::from_str_radix(bits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_node() {
        for bits in [0, 7, u128::MAX] {
            let node = NodeId::from_random(bits);
            assert_eq!(bits_of(&host(node), SUFFIX), Some(bits));
            assert_eq!(bits_of(&host(node), CLIENT_SUFFIX), None);
        }
        for name in [ANY_HOST, "7.node.shoal", "x", "00000000000000000000000000000007.node.other"] {
            assert_eq!(bits_of(name, SUFFIX), None);
        }
    }
}
