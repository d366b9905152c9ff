//! For tests: what older releases wrote to disks and said to each other, held against the types of this one.
//!
//! Such files have an encoded value a line, in hexadecimal. Nothing in them ever changes.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads a line of such a file.
///
/// # Panics
/// When it is none.
pub fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at| hex.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    (0..hex.len()).step_by(2).map(|at| digits(at).unwrap_or_else(|| panic!("{hex:?} is not hexadecimal"))).collect()
}

/// Reads each value of a file and writes it again: an older node says what this one understands, and understands what this one says.
///
/// `heads` is how many bytes come before each value.
///
/// # Panics
/// When one cannot be read, is written in another way, or there is none.
pub fn hold<T: Serialize + DeserializeOwned + Debug>(what: &str, file: &str, heads: usize) {
    let mut count = 0;
    for line in file.lines() {
        let body = bytes(line);
        let value: T = postcard::from_bytes(&body[heads..]).unwrap_or_else(|error| panic!("{what} cannot be read ({error}): {line}"));
        let again = postcard::to_stdvec(&value).unwrap_or_default();
        assert!(again == body[heads..], "{what} is written in another way now: {line}, read as {value:?}");
        count += 1;
    }
    assert!(count > 0, "there is no {what}");
}
