//! When schedules are due: periods, crontab expressions, time zones. Pure: no clock, no I/O; the time zones are those this
//! build was made with, not those of the machine.
//!
//! [`period()`] and [`cron()`] read what a user wrote, or say in a sentence what is wrong with it; [`next_after()`] says when
//! such a timing is due next; [`due()`] what is to be decided at a time; [`describe()`] writes it for people. The leader asks, and what it hears goes into the log: nodes
//! with other time zones do not differ about what was decided.
//!
//! **A period** counts from when it was deployed so first: the n-th time is n periods after that, so nothing adds up, neither
//! rounding nor what a short month cut off. Years, months, weeks and days are counted in the calendar of UTC.
//!
//! **A cron** follows the clocks of its zone as cron(8) does. One that names its minutes and hours is due once on every day that it
//! names: a time that the clocks skip is due when they have skipped it, one that they show twice is due the first time. One
//! whose minutes or hours begin with `*` is due whenever the clocks show such a time: never while they skip it, twice when they
//! show it twice.

mod cron;
mod due;
mod period;
#[cfg(test)]
mod tests;

use jiff::tz::TimeZoneDatabase;
use shoal_state::Timestamp;
use shoal_state::model::Timing;

pub use cron::cron;
pub use due::{CLOCK_TRUSTED_MS, FIRINGS_AT_ONCE, called, due, firings_at};
pub use period::{Parts, SHORTEST_MS, period};

/// What is wrong with a schedule: one sentence for whoever wrote it.
#[expect(missing_docs, reason = "the fields are what the sentence of their variant names")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    #[error("modal.Period(): a period of zero would never pass; give it a length, as modal.Period(hours=1)")]
    Zero,
    #[error("modal.Period({part}={value}): a part of a period is a number of at least 0")]
    Negative { part: &'static str, value: String },
    #[error("modal.Period(seconds={seconds}) is shorter than {SHORTEST_MS} ms, the shortest period that functions are called in")]
    Short { seconds: String },
    #[error("{timing} is not due before the year 10000")]
    Late { timing: String },
    #[error(
        "modal.Cron({expression:?}) cannot be understood: {why}; it is five fields, minute hour day month weekday, as \"0 9 * * 1\" for Mondays at 9:00"
    )]
    NotCron { expression: String, why: String },
    #[error("modal.Cron({expression:?}) never fires: no day of the calendar is such a day")]
    Never { expression: String },
    #[error(
        "modal.Cron({expression:?}, timezone={zone:?}): there is no such time zone; its name is one of the IANA database, as \"Europe/Berlin\" or \"UTC\""
    )]
    NoZone { expression: String, zone: String },
}

/// Returns the first time after `after` at which a timing is due that counts from `since`.
pub fn next_after(timing: &Timing, since: Timestamp, after: Timestamp) -> Result<Timestamp, Wrong> {
    match timing {
        Timing::Period(parts) => period::next_after(parts, since, after),
        Timing::Cron { expression, zone } => cron::next_after(expression, zone, after),
    }
}

/// Writes a timing as the client's user wrote it.
pub fn describe(timing: &Timing) -> String {
    match timing {
        Timing::Period(parts) => period::describe(parts),
        Timing::Cron { expression, zone } if zone == "UTC" => format!("Cron({expression:?})"),
        Timing::Cron { expression, zone } => format!("Cron({expression:?}, timezone={zone:?})"),
    }
}

/// Writes a time as the clocks of a schedule's zone show it; those of UTC for a period.
pub fn local(timing: &Timing, at: Timestamp) -> Option<String> {
    let name = match timing {
        Timing::Period(_) => "UTC",
        Timing::Cron { zone, .. } => zone,
    };
    let zone = zones().get(name).ok()?;
    let at = instant(at)?.round(jiff::Unit::Second).ok()?.to_zoned(zone);
    Some(at.strftime("%Y-%m-%d %H:%M:%S %Z").to_string())
}

fn zones() -> TimeZoneDatabase {
    TimeZoneDatabase::bundled()
}

fn instant(at: Timestamp) -> Option<jiff::Timestamp> {
    i64::try_from(at.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
}

fn timestamp(at: jiff::Timestamp) -> Timestamp {
    Timestamp(u64::try_from(at.as_millisecond()).unwrap_or(0))
}
