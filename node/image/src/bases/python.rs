//! A Python under /usr/local that runs anywhere, made from an interpreter of this machine.
//!
//! What is copied is what an installation from source has, without tests, caches and packages. Shared libraries that
//! are not the C library's go into a folder of their own beside the modules: in `/usr/local/lib` the loader would
//! prefer them over the distribution's, and the distribution's programs would break. Paths to libraries are relative,
//! so the tree works wherever it lies; prefixes in the build settings say `/usr/local`.
//!
//! It needs a C library at least as new as the machine's.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::error::{Error, FileContext, Result, blocking};
use crate::host::HostCommand;
use crate::log::BuildLog;

use super::interpreters::Interpreter;

/// Where it will lie in an image.
const PREFIX: &str = "/usr/local";

/// How long each helper program may take.
const LIMIT: Duration = Duration::from_secs(120);

/// How many files one call of a helper gets.
const FILES_AT_ONCE: usize = 32;

/// Libraries that every image with this C library has.
const C_LIBRARY: [&str; 12] = [
    "libc.so",
    "libm.so",
    "libpthread.so",
    "libdl.so",
    "librt.so",
    "libutil.so",
    "libresolv.so",
    "libanl.so",
    "libmvec.so",
    "libnss_",
    "ld-linux",
    "linux-vdso",
];

/// Folders of the standard library that stay behind.
const LEFT_OUT: [&str; 6] = ["test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"];

/// Copies an interpreter into an empty folder so that it can be put at `/usr/local` of an image.
pub(super) async fn relocate(from: &Interpreter, into: &Path, log: &dyn BuildLog) -> Result<()> {
    log.info(format!("copying Python {} of this machine", from.version));
    let copy = Copy { from: from.clone(), into: into.to_owned() };
    let name = copy.name();
    let binaries = blocking("copying an interpreter", move || copy.files()).await?;
    let copy = Copy { from: from.clone(), into: into.to_owned() };
    for group in binaries.chunks(FILES_AT_ONCE) {
        helper("strip", &["--strip-unneeded"], group).await?;
    }
    let libraries = copy.libraries(&binaries).await?;
    for (folder, path) in [
        (into.join("bin"), "$ORIGIN/../lib".to_owned()),
        (into.join("lib").join(&name).join("lib-dynload"), "$ORIGIN/../_libs:$ORIGIN/../..".to_owned()),
        (into.join("lib"), format!("$ORIGIN/{name}/_libs")),
    ] {
        let files: Vec<_> = binaries.iter().filter(|file| file.parent() == Some(&folder)).cloned().collect();
        set_rpath(&files, &path).await?;
    }
    set_rpath(&libraries, "$ORIGIN").await?;
    copy.ensurepip().await?;
    log.info(format!("Python {}: {} modules and programs, {} libraries", from.version, binaries.len(), libraries.len()));
    blocking("finishing an interpreter", move || copy.finish()).await
}

async fn set_rpath(files: &[PathBuf], path: &str) -> Result<()> {
    for group in files.chunks(FILES_AT_ONCE) {
        helper("patchelf", &["--set-rpath", path], group).await?;
    }
    Ok(())
}

async fn helper(program: &str, args: &[&str], files: &[PathBuf]) -> Result<String> {
    if files.is_empty() {
        return Ok(String::new());
    }
    let mut command = Command::new(program);
    command.args(args).args(files).env("LC_ALL", "C");
    HostCommand { what: format!("{program} of a copied Python"), command, limit: LIMIT, log: None }.run().await
}

struct Copy {
    from: Interpreter,
    into: PathBuf,
}

impl Copy {
    /// `python3.12`
    fn name(&self) -> String {
        format!("python{}", self.from.series)
    }

    /// The series without the mark of free-threaded builds.
    fn plain_series(&self) -> &str {
        self.from.series.trim_end_matches('t')
    }

    /// Copies all files and returns the ELF ones.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut binaries = Vec::new();
        self.programs(&mut binaries)?;
        let name = self.name();
        let lib = PathBuf::from("lib");
        for entry in read_dir(&self.from.prefix.join(&lib))? {
            let file = file_name(&entry);
            if file.starts_with(&format!("libpython{}", self.from.series)) || file == "libpython3.so" {
                self.tree(&lib.join(file), &mut binaries)?;
            }
        }
        self.tree(&lib.join(&name), &mut binaries)?;
        self.tree(&Path::new("include").join(&name), &mut binaries)?;
        for entry in read_dir(&self.from.prefix.join("lib/pkgconfig")).unwrap_or_default() {
            let file = file_name(&entry);
            if file.starts_with(&format!("python-{}", self.from.series)) || file.starts_with("python3") {
                self.tree(&Path::new("lib/pkgconfig").join(file), &mut binaries)?;
            }
        }
        let packages = self.into.join(&lib).join(&name).join("site-packages");
        fs::create_dir_all(&packages).file("create", &packages)?;
        Ok(binaries)
    }

    /// `bin`: what belongs to this series, and the short names for it.
    fn programs(&self, binaries: &mut Vec<PathBuf>) -> Result<()> {
        let (series, plain) = (&self.from.series, self.plain_series());
        for (file, short) in [
            (format!("python{series}"), &["python3", "python"][..]),
            (format!("python{series}-config"), &["python3-config", "python-config"]),
            (format!("pydoc{plain}"), &["pydoc3", "pydoc"]),
            (format!("idle{plain}"), &["idle3", "idle"]),
            (format!("2to3-{plain}"), &["2to3"]),
        ] {
            let relative = Path::new("bin").join(&file);
            if !self.from.prefix.join(&relative).exists() {
                continue;
            }
            self.tree(&relative, binaries)?;
            for name in short {
                let link = self.into.join("bin").join(name);
                symlink(&file, &link).file("create", &link)?;
            }
        }
        Ok(())
    }

    /// Copies a file, link or folder.
    fn tree(&self, relative: &Path, binaries: &mut Vec<PathBuf>) -> Result<()> {
        let (from, into) = (self.from.prefix.join(relative), self.into.join(relative));
        let metadata = fs::symlink_metadata(&from).file("look at", &from)?;
        if let Some(parent) = into.parent() {
            fs::create_dir_all(parent).file("create", parent)?;
        }
        if metadata.is_dir() {
            fs::create_dir_all(&into).file("create", &into)?;
            for entry in read_dir(&from)? {
                let name = file_name(&entry);
                if !self.is_left_out(&name) {
                    self.tree(&relative.join(name), binaries)?;
                }
            }
        } else if metadata.is_symlink() {
            let target = fs::read_link(&from).file("read", &from)?;
            symlink(&target, &into).file("create", &into)?;
        } else {
            fs::copy(&from, &into).file("copy", &from)?;
            let times = fs::FileTimes::new().set_modified(metadata.modified().file("look at", &from)?);
            fs::File::options().append(true).open(&into).and_then(|file| file.set_times(times)).file("date", &into)?;
            // Objects for linking are no programs.
            if is_elf(&into)? && into.extension().is_none_or(|extension| extension != "o") {
                binaries.push(into);
            }
        }
        Ok(())
    }

    fn is_left_out(&self, name: &str) -> bool {
        // The window toolkit comes with 17 of 40 libraries, and containers have no window.
        LEFT_OUT.contains(&name) || name.ends_with(".a") || name.ends_with(".pyc") || name.starts_with("_tkinter.")
    }

    /// Copies the libraries that the binaries need, and returns the copies.
    async fn libraries(&self, binaries: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let mut found: BTreeSet<PathBuf> = BTreeSet::new();
        // Where the originals find theirs: the copies know nothing yet.
        let originals: Vec<PathBuf> =
            binaries.iter().map(|file| self.from.prefix.join(file.strip_prefix(&self.into).expect("a copy is inside"))).collect();
        for group in originals.chunks(FILES_AT_ONCE) {
            let listed = helper("ldd", &[], group).await?;
            found.extend(listed.lines().filter_map(library_of).map(PathBuf::from));
        }
        let folder = self.into.join("lib").join(self.name()).join("_libs");
        fs::create_dir_all(&folder).file("create", &folder)?;
        let mut copies = Vec::new();
        for library in found {
            let name = file_name(&library);
            if name.starts_with("libpython") {
                continue;
            }
            let copy = folder.join(name);
            fs::copy(&library, &copy).file("copy", &library)?;
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).file("change", &copy)?;
            copies.push(copy);
        }
        for group in copies.chunks(FILES_AT_ONCE) {
            helper("strip", &["--strip-unneeded"], group).await?;
        }
        Ok(copies)
    }

    /// Installs the pip that the interpreter brings.
    async fn ensurepip(&self) -> Result<()> {
        let mut command = Command::new(self.into.join("bin").join(self.name()));
        command.args(["-I", "-m", "ensurepip", "--upgrade", "--default-pip"]);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent").env("LC_ALL", "C.UTF-8");
        command.env("PIP_ROOT_USER_ACTION", "ignore").env("PIP_NO_INDEX", "1");
        let what = format!("ensurepip of Python {}", self.from.version);
        HostCommand { what, command, limit: LIMIT, log: None }.run().await?;
        Ok(())
    }

    /// Removes caches and rewrites the places that name the folder it came from.
    fn finish(&self) -> Result<()> {
        remove_caches(&self.into)?;
        let bin = self.into.join("bin");
        for script in read_dir(&bin)? {
            self.rewrite(&script)?;
        }
        let lib = self.into.join("lib");
        for file in read_dir(&lib.join("pkgconfig")).unwrap_or_default() {
            self.rewrite(&file)?;
        }
        for entry in read_dir(&lib.join(self.name()))? {
            let name = file_name(&entry);
            if name.starts_with("_sysconfigdata") || name.starts_with("_sysconfig_vars") {
                self.rewrite(&entry)?;
            } else if name.starts_with("config-") {
                self.rewrite(&entry.join("Makefile"))?;
                self.rewrite(&entry.join("python-config.py"))?;
            }
        }
        Ok(())
    }

    /// Replaces both former prefixes in a text file; leaves links and binaries alone.
    fn rewrite(&self, file: &Path) -> Result<()> {
        let Ok(metadata) = fs::symlink_metadata(file) else { return Ok(()) };
        if !metadata.is_file() || is_elf(file)? {
            return Ok(());
        }
        let Ok(text) = fs::read_to_string(file) else { return Ok(()) };
        let mut changed = text.clone();
        for prefix in [&self.into, &self.from.prefix] {
            changed = changed.replace(prefix.to_string_lossy().as_ref(), PREFIX);
        }
        if changed != text {
            fs::write(file, changed).file("write", file)?;
        }
        Ok(())
    }
}

/// Reads one line of `ldd`: `libz.so.1 => /lib/libz.so.1 (0x…)`.
fn library_of(line: &str) -> Option<&str> {
    let (name, rest) = line.trim().split_once(" => ")?;
    let path = rest.split(" (").next()?.trim();
    let is_c_library = C_LIBRARY.iter().any(|known| name.starts_with(known));
    (path.starts_with('/') && !is_c_library).then_some(path)
}

fn remove_caches(folder: &Path) -> Result<()> {
    for entry in read_dir(folder)? {
        if fs::symlink_metadata(&entry).file("look at", &entry)?.is_dir() {
            match file_name(&entry).as_str() {
                "__pycache__" => fs::remove_dir_all(&entry).file("remove", &entry)?,
                _ => remove_caches(&entry)?,
            }
        }
    }
    Ok(())
}

fn is_elf(file: &Path) -> Result<bool> {
    use std::io::Read;
    let mut start = Vec::new();
    fs::File::open(file).and_then(|opened| opened.take(4).read_to_end(&mut start)).file("read", file)?;
    Ok(start == b"\x7fELF")
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The entries of a folder, sorted.
fn read_dir(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>());
    let mut entries = entries.map_err(|source| Error::File { action: "list", path: folder.to_owned(), source })?;
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bases::interpreters;
    use crate::log::MemoryLog;

    #[test]
    fn only_libraries_that_an_image_may_lack_are_copied() {
        assert_eq!(library_of("\tlibz.so.1 => /lib/x86_64/libz.so.1 (0x00)"), Some("/lib/x86_64/libz.so.1"));
        assert_eq!(library_of("\tlibc.so.6 => /lib/x86_64/libc.so.6 (0x00)"), None);
        assert_eq!(library_of("\tlinux-vdso.so.1 (0x00)"), None);
        assert_eq!(library_of("\tlibgone.so => not found"), None);
    }

    #[tokio::test]
    async fn a_copied_interpreter_runs_without_its_origin() {
        let found = interpreters::find(&[]);
        let Some(interpreter) = found.first() else {
            eprintln!("skipped: this machine has no Python under pyenv, /usr/local or uv");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let log = MemoryLog::default();
        if let Err(error) = relocate(interpreter, folder.path(), &log).await {
            match error {
                Error::NoProgram { program, .. } => {
                    eprintln!("skipped: this machine has no {program}");
                    return;
                }
                error => panic!("{}", error.full_text()),
            }
        }
        let script = "import ssl, sqlite3, lzma, sysconfig, sys; \
                      print(sys.prefix, sysconfig.get_config_var('prefix'), sysconfig.get_config_var('CONFINCLUDEPY'))";
        let mut command = std::process::Command::new(folder.path().join("bin/python3"));
        let output = command.args(["-I", "-c", script]).env_clear().output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let here = folder.path().to_string_lossy().into_owned();
        assert!(
            text.starts_with(&here) && text.trim_end().ends_with(&format!("/usr/local/include/python{}", interpreter.series)),
            "{text}"
        );
        let pip = fs::read_to_string(folder.path().join("bin/pip")).unwrap();
        assert!(pip.starts_with("#!/usr/local/bin/python"), "{pip}");
        let libs = folder.path().join("lib").join(format!("python{}", interpreter.series)).join("_libs");
        assert!(read_dir(&libs).unwrap().iter().any(|library| file_name(library).starts_with("libssl")));
    }
}
