//! The `uv` program out of its wheel: what the image of the same name holds.
//!
//! The wheel for musl contains a program without needs, so it runs on any image, an empty one included. pip fetches it
//! as it is configured on this machine; nothing of the wheel is executed here.

use std::io::Read;
use std::path::{Path as HostPath, PathBuf};
use std::time::Duration;

use shoal_storage::manifest::{Entry, Kind, Objects, Path, Tree, put_content};
use tokio::process::Command;

use crate::error::{Error, FileContext, Result, TreeContext};
use crate::host::HostCommand;
use crate::log::BuildLog;

use super::interpreters::Interpreter;
use super::reference::UvVersion;

/// How long the download may take.
const LIMIT: Duration = Duration::from_secs(5 * 60);

/// Downloads the wheel into an empty folder.
pub(super) async fn download(version: &UvVersion, interpreters: &[Interpreter], into: &HostPath, log: &dyn BuildLog) -> Result<PathBuf> {
    let requirement = match version {
        UvVersion::Latest => "uv".to_owned(),
        UvVersion::Pinned(version) => format!("uv=={version}"),
    };
    log.info(format!("fetching the wheel of {requirement}"));
    let mut command = Command::new(python_with_pip(interpreters));
    command.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]);
    command.args(["--disable-pip-version-check", "--platform", "musllinux_1_1_x86_64", "--dest"]).arg(into).arg(&requirement);
    let what = format!("pip download of {requirement}");
    HostCommand { what: what.clone(), command, limit: LIMIT, log: Some(log) }.run().await?;
    let mut files = std::fs::read_dir(into).file("list", into)?.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(|file| file.extension().is_some_and(|extension| extension == "whl")).ok_or_else(|| Error::Host {
        what,
        ended: "success, but without a wheel".to_owned(),
        tail: String::new(),
    })
}

/// An interpreter with pip; the distribution's when there is no other.
pub(super) fn python_with_pip(found: &[Interpreter]) -> PathBuf {
    let has_pip = |interpreter: &&Interpreter| {
        interpreter.prefix.join("lib").join(format!("python{}", interpreter.series)).join("site-packages/pip").is_dir()
    };
    found.iter().find(has_pip).map_or_else(|| PathBuf::from("/usr/bin/python3"), Interpreter::program)
}

/// Takes the programs out of the wheel.
pub(super) fn programs(wheel: &HostPath, objects: &impl Objects) -> Result<Tree> {
    let failed = |why: String| Error::NotAnImage { reference: wheel.display().to_string(), why };
    let file = std::fs::File::open(wheel).file("read", wheel)?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| failed(format!("is no wheel: {error}")))?;
    let mut tree = Tree::new();
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).map_err(|error| failed(format!("is torn: {error}")))?;
        let name = match member.name().split_once(".data/scripts/") {
            Some((_, name)) if !name.is_empty() && !name.contains('/') => name.to_owned(),
            _ => continue,
        };
        let what = format!("{name} of {}", wheel.display());
        let (size, content) = put_content(&mut member as &mut dyn Read, &what, objects).tree(what.clone())?;
        let path = Path::parse(name.as_bytes()).expect("a plain name is a path");
        tree.insert(&path, Entry::new(Kind::File { size, content }, 0o755)).tree(what)?;
    }
    match tree.get(&Path::parse("uv").expect("a plain name is a path")) {
        Some(_) => Ok(tree),
        None => Err(failed("holds no program uv".to_owned())),
    }
}
