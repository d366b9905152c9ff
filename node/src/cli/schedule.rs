//! Schedules: what operators list.

use clap::Subcommand;

use super::Common;
use super::admin::ask;
use super::lists::{print_json, print_table};
use crate::admin::ScheduleLine;

/// `shoal schedule …`
#[derive(Debug, Subcommand)]
pub(super) enum ScheduleCommand {
    /// List the functions that schedules call, those that are due first at the top.
    #[command(visible_alias = "ls", after_help = "Examples:\n  shoal schedule list\n  shoal schedule list --json")]
    List(Common),
}

impl ScheduleCommand {
    /// Runs the command.
    pub(super) fn run(self) -> anyhow::Result<i32> {
        let Self::List(common) = self;
        let lines: Vec<ScheduleLine> = ask(&common, "GET", "/schedules", &())?;
        if common.json {
            print_json(&lines)?;
            return Ok(0);
        }
        let row = |line: ScheduleLine| {
            let at = |at: Option<String>| at.unwrap_or_else(|| "-".to_owned());
            [line.function_id, line.function, line.app, line.environment, line.schedule, at(line.next), at(line.last)]
        };
        print_table(["FUNCTION", "NAME", "APP", "ENVIRONMENT", "SCHEDULE", "NEXT RUN", "LAST RUN FOR"], lines.into_iter().map(row));
        Ok(0)
    }
}
