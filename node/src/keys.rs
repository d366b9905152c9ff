//! What a node is and what it shares with its cluster: its id, its key and certificate, the cluster's CA, the keys that seal
//! and sign.
//!
//! All of it is in `DATA/keys`, made on the first start, or brought by joining a cluster. The CA's own key is where the cluster
//! was founded, and on every node that votes (`authority.rs`).

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use shoal_peer::{Authority, Identity, Request};
use shoal_state::NodeId;
use shoal_storage::file;

/// Where this file is, the cluster was there before the node.
const JOINED: &str = "joined";

/// Which cluster a data folder is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterName {
    /// Chosen at random when the cluster was founded.
    pub(crate) id: [u8; 16],
    /// How often it was started anew from one survivor.
    pub(crate) generation: u32,
}

/// What a node gets from the cluster that it joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// Which cluster it is.
    pub(crate) cluster: ClusterName,
    /// The node's certificate (DER).
    pub(crate) leaf: Vec<u8>,
    /// Seals secrets.
    pub(crate) sealing: [u8; 32],
    /// Signs URLs.
    pub(crate) urls: [u8; 32],
}

/// What never changes for a node or its cluster.
pub(crate) struct Keys {
    /// This node.
    pub(crate) node: NodeId,
    /// Its cluster.
    pub(crate) cluster: ClusterName,
    /// Seals secrets.
    pub(crate) sealing: [u8; 32],
    /// Signs URLs.
    pub(crate) urls: [u8; 32],
    /// Tells peers that a connection is of a former start.
    pub(crate) reset: [u8; 32],
    /// This node's key and certificate.
    pub(crate) identity: Identity,
    /// The cluster's CA, where its key is here.
    pub(crate) authority: Option<Authority>,
    /// Whether the node came into a cluster that was there before.
    pub(crate) has_joined: bool,
}

/// The files of the keys.
#[derive(Debug)]
struct Files {
    dir: PathBuf,
}

impl Files {
    fn of(data: &Path) -> anyhow::Result<Self> {
        let dir = data.join("keys");
        file::create_dir(&dir).context("cannot make the folder of the keys")?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn read(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let path = self.path(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read the key {}", path.display())),
        }
    }

    fn text(&self, name: &str) -> anyhow::Result<Option<String>> {
        let bytes = self.read(name)?;
        bytes.map(String::from_utf8).transpose().with_context(|| format!("the key {} is damaged", self.path(name).display()))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(file::write(&self.path(name), bytes)?)
    }

    /// Reads a random value, making it durably on the first start.
    fn random<const N: usize>(&self, name: &str) -> anyhow::Result<[u8; N]> {
        let Some(bytes) = self.read(name)? else {
            let made: [u8; N] = std::array::from_fn(|_| rand::random());
            self.write(name, &made)?;
            return Ok(made);
        };
        bytes.try_into().map_err(|bytes: Vec<u8>| {
            anyhow::anyhow!(
                "the key {} has {} bytes instead of {N}: bring it back from a copy of the data folder",
                self.path(name).display(),
                bytes.len()
            )
        })
    }

    fn node(&self) -> anyhow::Result<NodeId> {
        Ok(NodeId::from_random(u128::from_le_bytes(self.random("node-id")?)))
    }
}

impl Keys {
    /// Reads the keys, or makes those of a node that founds a cluster. `now` is in seconds since 1970.
    pub(crate) fn open(data: &Path, now: i64) -> anyhow::Result<Self> {
        let files = Files::of(data)?;
        let node = files.node()?;
        let cluster = match files.read("cluster.json")? {
            Some(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{} cannot be read", files.path("cluster.json").display()))?
            }
            None => {
                let cluster = ClusterName { id: rand::random(), generation: 1 };
                files.write("cluster.json", &serde_json::to_vec(&cluster)?)?;
                cluster
            }
        };
        let authority = authority(&files, now)?;
        let identity = identity(&files, node, authority.as_ref(), now)?;
        Ok(Self {
            node,
            cluster,
            sealing: files.random("secrets")?,
            urls: files.random("urls")?,
            reset: files.random("reset")?,
            identity,
            authority,
            has_joined: files.path(JOINED).exists(),
        })
    }
}

/// Reads the CA where its key is here; makes it where there is none at all.
fn authority(files: &Files, now: i64) -> anyhow::Result<Option<Authority>> {
    match (files.text("ca.key")?, files.read("ca.der")?) {
        (Some(key), Some(ca)) => Ok(Some(Authority::read(&key, &ca)?)),
        (None, Some(_)) => Ok(None),
        // The certificate goes last: with the key alone a crash has come between, and nobody trusts it yet.
        (_, None) => {
            let made = Authority::make(now)?;
            files.write("ca.key", made.key().as_bytes())?;
            files.write("ca.der", made.certificate())?;
            Ok(Some(made))
        }
    }
}

/// Reads this node's key and certificate; the CA, where it is here, makes what is missing or old.
fn identity(files: &Files, node: NodeId, authority: Option<&Authority>, now: i64) -> anyhow::Result<Identity> {
    let ca = files.read("ca.der")?.context("the certificate of the cluster's CA is missing")?;
    let held = match (files.text("node.key")?, files.read("node.der")?) {
        (Some(key), Some(leaf)) => Some((Identity::new(&key, &leaf, &ca)?, key)),
        _ => None,
    };
    match (held, authority) {
        (Some((identity, _)), None) => Ok(identity),
        (Some((identity, _)), Some(_)) if now < identity.renew_at() => Ok(identity),
        (held, Some(authority)) => {
            let (request, key) = match held {
                Some((_, key)) => (Identity::ask_again(&key)?, key),
                None => Identity::ask()?,
            };
            let leaf = authority.certify(node, &request, now)?;
            files.write("node.key", key.as_bytes())?;
            files.write("node.der", &leaf)?;
            Ok(Identity::new(&key, &leaf, &ca)?)
        }
        (None, None) => anyhow::bail!(
            "{} has a cluster's CA and no certificate of this node: wipe the data folder, and join the cluster anew",
            files.dir.display()
        ),
    }
}

/// Says whether a data folder belongs to a cluster already, founded here or joined.
pub(crate) fn belongs(data: &Path) -> bool {
    data.join("keys/cluster.json").exists() || data.join("raft").exists()
}

/// What a node that joins brings along: made before it asks, and kept, so that it asks for the same when it asks again.
pub(crate) struct Applicant {
    files: Files,
    /// Which node it will be.
    pub(crate) node: NodeId,
    /// What it wants certified.
    pub(crate) request: Request,
}

impl Applicant {
    /// Makes id and key, or reads those of an earlier try.
    pub(crate) fn open(data: &Path) -> anyhow::Result<Self> {
        let files = Files::of(data)?;
        let node = files.node()?;
        let request = match files.text("node.key")? {
            Some(key) => Identity::ask_again(&key)?,
            None => {
                let (request, key) = Identity::ask()?;
                files.write("node.key", key.as_bytes())?;
                request
            }
        };
        Ok(Self { files, node, request })
    }

    /// Keeps what the cluster gave. What says that the folder belongs to the cluster goes last.
    pub(crate) fn keep(self, welcome: &Welcome, ca: &[u8]) -> anyhow::Result<()> {
        self.files.write("ca.der", ca)?;
        self.files.write("node.der", &welcome.leaf)?;
        self.files.write("secrets", &welcome.sealing)?;
        self.files.write("urls", &welcome.urls)?;
        self.files.write(JOINED, b"")?;
        self.files.write("cluster.json", &serde_json::to_vec(&welcome.cluster)?)
    }
}

/// Where this node keeps the key of the cluster's CA while it votes.
#[derive(Debug)]
pub(crate) struct AuthorityFile {
    files: Files,
}

impl AuthorityFile {
    /// Finds the place.
    pub(crate) fn open(data: &Path) -> anyhow::Result<Self> {
        Ok(Self { files: Files::of(data)? })
    }

    /// Keeps the key (PEM) durably, unless it is not that of this cluster's CA.
    pub(crate) fn keep(&self, key: &str) -> anyhow::Result<Authority> {
        let ca = self.files.read("ca.der")?.context("the certificate of the cluster's CA is missing")?;
        let authority = Authority::read(key, &ca)?;
        self.files.write("ca.key", key.as_bytes())?;
        Ok(authority)
    }

    /// Deletes the key.
    pub(crate) fn forget(&self) -> anyhow::Result<()> {
        file::remove(&self.files.path("ca.key"))?;
        Ok(file::sync_dir(&self.files.dir)?)
    }
}

/// Which node this machine has promised to follow, before there is a cluster.
pub(crate) struct Promise;

impl Promise {
    const FILE: &str = "promised.json";

    /// Reads the promise, if one was made.
    pub(crate) fn read(data: &Path) -> anyhow::Result<Option<NodeId>> {
        let files = Files::of(data)?;
        let Some(bytes) = files.read(Self::FILE)? else { return Ok(None) };
        let read = serde_json::from_slice(&bytes);
        Ok(Some(read.with_context(|| format!("{} cannot be read", files.path(Self::FILE).display()))?))
    }

    /// Makes the promise durably. It is made to one node only.
    pub(crate) fn keep(data: &Path, founder: NodeId) -> anyhow::Result<()> {
        static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let held = Self::read(data)?;
        shoal_members::formation::keeps(held, founder).map_err(anyhow::Error::msg)?;
        match held {
            Some(_) => Ok(()),
            None => Files::of(data)?.write(Self::FILE, &serde_json::to_vec(&founder)?),
        }
    }
}

/// The keys of a node whose cluster is lost, and that is to be all that is left of it.
#[derive(Debug)]
pub(crate) struct Orphan {
    files: Files,
    /// The node.
    pub(crate) node: NodeId,
    /// The cluster, as it was.
    pub(crate) cluster: ClusterName,
    /// Whether the CA's key is here.
    pub(crate) has_authority: bool,
}

impl Orphan {
    /// Reads the keys of a node that does not run.
    pub(crate) fn open(data: &Path) -> anyhow::Result<Self> {
        anyhow::ensure!(belongs(data), "{} belongs to no cluster: there is nothing to recover", data.display());
        let files = Files::of(data)?;
        let node = files.node()?;
        let named = files.read("cluster.json")?.context("the name of the cluster is missing")?;
        let cluster = serde_json::from_slice(&named).with_context(|| format!("{} cannot be read", files.path("cluster.json").display()))?;
        let has_authority = match (files.text("ca.key")?, files.read("ca.der")?) {
            (Some(key), Some(ca)) => Authority::read(&key, &ca).is_ok(),
            _ => false,
        };
        Ok(Self { files, node, cluster, has_authority })
    }

    /// Begins a generation of the cluster with this node alone, with another CA where the key of the old one is not here. What
    /// says so goes last. `now` is in seconds since 1970.
    pub(crate) fn begin(self, generation: u32, now: i64) -> anyhow::Result<()> {
        if !self.has_authority {
            let authority = Authority::make(now)?;
            let (request, key) = match self.files.text("node.key")? {
                Some(key) => (Identity::ask_again(&key)?, key),
                None => Identity::ask()?,
            };
            let leaf = authority.certify(self.node, &request, now)?;
            self.files.write("ca.key", authority.key().as_bytes())?;
            self.files.write("ca.der", authority.certificate())?;
            self.files.write("node.key", key.as_bytes())?;
            self.files.write("node.der", &leaf)?;
        }
        self.files.write("cluster.json", &serde_json::to_vec(&ClusterName { generation, ..self.cluster })?)
    }
}

/// What a node needs to have its certificate renewed.
pub(crate) struct Renewal {
    files: Files,
    key: String,
    /// What it wants certified: the key that it has.
    pub(crate) request: Request,
}

impl Renewal {
    /// Reads this node's key.
    pub(crate) fn open(data: &Path) -> anyhow::Result<Self> {
        let files = Files::of(data)?;
        let key = files.text("node.key")?.context("this node's key is missing")?;
        Ok(Self { request: Identity::ask_again(&key)?, files, key })
    }

    /// Keeps the new certificate (DER), unless it is of no use.
    pub(crate) fn keep(self, leaf: &[u8]) -> anyhow::Result<Identity> {
        let ca = self.files.read("ca.der")?.context("the certificate of the cluster's CA is missing")?;
        let identity = Identity::new(&self.key, leaf, &ca)?;
        anyhow::ensure!(identity.node() == self.files.node()?, "the new certificate is of another node");
        self.files.write("node.der", leaf)?;
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn keys_are_made_once_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = Keys::open(dir.path(), NOW).unwrap();
        let again = Keys::open(dir.path(), NOW).unwrap();
        assert_eq!((again.node, again.cluster), (first.node, first.cluster));
        assert_eq!(again.identity.fingerprint(), first.identity.fingerprint());
        assert_eq!(again.identity.node(), first.node);
        std::fs::write(dir.path().join("keys/secrets"), b"short").unwrap();
        let said = Keys::open(dir.path(), NOW).err().unwrap().to_string();
        assert!(said.contains("has 5 bytes instead of 32"), "{said}");
    }

    #[test]
    fn a_certificate_is_renewed_where_the_ca_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = Keys::open(dir.path(), NOW).unwrap();
        let later = Keys::open(dir.path(), NOW + 20 * 86_400).unwrap();
        assert!(later.identity.renew_at() > first.identity.renew_at());
        assert_eq!(later.identity.fingerprint(), first.identity.fingerprint());
    }

    #[test]
    fn who_joins_has_what_the_cluster_gave_and_no_ca() {
        let (founder, joiner) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let keys = Keys::open(founder.path(), NOW).unwrap();
        let applicant = Applicant::open(joiner.path()).unwrap();
        assert!(!belongs(joiner.path()) && belongs(founder.path()));
        let again = Applicant::open(joiner.path()).unwrap();
        assert_eq!(again.node, applicant.node);
        let authority = keys.authority.unwrap();
        let leaf = authority.certify(applicant.node, &applicant.request, NOW).unwrap();
        let welcome = Welcome { cluster: keys.cluster, leaf, sealing: keys.sealing, urls: keys.urls };
        let node = again.node;
        again.keep(&welcome, authority.certificate()).unwrap();
        let joined = Keys::open(joiner.path(), NOW).unwrap();
        assert!(joined.authority.is_none() && joined.has_joined && belongs(joiner.path()));
        // When it votes it gets the CA's key, and has it until it votes no more.
        let file = AuthorityFile::open(joiner.path()).unwrap();
        assert!(file.keep(Authority::make(NOW).unwrap().key()).is_err(), "the key of another CA was taken");
        assert_eq!(file.keep(authority.key()).unwrap().fingerprint(), authority.fingerprint());
        assert!(Keys::open(joiner.path(), NOW).unwrap().authority.is_some());
        file.forget().unwrap();
        file.forget().unwrap();
        assert!(Keys::open(joiner.path(), NOW).unwrap().authority.is_none());
        assert_eq!((joined.node, joined.cluster, joined.sealing, joined.urls), (node, keys.cluster, keys.sealing, keys.urls));
        assert_eq!(joined.identity.fingerprint(), keys.identity.fingerprint());
        // Later its certificate is renewed, for the same key.
        let renewal = Renewal::open(joiner.path()).unwrap();
        let later = NOW + 20 * 86_400;
        let leaf = authority.certify(node, &renewal.request, later).unwrap();
        assert!(renewal.keep(&leaf).unwrap().renew_at() > joined.identity.renew_at());
        assert!(Keys::open(joiner.path(), later).unwrap().identity.renew_at() > later);
        let renewal = Renewal::open(joiner.path()).unwrap();
        let of_another = authority.certify(keys.node, &renewal.request, later).unwrap();
        assert!(renewal.keep(&of_another).unwrap_err().to_string().contains("of another node"));
    }
}
