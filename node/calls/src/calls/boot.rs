//! Which start of the machine this is, and whether the folder of the calls has seen it: after a power cut, records that were
//! not synced may be missing.

use std::path::{Path, PathBuf};

use shoal_storage::file;

use super::options::Failed;

/// Names the start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The start of the machine, as the folder of the calls knows it.
#[derive(Debug)]
pub(super) struct Boot {
    /// Keeps the start that the folder knows.
    file: PathBuf,
    /// The present start, until the folder knows it.
    new: Option<String>,
    /// The folder was used in an earlier start, or in one that nobody knows: a power cut may have taken its name too.
    pub(super) machine_restarted: bool,
}

impl Boot {
    /// Reads which start this is, and which one the calls in `dir` know.
    pub(super) fn read(dir: &Path) -> Result<Self, Failed> {
        let boot = std::fs::read_to_string(BOOT_ID).map_err(|source| Failed::System { what: format!("read {BOOT_ID}"), source })?;
        let file = dir.with_extension("boot");
        let known = std::fs::read_to_string(&file).unwrap_or_default();
        let used = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
        let machine_restarted = known != boot && used;
        Ok(Self { file, new: (known != boot).then_some(boot), machine_restarted })
    }

    /// Notes beside the folder, durably, that this start is known.
    pub(super) fn remember(&mut self) {
        if let Some(boot) = self.new.take()
            && let Err(error) = file::write(&self.file, boot.as_bytes())
        {
            tracing::warn!(file = %self.file.display(), %error, "cannot note the start of the machine");
            self.new = Some(boot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_knows_no_start_is_suspect_once_it_was_used() {
        let dir = tempfile::tempdir().unwrap();
        let calls = dir.path().join("calls");
        let restarted = || Boot::read(&calls).unwrap().machine_restarted;
        assert!(!restarted(), "nothing can be missing");
        Boot::read(&calls).unwrap().remember();
        std::fs::create_dir(&calls).unwrap();
        std::fs::write(calls.join("0.segment"), "records").unwrap();
        assert!(!restarted(), "the process alone started again");
        for lost in ["", "another start"] {
            std::fs::write(calls.with_extension("boot"), lost).unwrap();
            assert!(restarted(), "{lost:?}");
        }
        std::fs::remove_file(calls.with_extension("boot")).unwrap();
        assert!(restarted(), "the note was lost with its name");
        Boot::read(&calls).unwrap().remember();
        assert!(!restarted());
    }
}
