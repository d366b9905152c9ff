//! What was dropped: how many lines of which app, so that a reader is told.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use shoal_state::{AppId, FunctionId, TaskId};

use super::entry::{Entry, Filter, Stream};
use super::store::Options;

/// How many apps the store remembers the losses of. Beyond it, the app whose loss is the oldest is forgotten.
const LOSSES_MAX: usize = 10_000;

const FILE: &str = "dropped";

/// The losses of all apps.
#[derive(Debug, Default)]
pub(super) struct Losses(BTreeMap<u128, Loss>);

/// Lines of an app that were dropped.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Loss {
    lines: u64,
    last_ns: u64,
}

impl Losses {
    /// Reads what was written down; nothing, when that cannot be read.
    pub(super) fn read(dir: &Path) -> Self {
        Self(fs::read(dir.join(FILE)).ok().and_then(|bytes| postcard::from_bytes(&bytes).ok()).unwrap_or_default())
    }

    /// Writes the losses down, all of them or none.
    pub(super) fn write(&mut self, dir: &Path) {
        while self.0.len() > LOSSES_MAX {
            let oldest = self.0.iter().min_by_key(|(_, loss)| loss.last_ns).map(|(app, _)| *app);
            oldest.and_then(|app| self.0.remove(&app));
        }
        let (fresh, path) = (dir.join("dropped.new"), dir.join(FILE));
        let bytes = postcard::to_allocvec(&self.0).unwrap_or_default();
        if let Err(error) = fs::write(&fresh, bytes).and_then(|()| fs::rename(&fresh, &path)) {
            tracing::warn!(%error, path = %path.display(), "cannot write down which log lines were dropped");
        }
    }

    /// Notes that lines of an app are gone, the newest of them of the time `last_ns`.
    pub(super) fn add(&mut self, app: u128, lines: u64, last_ns: u64) {
        let loss = self.0.entry(app).or_default();
        loss.lines += lines;
        loss.last_ns = loss.last_ns.max(last_ns);
    }

    /// Returns the line that says what the app of a filter lost, if it lost anything and the filter lets such a line in.
    pub(super) fn line(&self, filter: &Filter, options: &Options) -> Option<Entry> {
        let app = filter.app?;
        let loss = self.0.get(&app.bits())?;
        let asked = filter.search.is_none() && filter.stream.is_none_or(|stream| stream == Stream::System);
        let in_time = filter.times().contains(&loss.last_ns);
        (asked && in_time).then(|| loss.line(app, options))
    }
}

impl Loss {
    fn line(&self, app: AppId, options: &Options) -> Entry {
        let (lines, mebibytes, days) = (self.lines, options.retain_bytes >> 20, options.retain.as_secs() / 86_400);
        let (lines, were) = if lines == 1 { ("1 older line".to_owned(), "was") } else { (format!("{lines} older lines"), "were") };
        Entry {
            timestamp_ns: self.last_ns,
            stream: Stream::System,
            app,
            task: TaskId::from_random(0),
            function: FunctionId::from_random(0),
            input: None,
            call: None,
            data: format!(
                "[{lines} of this app {were} dropped: a node keeps {mebibytes} MiB of logs, and none for more than {days} days]\n"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_version_6_wrote_of_dropped_lines_is_read() {
        shoal_state::written::hold::<BTreeMap<u128, Loss>>("what was dropped", include_str!("../../tests/written/6/dropped.txt"), 0);
    }
}
