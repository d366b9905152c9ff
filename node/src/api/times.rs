//! Times of the wire: seconds and nanoseconds since 1970. A client may send any, so each is understood: what is before 1970 as its beginning,
//! what is beyond all numbers as their end.

use prost_types::Timestamp;

/// Nanoseconds of a second.
pub(super) const NANOS: u64 = 1_000_000_000;

/// Reads a time in nanoseconds since 1970.
pub(super) fn to_ns(time: Timestamp) -> u64 {
    parts_since_1970(time, NANOS)
}

/// Reads a time in milliseconds since 1970.
pub(super) fn to_ms(time: Timestamp) -> u64 {
    parts_since_1970(time, 1000)
}

/// Reads a time in parts of a second; a nanosecond is no longer than one of them.
fn parts_since_1970(time: Timestamp, of_second: u64) -> u64 {
    let Ok(seconds) = u64::try_from(time.seconds) else { return 0 };
    seconds.saturating_mul(of_second).saturating_add(u64::try_from(time.nanos).unwrap_or(0) / (NANOS / of_second))
}

/// Writes nanoseconds since 1970.
#[expect(clippy::cast_possible_wrap, reason = "the nanoseconds of a u64 end in the year 2554")]
pub(super) fn of_ns(ns: u64) -> Timestamp {
    Timestamp { seconds: (ns / NANOS) as i64, nanos: (ns % NANOS) as i32 }
}

/// Writes milliseconds since 1970.
pub(super) fn of_ms(ms: u64) -> Timestamp {
    of_ns(ms.saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_any_size_are_understood() {
        for (seconds, nanos, ms, ns) in [
            (0, 0, 0, 0),
            (1, 2_000_003, 1002, 1_002_000_003),
            (-1, 500_000_000, 0, 0),
            (5, -1, 5000, 5_000_000_000),
            (i64::MAX, i32::MAX, u64::MAX, u64::MAX),
        ] {
            let time = Timestamp { seconds, nanos };
            assert_eq!((to_ms(time), to_ns(time)), (ms, ns), "{time:?}");
        }
        assert_eq!((to_ms(of_ms(1_234_567)), to_ns(of_ns(7_000_000_001))), (1_234_567, 7_000_000_001));
        assert_eq!(to_ns(of_ms(u64::MAX)), u64::MAX, "what is beyond the wire's times is their end");
    }
}
