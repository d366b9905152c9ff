//! Status, apps and tasks: what operators list and end.

use clap::{Args, Subcommand};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::Common;
use super::admin::{ask, escaped};
use crate::admin::{AppLine, MemberStands, StatusReport, TaskLine};

/// `shoal app …`
#[derive(Debug, Subcommand)]
pub(super) enum AppCommand {
    /// List apps, the newest first.
    #[command(visible_alias = "ls", after_help = "Examples:\n  shoal app list\n  shoal app list --all --json")]
    List {
        /// Stopped ones too.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Stop an app.
    #[command(after_help = "Examples:\n  shoal app stop ap-…\n  shoal app stop my-app --env main")]
    Stop {
        /// Its id or the name it is deployed under.
        app: String,
        /// The environment of the name.
        #[arg(long, default_value = "")]
        env: String,
        #[command(flatten)]
        common: Common,
    },
}

/// `shoal task …`
#[derive(Debug, Subcommand)]
pub(super) enum TaskCommand {
    /// List tasks.
    #[command(visible_alias = "ls", after_help = "Examples:\n  shoal task list\n  shoal task list --json")]
    List(Common),
    /// Ask a task to stop.
    #[command(after_help = "Examples:\n  shoal task stop ta-…")]
    Stop(TaskStop),
}

#[derive(Debug, Args)]
pub(super) struct TaskStop {
    /// The task's id.
    task_id: String,
    #[command(flatten)]
    common: Common,
}

/// Reads a time with its unit, as `90m`, in seconds.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a time: write a number with s, m, h or d, as 90m");
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

/// Says how long ago a time was, in milliseconds since 1970.
pub(super) fn ago(ms: u64) -> String {
    let seconds = crate::api::now().0.saturating_sub(ms) / 1000;
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// Prints a value as JSON, for programs.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints rows below a heading, for people.
pub(super) fn print_table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    println!("{table}");
}

/// Prints how the node is.
pub(super) fn status(common: &Common) -> anyhow::Result<i32> {
    let report: StatusReport = ask(common, "GET", "/status", &())?;
    if common.json {
        print_json(&report)?;
        return Ok(0);
    }
    println!("shoal {}, node {} ({})", report.version, report.node, report.node_id);
    println!("  clients    http://{}", report.api);
    println!("  web        http://{}", report.web);
    println!("  tag        {} (in the names of its links, cgroups and mounts)", report.tag);
    println!("  data       {}", report.data);
    let (term, entry) = (report.term, report.applied);
    match (&report.leader, &report.leader_name) {
        (Some(leader), Some(name)) => println!("  consensus  leader {name} ({leader}), term {term}, entry {entry}"),
        _ => println!("  consensus  no leader, term {term}, entry {entry}"),
    }
    let (voters, learners) = (&report.consensus.voters, &report.consensus.learners);
    let all: Vec<&MemberStands> = voters.iter().chain(learners).collect();
    println!("  voters     {}", members(voters, &all));
    if !learners.is_empty() {
        println!("  followers  {}", members(learners, &all));
    }
    report.consensus.trouble.iter().for_each(|trouble| println!("  note       {trouble}"));
    println!("  cluster    {} node(s), {} of {} shards of calls at home here", report.nodes, report.shards_here, report.shards);
    if report.shards_missing_copies > 0 {
        println!(
            "  copies     {} shards of calls have one copy only: another is made as soon as a node can take it",
            report.shards_missing_copies
        );
    }
    if report.shards_waiting > 0 {
        println!(
            "  waiting    {} shards of calls are at home at a node that does not answer: their calls wait for it or its successor",
            report.shards_waiting
        );
    }
    println!("  holds      {} app(s), {} task(s), {} image(s)", report.apps, report.tasks, report.images);
    match report.copies_missing {
        Some(0) if report.copies_why.is_empty() => println!("  copies     none is missing"),
        Some(0) | None => println!("  copies     none is known to be missing: {}", report.copies_why.join("; ")),
        Some(missing) => println!("  copies     {missing} missing: {}", report.copies_why.join("; ")),
    }
    println!("  has read   {} of images' files since its start", super::store::size(report.files_read_bytes));
    Ok(0)
}

/// Shows some of all members; those of one name with their ids, as when a machine was wiped and joined anew.
fn members(members: &[MemberStands], all: &[&MemberStands]) -> String {
    let called = |member: &MemberStands| match all.iter().filter(|other| other.name == member.name).count() {
        0 | 1 => member.name.clone(),
        _ => format!("{} ({})", member.name, member.node_id),
    };
    let tell = |member: &MemberStands| match (member.behind, &member.why) {
        (Some(0), _) => called(member),
        (Some(behind), _) => match &member.told_by {
            Some(voter) => format!("{} ({behind} entries behind, told by {voter})", called(member)),
            None => format!("{} ({behind} entries behind)", called(member)),
        },
        (None, why) => format!("{} (not reached: {})", called(member), why.as_deref().unwrap_or("it was not asked")),
    };
    members.iter().map(tell).collect::<Vec<_>>().join(", ")
}

impl AppCommand {
    /// Runs the command.
    pub(super) fn run(self) -> anyhow::Result<i32> {
        match self {
            Self::List { all, common } => {
                let mut apps: Vec<AppLine> = ask(&common, "GET", "/apps", &())?;
                apps.retain(|app| all || app.stopped.is_none());
                if common.json {
                    print_json(&apps)?;
                } else {
                    let row = |app: AppLine| {
                        let name = if app.name.is_empty() { app.description } else { app.name };
                        [app.app_id, name, app.environment, app.state, app.tasks.to_string(), ago(app.created_ms)]
                    };
                    print_table(["APP", "NAME", "ENVIRONMENT", "STATE", "TASKS", "CREATED"], apps.into_iter().map(row));
                }
            }
            Self::Stop { app, env, common } => {
                let () = ask(&common, "POST", &format!("/apps/{}/stop?environment={}", escaped(&app), escaped(&env)), &())?;
                if !common.json {
                    println!("app {app} is stopped");
                }
            }
        }
        Ok(0)
    }
}

impl TaskCommand {
    /// Runs the command.
    pub(super) fn run(self) -> anyhow::Result<i32> {
        match self {
            Self::List(common) => {
                let tasks: Vec<TaskLine> = ask(&common, "GET", "/tasks", &())?;
                if common.json {
                    print_json(&tasks)?;
                } else {
                    let row = |task: TaskLine| {
                        let state = task.stopping.map_or_else(|| "assigned".to_owned(), |why| format!("stopping: {why}"));
                        [task.task_id, task.function, task.node, state, ago(task.created_ms)]
                    };
                    print_table(["TASK", "FUNCTION", "NODE", "STATE", "CREATED"], tasks.into_iter().map(row));
                }
            }
            Self::Stop(TaskStop { task_id, common }) => {
                let () = ask(&common, "POST", &format!("/tasks/{}/stop", escaped(&task_id)), &())?;
                if !common.json {
                    println!("task {task_id} was asked to stop");
                }
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_needs_a_unit_and_must_fit() {
        assert_eq!(seconds("90m"), Ok(5400));
        for wrong in ["", "5", "5w", "m", "-1s", "999999999999999999999d"] {
            assert!(seconds(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
