//! When schedules are due, as tables: what was asked, and the times that follow one another.

use shoal_state::Timestamp;
use shoal_state::model::Timing;

use super::{Parts, Wrong, cron, describe, local, next_after, period};

fn at(text: &str) -> Timestamp {
    let at: jiff::Timestamp = text.parse().expect("a time");
    Timestamp(at.as_millisecond() as u64)
}

fn written(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.0 as i64).expect("a time").to_string()
}

/// Returns the `count` times after `since`, as they follow one another.
fn times(timing: &Timing, since: &str, count: usize) -> Vec<String> {
    let since = at(since);
    let mut last = since;
    let next = |_| {
        last = next_after(timing, since, last).expect("a next time");
        written(last)
    };
    (0..count).map(next).collect()
}

fn crons(expression: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
    times(&cron(expression, zone, at(after)).expect("a cron"), after, count)
}

#[test]
fn crons_name_the_times_that_cron_8_would() {
    let cases = [
        ("*/15 * * * *", "2026-01-01T00:01:30Z", ["2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z", "2026-01-01T00:45:00Z"]),
        ("* * * * *", "2026-01-01T00:00:00Z", ["2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z", "2026-01-01T00:03:00Z"]),
        ("5 4 * * *", "2026-01-01T04:05:00.5Z", ["2026-01-02T04:05:00Z", "2026-01-03T04:05:00Z", "2026-01-04T04:05:00Z"]),
        ("0 9 * * 4", "2026-01-01T10:00:00Z", ["2026-01-08T09:00:00Z", "2026-01-15T09:00:00Z", "2026-01-22T09:00:00Z"]),
        ("0 0 1,15 * 3", "2026-01-01T00:00:00Z", ["2026-01-07T00:00:00Z", "2026-01-14T00:00:00Z", "2026-01-15T00:00:00Z"]),
        ("0 0 29 2 *", "2026-01-01T00:00:00Z", ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z", "2036-02-29T00:00:00Z"]),
        ("0 0 31 * *", "2026-01-31T00:00:00Z", ["2026-03-31T00:00:00Z", "2026-05-31T00:00:00Z", "2026-07-31T00:00:00Z"]),
        ("0 22 * JAN mon-fri", "2026-01-02T22:00:00Z", ["2026-01-05T22:00:00Z", "2026-01-06T22:00:00Z", "2026-01-07T22:00:00Z"]),
        ("10-30/10 8 * * 7", "2026-01-01T00:00:00Z", ["2026-01-04T08:10:00Z", "2026-01-04T08:20:00Z", "2026-01-04T08:30:00Z"]),
        ("@weekly", "2026-01-01T00:00:00Z", ["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z", "2026-01-18T00:00:00Z"]),
        ("@midnight", "2026-01-01T00:00:00Z", ["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z", "2026-01-04T00:00:00Z"]),
        ("@Hourly", "2026-01-01T00:59:59Z", ["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z", "2026-01-01T03:00:00Z"]),
    ];
    for (expression, after, expected) in cases {
        assert_eq!(crons(expression, "", after, 3), expected, "{expression}");
    }
}

/// Berlin's clocks go from 2:00 to 3:00 on 29 March 2026 at 1:00 UTC.
#[test]
fn a_time_that_clocks_skip_is_due_when_they_have_skipped_it() {
    let berlin = |expression, after, count| crons(expression, "Europe/Berlin", after, count);
    // Winter, the day of the change, summer.
    assert_eq!(berlin("30 2 * * *", "2026-03-27T12:00:00Z", 3), ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
    // Two that are skipped are one; a list of hours is as its hours are.
    assert_eq!(
        berlin("0,30 2,3 * * *", "2026-03-29T00:00:00Z", 3),
        ["2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z", "2026-03-30T00:00:00Z"]
    );
    // Nobody waits in the skipped hour for one that follows the clock.
    assert_eq!(berlin("*/30 * * * *", "2026-03-29T00:20:00Z", 3), ["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"]);
    assert_eq!(berlin("*/30 2 * * *", "2026-03-28T12:00:00Z", 1), ["2026-03-30T00:00:00Z"]);
    // From right after the change there is no way back into the hour.
    assert_eq!(berlin("30 2 * * *", "2026-03-29T01:00:00Z", 1), ["2026-03-30T00:30:00Z"]);
}

/// Berlin's clocks go from 3:00 to 2:00 on 25 October 2026 at 1:00 UTC.
#[test]
fn a_time_that_clocks_show_twice_is_due_once_unless_it_follows_the_clock() {
    let berlin = |expression, after, count| crons(expression, "Europe/Berlin", after, count);
    assert_eq!(berlin("30 2 * * *", "2026-10-24T12:00:00Z", 2), ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
    assert_eq!(
        berlin("30 1,2,3 * * *", "2026-10-24T22:00:00Z", 4),
        ["2026-10-24T23:30:00Z", "2026-10-25T00:30:00Z", "2026-10-25T02:30:00Z", "2026-10-26T00:30:00Z"]
    );
    // Asked in the second of the two hours, whose time was due in the first.
    assert_eq!(berlin("30 2 * * *", "2026-10-25T01:10:00Z", 1), ["2026-10-26T01:30:00Z"]);
    assert_eq!(berlin("30 * * * *", "2026-10-24T23:40:00Z", 3), ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"]);
    assert_eq!(
        berlin("*/20 2 * * *", "2026-10-25T00:30:00Z", 5),
        ["2026-10-25T00:40:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:20:00Z", "2026-10-25T01:40:00Z", "2026-10-26T01:00:00Z"]
    );
}

#[test]
fn zones_differ_and_half_an_hour_can_be_skipped_too() {
    assert_eq!(
        crons("0 6 * * *", "America/New_York", "2026-03-07T00:00:00Z", 3),
        ["2026-03-07T11:00:00Z", "2026-03-08T10:00:00Z", "2026-03-09T10:00:00Z"]
    );
    assert_eq!(crons("30 9 * * *", "Asia/Kolkata", "2026-01-01T00:00:00Z", 1), ["2026-01-01T04:00:00Z"]);
    // Lord Howe's clocks go from 2:00 to 2:30 on 4 October 2026, at 15:30 UTC of the 3rd.
    assert_eq!(crons("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", 1), ["2026-10-03T15:30:00Z"]);
}

/// However the clocks are changed, times go on, and each is one that the clocks show (or the end of a gap).
#[test]
fn a_year_of_times_goes_forward_in_every_zone_with_changes() {
    for zone in ["Europe/Berlin", "America/St_Johns", "Africa/Casablanca", "Antarctica/Troll"] {
        for (expression, least) in [("7 1,2,3 * * *", 3 * 365 - 2), ("*/40 1-3 * * *", 6 * 365 - 8)] {
            let timing = cron(expression, zone, at("2026-01-01T00:00:00Z")).expect("a cron");
            let (mut last, end) = (at("2026-01-01T00:00:00Z"), at("2027-01-01T00:00:00Z"));
            let mut count = 0;
            while last < end {
                let next = next_after(&timing, last, last).expect("a time");
                assert!(next > last, "{expression} in {zone} stands at {}", written(last));
                // Asked from anywhere before it, the answer is the same.
                let before = Timestamp(next.0 - 1).max(last);
                assert_eq!(next_after(&timing, last, before), Ok(next), "{expression} in {zone}");
                (last, count) = (next, count + 1);
            }
            assert!(count >= least, "{expression} in {zone} was due {count} times in a year");
        }
    }
}

fn every(parts: Parts) -> Timing {
    period(parts).expect("a period")
}

#[test]
fn periods_count_from_where_they_began_and_nothing_adds_up() {
    let seconds = |seconds| every(Parts { seconds, ..Parts::default() });
    assert_eq!(
        times(&seconds(2.0), "2026-01-01T00:00:00.250Z", 3),
        ["2026-01-01T00:00:02.25Z", "2026-01-01T00:00:04.25Z", "2026-01-01T00:00:06.25Z"]
    );
    let third = seconds(1.0 / 3.0 + 1.0);
    let since = at("2026-01-01T00:00:00Z");
    let late = next_after(&third, since, at("2026-01-01T01:00:00Z")).expect("a time");
    assert_eq!(written(late), "2026-01-01T01:00:01.333Z", "2701 times 1.3333334 s");
    let months = every(Parts { months: 1, ..Parts::default() });
    assert_eq!(times(&months, "2026-01-31T12:00:00Z", 3), ["2026-02-28T12:00:00Z", "2026-03-31T12:00:00Z", "2026-04-30T12:00:00Z"]);
    let mixed = every(Parts { years: 1, weeks: 1, days: 1, hours: 2, minutes: 3, seconds: 4.5, ..Parts::default() });
    assert_eq!(times(&mixed, "2026-01-01T00:00:00Z", 1), ["2027-01-09T02:03:04.5Z"]);
}

/// However far the clock has gone on, the next time is the first one after it that keeps the phase.
#[test]
fn a_period_keeps_its_phase_over_a_long_time() {
    let timing = every(Parts { hours: 7, ..Parts::default() });
    let (since, after) = (at("2026-01-01T00:00:00Z"), at("2031-05-06T07:08:09Z"));
    let next = next_after(&timing, since, after).expect("a time");
    let hours7 = 7 * 3_600_000;
    assert_eq!((next.0 - since.0) % hours7, 0);
    assert!(next > after && next.0 - after.0 <= hours7);
    assert_eq!(next_after(&timing, since, Timestamp(since.0 - 1)), Ok(since), "a clock was behind when it began");
    assert_eq!(next_after(&timing, since, Timestamp(since.0 - 100 * hours7)), Ok(Timestamp(since.0 - 99 * hours7)));
}

#[test]
fn what_cannot_be_a_schedule_is_said_in_a_sentence() {
    let now = at("2026-01-01T00:00:00Z");
    let sentence = |wrong: Result<Timing, Wrong>| wrong.expect_err("it is wrong").to_string();
    let fields = "it is five fields, minute hour day month weekday, as \"0 9 * * 1\" for Mondays at 9:00";
    let cases = [
        (cron("0 0 30 2 *", "", now), "modal.Cron(\"0 0 30 2 *\") never fires: no day of the calendar is such a day".to_owned()),
        (cron("0 0 31 4,6,9,11 *", "", now), "modal.Cron(\"0 0 31 4,6,9,11 *\") never fires: no day of the calendar is such a day".to_owned()),
        (cron("", "", now), format!("modal.Cron(\"\") cannot be understood: it has 0 fields; {fields}")),
        (cron("* * * *", "", now), format!("modal.Cron(\"* * * *\") cannot be understood: it has 4 fields; {fields}")),
        (cron("* * * * * *", "", now), format!("modal.Cron(\"* * * * * *\") cannot be understood: it has 6 fields; {fields}")),
        (
            cron("60 * * * *", "", now),
            format!("modal.Cron(\"60 * * * *\") cannot be understood: its minute \"60\" is wrong (number out of bounds); {fields}"),
        ),
        (
            cron("0 9 * * mon-foo", "", now),
            format!("modal.Cron(\"0 9 * * mon-foo\") cannot be understood: its weekday \"mon-foo\" is wrong (a character does not belong there); {fields}"),
        ),
        (
            cron("@reboot", "", now),
            format!("modal.Cron(\"@reboot\") cannot be understood: there is no such name; @hourly, @daily, @weekly, @monthly and @yearly are known; {fields}"),
        ),
        (
            cron("0 9 * * 1", "Europe/Berln", now),
            "modal.Cron(\"0 9 * * 1\", timezone=\"Europe/Berln\"): there is no such time zone; its name is one of the IANA database, as \"Europe/Berlin\" or \"UTC\"".to_owned(),
        ),
        (period(Parts::default()), "modal.Period(): a period of zero would never pass; give it a length, as modal.Period(hours=1)".to_owned()),
        (
            period(Parts { seconds: 0.5, ..Parts::default() }),
            "modal.Period(seconds=0.5) is shorter than 1000 ms, the shortest period that functions are called in".to_owned(),
        ),
        (
            period(Parts { days: 1, hours: -1, ..Parts::default() }),
            "modal.Period(hours=-1): a part of a period is a number of at least 0".to_owned(),
        ),
        (
            period(Parts { seconds: f32::NAN, ..Parts::default() }),
            "modal.Period(seconds=NaN): a part of a period is a number of at least 0".to_owned(),
        ),
    ];
    for (wrong, expected) in cases {
        assert_eq!(sentence(wrong), expected);
    }
    let late = every(Parts { years: 9000, ..Parts::default() });
    assert_eq!(next_after(&late, now, now).expect_err("late").to_string(), "Period(years=9000) is not due before the year 10000");
    for text in ["x * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "5-1 * * * *", "*/0 * * * *", "a b c d e", "Ä * * * *"]
    {
        assert!(cron(text, "", now).is_err(), "{text} was taken");
    }
}

#[test]
fn timings_are_shown_as_they_were_written() {
    let now = at("2026-07-01T00:00:00Z");
    let berlin = cron("  0   9 * * 1 ", "europe/berlin", now).expect("a cron");
    assert_eq!(describe(&berlin), "Cron(\"0 9 * * 1\", timezone=\"Europe/Berlin\")");
    assert_eq!(local(&berlin, now).as_deref(), Some("2026-07-01 02:00:00 CEST"));
    assert_eq!(describe(&cron("@daily", "UTC", now).expect("a cron")), "Cron(\"@daily\")");
    let pi = every(Parts { days: 1, seconds: std::f32::consts::PI, ..Parts::default() });
    assert_eq!(describe(&pi), "Period(days=1, seconds=3.1415927)");
    assert_eq!(local(&pi, Timestamp(now.0 + 400)).as_deref(), Some("2026-07-01 00:00:00 UTC"));
}
