//! Python interpreters that this machine has, as raw material for bases.

use std::path::{Path, PathBuf};

/// An installation that can be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// The folder above `bin` and `lib`.
    pub prefix: PathBuf,
    /// For example `3.12`, or `3.14t`.
    pub series: String,
    /// For example `3.12.1`.
    pub version: String,
}

impl Interpreter {
    /// The program.
    pub fn program(&self) -> PathBuf {
        self.prefix.join("bin").join(format!("python{}", self.series))
    }

    fn numbers(&self) -> Vec<u32> {
        self.version.split('.').map(|number| number.parse().unwrap_or(0)).collect()
    }
}

/// Finds what there is, newest first within each series.
///
/// Looked for in this order: folders of the configuration, pyenv, `/usr/local`, uv. The distribution's own interpreter
/// is not among them: its packages lie elsewhere and pip refuses to touch them.
pub fn find(configured: &[PathBuf]) -> Vec<Interpreter> {
    let mut found: Vec<Interpreter> = Vec::new();
    for prefix in prefixes(configured) {
        for interpreter in at(&prefix) {
            if !found.iter().any(|known| known.prefix == interpreter.prefix && known.series == interpreter.series) {
                found.push(interpreter);
            }
        }
    }
    found.sort_by_key(|interpreter| std::cmp::Reverse(interpreter.numbers()));
    found
}

/// Chooses the interpreter of a series: the exact version if it is there, the newest otherwise.
pub fn choose<'a>(found: &'a [Interpreter], series: &str, exact: Option<&str>) -> Option<&'a Interpreter> {
    let mut of_series = found.iter().filter(|interpreter| interpreter.series == series);
    let exact = of_series.clone().find(|interpreter| exact == Some(interpreter.version.as_str()));
    exact.or_else(|| of_series.next())
}

/// Folders that may hold `bin/pythonX.Y`.
fn prefixes(configured: &[PathBuf]) -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let pyenv = std::env::var_os("PYENV_ROOT").map_or_else(|| home.join(".pyenv"), PathBuf::from);
    let uv = std::env::var_os("UV_PYTHON_INSTALL_DIR").map_or_else(|| home.join(".local/share/uv/python"), PathBuf::from);
    let mut prefixes = Vec::new();
    for folder in configured {
        prefixes.push(folder.clone());
        prefixes.extend(folders_in(folder));
    }
    prefixes.extend(folders_in(&pyenv.join("versions")));
    prefixes.push(PathBuf::from("/usr/local"));
    prefixes.extend(folders_in(&uv));
    prefixes
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut folders: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

/// The interpreters of one prefix. The version is that of `patchlevel.h`, so that nothing has to be run.
fn at(prefix: &Path) -> Vec<Interpreter> {
    let Ok(prefix) = prefix.canonicalize() else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(prefix.join("bin")) else { return Vec::new() };
    let mut found = Vec::new();
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let Some(series) = name.strip_prefix("python").filter(|series| is_series(series)) else { continue };
        // A virtual environment has a program and no library.
        let Some(version) = version_of(&prefix.join("include").join(&name).join("patchlevel.h")) else { continue };
        if prefix.join("lib").join(&name).join("os.py").is_file() {
            found.push(Interpreter { prefix: prefix.clone(), series: series.to_owned(), version });
        }
    }
    found
}

fn is_series(text: &str) -> bool {
    let text = text.strip_suffix('t').unwrap_or(text);
    let is_number = |number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('.').is_some_and(|(major, minor)| major == "3" && is_number(minor))
}

fn version_of(header: &Path) -> Option<String> {
    let text = std::fs::read_to_string(header).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("#define PY_VERSION"))?;
    let version = line.trim().trim_matches('"').trim_end_matches('+');
    Some(version.split(|c: char| !(c.is_ascii_digit() || c == '.')).next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(root: &Path, name: &str, series: &str, version: &str) {
        let prefix = root.join(name);
        for folder in ["bin".to_owned(), format!("include/python{series}"), format!("lib/python{series}")] {
            std::fs::create_dir_all(prefix.join(folder)).unwrap();
        }
        std::fs::write(prefix.join(format!("bin/python{series}")), "").unwrap();
        std::fs::write(prefix.join(format!("lib/python{series}/os.py")), "").unwrap();
        let header = format!("#define PY_MICRO_VERSION 1\n#define PY_VERSION      \t\"{version}\"\n");
        std::fs::write(prefix.join(format!("include/python{series}/patchlevel.h")), header).unwrap();
    }

    #[test]
    fn the_exact_version_wins_and_the_newest_stands_in() {
        let root = tempfile::tempdir().unwrap();
        for (name, series, version) in
            [("a", "3.11", "3.11.9"), ("b", "3.11", "3.11.10"), ("c", "3.11", "3.11.2"), ("d", "3.14t", "3.14.0+")]
        {
            install(root.path(), name, series, version);
        }
        let found = find(&[root.path().to_owned()]);
        let version = |series: &str, exact| choose(&found, series, exact).map(|it| it.version.clone());
        assert_eq!(version("3.14t", None).as_deref(), Some("3.14.0"));
        assert_eq!(version("3.11", Some("3.11.2")).as_deref(), Some("3.11.2"));
        let here: Vec<_> = found.iter().filter(|it| it.prefix.starts_with(root.path().canonicalize().unwrap())).collect();
        assert_eq!(
            here.iter().filter(|it| it.series == "3.11").map(|it| it.version.as_str()).collect::<Vec<_>>(),
            ["3.11.10", "3.11.9", "3.11.2"]
        );
        assert_eq!(version("3.1", None), None);
    }
}
