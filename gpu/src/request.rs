//! What a program asks for: a word, which may stand for several kinds, and a number.

use std::fmt;

use crate::Kind;

/// One choice of `gpu=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    name: String,
    /// How many, all of one kind.
    pub count: u32,
    /// The kinds that it accepts, the first before the others; none = any.
    accepts: Option<Vec<Kind>>,
}

impl Request {
    /// Reads a choice; an empty name is any kind.
    ///
    /// Some words accept better kinds than they name, as in the original: `A100` those with more memory, `H100` the H200, `B200+` the
    /// B300. A `!` behind the name forbids that.
    pub fn new(name: &str, count: u32) -> Self {
        let upper = name.trim().to_ascii_uppercase();
        let kinds = |names: &[&str]| Some(names.iter().map(|name| Kind::new(name)).collect());
        let accepts = match upper.as_str() {
            "" | "ANY" => None,
            "A100" => kinds(&["A100-40GB", "A100-80GB"]),
            "H100" => kinds(&["H100", "H200"]),
            "B200+" => kinds(&["B200", "B300"]),
            exact => kinds(&[exact.trim_end_matches('!')]),
        };
        Self { name: if accepts.is_none() { "any".to_owned() } else { upper }, count, accepts }
    }

    /// Says how well a kind serves: 0 = as named; none = not at all.
    pub fn rank(&self, kind: &Kind) -> Option<usize> {
        match &self.accepts {
            None => Some(0),
            Some(kinds) => kinds.iter().position(|accepted| accepted == kind),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => f.write_str(&self.name),
            count => write!(f, "{}:{count}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_accept_what_the_original_gives_for_them() {
        let table = [
            ("A100", "A100-40GB", Some(0)),
            ("a100", "A100-80GB", Some(1)),
            ("A100-40GB", "A100-80GB", None),
            ("A100-80GB", "A100-80GB", Some(0)),
            ("H100", "H200", Some(1)),
            ("H100!", "H100", Some(0)),
            ("H100!", "H200", None),
            ("H200", "H100", None),
            ("A10G", "A10", Some(0)),
            ("B200+", "B300", Some(1)),
            ("B200", "B300", None),
            ("any", "T4", Some(0)),
            ("", "H100", Some(0)),
        ];
        for (name, kind, rank) in table {
            assert_eq!(Request::new(name, 1).rank(&Kind::new(kind)), rank, "{name} by {kind}");
        }
        assert_eq!(Request::new("h100!", 2).to_string(), "H100!:2");
        assert_eq!(Request::new("ANY", 1).to_string(), "any");
    }
}
