//! The client inside containers: its package at `/pkg` and what it needs at `/__modal/deps`.
//!
//! One tree serves all images with the same client version, interpreter interface and C library. It is put over an image
//! when a container starts and never becomes part of one. Modules come compiled, with hashes that are not checked: files of
//! trees have no times that mean anything, and a container then starts a second earlier.
//!
//! It is made of two parts, each fetched once: the client's packages by version, and the dependencies by interpreter. pip
//! fetches them in a build container of the image in question, never on the host; an image without pip is helped out by a
//! Python image of ours. Then the image's own interpreter compiles both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_runtime::{Bind, NetworkMode, User};
use shoal_state::Digest;
use shoal_storage::manifest::{Entry, Kind, Path, Tree, put_content};

use crate::bases::{Base, Credentials, ImageReference, path, write_tree};
use crate::cache::LayerRecord;
use crate::config::{DEFAULT_PATH, ImageConfig};
use crate::error::{Error, FileContext, Result, TreeContext};
use crate::key::KeyBuilder;
use crate::log::{BuildLog, Tail};

use super::sandbox::{Ended, Equipment, Exec, Sandbox};
use super::{Builder, Inner};

/// The program that fetches and compiles.
const GATHER: &str = include_str!("client_gather.py");
/// What puts the dependencies on the path.
const SITECUSTOMIZE: &str = include_str!("client_sitecustomize.py");
/// Where the program works.
const WORK: &str = "__build";
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(600);
/// The image that helps out where pip is missing.
const HELPER: &str = "python:3.12-slim-bookworm";
/// What the program says with its exit code when there is no pip.
const NO_PIP: &str = "exit code 3";

/// What decides which client tree an image needs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientWanted {
    /// The client's version, for example `1.6.4`.
    pub version: String,
    /// The interpreter's binary interface, for example `cp312` or `cp314t`.
    pub abi: String,
    /// Whether the image's C library is musl; otherwise it is glibc.
    pub musl: bool,
    /// The interpreter's path in the image.
    pub python: String,
}

impl ClientWanted {
    fn libc(&self) -> &'static str {
        if self.musl { "musl" } else { "glibc" }
    }

    fn key(&self, part: &str) -> KeyBuilder {
        KeyBuilder::new("client tree 1").text("part", part).text("program", GATHER)
    }

    fn client_key(&self) -> Digest {
        self.key("client").text("version", &self.version).finish()
    }

    fn deps_key(&self) -> Digest {
        self.key("deps").text("abi", &self.abi).text("libc", self.libc()).finish()
    }

    fn whole_key(&self) -> Digest {
        let key = self.key("whole").text("path", SITECUSTOMIZE);
        key.text("version", &self.version).text("abi", &self.abi).text("libc", self.libc()).finish()
    }
}

impl Builder {
    /// Returns the tree of the client for an image, made by the first image of its kind.
    ///
    /// The tree has `/pkg`, `/__modal/deps` and the empty folder `/__shoal`.
    pub async fn client_tree(&self, wanted: &ClientWanted, image: &LayerRecord, log: &dyn BuildLog) -> Result<Digest> {
        let inner = &self.0;
        let key = wanted.whole_key();
        let _lock = inner.client_locks.lock(key).await;
        if let Some(record) = inner.lookup(key).await? {
            return Ok(record.manifest);
        }
        log.info(format!("gathering the client {} for {} ({})", wanted.version, wanted.abi, wanted.libc()));
        let gathering = Gathering { inner, wanted, log, deadline: Instant::now() + LIMIT };
        let tree = gathering.whole(image).await?;
        let manifest = write_tree(&inner.store, tree, "the client").await?;
        inner.remember(key, LayerRecord { manifest, config: ImageConfig::default() }).await?;
        Ok(manifest)
    }
}

struct Gathering<'a> {
    inner: &'a Arc<Inner>,
    wanted: &'a ClientWanted,
    log: &'a dyn BuildLog,
    deadline: Instant,
}

impl Gathering<'_> {
    async fn whole(&self, image: &LayerRecord) -> Result<Tree> {
        let wanted = self.wanted;
        let own = ["client", &wanted.version];
        let client = self.part(wanted.client_key(), "pkg", image, &own, &own).await?;
        let deps = self.part(wanted.deps_key(), "deps", image, &["deps"], &["deps", &wanted.abi, wanted.libc()]).await?;
        let mut ready = Tree::clone(&*self.inner.read_tree(image.manifest).await?);
        ready.graft(&path(WORK).join(b"pkg"), &client).tree("the client")?;
        ready.graft(&path(WORK).join(b"deps"), &deps).tree("the client")?;
        let compiled = match self.run(ready, &image.config, &wanted.python, &["compile"]).await? {
            (Ended::Well, tree, _) => tree,
            (ended, _, tail) => return Err(failed("compiling the client", ended, tail)),
        };
        self.assemble(&compiled)
    }

    /// Returns a part from the cache, or fetches it: in the image itself, or with a helper that has pip.
    async fn part(&self, key: Digest, name: &str, image: &LayerRecord, own: &[&str], foreign: &[&str]) -> Result<Tree> {
        let _lock = self.inner.client_locks.lock(key).await;
        if let Some(record) = self.inner.lookup(key).await? {
            return Ok(Tree::clone(&*self.inner.read_tree(record.manifest).await?));
        }
        let base = Tree::clone(&*self.inner.read_tree(image.manifest).await?);
        let mut outcome = self.run(base, &image.config, &self.wanted.python, own).await?;
        if outcome.0 == Ended::Badly(NO_PIP.to_owned()) {
            self.log.info(format!("the image has no pip: {HELPER} helps out"));
            let helper = self.helper().await?;
            let base = Tree::clone(&*self.inner.read_tree(helper.manifest).await?);
            outcome = self.run(base, &helper.config, "/usr/local/bin/python3", foreign).await?;
        }
        let tree = match outcome {
            (Ended::Well, tree, _) => tree,
            (ended, _, tail) => return Err(failed("fetching the client", ended, tail)),
        };
        let part = tree.subtree(&path(WORK).join(name.as_bytes())).tree("the client")?;
        let manifest = write_tree(&self.inner.store, part.clone(), "the client").await?;
        self.inner.remember(key, LayerRecord { manifest, config: ImageConfig::default() }).await?;
        Ok(part)
    }

    async fn helper(&self) -> Result<LayerRecord> {
        let reference = ImageReference::parse(HELPER)?;
        match self.inner.bases.resolve(&reference, &Credentials::Anonymous, self.log).await? {
            Base::Ready(record) => Ok(*record),
            Base::Recipe(_) => Err(Error::NotAnImage { reference: HELPER.to_owned(), why: "would have to be built first".to_owned() }),
        }
    }

    /// Runs the program on a tree and returns the tree as it leaves it.
    async fn run(&self, base: Tree, config: &ImageConfig, python: &str, arguments: &[&str]) -> Result<(Ended, Tree, String)> {
        let folder = self.inner.folder()?;
        let file = folder.path().join("gather.py");
        std::fs::write(&file, GATHER).file("write", &file)?;
        let bind = Bind { source: folder.path().to_owned(), target: "/__gather".to_owned(), read_only: true };
        let network = if self.inner.config.network { NetworkMode::Nat } else { NetworkMode::None };
        let equipment = Equipment { network, binds: vec![bind], ..Equipment::default() };
        let base = Arc::new(base);
        let (inner, containers) = (self.inner, self.inner.containers()?);
        let mut sandbox = Sandbox::start(containers, &inner.work_dir, &inner.config, base.clone(), equipment).await?;
        let argv = [python, "-I", "/__gather/gather.py"].into_iter().chain(arguments.iter().copied());
        let exec = Exec {
            argv: argv.map(str::to_owned).collect(),
            env: self.env(config),
            cwd: "/".to_owned(),
            user: User::default(),
            script: None,
        };
        let mut tail = Tail::default();
        let ended = sandbox.run(&exec, self.deadline, self.log, &mut tail).await;
        let tree = match &ended {
            Ok(Ended::Well) => sandbox.tree(&inner.store).await,
            _ => Ok(Tree::new()),
        };
        sandbox.close().await;
        Ok((ended?, tree?, tail.text()))
    }

    /// What the image's interpreter needs to start, without what would change pip or Python.
    fn env(&self, config: &ImageConfig) -> BTreeMap<String, String> {
        let mut env = self.inner.config.egress.env();
        let harmless = |name: &&String| !name.starts_with("PIP_") && !name.starts_with("PYTHON") && !name.starts_with("UV_");
        let own = config.env.iter().filter(|(name, _)| harmless(name));
        env.extend(own.map(|(name, value)| (name.clone(), value.clone())));
        env.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
        env.insert("HOME".to_owned(), "/root".to_owned());
        env.insert("PIP_ROOT_USER_ACTION".to_owned(), "ignore".to_owned());
        env
    }

    /// Puts the parts where containers look for them.
    fn assemble(&self, compiled: &Tree) -> Result<Tree> {
        let what = || "the client".to_owned();
        let (mut tree, work) = (Tree::new(), path(WORK));
        for (part, place) in [("pkg", "pkg"), ("deps", "__modal/deps")] {
            let part = compiled.subtree(&work.join(part.as_bytes())).tree(what())?;
            tree.graft(&path(place), &part).tree(what())?;
        }
        let (size, content) = put_content(SITECUSTOMIZE.as_bytes(), "sitecustomize.py", &self.inner.store).tree(what())?;
        tree.insert(&path("pkg/sitecustomize.py"), Entry::new(Kind::File { size, content }, 0o644)).tree(what())?;
        tree.insert(&path("__shoal"), Entry::dir()).tree(what())?;
        let leftovers: Vec<Path> = tree.iter().filter(|(path, _)| is_leftover(path)).map(|(path, _)| path.clone()).collect();
        for path in leftovers {
            tree.remove(&path).tree(what())?;
        }
        Ok(tree)
    }
}

/// What pip leaves beside packages and nobody needs at run time: programs, licences of the distribution.
fn is_leftover(path: &Path) -> bool {
    let names: Vec<&[u8]> = path.names().collect();
    names == [b"__modal".as_slice(), b"deps", b"bin"]
}

fn failed(what: &str, ended: Ended, tail: String) -> Error {
    match ended {
        Ended::Late => Error::HostTimeout { what: what.to_owned(), limit: LIMIT },
        Ended::OutOfMemory => Error::Host { what: what.to_owned(), ended: "a lack of memory".to_owned(), tail },
        Ended::OutOfDisk(over) => Error::Host { what: what.to_owned(), ended: format!("a kill: {over}"), tail },
        Ended::Badly(ended) => Error::Host { what: what.to_owned(), ended, tail },
        Ended::Well => unreachable!("success is no failure"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_shared_by_what_they_depend_on() {
        let wanted = |version: &str, abi: &str, musl| ClientWanted { version: version.into(), abi: abi.into(), musl, python: "/p".into() };
        let (a, b) = (wanted("1.6.4", "cp312", false), wanted("1.6.4", "cp313", false));
        assert_eq!(a.client_key(), b.client_key());
        assert_ne!(a.deps_key(), b.deps_key());
        assert_ne!(a.whole_key(), b.whole_key());
        assert_ne!(a.deps_key(), wanted("1.6.4", "cp312", true).deps_key());
        assert_eq!(a.deps_key(), wanted("1.0.0", "cp312", false).deps_key());
    }

    /// What is printed comes whole through a pipe that takes a part at a time, as a sandbox's does: here one that does not block.
    #[test]
    fn unbuffered_output_is_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("sitecustomize.py"), SITECUSTOMIZE).unwrap();
        let program =
            "import os, sys\nos.set_blocking(1, False)\nprint('x' * 1000000)\nsys.stderr.write(sys.stdout.name + sys.stdout.mode)";
        let mut command = std::process::Command::new("/usr/bin/python3");
        command.env_clear().env("PYTHONPATH", folder.path()).args(["-u", "-c", program]);
        let Ok(output) = command.output() else {
            eprintln!("skipped: this machine has no /usr/bin/python3");
            return;
        };
        assert_eq!(output.stdout.len(), 1_000_001, "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stderr).ends_with("<stdout>w"));
    }

    /// Runs the hook with a folder of an image's own hook behind it on the path.
    #[test]
    fn a_hidden_sitecustomize_still_runs() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        for name in ["pkg", "own"] {
            std::fs::create_dir(place(name)).unwrap();
        }
        std::fs::write(place("pkg/sitecustomize.py"), SITECUSTOMIZE).unwrap();
        std::fs::write(place("own/sitecustomize.py"), "import sys\nsys.own_ran = __file__\n").unwrap();
        let mut command = std::process::Command::new("/usr/bin/python3");
        let search = format!("{}:{}", place("pkg").display(), place("own").display());
        command.env_clear().env("PYTHONPATH", search).args(["-c", "import sys; print(sys.own_ran, '/__modal/deps' == sys.path[-1])"]);
        let Ok(output) = command.output() else {
            eprintln!("skipped: this machine has no /usr/bin/python3");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text.trim(), format!("{} True", place("own/sitecustomize.py").display()), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
