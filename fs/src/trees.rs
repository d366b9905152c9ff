//! The mount of a node, and the trees in it.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use fuser::{Config, INodeNo, Notifier, Session, SessionACL};
use parking_lot::Mutex;
use shoal_state::Digest;
use shoal_storage::manifest::{Path, Tree, is_name};

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::mount::{self, Connection, Mounted};
use crate::reads::{Missed, Reads, Trouble, Troubled};
use crate::source::Source;
use crate::view::{ROOT_INO, Touch, View};

/// How many threads take requests from the kernel. None of them ever waits.
const KERNEL_THREADS: usize = 4;

/// How long the end of a mount may take before it is forced, and then again before its threads are left behind.
const END_TIME: Duration = Duration::from_secs(2);

/// How a mount behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long a read may take. After it, the reader gets EIO.
    pub read_time: Duration,
    /// How many bytes of chunks are kept for the next read of the same chunk.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { read_time: Duration::from_secs(30), cache_bytes: 256 << 20 }
    }
}

/// Is told of reads whose bytes do not come, with the path of the file in its tree where that is known. Must not wait.
type Told = Box<dyn Fn(Option<Path>, Trouble) + Send + Sync>;

/// The mount of a node. Dropping it ends it.
pub struct Trees {
    mounted: Mounted,
    connection: Connection,
    view: Arc<View>,
    reads: Arc<Reads>,
    notifier: Notifier,
    troubled: Arc<OnceLock<Told>>,
    /// Told when the last thread that serves the kernel has ended. In a mutex only to be shared.
    ended: Mutex<Receiver<()>>,
}

impl Trees {
    /// Mounts at `mountpoint`, which is made if it is missing. What a former process left mounted there is taken off.
    ///
    /// Needs the rights of root and `/dev/fuse`.
    pub fn mount(mountpoint: &std::path::Path, source: Arc<dyn Source>) -> Result<Self> {
        Self::mount_with(mountpoint, source, Options::default())
    }

    /// Mounts as [`Self::mount`] does, with other options.
    pub fn mount_with(mountpoint: &std::path::Path, source: Arc<dyn Source>, options: Options) -> Result<Self> {
        let view = Arc::new(View::new());
        let missed = tell_of_neighbours(view.clone(), source.clone());
        let troubled = Arc::new(OnceLock::<Told>::new());
        let tells = tell_of_trouble(view.clone(), troubled.clone());
        let reads = Arc::new(Reads::start(source, missed, tells, options.read_time, options.cache_bytes)?);
        let adapter = Adapter { view: view.clone(), reads: reads.clone() };
        let started = start(mountpoint, adapter);
        let (mounted, connection, notifier, ended) = started.inspect_err(|_| reads.end())?;
        connection.raise_read_ahead();
        Ok(Self { mounted, connection, view, reads, notifier, troubled, ended: Mutex::new(ended) })
    }

    /// Returns where the trees are.
    pub fn mountpoint(&self) -> &std::path::Path {
        &self.mounted.mountpoint
    }

    /// Shows a tree as the directory `name` of the mount, and returns its path.
    ///
    /// Blocks while the tree is laid out, which takes time with the number of entries: bind a tree that several containers
    /// use once.
    pub fn bind(&self, name: &str, tree: &Tree) -> Result<PathBuf> {
        let name = name.to_owned();
        if !is_name(name.as_bytes()) {
            return Err(Error::BadName { name });
        }
        if !tree.root().is_dir() {
            return Err(Error::NotADirectory { name });
        }
        if !self.view.bind(name.as_bytes(), tree) {
            return Err(Error::NameTaken { name });
        }
        self.forget_listing();
        Ok(self.mounted.mountpoint.join(name))
    }

    /// Opens a room: the directory `name` of the mount, which shows `empty` until [`Self::fill`] makes it show a whole
    /// tree. What was opened or mounted on in the empty room stays what it is in the full one.
    pub fn open_room(&self, name: &str, empty: &Tree) -> Result<PathBuf> {
        let name = name.to_owned();
        if !is_name(name.as_bytes()) {
            return Err(Error::BadName { name });
        }
        if !self.view.open_room(name.as_bytes(), empty) {
            return Err(Error::NameTaken { name });
        }
        self.forget_listing();
        Ok(self.mounted.mountpoint.join(name))
    }

    /// Makes a room show what the tree bound as `like` shows, for as long as the room is there. Takes no time.
    ///
    /// # Errors
    /// [`Error::Unfit`] when the tree lacks something that the empty room has, or has a link there.
    pub fn fill(&self, room: &str, like: &str) -> Result<()> {
        let known = self.view.fill(room.as_bytes(), like.as_bytes());
        let known = known.map_err(|_| Error::Unfit { room: room.to_owned(), tree: like.to_owned() })?;
        for ino in known {
            self.forget(ino);
        }
        Ok(())
    }

    /// Takes a tree or a room away, and says if there was one of this name.
    ///
    /// Its path is gone when this returns; files of it that are open read errors, unless another tree has them too.
    pub fn unbind(&self, name: &str) -> bool {
        let found = self.view.unbind(name.as_bytes());
        if found && let Err(error) = self.notifier.inval_entry(INodeNo(ROOT_INO), OsStr::from_bytes(name.as_bytes())) {
            tracing::warn!(name, %error, "the kernel keeps the names of an unbound tree for a while");
        }
        self.forget_listing();
        found
    }

    /// Makes the kernel ask anew which trees there are.
    fn forget_listing(&self) {
        self.forget(ROOT_INO);
    }

    /// Makes the kernel ask anew for attributes and the listing of what it knows by a number.
    fn forget(&self, ino: u64) {
        if let Err(error) = self.notifier.inval_inode(INodeNo(ino), 0, 0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(ino, %error, "the kernel keeps what it knew of a directory for a while");
        }
    }

    /// Returns the names of all trees, in the order they were bound.
    pub fn names(&self) -> Vec<String> {
        self.view.names().iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    /// Returns what was read of a tree, in the order of first reads: what to bring before its next start elsewhere. None
    /// if there is no tree of this name.
    ///
    /// Reads of a file that several trees share count for all of them.
    pub fn touches(&self, name: &str) -> Option<Vec<Touch>> {
        self.view.touches(name.as_bytes())
    }

    /// Returns the chunks of what was read of a tree, in the order of first reads; of very long files the lists of their chunks
    /// only. None if there is no tree of this name.
    pub fn touched_chunks(&self, name: &str) -> Option<Vec<Digest>> {
        self.view.touched_chunks(name.as_bytes())
    }

    /// Lets `told` hear of each read whose bytes do not come: once when it has waited for some seconds, and when it fails. Only the first
    /// call counts. `told` gets the path of the file in a tree, and must not wait.
    pub fn on_trouble(&self, told: impl Fn(Option<Path>, Trouble) + Send + Sync + 'static) {
        let _the_first_stays = self.troubled.set(Box::new(told));
    }

    /// Lets reads of a process that is to end wait no longer than `limit` from now on. Once one of them has waited so long in vain none
    /// waits any more: what is not on this machine is EIO then.
    pub fn hurry(&self, process: u32, limit: Duration) {
        self.reads.hurry(process, limit);
    }

    /// Returns how many chunks this machine did not have and were asked of the source.
    pub fn chunks_asked(&self) -> u64 {
        self.reads.asked()
    }

    /// Returns how many bytes of chunks the mount has brought for reads, from this machine and from elsewhere.
    ///
    /// A read brings whole chunks, and the next ones of a file that is read from front to back. What the kernel or the
    /// mount still has is not brought again.
    pub fn bytes_brought(&self) -> u64 {
        self.reads.brought_bytes()
    }

    /// Fails everything that is on its way and all that would come, now: the last resort when processes hang in reads.
    /// The mount is of no use afterwards.
    pub fn abort(&self) -> Result<()> {
        self.reads.end();
        self.connection.abort()
    }
}

/// Lets the source know, when a file must come from elsewhere, what will probably be read with it.
fn tell_of_neighbours(view: Arc<View>, source: Arc<dyn Source>) -> Missed {
    Box::new(move |inode| {
        let neighbours = view.small_neighbours(inode);
        if !neighbours.is_empty() {
            source.expect(&neighbours);
        }
    })
}

fn tell_of_trouble(view: Arc<View>, troubled: Arc<OnceLock<Told>>) -> Troubled {
    Box::new(move |inode, trouble| {
        if let Some(told) = troubled.get() {
            told(view.path(inode), trouble);
        }
    })
}

/// Mounts and starts the threads that serve the kernel.
fn start(mountpoint: &std::path::Path, adapter: Adapter) -> Result<(Mounted, Connection, Notifier, Receiver<()>)> {
    let (mounted, device) = mount::mount(mountpoint)?;
    let served = serve(&mounted, device, adapter).and_then(|(notifier, ended)| Ok((mounted.connection()?, notifier, ended)));
    match served {
        Ok((connection, notifier, ended)) => Ok((mounted, connection, notifier, ended)),
        Err(error) => {
            let _the_first_error_counts = mounted.end();
            Err(error)
        }
    }
}

fn serve(mounted: &Mounted, device: OwnedFd, adapter: Adapter) -> Result<(Notifier, Receiver<()>)> {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(KERNEL_THREADS);
    config.clone_fd = true;
    let session = Session::from_fd(adapter, device, SessionACL::All, config);
    let session = session.map_err(|source| Error::Mount { action: "serve", path: mounted.mountpoint.clone(), source })?;
    let notifier = session.notifier();
    let (tell, ended) = mpsc::sync_channel(1);
    let name = "fs-session".to_owned();
    let spawned = thread::Builder::new().name(name.clone()).spawn(move || {
        if let Err(error) = session.run() {
            tracing::warn!(%error, "a mount ended with an error");
        }
        let _nobody_waits = tell.send(());
    });
    spawned.map_err(|source| Error::Thread { name, source })?;
    Ok((notifier, ended))
}

impl fmt::Debug for Trees {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trees").field("mountpoint", &self.mounted.mountpoint).field("names", &self.names()).finish()
    }
}

impl Drop for Trees {
    fn drop(&mut self) {
        self.reads.end();
        if let Err(error) = self.mounted.end() {
            tracing::warn!(error = &error as &dyn std::error::Error, "a mount could not be ended");
        }
        if self.ended.get_mut().recv_timeout(END_TIME).is_ok() {
            return;
        }
        if let Err(error) = self.connection.abort() {
            tracing::warn!(error = &error as &dyn std::error::Error, "a connection could not be aborted");
        }
        if self.ended.get_mut().recv_timeout(END_TIME).is_err() {
            tracing::error!(mountpoint = %self.mounted.mountpoint.display(), "the threads of a mount do not end; they are left behind");
        }
    }
}
