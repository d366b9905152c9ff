//! Makes data folders as power cuts leave them, from the trace of a node and a copy of its folder from before.
//!
//! ```text
//! power-cut-replay --trace FILE --folder FOLDER --before COPY [--left-out NAME]… --acknowledged FILE
//!                  --count N --seed N [--last] [--without CALL:PATH_END]
//! ```
//!
//! `--trace` was written by `strace -f -y -xx -ttt` with the calls that `--calls` alone prints, while a node had the folder.
//! `--acknowledged` has a line with a time, in µs since 1970, for each thing that a client was told. It chooses `--count`
//! moments by `--seed`; `--last` is the end instead. For each line on standard input, which names a folder to make, it goes to the next
//! moment, makes the folder, and prints a line of JSON: at which event of how many the power went, and before which time what
//! was acknowledged has to be there. `--without` leaves syncs out, as if the node did not call them.

use std::fs::{self, File};
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use shoal_tests::power_cut::disk::Disk;
use shoal_tests::power_cut::replay::{Replay, due_before, moments};
use shoal_tests::power_cut::trace::{self, Scope};
use shoal_tests::power_cut::{Random, Sync};

#[derive(Default)]
struct Arguments {
    trace: PathBuf,
    folder: PathBuf,
    before: PathBuf,
    left_out: Vec<PathBuf>,
    acknowledged: PathBuf,
    count: usize,
    seed: u64,
    last: bool,
    without: Option<Sync>,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut read = Self::default();
        while let Some(option) = words.next() {
            if option == "--last" {
                read.last = true;
                continue;
            }
            let value = words.next().with_context(|| format!("{option} needs a value"))?;
            match &*option {
                "--trace" => read.trace = value.into(),
                "--folder" => read.folder = value.into(),
                "--before" => read.before = value.into(),
                "--left-out" => read.left_out.push(value.into()),
                "--acknowledged" => read.acknowledged = value.into(),
                "--count" => read.count = value.parse().context("--count")?,
                "--seed" => read.seed = value.parse().context("--seed")?,
                "--without" => read.without = Some(sync(value)?),
                _ => bail!("there is no option {option}"),
            }
        }
        Ok(read)
    }
}

fn sync(text: String) -> Result<Sync> {
    // It lives as long as the process.
    let (call, path_end) = text.leak().split_once(':').context("--without is CALL:PATH_END")?;
    Ok(Sync { what: "what --without names", call, path_end })
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if_eq("--calls").is_some() {
        println!("{}", trace::CALLS);
        return Ok(());
    }
    replay(&Arguments::read(words)?)
}

fn replay(arguments: &Arguments) -> Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let scope = Scope { root: &arguments.folder, left_out: &arguments.left_out, says: false };
    let record = trace::parse(BufReader::new(open(&arguments.trace)?), scope)?;
    let disk = Disk::holding(&arguments.before, &arguments.left_out)?;
    let times = fs::read_to_string(&arguments.acknowledged).context("cannot read what was acknowledged")?;
    let times = times.lines().map(str::parse).collect::<Result<Vec<u64>, _>>().context("a time is a number of µs")?;
    let mut random = Random::new(arguments.seed);
    let moments = match arguments.last {
        true => vec![record.events.len(); arguments.count],
        false => moments(&record, &times, arguments.count, &mut random),
    };
    let mut replay = Replay::new(&record.events, disk, arguments.without);
    for (moment, folder) in moments.into_iter().zip(std::io::stdin().lines()) {
        let folder = PathBuf::from(folder?);
        replay.advance(moment)?;
        replay.rebuild(&folder, &mut random).with_context(|| format!("cannot make {}", folder.display()))?;
        let (of, due) = (record.events.len(), due_before(&record, moment));
        println!("{}", serde_json::json!({ "event": moment, "of": of, "due_before": due }));
        std::io::stdout().flush()?;
    }
    Ok(())
}
