//! COPY and ADD as trees: what a source selects, and where it goes. Pure.

use shoal_storage::manifest::{Entry, Kind, Path, Tree};

use crate::recipe::TransferStep;

/// What one source stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selected {
    /// Where it lies in the source tree.
    pub(super) path: Path,
    /// The part of the source tree.
    pub(super) tree: Tree,
    /// The source was given as a pattern.
    pub(super) from_pattern: bool,
}

/// Why nothing could be selected or placed; for the user.
pub(super) type Problem = String;

/// Returns the parts of a tree that the sources name, in order.
///
/// Symbolic links on the way and at the end are followed inside the tree.
pub(super) fn select(step: &TransferStep, sources: &[String], from: &Tree, what: &str) -> Result<Vec<Selected>, Problem> {
    let mut selected = Vec::new();
    for source in sources {
        let found = paths(from, source).map_err(|error| format!("{source:?} in {what}: {error}"))?;
        if found.is_empty() {
            return Err(format!("{source:?} is not in {what}{}", nearby(from, source)));
        }
        let from_pattern = is_pattern(source);
        for path in found {
            let real = from.follow(&path).map_err(|error| error.to_string())?;
            let mut tree = from.subtree(&real).map_err(|_| format!("{source:?} in {what} is a link to nothing"))?;
            exclude(&mut tree, &path, &step.exclude)?;
            selected.push(Selected { path, tree, from_pattern });
        }
    }
    Ok(selected)
}

/// What there is beside a missing source, for the message.
fn nearby(from: &Tree, source: &str) -> String {
    let path = Path::parse(source).unwrap_or_default();
    let folder = path.parent().unwrap_or_default();
    let names: Vec<String> =
        from.children(&folder).take(8).filter_map(|(path, _)| Some(String::from_utf8_lossy(path.name()?).into_owned())).collect();
    match names.is_empty() {
        true => " (nothing is in its folder)".to_owned(),
        false => format!(" (its folder has {})", names.join(", ")),
    }
}

fn is_pattern(source: &str) -> bool {
    source.contains(['*', '?', '['])
}

/// Returns what a source names, sorted.
fn paths(from: &Tree, source: &str) -> Result<Vec<Path>, String> {
    let cleaned = crate::recipe::absolute("/", source);
    let exact = Path::parse(&cleaned).map_err(|error| error.to_string())?;
    let located = from.locate(&exact).map_err(|error| error.to_string())?;
    if from.get(&located).is_some() || !is_pattern(source) {
        return Ok(from.get(&located).map(|_| exact).into_iter().collect());
    }
    let mut found = vec![Path::root()];
    for component in cleaned.split('/').filter(|component| !component.is_empty()) {
        let mut next = Vec::new();
        for folder in found {
            let real = from.follow(&folder).map_err(|error| error.to_string())?;
            let names = from.children(&real).filter_map(|(child, _)| child.name());
            next.extend(names.filter(|name| matches(component.as_bytes(), name)).map(|name| folder.join(name)));
        }
        found = next;
    }
    Ok(found)
}

/// Matches one component: `*`, `?`, `[a-z]`, `[^a]` and `\` before a literal character.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'*', rest @ ..] => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
        [b'?', rest @ ..] => !name.is_empty() && matches(rest, &name[1..]),
        [b'[', rest @ ..] => match (class(rest), name) {
            (Some((class, rest)), [first, tail @ ..]) => class.has(*first) && matches(rest, tail),
            _ => false,
        },
        [b'\\', literal, rest @ ..] | [literal, rest @ ..] => name.first() == Some(literal) && matches(rest, &name[1..]),
    }
}

struct Class {
    negated: bool,
    ranges: Vec<(u8, u8)>,
}

impl Class {
    fn has(&self, byte: u8) -> bool {
        self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte)) != self.negated
    }
}

/// Reads a class behind its opening bracket, and returns what follows it.
fn class(text: &[u8]) -> Option<(Class, &[u8])> {
    let (negated, mut text) = match text {
        [b'^' | b'!', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let mut ranges = Vec::new();
    loop {
        match text {
            [b']', rest @ ..] if !ranges.is_empty() => return Some((Class { negated, ranges }, rest)),
            [low, b'-', high, rest @ ..] if *high != b']' => {
                ranges.push((*low, *high));
                text = rest;
            }
            [byte, rest @ ..] => {
                ranges.push((*byte, *byte));
                text = rest;
            }
            [] => return None,
        }
    }
}

/// Takes out what `--exclude` names; patterns are relative to the source tree and may use `**`.
fn exclude(tree: &mut Tree, at: &Path, patterns: &[String]) -> Result<(), Problem> {
    if patterns.is_empty() {
        return Ok(());
    }
    let excluded = |path: &Path| {
        let whole = at.join_path(path);
        let names: Vec<&[u8]> = whole.names().collect();
        patterns.iter().any(|pattern| {
            let parts: Vec<&[u8]> = pattern.trim_matches('/').split('/').map(str::as_bytes).collect();
            matches_path(&parts, &names)
        })
    };
    let gone: Vec<Path> = tree.iter().filter(|(path, _)| !path.is_root() && excluded(path)).map(|(path, _)| path.clone()).collect();
    for path in gone {
        tree.remove(&path).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn matches_path(pattern: &[&[u8]], names: &[&[u8]]) -> bool {
    match pattern {
        [] => names.is_empty(),
        [b"**", rest @ ..] => (0..=names.len()).any(|skip| matches_path(rest, &names[skip..])),
        [first, rest @ ..] => names.first().is_some_and(|name| matches(first, name)) && matches_path(rest, &names[1..]),
    }
}

/// Who owns what is copied, and with which mode.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attributes {
    /// All of it, or as in the source.
    pub(super) owner: Option<(u32, u32)>,
    /// All of it, or as in the source.
    pub(super) mode: Option<u32>,
}

/// Puts what was selected into a tree.
pub(super) fn place(into: &mut Tree, step: &TransferStep, selected: Vec<Selected>, attributes: Attributes) -> Result<(), Problem> {
    let target = Target::of(into, &step.destination, selected.len() > 1 || selected.iter().any(|it| it.from_pattern))?;
    for Selected { path, mut tree, .. } in selected {
        tree.edit(|_, entry| {
            if let Some((uid, gid)) = attributes.owner {
                (*entry.uid, *entry.gid) = (uid, gid);
            }
            if let Some(mode) = attributes.mode {
                *entry.mode = mode;
            }
        });
        let at = target.place_of(&path, tree.root().is_dir(), step.parents)?;
        into.graft(&at, &tree).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Where things go.
struct Target {
    path: Path,
    is_folder: bool,
}

impl Target {
    /// A destination is a folder when it says so, when there is one, or when several things go there.
    fn of(into: &Tree, destination: &str, several: bool) -> Result<Target, Problem> {
        let path = Path::parse(destination.trim_end_matches('/')).map_err(|error| error.to_string())?;
        let real = into.follow(&path).map_err(|error| error.to_string())?;
        let is_there = into.get(&real).is_some_and(Entry::is_dir);
        if several && !destination.ends_with('/') && into.get(&real).is_some_and(|entry| matches!(entry.kind, Kind::File { .. })) {
            return Err(format!("several sources need a folder, and {destination} is a file"));
        }
        let is_folder = destination.ends_with('/') || several || is_there;
        Ok(Target { path: if is_there { real } else { path }, is_folder })
    }

    fn place_of(&self, source: &Path, is_dir: bool, parents: bool) -> Result<Path, Problem> {
        match (parents, is_dir) {
            (true, _) => Ok(self.path.join_path(source)),
            // The contents of a folder go into the destination, not the folder.
            (false, true) => Ok(self.path.clone()),
            (false, false) if self.is_folder => Ok(self.path.join(source.name().ok_or("a file has no name")?)),
            (false, false) if self.path.is_root() => Err("a file cannot take the place of /".to_owned()),
            (false, false) => Ok(self.path.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_storage::manifest::{Memory, put_content};

    fn file(text: &str) -> Entry {
        let (size, content) = put_content(text.as_bytes(), "a test", &Memory::default()).unwrap();
        Entry { uid: 7, ..Entry::new(Kind::File { size, content }, 0o640) }
    }

    fn tree(names: &[&str]) -> Tree {
        let mut tree = Tree::new();
        for name in names {
            match name.split_once(" -> ") {
                Some((name, target)) => tree.insert(&Path::parse(name).unwrap(), Entry::symlink(target)).unwrap(),
                None if name.ends_with('/') => tree.insert(&Path::parse(name.trim_end_matches('/')).unwrap(), Entry::dir()).unwrap(),
                None => tree.insert(&Path::parse(name).unwrap(), file(name)).unwrap(),
            };
        }
        tree
    }

    fn step(sources: &[&str], destination: &str) -> TransferStep {
        TransferStep {
            is_add: false,
            from: None,
            sources: sources.iter().map(|source| (*source).to_owned()).collect(),
            inline: vec![],
            destination: destination.to_owned(),
            chown: None,
            chmod: None,
            parents: false,
            exclude: vec![],
            checksum: None,
            unpack: None,
        }
    }

    fn run(step: &TransferStep, from: &Tree, into: &Tree) -> Result<Vec<String>, Problem> {
        let selected = select(step, &step.sources, from, "the context")?;
        let mut into = into.clone();
        place(&mut into, step, selected, Attributes::default())?;
        Ok(into.iter().filter(|(_, entry)| !entry.is_dir()).map(|(path, _)| path.to_string()).collect())
    }

    #[test]
    fn where_things_go() {
        let from = tree(&["a.txt", "b.txt", "d/x", "d/e/y", "link -> d", "fl -> a.txt"]);
        let into = tree(&["there/", "file", "lib -> usr/lib", "usr/lib/"]);
        let kept = ["/file", "/lib"];
        for (sources, destination, expected) in [
            (&["a.txt"][..], "/new", &["/new"][..]),
            (&["a.txt"], "/new/", &["/new/a.txt"]),
            (&["/a.txt"], "/there", &["/there/a.txt"]),
            (&["a.txt", "b.txt"], "/new", &["/new/a.txt", "/new/b.txt"]),
            (&["*.txt"], "/new", &["/new/a.txt", "/new/b.txt"]),
            (&["[a]*"], "/new", &["/new/a.txt"]),
            (&["d"], "/new", &["/new/e/y", "/new/x"]),
            (&["d/."], "/there/", &["/there/e/y", "/there/x"]),
            (&["link"], "/new", &["/new/e/y", "/new/x"]),
            (&["fl"], "/new", &["/new"]),
            (&["d/*"], "/new/", &["/new/x", "/new/y"]),
            (&["a.txt"], "/lib", &["/usr/lib/a.txt"]),
            (&["a.txt"], "/lib/z", &["/usr/lib/z"]),
            (&["a.txt"], "/file", &[]),
        ] {
            let mut found = run(&step(sources, destination), &from, &into).unwrap();
            found.retain(|name| !kept.contains(&name.as_str()));
            assert_eq!(found, expected, "{sources:?} to {destination}");
        }
        let everything = run(&step(&["."], "/"), &from, &Tree::new()).unwrap();
        assert_eq!(everything, ["/a.txt", "/b.txt", "/d/e/y", "/d/x", "/fl", "/link"]);
    }

    #[test]
    fn what_is_missing_is_named_with_its_neighbours() {
        let from = tree(&["d/x", "d/y"]);
        let error = run(&step(&["d/z"], "/"), &from, &Tree::new()).unwrap_err();
        assert_eq!(error, "\"d/z\" is not in the context (its folder has x, y)");
        assert!(run(&step(&["../../etc/*"], "/"), &from, &Tree::new()).is_err());
        let error = run(&step(&["d/x", "d/y"], "/file"), &from, &tree(&["file"])).unwrap_err();
        assert_eq!(error, "several sources need a folder, and /file is a file");
    }

    #[test]
    fn parents_and_exclusions() {
        let from = tree(&["src/a.py", "src/t/b.py", "src/t/b.pyc"]);
        let mut with_parents = step(&["src/t/b.py"], "/new/");
        with_parents.parents = true;
        assert_eq!(run(&with_parents, &from, &Tree::new()).unwrap(), ["/new/src/t/b.py"]);
        let mut without = step(&["src"], "/new");
        without.exclude = vec!["**/*.pyc".to_owned(), "src/a.*".to_owned()];
        assert_eq!(run(&without, &from, &Tree::new()).unwrap(), ["/new/t/b.py"]);
    }

    #[test]
    fn owners_and_modes() {
        let from = tree(&["d/x"]);
        let mut into = Tree::new();
        let step = step(&["d"], "/new");
        let selected = select(&step, &step.sources, &from, "the context").unwrap();
        place(&mut into, &step, selected, Attributes { owner: Some((1, 2)), mode: Some(0o700) }).unwrap();
        let entry = into.get(&Path::parse("new/x").unwrap()).unwrap();
        assert_eq!((entry.uid, entry.gid, entry.mode), (1, 2, 0o700));
        assert_eq!(into.root().uid, 0);
    }
}
