//! `shoal logs`: what containers printed, to where they printed it.

use std::io::{self, IsTerminal as _, Write};
use std::ops::ControlFlow;

use anyhow::{Context as _, bail};
use clap::Args;

use super::Common;
use super::admin::stream;
use super::lists::seconds;
use crate::admin::{LogAnswer, LogLine, LogsWanted, TAIL_MAX};

/// The flags of `shoal logs`.
#[derive(Debug, Args)]
pub(super) struct Logs {
    /// The id of an app, task, function or call, or the name an app is deployed under.
    #[arg(value_name = "APP|TASK")]
    of: String,
    /// The environment of the name.
    #[arg(long, default_value = "")]
    env: String,
    /// Go on with what is printed from now on, until the app or task has ended.
    #[arg(long, short)]
    follow: bool,
    /// Only lines of this function: its name in the app, or its id.
    #[arg(long, value_name = "FUNCTION")]
    function: Option<String>,
    /// Only lines of this call.
    #[arg(long, value_name = "CALL")]
    call: Option<String>,
    /// Only lines of this container.
    #[arg(long, visible_alias = "task", value_name = "TASK")]
    container: Option<String>,
    /// Only lines with this text in them.
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only lines of this stream: stdout, stderr, or system for what Shoal itself says.
    #[arg(long, value_name = "STREAM", value_parser = ["stdout", "stderr", "system"])]
    stream: Option<String>,
    /// Only what was printed since: so long ago (a number with s, m, h or d), or a time as 2026-03-01T05:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<u64>,
    /// Only what was printed before: as --since.
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "follow")]
    until: Option<u64>,
    /// Only the newest lines.
    #[arg(long, short = 'n', value_name = "LINES", value_parser = lines)]
    tail: Option<usize>,
    /// Begin each line with the time at which it was printed, in UTC.
    #[arg(long, short)]
    timestamps: bool,
    #[command(flatten)]
    common: Common,
}

/// Reads a time: so long ago, or at a date. Returns milliseconds since 1970.
fn moment(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = seconds(text) {
        return Ok(crate::api::now().0.saturating_sub(seconds.saturating_mul(1000)));
    }
    let parsed = text.parse::<jiff::Timestamp>().ok().and_then(|time| u64::try_from(time.as_millisecond()).ok());
    parsed.ok_or_else(|| format!("{text:?} is not a time: write how long ago, as 90m, or when, as 2026-03-01T05:00:00Z"))
}

fn lines(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|lines| (1..=TAIL_MAX).contains(lines));
    number.ok_or_else(|| format!("{text:?} is not a number from 1 to {TAIL_MAX}"))
}

impl Logs {
    /// Prints the lines.
    pub(super) fn run(self) -> anyhow::Result<i32> {
        let wanted = LogsWanted {
            of: self.of.clone(),
            environment: self.env.clone(),
            function: self.function.clone(),
            call: self.call.clone(),
            task: self.container.clone(),
            search: self.search.clone(),
            stream: self.stream.clone(),
            since_ms: self.since,
            until_ms: self.until,
            tail: self.tail,
            follow: self.follow,
        };
        // A reader at the other end wants whole blocks, a person wants each line at once.
        let each_line = self.follow || io::stdout().is_terminal();
        let mut printer = Printer::new(io::BufWriter::new(io::stdout().lock()), io::stderr().lock(), self.timestamps);
        let mut print = |line: &[u8]| {
            let printed = match serde_json::from_slice(line).context("cannot read the node's answer")? {
                LogAnswer::BrokeOff(refusal) => bail!("the logs of {} broke off: {}", self.of, refusal.error),
                LogAnswer::Line(_) if self.common.json => printer.raw(line),
                LogAnswer::Line(line) => printer.print(&line),
            };
            let flushed = if each_line { printed.and_then(|()| printer.flush()) } else { printed };
            go_on(flushed)
        };
        let streamed = stream(&self.common, "/logs", &wanted, &mut print);
        let _ = go_on(printer.flush())?;
        streamed.map(|()| 0)
    }
}

/// A reader that has gone, as `head` does, is no failure.
fn go_on(printed: io::Result<()>) -> anyhow::Result<ControlFlow<()>> {
    match printed {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(error).context("cannot print"),
    }
}

/// Prints lines: what went to stderr to stderr, and what Shoal says too.
struct Printer<Out, Err> {
    out: Out,
    err: Err,
    timestamps: bool,
    /// Whether the last that went to out, and to err, was a line that has not ended.
    open: [bool; 2],
}

impl<Out: Write, Err: Write> Printer<Out, Err> {
    fn new(out: Out, err: Err, timestamps: bool) -> Self {
        Self { out, err, timestamps, open: [false; 2] }
    }

    fn print(&mut self, line: &LogLine) -> io::Result<()> {
        let to: (&mut dyn Write, _) =
            if line.stream == "stdout" { (&mut self.out, &mut self.open[0]) } else { (&mut self.err, &mut self.open[1]) };
        let (to, open) = to;
        if self.timestamps && !*open {
            write!(to, "{} ", time(line.timestamp_ns))?;
        }
        *open = !line.data.ends_with('\n');
        to.write_all(line.data.as_bytes())
    }

    fn raw(&mut self, line: &[u8]) -> io::Result<()> {
        self.out.write_all(line)?;
        self.out.write_all(b"\n")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.err.flush()
    }
}

/// Writes nanoseconds since 1970 as a time with milliseconds.
fn time(timestamp_ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(timestamp_ns.into()).map_or_else(|_| "-".to_owned(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stream: &str, data: &str) -> LogLine {
        LogLine {
            timestamp_ns: 1_700_000_000_120_000_000,
            stream: stream.to_owned(),
            app_id: "ap-1".to_owned(),
            task_id: "ta-1".to_owned(),
            function_id: "fu-1".to_owned(),
            input_id: None,
            call_id: None,
            data: data.to_owned(),
        }
    }

    fn printed(timestamps: bool, lines: &[LogLine]) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(&mut out, &mut err, timestamps);
        lines.iter().for_each(|line| printer.print(line).unwrap());
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn lines_go_where_the_program_sent_them() {
        let lines = [line("stdout", "a\n"), line("stderr", "b\n"), line("system", "c\n"), line("stdout", "no end")];
        assert_eq!(printed(false, &lines), ("a\nno end".to_owned(), "b\nc\n".to_owned()));
    }

    #[test]
    fn a_line_in_pieces_has_one_timestamp() {
        let lines = [line("stdout", "half "), line("stderr", "b\n"), line("stdout", "whole\n"), line("stdout", "next\n")];
        let at = "2023-11-14T22:13:20.120Z";
        assert_eq!(printed(true, &lines), (format!("{at} half whole\n{at} next\n"), format!("{at} b\n")));
    }

    #[test]
    fn a_time_is_an_age_or_a_date() {
        let now = crate::api::now().0;
        let minute_ago = moment("1m").unwrap();
        assert!((now - 60_000..now).contains(&minute_ago), "{minute_ago} is not a minute before {now}");
        assert_eq!(moment("2023-11-14T22:13:20Z"), Ok(1_700_000_000_000));
        assert_eq!(moment("2023-11-14T23:13:20+01:00"), Ok(1_700_000_000_000));
        for wrong in ["", "yesterday", "5", "2023-11-14"] {
            assert!(moment(wrong).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn a_number_of_lines_is_bounded() {
        assert_eq!(lines("10"), Ok(10));
        for wrong in ["0", "-1", "x", "100001"] {
            assert!(lines(wrong).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        assert!(go_on(Err(io::ErrorKind::BrokenPipe.into())).unwrap().is_break());
        assert!(go_on(Err(io::ErrorKind::StorageFull.into())).is_err());
    }
}
