//! The data folder of a node: one process has it, and a build that knows its layout opens it.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use shoal_storage::file;

/// The layout of data folders that this build writes. It reads this one and all before.
const FORMAT: u32 = 1;
/// The file that says in which layout a folder is.
const FORMAT_FILE: &str = "format.json";

/// Why a data folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Another process has it.
    #[error(
        "another node runs on the data folder {}{}: stop that one, or start this one with another --data (and ports of its own, --api and --web)",
        data.display(),
        holder.map_or_else(String::new, |pid| format!(" (process {pid})"))
    )]
    Held {
        /// The folder.
        data: PathBuf,
        /// Who has it, as far as that is known.
        holder: Option<u32>,
    },
    /// Its node runs, and must not.
    #[error(
        "a node runs on the data folder {}{}: stop it, then say this again",
        data.display(),
        holder.map_or_else(String::new, |pid| format!(" (process {pid})"))
    )]
    Runs {
        /// The folder.
        data: PathBuf,
        /// Who has it, as far as that is known.
        holder: Option<u32>,
    },
    /// Somebody looks at it.
    #[error(
        "`shoal store check`, `shoal recover` or `shoal cleanup` looks at the data folder {}{}: start this node when it has ended",
        data.display(),
        holder.map_or_else(String::new, |pid| format!(" (process {pid})"))
    )]
    LookedAt {
        /// The folder.
        data: PathBuf,
        /// Who looks, as far as that is known.
        holder: Option<u32>,
    },
    /// No node ever had it.
    #[error("{} is not the data folder of a node: say with --data where that is", data.display())]
    None {
        /// The folder.
        data: PathBuf,
    },
    /// A newer build wrote it.
    #[error(
        "the data folder {} was written by shoal {writer} in layout {format}, and this is shoal {}, which knows layouts up to {FORMAT}: start that version or a newer one, or this one with another --data",
        data.display(),
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The folder.
        data: PathBuf,
        /// The version of the build that wrote it.
        writer: String,
        /// Its layout.
        format: u32,
    },
}

impl Error {
    /// Says whether starting again may help.
    pub(crate) fn passes(&self) -> bool {
        matches!(self, Self::LookedAt { .. })
    }
}

/// For how long a folder may be held by a process that was killed and is not quite gone.
const KILLED_WAIT: Duration = Duration::from_secs(3);
/// How often is looked meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What follows the process in the lock of one that only looks.
const LOOKS: &str = "looks";

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
struct Format {
    format: u32,
    /// The newest version of Shoal that wrote into the folder.
    writer: String,
}

/// A data folder that is this process's own until this is dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    _lock: std::fs::File,
}

impl Folder {
    /// Makes the folder if it is not there, and takes it.
    pub(crate) fn take(data: &Path) -> anyhow::Result<Self> {
        let run = data.join("run");
        file::create_dir(data).and_then(|()| file::create_dir(&run)).context("cannot make the data folder")?;
        std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot close {} to others", data.display()))?;
        let lock = lock(data, &run.join("lock"), "")?;
        check_format(data)?;
        Ok(Self { _lock: lock })
    }

    /// Takes the folder of a node that does not run, to change what it holds.
    pub(crate) fn take_stopped(data: &Path) -> anyhow::Result<Self> {
        if read_format(&data.join(FORMAT_FILE))?.is_none() {
            return Err(Error::None { data: data.to_owned() }.into());
        }
        Self::take(data).map_err(not_stopped)
    }

    /// Takes a folder that a node had before, to look at it: no node starts on it meanwhile, and what it holds stays as it is.
    pub(crate) fn look(data: &Path) -> anyhow::Result<Self> {
        let format = read_format(&data.join(FORMAT_FILE))?;
        match format {
            None => Err(Error::None { data: data.to_owned() }.into()),
            Some(Format { format, writer }) if format > FORMAT => Err(Error::Newer { data: data.to_owned(), writer, format }.into()),
            Some(_) => Ok(Self { _lock: lock(data, &data.join("run/lock"), LOOKS).map_err(not_stopped)? }),
        }
    }
}

/// Keeps nodes from starting on a folder for as long as what this returns lives; none where no node ever had it, or not much of it is
/// left.
pub(crate) fn keep_nodes_out(data: &Path) -> anyhow::Result<Option<Folder>> {
    let run = data.join("run");
    if !run.is_dir() {
        return Ok(None);
    }
    let begun = Instant::now();
    loop {
        match lock(data, &run.join("lock"), LOOKS) {
            Ok(_lock) => return Ok(Some(Folder { _lock })),
            Err(error) if begun.elapsed() >= KILLED_WAIT => return Err(not_stopped(error)),
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Returns the process that has a folder, without taking it for a moment: a node that starts just then would not get it.
pub(crate) fn holder(data: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = std::fs::metadata(data.join("run/lock")).ok()?.ino();
    held_in(&std::fs::read_to_string("/proc/locks").ok()?, inode)
}

/// Finds who holds a file in the text of /proc/locks: `1: FLOCK  ADVISORY  WRITE PID MAJOR:MINOR:INODE 0 EOF`.
fn held_in(locks: &str, inode: u64) -> Option<u32> {
    let holder = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let held = words.get(1) == Some(&"FLOCK") && words.get(5)?.rsplit(':').next()?.parse() == Ok(inode);
        held.then(|| words[4].parse().ok()).flatten()
    };
    locks.lines().find_map(holder)
}

/// Who does not want to start a node is told nothing of starting one.
fn not_stopped(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<Error>() {
        Ok(Error::Held { data, holder }) => Error::Runs { data, holder }.into(),
        Ok(other) => other.into(),
        Err(error) => error,
    }
}

fn lock(data: &Path, path: &Path, what_for: &str) -> anyhow::Result<std::fs::File> {
    let mut options = std::fs::OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut file = opened.with_context(|| format!("cannot open {}", path.display()))?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut text = String::new();
        let _ = file.read_to_string(&mut text);
        let (data, holder) = (data.to_owned(), text.split_whitespace().next().and_then(|pid| pid.parse().ok()));
        return Err(if text.ends_with(LOOKS) { Error::LookedAt { data, holder } } else { Error::Held { data, holder } }.into());
    }
    // For whoever comes second.
    let _ = file.set_len(0).and_then(|()| write!(file, "{} {what_for}", std::process::id()));
    Ok(file)
}

fn read_format(path: &Path) -> anyhow::Result<Option<Format>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{} cannot be read", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn check_format(data: &Path) -> anyhow::Result<()> {
    let path = data.join(FORMAT_FILE);
    let found = read_format(&path)?;
    let ours = Format { format: FORMAT, writer: env!("CARGO_PKG_VERSION").to_owned() };
    match found {
        Some(Format { format, writer }) if format > FORMAT => Err(Error::Newer { data: data.to_owned(), writer, format }.into()),
        Some(found) if found.format == FORMAT && found.writer == ours.writer => Ok(()),
        _ => Ok(file::write(&path, &serde_json::to_vec(&ours).context("cannot encode the layout")?)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_node_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::take(dir.path()).unwrap();
        let said = Folder::take(dir.path()).unwrap_err().to_string();
        assert!(said.contains(&format!("(process {})", std::process::id())) && said.contains("--data"), "{said}");
        drop(first);
        Folder::take(dir.path()).unwrap();
    }

    #[test]
    fn who_has_a_folder_is_known_without_taking_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()), None);
        let node = Folder::take(dir.path()).unwrap();
        assert_eq!(holder(dir.path()), Some(std::process::id()));
        drop(node);
        assert_eq!(holder(dir.path()), None);
        let locks = "1: POSIX  ADVISORY  WRITE 7 fe:00:12 0 EOF\n2: FLOCK  ADVISORY  WRITE 8 fe:00:112 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 9 fe:00:12 0 EOF\n3: FLOCK  ADVISORY  WRITE 10 fe:00:12 0 EOF\n";
        assert_eq!(held_in(locks, 12), Some(10));
    }

    #[test]
    fn who_looks_at_a_folder_keeps_nodes_out_for_as_long_as_that_takes() {
        let dir = tempfile::tempdir().unwrap();
        let said = Folder::look(dir.path()).unwrap_err().to_string();
        assert!(said.contains("is not the data folder of a node"), "{said}");
        assert_eq!(Folder::take_stopped(dir.path()).unwrap_err().to_string(), said);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a look made something");
        let node = Folder::take(dir.path()).unwrap();
        let said = Folder::look(dir.path()).unwrap_err().to_string();
        assert!(said.contains("stop it, then say this again") && !said.contains("start this one"), "{said}");
        assert_eq!(Folder::take_stopped(dir.path()).unwrap_err().to_string(), said);
        drop(node);
        let looks = Folder::look(dir.path()).unwrap();
        let refused = Folder::take(dir.path()).unwrap_err();
        assert!(refused.downcast_ref::<Error>().is_some_and(Error::passes), "{refused}");
        assert!(refused.to_string().contains(&format!("(process {})", std::process::id())), "{refused}");
        drop(looks);
        Folder::take(dir.path()).unwrap();
    }

    #[test]
    fn a_folder_of_a_newer_layout_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        drop(Folder::take(dir.path()).unwrap());
        let path = dir.path().join(FORMAT_FILE);
        let newer = br#"{"format":7,"writer":"9.9.0"}"#;
        std::fs::write(&path, newer).unwrap();
        let said = Folder::take(dir.path()).unwrap_err().to_string();
        assert!(said.contains("shoal 9.9.0 in layout 7") && said.contains("--data"), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), newer);
    }
}
