//! Periods: the n-th time of one is n periods after it began to count.

use jiff::Span;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use shoal_state::Timestamp;
use shoal_state::model::{Period, Timing};

use super::{Wrong, instant};

/// The shortest period, in milliseconds: each firing is two decisions of the cluster, and a call.
pub const SHORTEST_MS: u64 = 1000;

const NANOS_PER_SECOND: f64 = 1e9;
const NANOS_PER_MS: i128 = 1_000_000;
const NANOS_PER_MINUTE: i128 = 60_000_000_000;

/// A period as the wire has it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[expect(missing_docs, reason = "they are the units that they are called")]
pub struct Parts {
    pub years: i32,
    pub months: i32,
    pub weeks: i32,
    pub days: i32,
    pub hours: i32,
    pub minutes: i32,
    pub seconds: f32,
}

/// Reads a period.
pub fn period(parts: Parts) -> Result<Timing, Wrong> {
    let count = |part, value: i32| u32::try_from(value).map_err(|_| Wrong::Negative { part, value: value.to_string() });
    let read = Period {
        years: count("years", parts.years)?,
        months: count("months", parts.months)?,
        weeks: count("weeks", parts.weeks)?,
        days: count("days", parts.days)?,
        hours: count("hours", parts.hours)?,
        minutes: count("minutes", parts.minutes)?,
        nanos: nanos(parts.seconds)?,
    };
    let only_seconds = Period { nanos: read.nanos, ..Period::default() };
    if read == Period::default() {
        return Err(Wrong::Zero);
    }
    if read == only_seconds && i128::from(read.nanos) < i128::from(SHORTEST_MS) * NANOS_PER_MS {
        return Err(Wrong::Short { seconds: parts.seconds.to_string() });
    }
    Ok(Timing::Period(read))
}

/// Reads seconds by their shortest decimal: what travels as the nearest number of the wire is what the user wrote.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in the range of u64 before")]
fn nanos(seconds: f32) -> Result<u64, Wrong> {
    let written: f64 = seconds.to_string().parse().unwrap_or(f64::NAN);
    let nanos = (written * NANOS_PER_SECOND).round();
    // 2^63: nanoseconds of 292 years.
    if (0.0..9_223_372_036_854_775_808.0).contains(&nanos) {
        Ok(nanos as u64)
    } else {
        Err(Wrong::Negative { part: "seconds", value: seconds.to_string() })
    }
}

pub(super) fn next_after(period: &Period, since: Timestamp, after: Timestamp) -> Result<Timestamp, Wrong> {
    let late = || Wrong::Late { timing: describe(period) };
    let start = instant(since).ok_or_else(late)?;
    let civil = Offset::UTC.to_datetime(start);
    let is_past = |count: i64| nth(period, civil, count).map_or(count < 0, |at| at <= after);
    // A time before the start is one as well: of a clock that was ahead when the period began.
    let (mut low, mut high) = (-1, 1);
    while is_past(high) {
        (low, high) = (high, high * 2);
    }
    while !is_past(low) {
        (low, high) = (low * 2, low);
    }
    // The time of `low` is past, that of `high` is not.
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if is_past(middle) { low = middle } else { high = middle }
    }
    nth(period, civil, high).ok_or_else(late)
}

/// Returns the time so many periods after `start`, which is in UTC; none when no calendar goes so far.
fn nth(period: &Period, start: DateTime, count: i64) -> Option<Timestamp> {
    let months = count.checked_mul(i64::from(period.years) * 12 + i64::from(period.months))?;
    let days = count.checked_mul(i64::from(period.weeks) * 7 + i64::from(period.days))?;
    let date = start.checked_add(Span::new().try_months(months).ok()?.try_days(days).ok()?).ok()?;
    let rest = i128::from(period.hours) * 60 + i128::from(period.minutes);
    let rest = rest * NANOS_PER_MINUTE + i128::from(period.nanos);
    let nanos = Offset::UTC.to_timestamp(date).ok()?.as_nanosecond() + rest.checked_mul(i128::from(count))?;
    let at = u64::try_from(nanos / NANOS_PER_MS).ok().map(Timestamp)?;
    instant(at).map(|_| at)
}

pub(super) fn describe(period: &Period) -> String {
    let Period { years, months, weeks, days, hours, minutes, nanos } = *period;
    let counted = [("years", years), ("months", months), ("weeks", weeks), ("days", days), ("hours", hours), ("minutes", minutes)];
    let mut parts: Vec<String> = counted.iter().filter(|(_, count)| *count > 0).map(|(part, count)| format!("{part}={count}")).collect();
    if nanos > 0 {
        let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
        let text = format!("{seconds}.{rest:09}");
        parts.push(format!("seconds={}", text.trim_end_matches('0').trim_end_matches('.')));
    }
    format!("Period({})", parts.join(", "))
}
