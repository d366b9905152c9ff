//! Crontab expressions: which times the clocks of a zone show, and which instants these are.
//!
//! croner knows which times of the calendar an expression names. What these are where clocks skip an hour or show it twice
//! is decided here, so that lists of hours are treated as single ones are.

use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use shoal_state::Timestamp;
use shoal_state::model::Timing;

use super::{Wrong, instant, timestamp, zones};

/// The zone that no name means.
const ZONE_DEFAULT: &str = "UTC";

/// The fields of an expression, as people call them.
const FIELDS: [&str; 5] = ["minute", "hour", "day", "month", "weekday"];

/// The longest expression that is read, in bytes.
const EXPRESSION_BYTES_MAX: usize = 256;

/// Reads a crontab expression and the name of a zone, whose clocks it follows; `now` is a time from which on it must fire.
pub fn cron(expression: &str, zone: &str, now: Timestamp) -> Result<Timing, Wrong> {
    let expression = expression.split_whitespace().collect::<Vec<_>>().join(" ");
    let zone = if zone.is_empty() { ZONE_DEFAULT } else { zone };
    next_after(&expression, zone, now)?;
    let zone = zone_named(&expression, zone)?.iana_name().unwrap_or(zone).to_owned();
    Ok(Timing::Cron { expression, zone })
}

fn zone_named(expression: &str, zone: &str) -> Result<TimeZone, Wrong> {
    zones().get(zone).map_err(|_| Wrong::NoZone { expression: expression.to_owned(), zone: zone.chars().take(64).collect() })
}

/// An expression that was understood.
struct Cron<'a> {
    text: &'a str,
    pattern: croner::Cron,
    /// Its minutes or hours begin with a star.
    follows_the_clock: bool,
}

impl<'a> Cron<'a> {
    fn parse(text: &'a str) -> Result<Self, Wrong> {
        let wrong = |why: String| Wrong::NotCron { expression: text.chars().take(EXPRESSION_BYTES_MAX).collect(), why };
        let fields = match text.to_ascii_lowercase().as_str() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ => text,
        };
        let count = fields.split_whitespace().count();
        if fields.len() > EXPRESSION_BYTES_MAX {
            return Err(wrong(format!("it is longer than {EXPRESSION_BYTES_MAX} bytes")));
        }
        if fields.starts_with('@') {
            return Err(wrong("there is no such name; @hourly, @daily, @weekly, @monthly and @yearly are known".to_owned()));
        }
        if count != FIELDS.len() {
            return Err(wrong(format!("it has {count} field{}", if count == 1 { "" } else { "s" })));
        }
        let pattern = parser().parse(fields).map_err(|error| wrong(culprit(fields).unwrap_or_else(|| plain(&error))))?;
        let follows_the_clock = fields.split_whitespace().take(2).any(|field| field.starts_with('*'));
        Ok(Self { text, pattern, follows_the_clock })
    }

    /// Returns the first time that the expression names after `time`, or at it.
    fn named(&self, time: DateTime, at_it_too: bool) -> Result<DateTime, Wrong> {
        let never = |_| Wrong::Never { expression: self.text.to_owned() };
        self.pattern.find_next_occurrence(&time, at_it_too).map_err(never)
    }

    /// Of one that names its minutes and hours: each time that it names is one instant.
    fn next_named(&self, zone: &TimeZone, after: jiff::Timestamp) -> Result<jiff::Timestamp, Wrong> {
        let mut time = zone.to_datetime(after);
        loop {
            time = self.named(time, false)?;
            let at = self.instant_of(zone, time)?;
            if at > after {
                return Ok(at);
            }
        }
    }

    /// Returns when clocks show a time first; when they skip it, when they have skipped it.
    fn instant_of(&self, zone: &TimeZone, time: DateTime) -> Result<jiff::Timestamp, Wrong> {
        let late = |_| Wrong::Late { timing: format!("modal.Cron({:?})", self.text) };
        match zone.to_ambiguous_timestamp(time).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(time).map_err(late),
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(time).map_err(late),
            AmbiguousOffset::Gap { after, .. } => {
                // By the offset after it, a skipped time is one before the clocks are changed.
                let before = after.to_timestamp(time).map_err(late)?;
                Ok(zone.following(before).next().map_or(before, |change| change.timestamp()))
            }
        }
    }

    /// Of one that follows the clock: whenever it shows such a time, from one change of the clocks to the next.
    fn next_shown(&self, zone: &TimeZone, after: jiff::Timestamp) -> Result<jiff::Timestamp, Wrong> {
        let late = |_| Wrong::Late { timing: format!("modal.Cron({:?})", self.text) };
        let (mut from, mut at_it_too) = (after, false);
        loop {
            let offset = zone.to_offset(from);
            let at = offset.to_timestamp(self.named(offset.to_datetime(from), at_it_too)?).map_err(late)?;
            match zone.following(from).next().map(|change| change.timestamp()) {
                Some(change) if at >= change => (from, at_it_too) = (change, true),
                _ => return Ok(at),
            }
        }
    }
}

pub(super) fn next_after(expression: &str, zone: &str, after: Timestamp) -> Result<Timestamp, Wrong> {
    let cron = Cron::parse(expression)?;
    let zone = zone_named(expression, zone)?;
    let late = || Wrong::Late { timing: format!("modal.Cron({expression:?})") };
    let after = instant(after).ok_or_else(late)?;
    // Expressions name whole seconds: the part of one that has begun is of no account.
    let whole = jiff::Timestamp::from_second(after.as_second()).unwrap_or(after);
    let next = if cron.follows_the_clock { cron.next_shown(&zone, whole) } else { cron.next_named(&zone, whole) };
    Ok(timestamp(next?))
}

fn parser() -> CronParser {
    CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).sloppy_ranges(true).build()
}

/// Says which field is wrong, and how: the one that is not understood among stars.
fn culprit(fields: &str) -> Option<String> {
    let wrong = |(place, field): (usize, &str)| {
        let alone: Vec<&str> = (0..FIELDS.len()).map(|other| if other == place { field } else { "*" }).collect();
        let error = parser().parse(&alone.join(" ")).err()?;
        Some(format!("its {} {field:?} is wrong ({})", FIELDS.get(place)?, plain(&error)))
    };
    fields.split_whitespace().enumerate().find_map(wrong)
}

/// Writes an error of croner as part of a sentence.
fn plain(error: &croner::errors::CronError) -> String {
    use croner::errors::CronError;
    let text = match error {
        CronError::IllegalCharacters(_) => "a character does not belong there".to_owned(),
        CronError::InvalidPattern(why) | CronError::ComponentError(why) => why.clone(),
        other => other.to_string(),
    };
    let text = text.trim_end_matches('.');
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}
