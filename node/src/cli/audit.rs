//! `shoal audit`: who was refused what, who made or ended a token, and who ran what in a container.

use std::io::{self, Write as _};
use std::ops::ControlFlow;

use anyhow::{Context as _, bail};
use clap::Args;

use super::Common;
use super::admin::stream;
use super::lists::seconds;
use crate::admin::{AuditAnswer, AuditWanted};
use crate::audit::{Filter, Record, What};

/// The flags of `shoal audit`.
#[derive(Debug, Args)]
pub(super) struct Audit {
    /// Only what happened within this time: a number with s, m, h or d.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    since: Option<u64>,
    /// Only the newest records.
    #[arg(long, short = 'n', value_name = "RECORDS")]
    tail: Option<usize>,
    /// Only what happened so: refused, token-created, token-revoked, executed or omitted.
    #[arg(long, value_parser = what)]
    what: Option<What>,
    /// Only of this token or task, or of `nobody`.
    #[arg(long, value_name = "ID")]
    who: Option<String>,
    /// Only calls of methods with this in their name.
    #[arg(long)]
    method: Option<String>,
    /// Only from this address.
    #[arg(long, value_name = "ADDRESS")]
    from: Option<String>,
    /// Go on with what happens from now on.
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    common: Common,
}

fn what(text: &str) -> Result<What, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("{text:?} is none of refused, token-created, token-revoked, executed, omitted"))
}

impl Audit {
    /// Prints the records.
    pub(super) fn run(self) -> anyhow::Result<i32> {
        let since_ms = self.since.map(|seconds| crate::api::now().0.saturating_sub(seconds.saturating_mul(1000)));
        let filter = Filter { since_ms, what: self.what, who: self.who, method: self.method, from: self.from };
        let wanted = AuditWanted { filter, tail: self.tail, follow: self.follow };
        let mut out = io::stdout().lock();
        let mut print = |line: &[u8]| {
            let printed = match serde_json::from_slice(line).context("cannot read the node's answer")? {
                AuditAnswer::BrokeOff(refusal) => bail!("the audit log broke off: {}", refusal.error),
                AuditAnswer::Record(_) if self.common.json => out.write_all(line).and_then(|()| out.write_all(b"\n")),
                AuditAnswer::Record(record) => writeln!(out, "{}", text(&record)),
            };
            match printed.and_then(|()| out.flush()) {
                Ok(()) => Ok(ControlFlow::Continue(())),
                // A reader that has gone, as `head` does, is no failure.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
                Err(error) => Err(error).context("cannot print"),
            }
        };
        stream(&self.common, "/audit", &wanted, &mut print).map(|()| 0)
    }
}

/// Writes a record as a line: when, who, from where, what, why.
fn text(record: &Record) -> String {
    let (at, from) = (crate::api::time(record.at_ms), if record.from.is_empty() { "-" } else { &record.from });
    match record.what {
        What::Refused => format!("{at}  {}  {from}  {}  {}", record.who, record.method, record.why),
        What::TokenCreated | What::TokenRevoked | What::NodeJoined | What::NodeChanged | What::Executed => {
            format!("{at}  {}  {}", record.who, record.why)
        }
        What::Omitted => format!("{at}  …  {}", record.why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_and_a_kind_must_be_known() {
        let record = Record {
            id: 1,
            at_ms: 1_700_000_000_000,
            what: What::Refused,
            who: "nobody".to_owned(),
            method: "AppList".to_owned(),
            from: "10.0.0.1:50".to_owned(),
            why: "this call came without a token".to_owned(),
        };
        assert_eq!(text(&record), "2023-11-14T22:13:20Z  nobody  10.0.0.1:50  AppList  this call came without a token");
        assert_eq!(what("token-created"), Ok(What::TokenCreated));
        assert!(what("all").is_err());
    }
}
