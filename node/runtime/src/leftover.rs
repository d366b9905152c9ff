//! Cleaning what a process of this node left when it died: sandboxes that still run, and
//! everything that carries the node's tag. All of it blocks.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{
    Error, Result, Tag,
    cgroup::Cgroups,
    engine::{SHARED_RUN_DIR, root_of, take_lock},
    network, process,
};

/// What was left by a process of a node, and is there no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Sandboxes, and what worked for them.
    pub processes: usize,
    /// Control groups of containers.
    pub cgroups: usize,
    /// Network links of containers.
    pub links: usize,
    /// Mounts, those that only the node itself had.
    pub mounts: usize,
}

/// How long killed processes may take to go.
const DEATH_DEADLINE: Duration = Duration::from_secs(10);

/// Takes away everything that an engine with this state folder left on the machine, for one that will not be opened again soon: its
/// containers, however alive, and all that they shared. The folder may be gone. Blocks.
///
/// To be called where the engine's own network is.
///
/// # Errors
/// When an engine has the folder open, or something does not go.
pub fn clean_up(state_dir: &Path) -> Result<Leftovers> {
    let state_dir = real(state_dir)?;
    let _lock = if state_dir.exists() { Some(take_lock(&state_dir)?) } else { None };
    let tag = Tag::of(&state_dir);
    let run_dir = real(&Path::new(SHARED_RUN_DIR).join(tag.to_string()))?;
    let found = clean(tag, &run_dir, &state_dir.join("overlay"), &state_dir.join("own"), true)?;
    Cgroups::open(tag)?.remove()?;
    remove_shared_run_dir();
    Ok(found)
}

/// The path of a folder without symbolic links, also where its last parts are gone.
fn real(folder: &Path) -> Result<PathBuf> {
    let whole = std::path::absolute(folder).map_err(Error::file("find", folder))?;
    let found = whole.ancestors().find_map(|there| Some((there, there.canonicalize().ok()?)));
    let Some((there, real)) = found else { return Ok(whole) };
    let gone = whole.strip_prefix(there).unwrap_or(Path::new(""));
    // Part by part: to join nothing would add a slash, and the path is what the tag is made of.
    Ok(gone.components().fold(real, |path, part| path.join(part)))
}

/// Cleans everything of this instance. The order matters: processes hold all the rest.
pub(crate) fn clean(tag: Tag, run_dir: &Path, overlay_dir: &Path, own_dir: &Path, networked: bool) -> Result<Leftovers> {
    let cgroups = Cgroups::open(tag)?;
    let processes = kill_all(&root_of(run_dir))?;
    let cgroups = cgroups.remove_all_containers()?;
    let links = if networked { network::remove_shared(tag)? } else { 0 };
    let mounts = clean_run_dir(run_dir)?;
    // Overlay files have no names unless their creation was interrupted.
    for entry in fs::read_dir(overlay_dir).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
    match fs::remove_dir_all(own_dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", own_dir)(e)),
        _ => Ok(Leftovers { processes, cgroups, links, mounts }),
    }
}

/// Kills all containers of a run folder and removes their cgroups.
pub(crate) fn end_containers(run_dir: &Path, cgroups: &Cgroups) -> Result<()> {
    kill_all(&root_of(run_dir))?;
    cgroups.remove_all_containers().map(drop)
}

/// Kills what works for a runsc root folder, and removes the folder.
pub(crate) fn clean_sandboxes(root: &Path) -> Result<()> {
    kill_all(root)?;
    clean_run_dir(root).map(drop)
}

/// Unmounts and removes what is in the run folder, and the folder. Says how many mounts there were.
pub(crate) fn clean_run_dir(run_dir: &Path) -> Result<usize> {
    let mounts = unmount_below(run_dir)?;
    match fs::remove_dir_all(run_dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", run_dir)(e)),
        _ => Ok(mounts),
    }
}

/// Removes the folder that all engines of this machine share by default, after the last of them.
pub(crate) fn remove_shared_run_dir() {
    // Another engine's folder in it makes this fail, as it should.
    let _ = fs::remove_dir(SHARED_RUN_DIR);
}

/// Kills every runsc process that works for this root folder, whoever its parent is, and waits. Says how many it were.
fn kill_all(root: &Path) -> Result<usize> {
    let argument = format!("--root={}", root.display());
    let (until, mut killed) = (Instant::now() + DEATH_DEADLINE, 0);
    loop {
        // A `runsc create` in progress may start others meanwhile, so look again.
        let found = process::find_by_argument(&argument);
        if found.is_empty() {
            return Ok(killed);
        }
        tracing::info!(processes = ?found, "ending containers of a former process");
        killed += found.len();
        for pid in found {
            kill_and_wait(pid, until)?;
        }
    }
}

fn kill_and_wait(pid: i32, until: Instant) -> Result<()> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(()) };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    let left = until.saturating_duration_since(Instant::now());
    match process::wait_blocking(&pidfd, left) {
        Ok(true) => Ok(()),
        _ => Err(Error::Leftover { what: format!("process {pid:?} survives SIGKILL") }),
    }
}

/// Unmounts whatever is mounted below a folder, the deepest first. Says how many mounts it were.
fn unmount_below(folder: &Path) -> Result<usize> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(Error::file("read", "/proc/self/mountinfo"))?;
    let mut points = mount_points(&table);
    points.retain(|point| point.starts_with(folder));
    points.sort_by_key(|point| std::cmp::Reverse(point.as_os_str().as_bytes().len()));
    for point in &points {
        unmount(point, UnmountFlags::DETACH).map_err(|e| Error::file("unmount", point)(e.into()))?;
    }
    Ok(points.len())
}

/// The mount points in the text of /proc/self/mountinfo.
fn mount_points(table: &str) -> Vec<PathBuf> {
    let fields = table.lines().filter_map(|line| line.split(' ').nth(4));
    fields.map(|text| text.replace("\\040", " ").into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_path_whether_it_is_there_or_not() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&folder, folder.join("link")).unwrap();
        fs::create_dir(folder.join("state")).unwrap();
        for named in [folder.join("state"), folder.join("link/state"), folder.join("state/")] {
            assert_eq!(real(&named).unwrap().as_os_str(), folder.join("state").as_os_str());
        }
        fs::remove_dir(folder.join("state")).unwrap();
        assert_eq!(real(&folder.join("link/state")).unwrap().as_os_str(), folder.join("state").as_os_str());
    }

    #[test]
    fn mount_points_with_blanks_are_read() {
        let table = "36 35 98:0 / /run/shoal/a\\040b rw - tmpfs tmpfs rw\n";
        assert_eq!(mount_points(table), [PathBuf::from("/run/shoal/a b")]);
    }
}
