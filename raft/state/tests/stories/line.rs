//! The words of a story's lines.

use std::collections::BTreeMap;

/// The words of one line: what to do, its plain arguments, and its `key=value` arguments.
pub(crate) struct Line<'a> {
    pub(crate) verb: &'a str,
    pub(crate) plain: Vec<&'a str>,
    pub(crate) keyed: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    pub(crate) fn parse(text: &'a str) -> Self {
        let mut words = text.split_whitespace();
        let verb = words.next().expect("a line has a verb");
        let (mut plain, mut keyed) = (Vec::new(), BTreeMap::new());
        for word in words {
            match word.split_once('=') {
                Some((key, value)) => drop(keyed.insert(key, value)),
                None => plain.push(word),
            }
        }
        Self { verb, plain, keyed }
    }

    pub(crate) fn number(&self, index: usize) -> u128 {
        self.plain[index].parse().expect("a number")
    }

    pub(crate) fn keyed(&self, key: &str, default: u64) -> u64 {
        self.keyed.get(key).map_or(default, |value| value.parse().expect("a number"))
    }
}
