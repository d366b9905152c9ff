//! Golden scripts: stories of commands and what follows from them, in text files.
//!
//! A line that begins with `#` is told as it is. Any other line is a command; what it does stands between `---` and the next empty line.
//! `UPDATE_GOLDENFILES=1 cargo test -p shoal-calls` writes the answers; you read the diff.

use std::collections::BTreeMap;
use std::path::Path;

/// The words of a command.
pub(crate) struct Line<'a> {
    pub(crate) verb: &'a str,
    pub(crate) plain: Vec<&'a str>,
    keyed: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Self {
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

    pub(crate) fn text(&self, key: &str) -> Option<&'a str> {
        self.keyed.get(key).copied()
    }

    pub(crate) fn number(&self, key: &str, default: u64) -> u64 {
        self.text(key).map_or(default, |value| value.parse().expect("a number"))
    }

    pub(crate) fn has(&self, word: &str) -> bool {
        self.plain.contains(&word)
    }
}

/// Something that commands are told to.
pub(crate) trait World: Default {
    /// Does what the line says, and returns what is to be told about it, in lines.
    fn run(&mut self, line: &Line<'_>) -> Vec<String>;
}

fn tell<W: World>(story: &str) -> String {
    let mut out = String::new();
    let mut world = W::default();
    let mut in_answer = false;
    for text in story.lines() {
        match text {
            "" => {
                in_answer = false;
                out.push('\n');
            }
            "new" => {
                world = W::default();
                out.push_str("new\n");
            }
            _ if text.starts_with('#') => {
                out.push_str(text);
                out.push('\n');
            }
            "---" => in_answer = true,
            _ if in_answer => {}
            _ => {
                let told = world.run(&Line::parse(text));
                out.push_str(text);
                out.push('\n');
                if !told.is_empty() {
                    out.push_str("---\n");
                    out.push_str(&told.join("\n"));
                    out.push('\n');
                }
            }
        }
    }
    out
}

/// Tells all stories of a folder below `tests/golden`.
pub(crate) fn check<W: World>(folder: &str, at_least: usize) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let mut seen = 0;
    for entry in std::fs::read_dir(&dir).expect("the stories") {
        let path = entry.expect("a story").path();
        let story = std::fs::read_to_string(&path).expect("a story");
        let told = tell::<W>(&story);
        seen += 1;
        if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
            std::fs::write(&path, told).expect("a story is written");
        } else {
            assert_eq!(told, story, "{} tells another story; UPDATE_GOLDENFILES=1 writes it", path.display());
        }
    }
    assert!(seen >= at_least, "only {seen} stories were found in {}", dir.display());
}
