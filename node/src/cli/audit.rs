//! `shoal audit`: who was refused what, who made or ended a token, and who ran what in a container, on all nodes.

use std::io::{self, Write as _};
use std::ops::ControlFlow;

use anyhow::{Context as _, bail};
use clap::Args;

use super::Common;
use super::admin::stream;
use super::lists::seconds;
use crate::admin::{AuditAnswer, AuditLine, AuditWanted};
use crate::audit::{Filter, Wanted, What};

/// The flags of `shoal audit`.
#[derive(Debug, Args)]
pub(super) struct Audit {
    /// Only what happened within this time: a number with s, m, h or d.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    since: Option<u64>,
    /// Only the newest records.
    #[arg(long, short = 'n', value_name = "RECORDS")]
    tail: Option<usize>,
    /// Only what happened so: refused, token-created, token-revoked, node-joined, node-changed, executed or omitted.
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
    /// Only what this node keeps, by its name or id.
    #[arg(long)]
    node: Option<String>,
    /// Go on with what happens from now on.
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    common: Common,
}

fn what(text: &str) -> Result<What, String> {
    serde_json::from_value(text.into())
        .map_err(|_| format!("{text:?} is none of refused, token-created, token-revoked, node-joined, node-changed, executed, omitted"))
}

impl Audit {
    /// Prints the records; the code is 1 when those of a node are missing.
    pub(super) fn run(self) -> anyhow::Result<i32> {
        let since_ms = self.since.map(|seconds| crate::api::now().0.saturating_sub(seconds.saturating_mul(1000)));
        let filter = Filter { since_ms, what: self.what, who: self.who, method: self.method, from: self.from };
        let wanted = AuditWanted { records: Wanted { filter, tail: self.tail, follow: self.follow }, node: self.node };
        let (mut out, mut code) = (io::stdout().lock(), 0);
        let mut print = |line: &[u8]| {
            let printed = match serde_json::from_slice(line).context("cannot read the node's answer")? {
                AuditAnswer::BrokeOff(refusal) => bail!("the audit log broke off: {}", refusal.error),
                AuditAnswer::Missing { node, missing } => {
                    code = 1;
                    eprintln!("shoal: from here on the records of node {node} are missing: {missing}");
                    Ok(())
                }
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
        stream(&self.common, "/audit", &wanted, &mut print)?;
        Ok(code)
    }
}

/// Writes a record as a line: when, on which node, who, from where, what, why.
fn text(AuditLine { node, record }: &AuditLine) -> String {
    let (at, from) = (crate::api::time(record.at_ms), if record.from.is_empty() { "-" } else { &record.from });
    match record.what {
        What::Refused => format!("{at}  {node}  {}  {from}  {}  {}", record.who, record.method, record.why),
        What::TokenCreated | What::TokenRevoked | What::NodeJoined | What::NodeChanged | What::Executed => {
            format!("{at}  {node}  {}  {}", record.who, record.why)
        }
        What::Omitted => format!("{at}  {node}  …  {}", record.why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Record;

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
        let line = AuditLine { node: "one".to_owned(), record };
        assert_eq!(text(&line), "2023-11-14T22:13:20Z  one  nobody  10.0.0.1:50  AppList  this call came without a token");
        assert_eq!(what("token-created"), Ok(What::TokenCreated));
        assert!(what("all").is_err());
    }
}
