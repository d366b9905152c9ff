//! What a process that serves for long says on stderr. Where nobody reads it any more, as after Ctrl-C of `shoal start 2>&1 | tee log`, it is
//! lost: a process that died of that would leave its containers behind.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Context as _;
use tracing::Level;
use tracing_subscriber::EnvFilter;

/// What libraries may say unless the configuration names them: of their warnings an operator understands nothing, and what matters is
/// said in Shoal's own words. Some of openraft's errors are a peer that is away.
const LIBRARIES: &str = "error,openraft::replication=off,openraft::core=off,openraft::engine=off";

/// Says a line to people.
pub(crate) fn say(what: impl Display) {
    let _ = writeln!(io::stderr(), "shoal: {what}");
}

/// Where a node's log goes.
#[derive(Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what may be logged: a level, of Shoal itself, or a filter of `tracing`, where a level without a target is Shoal's own too.
///
/// # Errors
/// When it is no such filter.
pub(crate) fn filter(wanted: &str) -> anyhow::Result<EnvFilter> {
    let own = |word: &str| match word.parse::<Level>() {
        // All crates of Shoal have names that begin so.
        Ok(level) => format!("shoal={level}"),
        Err(_) if word == "off" => "shoal=off".to_owned(),
        Err(_) => word.to_owned(),
    };
    let words: Vec<String> = wanted.split(',').map(str::trim).filter(|word| !word.is_empty()).map(own).collect();
    EnvFilter::try_new(format!("{LIBRARIES},{}", words.join(","))).with_context(|| format!("cannot read the log filter {wanted:?}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Returns what of some lines is written under a filter.
    fn written(wanted: &str) -> String {
        #[derive(Clone, Default)]
        struct Kept(Arc<Mutex<Vec<u8>>>);
        impl Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept::default();
        let into = kept.clone();
        let lines = tracing_subscriber::fmt::layer().with_writer(move || into.clone()).without_time().with_ansi(false).with_target(false);
        let subscriber = tracing_subscriber::registry().with(filter(wanted).unwrap()).with(lines.with_level(false));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "shoal::server", "own");
            tracing::info!(target: "shoal_raft::part", "raft");
            tracing::debug!(target: "shoal::members", "detail");
            tracing::warn!(target: "quinn_udp", "udp");
            tracing::error!(target: "openraft::replication", "away");
            tracing::error!(target: "sled", "broken");
        });
        String::from_utf8(kept.0.lock().clone()).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn libraries_say_errors_alone_unless_they_are_named() {
        assert_eq!(written("info"), "own raft broken");
        assert_eq!(written(""), "broken");
        assert_eq!(written("warn"), "broken");
        assert_eq!(written("info,shoal::members=debug"), "own raft detail broken");
        assert_eq!(written("info, quinn_udp=warn,openraft::replication=error"), "own raft udp away broken");
        assert_eq!(written("off"), "broken");
        assert!(filter("shoal=loud").is_err());
    }
}
