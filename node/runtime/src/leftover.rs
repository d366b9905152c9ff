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
    engine::{SHARED_RUN_DIR, root_of},
    network, process,
};

/// How long killed processes may take to go.
const DEATH_DEADLINE: Duration = Duration::from_secs(10);

/// Cleans everything of this instance. The order matters: processes hold all the rest.
pub(crate) fn clean(tag: Tag, run_dir: &Path, overlay_dir: &Path, own_dir: &Path, networked: bool) -> Result<()> {
    end_containers(run_dir, &Cgroups::open(tag)?)?;
    if networked {
        network::remove_shared(tag)?;
    }
    clean_run_dir(run_dir)?;
    // Overlay files have no names unless their creation was interrupted.
    for entry in fs::read_dir(overlay_dir).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
    match fs::remove_dir_all(own_dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", own_dir)(e)),
        _ => Ok(()),
    }
}

/// Kills all containers of a run folder and removes their cgroups.
pub(crate) fn end_containers(run_dir: &Path, cgroups: &Cgroups) -> Result<()> {
    kill_all(&root_of(run_dir))?;
    cgroups.remove_all_containers()
}

/// Kills what works for a runsc root folder, and removes the folder.
pub(crate) fn clean_sandboxes(root: &Path) -> Result<()> {
    kill_all(root)?;
    clean_run_dir(root)
}

/// Unmounts and removes what is in the run folder, and the folder.
pub(crate) fn clean_run_dir(run_dir: &Path) -> Result<()> {
    unmount_below(run_dir)?;
    match fs::remove_dir_all(run_dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", run_dir)(e)),
        _ => Ok(()),
    }
}

/// Removes the folder that all engines of this machine share by default, after the last of them.
pub(crate) fn remove_shared_run_dir() {
    // Another engine's folder in it makes this fail, as it should.
    let _ = fs::remove_dir(SHARED_RUN_DIR);
}

/// Kills every runsc process that works for this root folder, whoever its parent is, and waits.
fn kill_all(root: &Path) -> Result<()> {
    let argument = format!("--root={}", root.display());
    let until = Instant::now() + DEATH_DEADLINE;
    loop {
        // A `runsc create` in progress may start others meanwhile, so look again.
        let found = process::find_by_argument(&argument);
        if found.is_empty() {
            return Ok(());
        }
        tracing::info!(processes = ?found, "ending containers of a former process");
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

/// Unmounts whatever is mounted below a folder, the deepest first.
fn unmount_below(folder: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(Error::file("read", "/proc/self/mountinfo"))?;
    let mut points = mount_points(&table);
    points.retain(|point| point.starts_with(folder));
    points.sort_by_key(|point| std::cmp::Reverse(point.as_os_str().as_bytes().len()));
    for point in points {
        unmount(&point, UnmountFlags::DETACH).map_err(|e| Error::file("unmount", &point)(e.into()))?;
    }
    Ok(())
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
    fn mount_points_with_blanks_are_read() {
        let table = "36 35 98:0 / /run/shoal/a\\040b rw - tmpfs tmpfs rw\n";
        assert_eq!(mount_points(table), [PathBuf::from("/run/shoal/a b")]);
    }
}
