//! Which start of the machine this is, and whether the folder of the calls has seen it: after a power cut, records that were
//! not synced may be missing.

use std::path::{Path, PathBuf};

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
    /// The folder was used in an earlier start.
    pub(super) machine_restarted: bool,
}

impl Boot {
    /// Reads which start this is, and which one the calls in `dir` know.
    pub(super) fn read(dir: &Path) -> Result<Self, Failed> {
        let boot = std::fs::read_to_string(BOOT_ID).map_err(|source| Failed::System { what: format!("read {BOOT_ID}"), source })?;
        let file = dir.with_extension("boot");
        let known = std::fs::read_to_string(&file).unwrap_or_default();
        let machine_restarted = known != boot && !known.is_empty();
        Ok(Self { file, new: (known != boot).then_some(boot), machine_restarted })
    }

    /// Notes beside the folder that this start is known.
    pub(super) fn remember(&mut self) {
        if let Some(boot) = self.new.take()
            && let Err(error) = std::fs::write(&self.file, &boot)
        {
            tracing::warn!(file = %self.file.display(), %error, "cannot note the start of the machine");
            self.new = Some(boot);
        }
    }
}
