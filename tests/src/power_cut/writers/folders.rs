//! `storage::file`: files that are replaced whole, in folders whose maker died before it synced their names.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use shoal_storage::file;

use crate::power_cut::{Sync, Writer, say};

pub(super) const WRITER: Writer = Writer {
    name: "folders",
    work,
    check,
    syncs: &[
        Sync { what: "the bytes of a file", call: "fsync", path_end: "file.new" },
        Sync { what: "the name of a file", call: "fsync", path_end: "within" },
        Sync { what: "the name of a folder", call: "fsync", path_end: "outer" },
        Sync { what: "the name of a folder that was there", call: "fsync", path_end: "" },
    ],
};

const FOLDERS: u64 = 10;
const VERSIONS: u64 = 10;

fn work(dir: &Path, _seed: u64) -> Result<()> {
    for folder in 0..FOLDERS {
        let outer = dir.join(format!("{folder}-outer"));
        // As by somebody who was killed here.
        fs::create_dir(&outer)?;
        let within = outer.join("within");
        file::create_dir(&within)?;
        for version in 1..=VERSIONS {
            file::write(&within.join("file"), &content(version))?;
            say(&format!("{folder} {version}"));
        }
    }
    Ok(())
}

/// More than a block, so that it can be torn.
fn content(version: u64) -> Vec<u8> {
    version.to_le_bytes().repeat(1000)
}

fn check(dir: &Path, said: &[String]) -> Result<()> {
    for folder in 0..FOLDERS {
        let least = said.iter().filter_map(|line| line.strip_prefix(&format!("{folder} "))?.parse().ok()).max().unwrap_or(0);
        let found = fs::read(dir.join(format!("{folder}-outer/within/file"))).unwrap_or_default();
        let version = found.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        ensure!(version >= least, "file {folder} is of version {version}, and {least} was acknowledged");
        ensure!(found.is_empty() || found == content(version), "file {folder} is torn");
    }
    Ok(())
}
