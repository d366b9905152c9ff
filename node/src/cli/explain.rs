//! `shoal explain`: why something is as it is.

use std::fmt::Write as _;

use clap::Args;

use super::Common;
use super::admin::ask;
use super::lists::print_json;
use crate::admin::{ExplainWanted, Explanation};

/// The flags of `shoal explain`.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The id of a function, task, app, call, image or node, or the name an app is deployed under.
    #[arg(value_name = "ID")]
    of: String,
    /// The environment of the name.
    #[arg(long, default_value = "")]
    env: String,
    #[command(flatten)]
    common: Common,
}

impl Explain {
    /// Prints the explanation.
    pub(super) fn run(self) -> anyhow::Result<i32> {
        let wanted = ExplainWanted { of: self.of, environment: self.env };
        let told: Explanation = ask(&self.common, "POST", "/explain", &wanted)?;
        if self.common.json {
            print_json(&told)?;
        } else {
            print!("{}", text(&told, 0));
        }
        Ok(0)
    }
}

/// Writes an explanation and its parts, each part further to the right.
fn text(told: &Explanation, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    let name = if told.name.is_empty() { String::new() } else { format!("  {}", told.name) };
    let mut text = format!("{indent}{} {}{name}\n", told.kind, told.id);
    for sentence in &told.says {
        let _ = writeln!(text, "{indent}  {sentence}");
    }
    told.parts.iter().for_each(|part| text.push_str(&self::text(part, depth + 1)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_below_and_to_the_right_of_their_whole() {
        let part = Explanation {
            kind: "task".to_owned(),
            id: "ta-1".to_owned(),
            name: String::new(),
            says: vec!["is starting".to_owned()],
            parts: vec![],
        };
        let whole = Explanation {
            kind: "function".to_owned(),
            id: "fu-1".to_owned(),
            name: "f".to_owned(),
            says: vec!["1 input waits".to_owned()],
            parts: vec![part],
        };
        assert_eq!(text(&whole, 0), "function fu-1  f\n  1 input waits\n  task ta-1\n    is starting\n");
    }
}
