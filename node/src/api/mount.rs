//! Mounts: sets of files that clients upload, kept as trees.
//!
//! Files arrive by their SHA-256; this node remembers which chunks each one is. A mount's id follows from its content,
//! so equal sets of files are one mount whoever sends them.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use shoal_proto::modal_client as pb;
use shoal_state::model::Mount;
use shoal_state::{BlobId, Command, Digest, MountId};
use shoal_storage::chunk;
use shoal_storage::kv::Kv;
use shoal_storage::manifest::{Content, Entry, INLINE_CHUNKS_MAX, Kind, LIST_CHUNKS, Path, Tree, UNDATED_NS};
use shoal_storage::store::Store;

use super::error::Error;
use super::{Api, Caller, blob, blocking};
use crate::upkeep::Thing;

/// What named mounts of the client's own package begin with.
const CLIENT_MOUNT: &str = "modal-client-mount-";
/// What named mounts of interpreters begin with.
const PYTHON_MOUNT: &str = "python-build-standalone.";
/// The client in containers of functions that no mount says a version for.
pub(crate) const CLIENT_VERSION: &str = "1.6.4";

/// Which chunks an uploaded file is, by its SHA-256. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Files {
    store: Store,
    lists: shoal_storage::kv::Tree,
}

impl Files {
    /// Keeps the lists in `kv`.
    pub(crate) fn open(store: Store, kv: &Kv) -> Result<Self, shoal_storage::kv::Error> {
        Ok(Self { store, lists: kv.tree("files")? })
    }

    fn find(&self, sha256: &str) -> std::io::Result<Option<chunk::List>> {
        blob::read_list(&self.store, &self.lists, sha256.as_bytes())
    }

    /// Returns the chunks of a file whose every chunk is here still.
    fn find_whole(&self, sha256: &str) -> std::io::Result<Option<chunk::List>> {
        let Some(list) = self.find(sha256)? else { return Ok(None) };
        let parts = [&[Digest::of(&list.encode())], &list.chunks[..]].concat();
        let missing = self.store.missing(&parts).map_err(std::io::Error::other)?;
        Ok(missing.is_empty().then_some(list))
    }

    /// Forgets files whose chunks are gone: nothing named them, and whoever wants them uploads them again.
    pub(crate) fn forget_incomplete(&self) -> std::io::Result<()> {
        for pair in self.lists.range(..) {
            let (sha256, _) = pair.map_err(std::io::Error::other)?;
            let list = blob::read_list(&self.store, &self.lists, &sha256)?;
            let here = |digest: &Digest| self.store.has(digest).map_err(std::io::Error::other);
            let whole = match list {
                Some(list) => list.chunks.iter().try_fold(true, |whole, chunk| Ok::<_, std::io::Error>(whole && here(chunk)?))?,
                None => false,
            };
            if !whole {
                self.lists.remove(&sha256).map_err(std::io::Error::other)?;
            }
        }
        self.lists.kv().sync().map_err(std::io::Error::other)
    }

    fn keep(&self, sha256: &str, list: &chunk::List) -> std::io::Result<()> {
        let kept = self.store.put(&list.encode()).map_err(std::io::Error::other)?;
        self.store.sync().map_err(std::io::Error::other)?;
        self.lists.insert(sha256.as_bytes(), kept.as_bytes()).map_err(std::io::Error::other)?;
        self.lists.kv().sync().map_err(std::io::Error::other)
    }

    fn put(&self, sha256: &str, data: &[u8]) -> std::io::Result<()> {
        let chunks = data.chunks(chunk::CHUNK_BYTES).map(|piece| self.store.put(piece));
        let chunks = chunks.collect::<Result<Vec<Digest>, _>>().map_err(std::io::Error::other)?;
        self.keep(sha256, &chunk::List { size: data.len() as u64, chunks })
    }

    fn read(&self, list: &chunk::List) -> std::io::Result<Vec<u8>> {
        let mut data = Vec::new();
        for digest in &list.chunks {
            data.extend_from_slice(&self.store.get_anywhere(digest, None).map_err(std::io::Error::other)?);
        }
        Ok(data)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn valid_sha256(text: &str) -> Result<(), Error> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{text:?} is not a SHA-256 in hexadecimal")))
}

pub(super) async fn check(
    api: &Api,
    _caller: &Caller,
    request: pb::MountBatchedCheckExistenceRequest,
) -> Result<pb::MountBatchedCheckExistenceResponse, Error> {
    let files = api.files.clone();
    let missing = blocking(move || {
        let mut missing = Vec::new();
        for sha256 in request.sha256_hex_hashes {
            if files.find_whole(&sha256)?.is_none() {
                missing.push(sha256);
            }
        }
        Ok::<_, std::io::Error>(missing)
    });
    let missing = missing.await.map_err(Error::failed("cannot look for uploaded files"))?;
    Ok(pb::MountBatchedCheckExistenceResponse { missing_sha256_hex_hashes: missing, ..Default::default() })
}

pub(super) async fn put_file(api: &Api, _caller: &Caller, request: pb::MountPutFileRequest) -> Result<pb::MountPutFileResponse, Error> {
    use pb::mount_put_file_request::DataOneof;
    valid_sha256(&request.sha256_hex)?;
    let sha256 = request.sha256_hex.to_ascii_lowercase();
    let (files, blobs) = (api.files.clone(), api.blobs.clone());
    let blob: Option<BlobId> = match &request.data_oneof {
        Some(DataOneof::DataBlobId(id)) => Some(id.parse()?),
        _ => None,
    };
    let attempted = format!("cannot keep file {sha256}");
    let exists = blocking(move || {
        if files.find_whole(&sha256)?.is_some() {
            return Ok(Ok(true));
        }
        let data = match (&request.data_oneof, blob) {
            (Some(DataOneof::Data(data)), _) => data.to_vec(),
            (_, Some(id)) => match blobs.list(id)? {
                Some(list) => files.read(&list)?,
                None => return Ok(Err(format!("blob {id} was not uploaded"))),
            },
            _ => return Ok(Ok(false)),
        };
        let actual = hex(&Sha256::digest(&data));
        if actual != sha256 {
            return Ok(Err(format!("the file said to be {sha256} is {actual}: it changed while it was uploaded; try again")));
        }
        files.put(&sha256, &data)?;
        Ok::<_, std::io::Error>(Ok(true))
    });
    let exists = exists.await.map_err(Error::failed(attempted))?.map_err(Error::Invalid)?;
    Ok(pb::MountPutFileResponse { exists, ..Default::default() })
}

/// Returns the hash of a set of files, whatever their order.
fn content_sha256(files: &BTreeMap<String, &pb::MountFile>) -> String {
    let mut hasher = Sha256::new();
    for (name, file) in files {
        hasher.update(format!("{}\0{}\0{:o}\n", name, file.sha256_hex, file.mode.unwrap_or(0o644)));
    }
    hex(&hasher.finalize())
}

/// Returns the content of a file as trees name it.
fn content(files: &Files, list: &chunk::List) -> Result<Content, Error> {
    if list.chunks.len() <= INLINE_CHUNKS_MAX {
        return Ok(Content::Chunks(list.chunks.clone()));
    }
    let parts = list.chunks.chunks(LIST_CHUNKS).enumerate().map(|(number, chunks)| {
        let size = list.size.min(((number * LIST_CHUNKS + chunks.len()) * chunk::CHUNK_BYTES) as u64);
        let part = chunk::List { size: size - (number * LIST_CHUNKS * chunk::CHUNK_BYTES) as u64, chunks: chunks.to_vec() };
        files.store.put(&part.encode())
    });
    Ok(Content::Lists(parts.collect::<Result<_, _>>().map_err(Error::failed("cannot keep the list of a file's chunks"))?))
}

/// Makes the tree of a set of files and writes it to the store.
fn build(files: &Files, request: &[pb::MountFile]) -> Result<Digest, Error> {
    let mut tree = Tree::new();
    for file in request {
        let absent = || Error::Precondition(format!("file {:?} ({}) was not uploaded", file.filename, file.sha256_hex));
        let found = files.find_whole(&file.sha256_hex).map_err(Error::failed(format!("cannot look for {:?}", file.filename)))?;
        let list = found.ok_or_else(absent)?;
        let mode = file.mode.filter(|mode| mode & 0o7777 != 0).unwrap_or(0o644) & 0o7777;
        let kind = Kind::File { size: list.size, content: content(files, &list)? };
        let entry = Entry { mtime_ns: UNDATED_NS, ..Entry::new(kind, mode) };
        let path = Path::parse(&file.filename).map_err(|error| Error::Invalid(error.to_string()))?;
        tree.insert(&path, entry).map_err(|error| Error::Invalid(error.to_string()))?;
    }
    let digest = tree.write(&files.store).map_err(Error::failed("cannot keep a mount"))?;
    files.store.sync().map_err(Error::failed("cannot keep a mount"))?;
    Ok(digest)
}

pub(super) async fn get_or_create(
    api: &Api,
    _caller: &Caller,
    request: pb::MountGetOrCreateRequest,
) -> Result<pb::MountGetOrCreateResponse, Error> {
    let named = request.files.is_empty() && !request.deployment_name.is_empty();
    let (id, content_sha256) = if named { find_named(api, &request.deployment_name).await? } else { create(api, request.files).await? };
    Ok(pb::MountGetOrCreateResponse {
        mount_id: id.to_string(),
        handle_metadata: Some(pb::MountHandleMetadata { content_checksum_sha256_hex: content_sha256 }),
    })
}

async fn create(api: &Api, files: Vec<pb::MountFile>) -> Result<(MountId, String), Error> {
    let by_name: BTreeMap<String, &pb::MountFile> = files.iter().map(|file| (file.filename.clone(), file)).collect();
    let content_sha256 = content_sha256(&by_name);
    let id = MountId::derive(&[content_sha256.as_bytes()]);
    api.upkeep.uses.touch(Thing::Mount(id), api.store.now());
    if !api.local().mounts.contains_key(&id) {
        let kept = api.files.clone();
        let manifest = blocking(move || build(&kept, &files)).await?;
        api.promise(manifest).await?;
        api.propose(Command::PutMount { id, mount: Mount { manifest, content_sha256: content_sha256.clone() } }).await?;
    }
    Ok((id, content_sha256))
}

/// Finds a mount that the cluster itself provides, or makes it: an interpreter for `add_python`, or the client's own
/// package. Of the latter every container gets the version that its app was made with, so the mount only says which, and
/// holds no files.
async fn find_named(api: &Api, name: &str) -> Result<(MountId, String), Error> {
    let state = api.read_latest_unless(|state| state.named_mounts.contains_key(name)).await?;
    if let Some(id) = state.named_mounts.get(name)
        && let Some(mount) = state.mounts.get(id)
    {
        return Ok((*id, mount.content_sha256.clone()));
    }
    let (id, content_sha256) = if name.starts_with(CLIENT_MOUNT) {
        create_empty(api, name).await?
    } else if name.starts_with(PYTHON_MOUNT) {
        let manifest = api.images.standalone_python(name).await?;
        put_named(api, name, manifest).await?
    } else {
        return Err(Error::NotFound(format!("Mount '{name}' not found: Shoal has no tree of that name")));
    };
    api.propose(Command::NameMount { name: name.to_owned(), id }).await?;
    Ok((id, content_sha256))
}

async fn create_empty(api: &Api, name: &str) -> Result<(MountId, String), Error> {
    let files = api.files.clone();
    let manifest = blocking(move || build(&files, &[])).await?;
    put_named(api, name, manifest).await
}

async fn put_named(api: &Api, name: &str, manifest: Digest) -> Result<(MountId, String), Error> {
    let content_sha256 = hex(&Sha256::digest([name.as_bytes(), manifest.as_bytes()].concat()));
    let id = MountId::derive(&[name.as_bytes(), b"named"]);
    api.promise(manifest).await?;
    api.propose(Command::PutMount { id, mount: Mount { manifest, content_sha256: content_sha256.clone() } }).await?;
    Ok((id, content_sha256))
}

/// Returns the client version that a named mount stands for.
pub(crate) fn client_version(state: &shoal_state::State, mounts: &[MountId]) -> Option<String> {
    let named = state.named_mounts.iter().find(|(name, id)| name.starts_with(CLIENT_MOUNT) && mounts.contains(id));
    named.and_then(|(name, _)| name.strip_prefix(CLIENT_MOUNT)).map(str::to_owned)
}
