//! Golden scripts: stories of commands and what follows from them, in text files. For tests of crates; nothing here knows them.
//!
//! A line that begins with `#` is told as it is, and `new` begins with another world. Any other line is a command; what it does stands
//! between `---` and the next empty line. `UPDATE_GOLDENFILES=1 cargo test -p CRATE` writes the answers; you read the diff.

use std::collections::BTreeMap;
use std::path::Path;

/// The words of a command: what to do, plain arguments, `key=value` arguments.
#[derive(Debug)]
pub struct Line<'a> {
    /// What to do.
    pub verb: &'a str,
    /// The words behind it that are no `key=value`.
    pub plain: Vec<&'a str>,
    keyed: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    /// Takes a line apart.
    ///
    /// # Panics
    /// If it is empty.
    pub fn parse(text: &'a str) -> Self {
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

    /// Returns the plain word at a place as a number.
    ///
    /// # Panics
    /// If there is none.
    pub fn nth(&self, place: usize) -> u128 {
        self.plain[place].parse().expect("a number")
    }

    /// Says whether a plain word is there.
    pub fn has(&self, word: &str) -> bool {
        self.plain.contains(&word)
    }

    /// Returns what stands behind `key=`.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.keyed.get(key).copied()
    }

    /// Returns the number behind `key=`.
    ///
    /// # Panics
    /// If something else stands there.
    pub fn number(&self, key: &str, default: u64) -> u64 {
        self.text(key).map_or(default, |value| value.parse().expect("a number"))
    }
}

/// Something that commands are told to.
pub trait World: Default {
    /// Does what the line says, and returns what is to be told about it, in lines.
    fn run(&mut self, line: &Line<'_>) -> Vec<String>;
}

/// Tells a story anew: its commands with what comes of each now.
pub fn tell<W: World>(story: &str) -> String {
    let (mut out, mut world, mut in_answer) = (String::new(), W::default(), false);
    for text in story.lines() {
        if text == "---" {
            in_answer = true;
            continue;
        }
        let is_told = text.is_empty() || text == "new" || text.starts_with('#');
        in_answer &= !is_told;
        if in_answer {
            continue;
        }
        out.push_str(text);
        out.push('\n');
        if text == "new" {
            world = W::default();
        }
        let told = if is_told { Vec::new() } else { world.run(&Line::parse(text)) };
        if !told.is_empty() {
            out.push_str("---\n");
            out.push_str(&told.join("\n"));
            out.push('\n');
        }
    }
    out
}

/// Holds the stories of a folder against what they tell now.
///
/// # Panics
/// If one tells something else, or there are fewer than `at_least`.
pub fn check<W: World>(dir: &Path, at_least: usize) {
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).expect("the stories") {
        hold(&entry.expect("a story").path(), tell::<W>);
        seen += 1;
    }
    assert!(seen >= at_least, "only {seen} stories were found in {}", dir.display());
}

/// Holds one story against what `tell` makes of it now, or writes that down where it is wished.
///
/// # Panics
/// If it is another one.
pub fn hold(path: &Path, tell: impl Fn(&str) -> String) {
    let story = std::fs::read_to_string(path).expect("a story");
    let told = tell(&story);
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(path, told).expect("a story is written");
    } else {
        assert_eq!(told, story, "{} tells another story; UPDATE_GOLDENFILES=1 writes it", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds numbers up.
    #[derive(Default)]
    struct Sum(u64);

    impl World for Sum {
        fn run(&mut self, line: &Line<'_>) -> Vec<String> {
            self.0 += line.number("by", 1);
            if line.has("quietly") { vec![] } else { vec![format!("{} is {}", line.verb, self.0)] }
        }
    }

    #[test]
    fn what_was_told_before_is_replaced_and_the_rest_stays() {
        let story = "# A story.\n\nadd by=3\n---\nadd is 9\nand more\n\nadd quietly\nnew\nadd\n";
        let told = "# A story.\n\nadd by=3\n---\nadd is 3\n\nadd quietly\nnew\nadd\n---\nadd is 1\n";
        assert_eq!(tell::<Sum>(story), told);
        assert_eq!(tell::<Sum>(told), told, "told again it stays");
    }
}
