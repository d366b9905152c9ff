//! Trees told in a few words, for the tests of this module.

mod damaged;
mod host;
mod layers;
mod trees;
mod written;

use super::*;

/// Returns a path.
fn p(text: &str) -> Path {
    Path::parse(text).unwrap()
}

/// Returns a file that holds its text.
fn file(text: &str, objects: &Memory) -> Entry {
    let (size, content) = put_content(text.as_bytes(), "a text", objects).unwrap();
    Entry::new(Kind::File { size, content }, 0o644)
}

fn link(to: &str) -> Entry {
    Entry::new(Kind::Hardlink { to: p(to) }, 0)
}

/// Builds a tree from lines: `dir/`, `file=text`, `name->target`, `name==first name`; a number after ` @` is the mode.
fn tree(lines: &str, objects: &Memory) -> Tree {
    let mut tree = Tree::new();
    for line in lines.split_whitespace() {
        put_line(&mut tree, line, objects).unwrap();
    }
    tree
}

fn put_line(tree: &mut Tree, line: &str, objects: &Memory) -> Result<Path> {
    let (path, entry) = parse(line, objects);
    tree.insert(&path, entry)
}

fn parse(line: &str, objects: &Memory) -> (Path, Entry) {
    let (line, mode) = line.split_once('@').map_or((line, None), |(line, mode)| (line, Some(mode)));
    let (path, mut entry) = if let Some((name, target)) = line.split_once("->") {
        (p(name), Entry::symlink(target))
    } else if let Some((name, to)) = line.split_once("==") {
        (p(name), link(to))
    } else if let Some((name, text)) = line.split_once('=') {
        (p(name), file(text, objects))
    } else {
        (p(line), Entry::dir())
    };
    if let Some(mode) = mode {
        entry.mode = u32::from_str_radix(mode, 8).unwrap();
    }
    (path, entry)
}

/// Writes a tree as the lines that [`tree`] reads, without the root.
fn lines(tree: &Tree, objects: &Memory) -> Vec<String> {
    let line = |(path, entry): (&Path, &Entry)| {
        let name = String::from_utf8_lossy(path.as_bytes()).into_owned();
        let mode = match (&entry.kind, entry.mode) {
            (Kind::Dir, 0o755) | (Kind::File { .. }, 0o644) | (Kind::Symlink { .. } | Kind::Hardlink { .. }, _) => String::new(),
            (_, mode) => format!("@{mode:o}"),
        };
        let rest = match &entry.kind {
            Kind::Dir => "/".into(),
            Kind::Symlink { target } => format!("->{}", String::from_utf8_lossy(target)),
            Kind::Hardlink { to } => format!("=={}", String::from_utf8_lossy(to.as_bytes())),
            Kind::File { .. } => {
                let bytes = tree.read_file(path, u64::MAX, objects).unwrap().unwrap();
                format!("={}", String::from_utf8(bytes).unwrap())
            }
            other => format!("{other:?}"),
        };
        format!("{name}{rest}{mode}")
    };
    tree.iter().skip(1).map(line).collect()
}

#[track_caller]
fn assert_tree(tree: &Tree, expected: &str, objects: &Memory) {
    assert_eq!(lines(tree, objects), expected.split_whitespace().collect::<Vec<_>>());
}
