//! Images from a registry: index → our platform → config → layers, streamed into the tree as they come.
//!
//! A registry that does not answer costs one connect deadline and is then left alone for a while, so that a machine
//! without a way out does not wait at every build.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol, linux_amd64_resolver};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{OciDescriptor, OciImageManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use parking_lot::Mutex;
use shoal_storage::manifest::Tree;
use shoal_storage::store::Store;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::config::ImageConfig;
use crate::error::{Error, Result, blocking};
use crate::log::BuildLog;

use super::catalog::{ANSWER_LIMIT, CONNECT_LIMIT, RegistryConfig, UNREACHABLE_FOR};
use super::layers::{self, Packing, not_an_image};
use super::oci::ConfigFile;
use super::reference::ImageReference;

/// Who asks a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// A user.
    Basic {
        /// Name.
        username: String,
        /// Password or token.
        password: String,
    },
}

impl Credentials {
    /// Reads a secret's variables by the way of authentication, with the SDK's number: 0 and 3 are anonymous, 2 is
    /// Google's (a service account's key as JSON), 4 is a user name and a password.
    ///
    /// Errors for 1, Amazon's, which needs a signed request that is not made yet.
    pub fn from_secret(kind: u32, env: &BTreeMap<String, String>) -> Result<Credentials> {
        let variable = |name: &str| env.get(name).cloned().ok_or_else(|| Error::RegistrySecret { why: format!("has no variable {name}") });
        match kind {
            0 | 3 => Ok(Credentials::Anonymous),
            2 => Ok(Credentials::Basic { username: "_json_key".to_owned(), password: variable("SERVICE_ACCOUNT_JSON")? }),
            4 => Ok(Credentials::Basic { username: variable("REGISTRY_USERNAME")?, password: variable("REGISTRY_PASSWORD")? }),
            1 => Err(Error::RegistrySecret {
                why: "is for Amazon's registry, whose tokens are not fetched yet: give user name AWS and a token as the password"
                    .to_owned(),
            }),
            other => Err(Error::RegistrySecret { why: format!("is for an unknown way of authentication ({other})") }),
        }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Anonymous => f.write_str("Anonymous"),
            Credentials::Basic { username, .. } => write!(f, "Basic({username})"),
        }
    }
}

/// Pulls images and remembers which registries are out of reach.
pub(super) struct Registries {
    settings: BTreeMap<String, RegistryConfig>,
    ca_bundle: Option<Vec<u8>>,
    unreachable: Mutex<HashMap<String, (Instant, String)>>,
}

impl Registries {
    /// `ca_bundle` are further certificates (PEM) to trust.
    pub(super) fn new(settings: BTreeMap<String, RegistryConfig>, ca_bundle: Option<Vec<u8>>) -> Registries {
        // Fails when the process has one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Registries { settings, ca_bundle, unreachable: Mutex::default() }
    }

    /// Pulls an image into the store.
    pub(super) async fn pull(
        &self,
        reference: &ImageReference,
        credentials: &Credentials,
        store: &Store,
        log: &dyn BuildLog,
    ) -> Result<(Tree, ImageConfig)> {
        let settings = self.settings.get(reference.registry()).cloned().unwrap_or_default();
        let mut oci = reference.oci().clone();
        if let Some(mirror) = &settings.mirror {
            oci.set_mirror_registry(mirror.clone());
        }
        let host = oci.resolve_registry().to_owned();
        self.check_reachable(&host)?;
        let mut pull = Pull {
            client: self.client(&host, settings.insecure),
            auth: auth(credentials, &settings),
            reference: oci,
            name: reference.short().to_owned(),
            host,
        };
        let mut manifest = pull.manifest().await;
        if matches!(manifest, Err(Error::Unreachable { .. })) && is_loopback(&pull.host) && !settings.insecure {
            // A registry of this very machine need not have certificates, and nobody is in between.
            pull.client = self.client(&pull.host, true);
            manifest = pull.manifest().await;
        }
        if let Err(Error::Unreachable { registry, why }) = &manifest {
            self.unreachable.lock().insert(registry.clone(), (Instant::now(), why.clone()));
        }
        let (manifest, config) = manifest?;
        pull.layers(manifest, config, store, log).await
    }

    fn check_reachable(&self, host: &str) -> Result<()> {
        match self.unreachable.lock().get(host) {
            Some((since, why)) if since.elapsed() < UNREACHABLE_FOR => {
                let why = format!("{why} ({} s ago)", since.elapsed().as_secs());
                Err(Error::Unreachable { registry: host.to_owned(), why })
            }
            _ => Ok(()),
        }
    }

    fn client(&self, host: &str, insecure: bool) -> Client {
        let certificates = self.ca_bundle.iter().flat_map(|bundle| certificates(bundle)).collect();
        Client::new(ClientConfig {
            protocol: match insecure {
                true => ClientProtocol::HttpsExcept(vec![host.to_owned()]),
                false => ClientProtocol::Https,
            },
            extra_root_certificates: certificates,
            platform_resolver: Some(Box::new(linux_amd64_resolver)),
            connect_timeout: Some(CONNECT_LIMIT),
            read_timeout: Some(ANSWER_LIMIT),
            ..ClientConfig::default()
        })
    }
}

/// Says whether a registry is reached without leaving the machine.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn auth(credentials: &Credentials, settings: &RegistryConfig) -> RegistryAuth {
    let variable = |name: &Option<String>| std::env::var(name.as_deref()?).ok();
    match (credentials, variable(&settings.username_env), variable(&settings.password_env)) {
        (Credentials::Basic { username, password }, ..) => RegistryAuth::Basic(username.clone(), password.clone()),
        (Credentials::Anonymous, Some(username), Some(password)) => RegistryAuth::Basic(username, password),
        (Credentials::Anonymous, ..) => RegistryAuth::Anonymous,
    }
}

/// Cuts a bundle into single certificates.
fn certificates(bundle: &[u8]) -> Vec<Certificate> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = String::from_utf8_lossy(bundle);
    let blocks = text.split_inclusive(END).filter_map(|block| Some(&block[block.find("-----BEGIN CERTIFICATE-----")?..]));
    blocks.map(|block| Certificate { encoding: CertificateEncoding::Pem, data: block.as_bytes().to_vec() }).collect()
}

struct Pull {
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
    name: String,
    host: String,
}

impl Pull {
    fn failed(&self, action: &'static str, source: OciDistributionError) -> Error {
        let no_answer = match &source {
            OciDistributionError::RequestError(error) => error.is_connect() || error.is_timeout(),
            _ => false,
        };
        if is_denied(&source) {
            let who = match &self.auth {
                RegistryAuth::Basic(username, _) => format!("the user {username:?} with that password"),
                _ => "anybody without a login".to_owned(),
            };
            return Error::RegistryDenied { registry: self.host.clone(), reference: self.name.clone(), who };
        }
        match no_answer {
            true => Error::Unreachable { registry: self.host.clone(), why: innermost(&source) },
            false => Error::Registry { registry: self.host.clone(), reference: self.name.clone(), action, source: Box::new(source) },
        }
    }

    async fn manifest(&self) -> Result<(OciImageManifest, ConfigFile)> {
        let asked = self.client.pull_manifest_and_config(&self.reference, &self.auth);
        let limit = CONNECT_LIMIT + ANSWER_LIMIT;
        let answer = tokio::time::timeout(limit, asked).await.map_err(|_| Error::Unreachable {
            registry: self.host.clone(),
            why: format!("no manifest came within {} s", limit.as_secs()),
        })?;
        let (manifest, _, config) = answer.map_err(|error| self.failed("read the manifest of", error))?;
        let config: ConfigFile = serde_json::from_str(&config)
            .map_err(|error| not_an_image(&self.name, format!("has a config that cannot be read: {error}")))?;
        if let Some(platform) = config.foreign_platform() {
            return Err(not_an_image(&self.name, format!("is for {platform}, not for linux/amd64")));
        }
        Ok((manifest, config))
    }

    async fn layers(
        &self,
        manifest: OciImageManifest,
        config: ConfigFile,
        store: &Store,
        log: &dyn BuildLog,
    ) -> Result<(Tree, ImageConfig)> {
        let total = manifest.layers.len();
        if config.diff_ids().len() != total {
            let why = format!("has {total} layers and {} hashes for them", config.diff_ids().len());
            return Err(not_an_image(&self.name, why));
        }
        let mut tree = Tree::new();
        for (number, (layer, diff_id)) in manifest.layers.iter().zip(config.diff_ids()).enumerate() {
            log.info(format!("layer {} of {total}: {} bytes", number + 1, layer.size));
            tree = self.layer(layer, diff_id.clone(), tree, store.clone()).await?;
        }
        Ok((tree, config.image_config()))
    }

    async fn layer(&self, layer: &OciDescriptor, diff_id: String, mut tree: Tree, store: Store) -> Result<Tree> {
        let packing = Packing::of_media_type(&layer.media_type)
            .ok_or_else(|| not_an_image(&self.name, format!("has a layer of type {}", layer.media_type)))?;
        let stream = self.client.pull_blob_stream(&self.reference, layer).await;
        let stream = stream.map_err(|error| self.failed("read a layer of", error))?;
        let name = self.name.clone();
        let reader = SyncIoBridge::new(StreamReader::new(stream.stream));
        blocking("unpacking a layer", move || {
            layers::apply(&mut tree, &name, reader, packing, Some(&diff_id), &store)?;
            Ok(tree)
        })
        .await
    }
}

/// Says whether a registry refused whoever asked.
fn is_denied(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => true,
        OciDistributionError::ServerError { code, .. } => matches!(code, 401 | 403),
        _ => false,
    }
}

/// The last cause: "connection refused" instead of "error sending request".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
