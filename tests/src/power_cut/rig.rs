//! Recording a writer's system calls, and cutting the power at moments of the record.

use std::fs;
use std::io::BufReader;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::disk::Disk;
use super::event::Event;
use super::random::Random;
use super::replay::Replay;
use super::trace::{self, Scope};
use super::{Sync, Writer};

/// How long a workload may take under strace.
const WORK_DEADLINE: Duration = Duration::from_secs(120);

/// Everything a writer did in its folder.
#[derive(Debug)]
pub struct Trace {
    writer: Writer,
    events: Vec<Event>,
}

impl Trace {
    /// Returns how many lines the writer said.
    pub fn lines(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Said(_))).count()
    }

    /// Returns how many things happened.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Says whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

/// Says whether `strace` can be run here; if not, why.
pub fn strace_is_here() -> Result<()> {
    let output = Command::new("strace").args(["-f", "true"]).output();
    let output = output.context("strace cannot be run: apt-get install strace")?;
    ensure!(output.status.success(), "strace may not trace here: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Runs the workload of a writer by `program WRITER FOLDER SEED` and returns what it did.
pub fn record(writer: &Writer, program: &Path, seed: u64) -> Result<Trace> {
    let temp = tempfile::Builder::new().prefix("power-cut-").tempdir()?;
    let (folder, file, said) = (temp.path().join("folder"), temp.path().join("trace"), temp.path().join("stderr"));
    fs::create_dir(&folder)?;
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-xx", "--seccomp-bpf", "-s", "33554432", "-e", "signal=none", "-e"]);
    strace.arg(format!("trace={}", trace::CALLS)).arg("-o").arg(&file);
    strace.arg(program).arg(writer.name).arg(&folder).arg(seed.to_string()).stdout(Stdio::null()).stderr(fs::File::create(&said)?);
    let mut child = strace.spawn().context("strace did not start")?;
    let deadline = Instant::now() + WORK_DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            return Err(anyhow!("the workload of {} did not end within {WORK_DEADLINE:?}", writer.name));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    ensure!(status.success(), "the workload of {} failed: {status}: {}", writer.name, fs::read_to_string(&said)?.trim_end());
    let text = BufReader::new(fs::File::open(&file)?);
    let record = trace::parse(text, Scope { root: &folder, left_out: &[], says: true })?;
    Ok(Trace { writer: *writer, events: record.events })
}

/// Which power cuts to try.
#[derive(Debug, Clone, Copy)]
pub struct Cuts {
    /// How many.
    pub count: usize,
    /// Chooses the moments, and what the disk holds then.
    pub seed: u64,
    /// Syncs to leave out, as if the program did not call them.
    pub without: Option<Sync>,
}

/// What came of power cuts.
#[derive(Debug)]
pub struct Report {
    /// How many were tried.
    pub tried: usize,
    /// Those after which the writer's folder contradicted what was said.
    pub failures: Vec<Failure>,
}

/// A power cut that lost something.
#[derive(Debug)]
pub struct Failure {
    /// How many things had happened.
    pub moment: usize,
    /// What is wrong, in words.
    pub what: String,
    /// The folder as the power cut left it, before it was opened; kept for the first failure.
    pub folder: Option<PathBuf>,
}

/// Cuts the power at random moments, and checks what is left each time.
pub fn cut(trace: &Trace, cuts: Cuts) -> Result<Report> {
    let mut random = Random::new(cuts.seed);
    let mut moments: Vec<_> = (0..cuts.count).map(|_| random.below(trace.len() as u64 + 1) as usize).collect();
    moments.sort_unstable();
    let mut report = Report { tried: 0, failures: Vec::new() };
    let (mut replay, mut said) = (Replay::new(&trace.events, Disk::default(), cuts.without), Vec::new());
    for moment in moments {
        for event in replay.advance(moment)? {
            if let Event::Said(line) = event {
                said.push(line.clone());
            }
        }
        report.tried += 1;
        let seed = random.number();
        if let Err(error) = try_one(&trace.writer, &replay, &said, seed) {
            let folder = if cuts.without.is_none() && report.failures.is_empty() { keep(&replay, seed).ok() } else { None };
            report.failures.push(Failure { moment, what: format!("{error:#}"), folder });
        }
    }
    Ok(report)
}

fn try_one(writer: &Writer, replay: &Replay<'_>, said: &[String], seed: u64) -> Result<()> {
    let temp = temp_folder()?;
    let folder = temp.path().join("folder");
    replay.rebuild(&folder, &mut Random::new(seed))?;
    let check = || (writer.check)(&folder, said);
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "the check panicked".to_owned());
        Err(anyhow!("panic: {text}"))
    })
}

fn keep(replay: &Replay<'_>, seed: u64) -> Result<PathBuf> {
    let folder = tempfile::Builder::new().prefix("power-cut-failed-").tempdir()?.keep();
    replay.rebuild(&folder, &mut Random::new(seed))?;
    Ok(folder)
}

/// In memory where that can be: the check's own syncs then take no time.
fn temp_folder() -> Result<tempfile::TempDir> {
    let shared = Path::new("/dev/shm");
    let builder = || tempfile::Builder::new();
    let in_memory = builder().prefix("power-cut-").tempdir_in(shared);
    Ok(in_memory.or_else(|_| builder().prefix("power-cut-").tempdir())?)
}
