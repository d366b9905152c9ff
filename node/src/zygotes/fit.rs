//! Whether a container may go on from a snapshot, or would notice: pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_storage::manifest::Path;

/// What a zygote says of itself before it waits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Loaded {
    /// The top-level names of the modules that it has loaded from files.
    pub(crate) modules: BTreeSet<String>,
    /// Where Python looks for modules, without the working directory.
    pub(crate) path: Vec<String>,
    /// The variables that were looked at while the modules were loaded.
    pub(crate) variables: BTreeSet<String>,
}

/// What C libraries and the interpreter itself read when they start, by how the names begin.
const READ_AT_START: [&str; 8] = ["PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "LANG", "OPENSSL_", "NLSPATH"];
/// What the interpreter runs when it starts, wherever it finds it.
const RUN_AT_START: [&str; 2] = ["sitecustomize", "usercustomize"];

/// A container as far as it matters here.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// The environment of the zygote.
    pub(crate) zygote: &'a [(String, String)],
    /// The environment of the container's program.
    pub(crate) env: &'a [(String, String)],
    /// The working directory, the first place where Python looks for modules.
    pub(crate) cwd: &'a str,
    /// The files that the container's root has beyond the image and the client.
    pub(crate) added: &'a [Path],
}

/// Says why a container cannot go on from a zygote; `Ok` when its program could not tell.
pub(crate) fn fits(loaded: &Loaded, wanted: &Wanted<'_>) -> Result<(), String> {
    if let Some(name) = changed_variable(loaded, wanted) {
        return Err(format!("its {name} differs from the image's, and Python has read that when it started"));
    }
    let places: Vec<Path> = loaded
        .path
        .iter()
        .map(String::as_str)
        .chain([wanted.cwd])
        .filter_map(|place| Path::parse(place.trim_start_matches('/')).ok())
        .collect();
    for file in wanted.added {
        if places.iter().any(|place| is_loaded(loaded, place, file)) {
            return Err(format!("/{file} takes the place of what has been loaded"));
        }
    }
    Ok(())
}

fn changed_variable<'a>(loaded: &Loaded, wanted: &Wanted<'a>) -> Option<&'a str> {
    let map = |env: &'a [(String, String)]| env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect::<BTreeMap<_, _>>();
    let (then, now) = (map(wanted.zygote), map(wanted.env));
    let was_read = |name: &str| loaded.variables.contains(name) || READ_AT_START.iter().any(|start| name.starts_with(start));
    let names: BTreeSet<&str> = then.keys().chain(now.keys()).copied().collect();
    names.into_iter().find(|name| was_read(name) && then.get(name) != now.get(name))
}

/// Whether an import of something loaded, or the start of Python, would find this file, looking in this place.
fn is_loaded(loaded: &Loaded, place: &Path, file: &Path) -> bool {
    let mut names = file.names();
    if !place.names().all(|name| names.next() == Some(name)) {
        return false;
    }
    let Some(top) = names.next() else { return false };
    let top = String::from_utf8_lossy(top);
    let stem = top.split('.').next().unwrap_or_default();
    loaded.modules.contains(stem) || RUN_AT_START.contains(&stem) || top.ends_with(".pth") || top == ".modal.toml"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded() -> Loaded {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let path = ["/root", "/pkg", "/usr/lib/python3.12"].map(str::to_owned).to_vec();
        Loaded { modules: set(&["modal", "asyncio", "grpclib"]), path, variables: set(&["MODAL_LOGLEVEL", "HOME"]) }
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn check(zygote: &[(&str, &str)], now: &[(&str, &str)], added: &[&str]) -> Result<(), String> {
        let added: Vec<Path> = added.iter().map(|path| Path::parse(path).unwrap()).collect();
        fits(&loaded(), &Wanted { zygote: &env(zygote), env: &env(now), cwd: "/work", added: &added })
    }

    #[test]
    fn variables_that_nobody_has_read_may_differ() {
        assert_eq!(check(&[("A", "1")], &[("A", "2"), ("MY_SECRET", "x"), ("MODAL_TASK_ID", "ta-1")], &[]), Ok(()));
    }

    #[test]
    fn variables_that_were_read_must_be_the_same() {
        for name in ["HOME", "MODAL_LOGLEVEL", "PYTHONHASHSEED", "LD_PRELOAD", "LANG", "LC_ALL"] {
            for (then, now) in [(&[][..], &[(name, "x")][..]), (&[(name, "x")], &[]), (&[(name, "x")], &[(name, "y")])] {
                assert!(check(then, now, &[]).unwrap_err().contains(name));
            }
            assert_eq!(check(&[(name, "x")], &[(name, "x")], &[]), Ok(()));
        }
    }

    #[test]
    fn ordinary_files_fit() {
        assert_eq!(check(&[], &[], &["root/hello.py", "root/pkg/modal.py", "data/asyncio.py", "root/data.bin"]), Ok(()));
    }

    #[test]
    fn files_that_python_would_find_first_or_run_do_not() {
        for file in [
            "root/asyncio.py",
            "root/modal/__init__.py",
            "work/grpclib.cpython-312-x86_64-linux-gnu.so",
            "usr/lib/python3.12/asyncio/events.py",
            "usr/lib/python3.12/more.pth",
            "root/sitecustomize.py",
            "root/.modal.toml",
        ] {
            assert!(check(&[], &[], &[file]).unwrap_err().contains(file), "{file}");
        }
    }
}
