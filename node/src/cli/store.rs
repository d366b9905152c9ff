//! `shoal store`: whether what is on disk is whole, and giving back what nothing needs.

use std::ops::ControlFlow;

use anyhow::{Context as _, anyhow, bail};
use clap::Subcommand;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Common;
use super::admin::{is_away, stream};
use super::lists::{print_json, seconds};
use crate::admin::{DoingLine, GcWanted, LongAnswer, RepairWanted, Repaired, RepairedLine};
use crate::folder;
use crate::upkeep::check::{CheckReport, DamageLine};
use crate::upkeep::gc::Collected;
use crate::upkeep::offline;

/// `shoal store …`
#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Read every chunk and prove it by its digest, and see that everything that is named is whole. Ends with 1 when
    /// something is not. Where no node runs, its folder is looked at and left as it is.
    #[command(after_help = "Examples:\n  shoal store check\n  shoal store check --json")]
    Check(Common),
    /// Delete what nothing needs: what was not used for the longest time first, until the rest fits into the budget.
    #[command(after_help = "Examples:\n  shoal store gc\n  shoal store gc --dry-run\n  shoal store gc --budget 20G --json")]
    Gc {
        /// How much the store may take afterwards: a number with K, M, G or T [default: disk.chunks_bytes of the configuration]
        #[arg(long, value_name = "BYTES", value_parser = bytes)]
        budget: Option<u64>,
        /// Only say what would be deleted.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Let every node look for what it is to keep and lacks, and bring it from the others, now. Nodes do that by themselves when
    /// something has changed. Says on stderr how far each is; ends with 1 when copies are still missing.
    #[command(after_help = "Examples:\n  shoal store repair\n  shoal store repair --within 10m --json")]
    Repair {
        /// How long to wait for the nodes: a number with s, m, h or d. What they do goes on after that.
        #[arg(long, value_name = "TIME", value_parser = seconds, default_value = "1h")]
        within: u64,
        #[command(flatten)]
        common: Common,
    },
}

impl StoreCommand {
    /// Runs the command.
    pub(super) fn run(self) -> anyhow::Result<i32> {
        match self {
            Self::Check(common) => {
                let report = check(&common)?;
                if common.json {
                    print_json(&report)?;
                } else {
                    print!("{}", told(&report));
                }
                Ok(i32::from(!report.whole))
            }
            Self::Gc { budget, dry_run, common } => {
                let done: Collected = ask_long(&common, "/store/gc", &GcWanted { budget_bytes: budget, dry_run })?;
                if common.json {
                    print_json(&done)?;
                } else {
                    print!("{}", collected(&done));
                }
                Ok(0)
            }
            Self::Repair { within, common } => {
                let done: Repaired = ask_long(&common, "/store/repair", &RepairWanted { within_seconds: within })?;
                if common.json {
                    print_json(&done)?;
                } else {
                    print!("{}", repaired(&done));
                }
                Ok(i32::from(done.copies_missing > 0))
            }
        }
    }
}

/// Asks the node, or, where none runs, looks at its folder.
fn check(common: &Common) -> anyhow::Result<CheckReport> {
    if !is_away(common) {
        return ask_long(common, "/store/check", &());
    }
    let data = common.data.display();
    offline::check(&common.data).map_err(|error| match error.downcast_ref::<folder::Error>() {
        Some(folder::Error::Held { holder, .. }) => {
            let process = holder.map_or_else(String::new, |pid| format!(" (process {pid})"));
            anyhow!("a node{process} has the folder {data} and does not answer: it starts or stops; try again in a moment")
        }
        _ => error.context(format!("no node answers on {data}, and its folder cannot be checked")),
    })
}

/// Asks for an answer that may take long, and waits for it; says on stderr how far it is.
pub(super) fn ask_long<T: DeserializeOwned>(common: &Common, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
    let mut answer = None;
    stream(common, path, body, |line| {
        match serde_json::from_slice::<LongAnswer<T>>(line).context("cannot read the node's answer")? {
            LongAnswer::Doing { doing } => eprintln!("{}", how_far(&doing)),
            done => answer = Some(done),
        }
        Ok(ControlFlow::Continue(()))
    })?;
    match answer.with_context(|| format!("the node's answer to {path} broke off"))? {
        LongAnswer::Done(done) => Ok(done),
        LongAnswer::BrokeOff(refusal) => bail!("{}", refusal.error),
        LongAnswer::Doing { .. } => unreachable!("it was printed"),
    }
}

/// Says how far a node is.
fn how_far(doing: &DoingLine) -> String {
    let node = &doing.node;
    let Some(progress) = doing.progress else { return format!("{node} does not answer; it is looked for") };
    let looked = format!("{node} looked for {} objects", progress.looked);
    match (progress.left, progress.brought) {
        (0, 0) => looked,
        (left, brought) => {
            let rate = if progress.rests { "; it keeps to repair.bytes_per_second" } else { "" };
            format!("{looked} and brought {brought} chunks ({}); {left} to go{rate}", size(progress.brought_bytes))
        }
    }
}

/// Reads a number of bytes, as `20G`.
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: write a number with K, M, G or T, as 20G");
    let factor = |unit| match unit {
        'K' => Some(10),
        'M' => Some(20),
        'G' => Some(30),
        'T' => Some(40),
        _ => None,
    };
    let unit = text.chars().last().and_then(factor);
    let number = if unit.is_some() { &text[..text.len() - 1] } else { text };
    let number = number.parse::<u64>().map_err(|_| wrong())?;
    number.checked_mul(1 << unit.unwrap_or(0)).ok_or_else(wrong)
}

/// Writes a number of bytes for people.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=10_239_999 => format!("{} KiB", bytes >> 10),
        10_240_000..=10_485_759_999 => format!("{} MiB", bytes >> 20),
        _ => format!("{}.{} GiB", bytes >> 30, ((bytes >> 20) % 1024) * 10 / 1024),
    }
}

fn told(report: &CheckReport) -> String {
    let mut text =
        if report.offline { "no node runs: its folder was looked at, and nothing in it was changed\n".to_owned() } else { String::new() };
    text.push_str(&format!(
        "{} chunks ({}) were read, {} things that name them were walked\n",
        report.chunks,
        size(report.bytes),
        report.named
    ));
    let damage = |line: &DamageLine, then: &str| {
        format!("damaged: chunk {} at {} of {}: {}; {then}\n", line.digest, line.offset, line.pack, line.what)
    };
    report.repaired.iter().for_each(|line| text.push_str(&damage(line, "written again from a copy")));
    report.dropped.iter().for_each(|line| text.push_str(&damage(line, "dropped")));
    report.mendable.iter().for_each(|line| text.push_str(&damage(line, "a check by the node writes it again from a copy")));
    report.lost.iter().for_each(|line| text.push_str(&damage(line, "left as it is; the node drops it when it meets it")));
    for lacks in &report.incomplete {
        text.push_str(&format!(
            "incomplete: {} lacks {} chunks, {} among them. What to do: {}\n",
            lacks.what, lacks.missing, lacks.first, lacks.cure
        ));
    }
    report.unseen.iter().for_each(|what| text.push_str(&format!("not looked at: {what}\n")));
    if report.copies_missing > 0 {
        text.push_str(&format!(
            "{} copies on other nodes or here are missing; `shoal status` says why, `shoal store repair` brings them\n",
            report.copies_missing
        ));
    }
    text.push_str(if report.whole { "everything is whole\n" } else { "not everything is whole\n" });
    text
}

fn repaired(done: &Repaired) -> String {
    let mut text = String::new();
    for RepairedLine { name, node_id, mine, brought, brought_bytes, lacking, first } in &done.nodes {
        text.push_str(&format!(
            "{name} ({node_id}) is to keep {mine} of {} objects; it brought {brought} ({})",
            done.named,
            size(*brought_bytes)
        ));
        match first {
            Some(first) => text.push_str(&format!(" and lacks {lacking}, {first} among them: no node has them that could be asked\n")),
            None => text.push('\n'),
        }
    }
    done.why.iter().for_each(|why| text.push_str(&format!("missing: {why}\n")));
    text.push_str(&match done.copies_missing {
        0 => "no copy is missing\n".to_owned(),
        missing => format!("{missing} copies are missing\n"),
    });
    text
}

fn collected(done: &Collected) -> String {
    let verb = if done.dry_run { "would be" } else { "were" };
    let mut text = format!(
        "{} images, {} results of build steps, {} sets of files and {} blobs {verb} forgotten\n{} chunks ({}) {verb} deleted\n",
        done.images.len(),
        done.layers,
        done.mounts,
        done.blobs,
        done.chunks,
        size(done.bytes)
    );
    text.push_str(&format!(
        "the store takes {} of {}; what is named takes {}\n",
        size(done.disk_bytes),
        size(done.budget_bytes),
        size(done.named_bytes)
    ));
    done.incomplete.iter().for_each(|lacks| text.push_str(&format!("incomplete: {lacks}; `shoal store check` says more\n")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_a_unit_or_none_and_must_fit() {
        assert_eq!((bytes("20G"), bytes("512"), bytes("0")), (Ok(20 << 30), Ok(512), Ok(0)));
        for wrong in ["", "G", "-1", "1.5G", "1X", "99999999999T", "é"] {
            assert!(bytes(wrong).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn sizes_are_written_in_units_that_leave_few_digits() {
        let written = [size(0), size(9_999), size(20 << 10), size(300 << 20), size((20 << 30) + (512 << 20))];
        assert_eq!(written, ["0 B", "9999 B", "20 KiB", "300 MiB", "20.5 GiB"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_do() {
        let incomplete = crate::upkeep::check::Incomplete {
            what: "image im-1".to_owned(),
            missing: 2,
            first: "abcd".to_owned(),
            cure: "build it again".to_owned(),
        };
        let report = CheckReport { chunks: 3, bytes: 10, named: 4, incomplete: vec![incomplete], ..CheckReport::default() };
        let lost = DamageLine { digest: "ef".to_owned(), pack: "/p".to_owned(), offset: 7, what: "its bytes are others".to_owned() };
        let offline = CheckReport { offline: true, lost: vec![lost], unseen: vec!["blobs: gone".to_owned()], ..report.clone() };
        let text = told(&offline);
        assert!(text.starts_with("no node runs") && text.contains("ef at 7 of /p: its bytes are others; left as it is"), "{text}");
        assert!(text.contains("not looked at: blobs: gone\n"), "{text}");
        let text = told(&report);
        assert!(text.contains("image im-1 lacks 2 chunks, abcd among them. What to do: build it again"), "{text}");
        assert!(text.ends_with("not everything is whole\n"), "{text}");
    }
}
