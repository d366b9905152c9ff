//! Folders in which programs of the host work: what they leave in them goes, also after a node was killed in the middle.
//!
//! mmdebstrap mounts /proc, /sys and devices into what it makes. When it is killed, its mounts stay, and a removal of its folder would
//! go through them into the machine's own; when only the node is killed, it works on. So a folder is cleared in this order:
//! whoever works for it is killed, its mounts are taken away without touching what they show, and then it is removed.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::error::{FileContext as _, Result};

/// The variable by which programs of the host, and all that they start, are known to work for a folder.
const MARK: &str = "SHOAL_WORKS_IN";
/// How long killed processes may take to go.
const DEATH_DEADLINE: Duration = Duration::from_secs(10);
/// How often is looked meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How many mounts one folder may have on top of each other; what is more shows as a failure.
const ROUNDS_MAX: usize = 16;

/// A temporary folder; it goes, with what is mounted in it, when this is dropped.
#[derive(Debug)]
pub(crate) struct WorkFolder {
    path: PathBuf,
}

impl WorkFolder {
    /// Makes one below `parent`.
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        let made = tempfile::tempdir_in(parent).file("create a folder in", parent)?;
        Ok(Self { path: made.keep() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the environment of a program that works in it must hold.
    pub(crate) fn mark(&self) -> (&'static str, &Path) {
        (MARK, &self.path)
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            let (folder, error) = (self.path.display(), error.full_text());
            tracing::warn!(%folder, error, "a build left something behind; the next start of the node removes it");
        }
    }
}

/// Makes sure that a folder is there and empty, whatever a former process of this node left in it.
pub(crate) fn empty(folder: &Path) -> Result<()> {
    remove(folder)?;
    fs::create_dir_all(folder).file("create", folder)
}

/// Takes a folder away in which programs of the host worked for a node that is there no more, with whatever still works in it.
///
/// # Errors
/// When something does not go.
pub fn remove(folder: &Path) -> Result<()> {
    // Without symbolic links, as the kernel writes mounts; a folder that is not there has none.
    let real = match folder.canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).file("find", folder),
    };
    end_workers(&[folder, &real]).file("end what works in", folder)?;
    take_mounts_away(&real).file("take away the mounts in", folder)?;
    fs::remove_dir_all(folder).file("empty", folder)
}

/// Kills what works in these folders or below, and waits until it is gone. What is killed may have started more meanwhile.
fn end_workers(folders: &[&Path]) -> io::Result<()> {
    let until = Instant::now() + DEATH_DEADLINE;
    loop {
        let workers = workers(folders);
        if workers.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("processes {workers:?} survive SIGKILL")));
        }
        for pid in workers {
            // It may have ended by itself.
            let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Finds live processes whose environment says that they work in one of these folders or below.
fn workers(folders: &[&Path]) -> Vec<i32> {
    let prefix = format!("{MARK}=");
    let works = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut marks = environment.split(|byte| *byte == 0).filter_map(|variable| variable.strip_prefix(prefix.as_bytes()));
        marks.any(|mark| folders.iter().any(|folder| Path::new(std::ffi::OsStr::from_bytes(mark)).starts_with(folder)))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter(works).collect()
}

/// Takes away what is mounted below a folder, the deepest first.
fn take_mounts_away(folder: &Path) -> io::Result<()> {
    for _ in 0..ROUNDS_MAX {
        let mut points = mounts_below(&fs::read_to_string("/proc/self/mountinfo")?, folder);
        if points.is_empty() {
            return Ok(());
        }
        points.sort_by_key(|point| std::cmp::Reverse(point.as_os_str().len()));
        // Else what is unmounted below a mount that shares with the machine's own /sys would be unmounted there too.
        points.iter().try_for_each(|point| mount_change(point, MountPropagationFlags::PRIVATE))?;
        points.iter().try_for_each(|point| unmount(point, UnmountFlags::DETACH))?;
    }
    Err(io::Error::other("others mount there again and again"))
}

/// The mount points below a folder in the text of /proc/self/mountinfo.
fn mounts_below(table: &str, folder: &Path) -> Vec<PathBuf> {
    let fields = table.lines().filter_map(|line| line.split(' ').nth(4));
    fields.map(plain).filter(|point| point != folder && point.starts_with(folder)).collect()
}

/// Reads a path as the kernel writes it: blanks, tabs, newlines and backslashes by their octal numbers.
fn plain(text: &str) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let number = after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        (bytes, rest) = match number.filter(|_| first == b'\\') {
            Some(number) => ([bytes, vec![number]].concat(), &after[3..]),
            None => ([bytes, vec![first]].concat(), after),
        };
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes).to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        let table = "36 35 98:0 / /srv/a\\040b/\\134c rw - tmpfs tmpfs rw\n37 35 98:0 / /srv/ab rw - tmpfs tmpfs rw\n";
        assert_eq!(mounts_below(table, Path::new("/srv/a b")), [PathBuf::from("/srv/a b/\\c")]);
        assert_eq!(mounts_below(table, Path::new("/srv/a")), Vec::<PathBuf>::new());
        assert_eq!(mounts_below(table, Path::new("/srv/ab")), Vec::<PathBuf>::new(), "the folder may be a disk of its own");
    }

    #[test]
    fn who_works_in_a_folder_is_ended_with_what_it_started_and_others_live() {
        let parent = tempfile::tempdir().unwrap();
        let start = |folder: &WorkFolder| {
            let (name, path) = folder.mark();
            let script = "sh -c 'sleep 1000 & echo $!; wait' & wait";
            let mut child = Command::new("sh").args(["-c", script]).env(name, path).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
            (child, PathBuf::from(format!("/proc/{}", line.trim())))
        };
        let [one, other] = [WorkFolder::new(parent.path()).unwrap(), WorkFolder::new(parent.path()).unwrap()];
        let ((mut of_one, _), (mut of_other, below_other)) = (start(&one), start(&other));
        let (path, kept) = (one.path().to_owned(), other.path().to_owned());
        assert_eq!(workers(&[&path]).len(), 3);
        drop(one);
        assert!(!path.exists() && !of_one.wait().unwrap().success());
        assert!(workers(&[&path]).is_empty());
        assert!(below_other.exists() && kept.exists(), "another folder's");
        // What a node that was killed left is found by the folder that all have in common.
        std::mem::forget(other);
        empty(parent.path()).unwrap();
        assert!(!of_other.wait().unwrap().success());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn mounts_are_taken_away_and_what_they_show_stays() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let parent = tempfile::tempdir().unwrap();
        // Shared as /sys is on most machines: here between a folder and what shows it.
        let [machine, shown] = ["machine", "work/sys"].map(|name| parent.path().join(name));
        let mount = |words: &[&str]| assert!(Command::new("mount").args(words).status().unwrap().success(), "mount {words:?}");
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        for path in [&machine, &shown] {
            fs::create_dir_all(path).unwrap();
        }
        mount(&["-t", "tmpfs", "machine", &text(&machine)]);
        mount(&["--make-shared", &text(&machine)]);
        fs::create_dir(machine.join("below")).unwrap();
        mount(&["-t", "tmpfs", "below", &text(&machine.join("below"))]);
        fs::write(machine.join("below/file"), "kept").unwrap();
        mount(&["--rbind", &text(&machine), &text(&shown)]);
        mount(&["-t", "proc", "proc", &text(&shown.join("below"))]);

        empty(&parent.path().join("work")).unwrap();
        assert!(!shown.exists());
        assert_eq!(fs::read_to_string(machine.join("below/file")).unwrap(), "kept");
        take_mounts_away(&machine).unwrap();
    }
}
