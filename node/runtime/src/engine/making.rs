//! The making of a container: of a sandbox made ahead where there is one that fits, else from nothing.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Instant};

use super::{Engine, Inner, folders::make_dir};
use crate::{
    Bind, Container, ContainerSpec, Error, NetworkMode, Result, Stdio, Timings, Way,
    ahead::{self, Blank},
    blocking,
    container::Parts,
    network::{resolver, slot::Slot},
    oci,
};

impl Engine {
    /// Makes a sandbox that waits.
    pub(super) async fn make_blank(&self) -> Result<Blank> {
        let mut parts = self.parts();
        match self.assemble_blank(&mut parts).await {
            Ok(stdio) => Ok(Blank { parts, stdio }),
            Err(error) => Err(dismantled(parts, error).await),
        }
    }

    async fn assemble_blank(&self, parts: &mut Parts) -> Result<Stdio> {
        let inner = &self.0;
        let ahead = inner.ahead.get().expect("blanks are made once it is known of what kind").clone();
        let network = inner.network.as_ref().ok_or(Error::NoNetwork { container: parts.id })?;
        let room = format!("room-{}", parts.id);
        let opened = ahead.config.rooms.open(&room);
        let rootfs = opened.map_err(|source| Error::File { action: "open the room", path: room.clone().into(), source })?;
        parts.room = Some((ahead.config.rooms.clone(), room));
        parts.slot = Some(network.slot().await?);
        let own = inner.own(parts.id);
        make_dir(&own)?;
        let spec = ahead.config.description(rootfs, own);
        let group = inner.cgroups.create(&parts.id.to_string(), &spec.limits)?;
        let entrances = group.entrances();
        parts.cgroup = Some(Arc::new(group));
        inner.write_bundle(parts, &spec)?;
        let _turn = inner.creating.acquire().await;
        inner.run_create(parts, &spec, entrances?).await
    }

    /// Makes a container of a sandbox made ahead; `None` where it does not fit one, or none is there.
    pub(super) async fn create_ahead(&self, spec: &ContainerSpec) -> Result<Option<Container>> {
        let Some(ahead) = self.0.ahead.get().filter(|ahead| ahead.config.fits(spec)) else { return Ok(None) };
        let mut timings = Timings { way: Way::Ahead, ..Timings::default() };
        let began = Instant::now();
        let mut blank = loop {
            match ahead.take() {
                Some(blank) if blank.parts.is_alive() => break blank,
                Some(dead) => drop(tokio::spawn(async move { dismantled(dead.parts, Error::NotAlive).await })),
                // A snapshot is worth the making of a sandbox.
                None if spec.snapshot.is_some() => {
                    break match self.make_blank().await {
                        Ok(blank) => blank,
                        Err(error) => {
                            tracing::warn!(%error, "cannot make a sandbox for a snapshot");
                            return Ok(None);
                        }
                    };
                }
                None => return Ok(None),
            }
        };
        timings.create = began.elapsed();
        let filled = blank.parts.room.as_ref().is_some_and(|(rooms, name)| rooms.fill(name, &spec.rootfs));
        if !filled {
            ahead.give_back(blank);
            return Ok(None);
        }
        match self.furnish(&mut blank, spec, &mut timings).await {
            Ok(job) => Container::new(blank.parts, spec, blank.stdio, timings, Some(job)).map(Some),
            Err(error) => Err(dismantled(blank.parts, error).await),
        }
    }

    /// Gives a sandbox made ahead what is a container's own, and returns its job.
    async fn furnish(&self, blank: &mut Blank, spec: &ContainerSpec, timings: &mut Timings) -> Result<Vec<u8>> {
        let (inner, parts) = (&self.0, &mut blank.parts);
        let job = ahead::job(spec).map_err(|reason| Error::Description { container: parts.id, reason })?;
        let began = Instant::now();
        let network = inner.network.as_ref().ok_or(Error::NoNetwork { container: parts.id })?;
        let slot = parts.slot.take().ok_or(Error::NoNetwork { container: parts.id })?;
        let claim = parts.claim.insert(network.connect(slot, spec.network).await?);
        timings.network = began.elapsed();
        let prepared = Instant::now();
        let hosts = resolver::hosts(&spec.hostname, Some(claim.address), spec.link.as_ref());
        let path = inner.bundle(parts.id).join(file_name(0));
        fs::write(&path, hosts).map_err(Error::file("write", &path))?;
        if let Some(group) = &parts.cgroup {
            group.limit(&spec.limits)?;
        }
        if let Some(own) = &spec.own {
            ahead::link_files(&own.source, &inner.own(parts.id))?;
        }
        timings.prepare = prepared.elapsed();
        Ok(job)
    }

    /// Fills in the parts one by one, so that those that exist can be taken down after a failure.
    pub(super) async fn assemble(&self, parts: &mut Parts, spec: &ContainerSpec) -> Result<(Stdio, Timings)> {
        let inner = &self.0;
        // runsc says nothing of use about a root that is not there.
        let root = spec.rootfs.clone();
        if !blocking(move || root.is_dir()).await {
            let reason = format!("its root {} is not a directory", spec.rootfs.display());
            return Err(Error::Description { container: parts.id, reason });
        }
        let mut timings = Timings::default();
        let started = Instant::now();
        if spec.network != NetworkMode::None {
            let network = inner.network.as_ref().ok_or(Error::NoNetwork { container: parts.id })?;
            parts.claim = Some(network.claim(spec.network).await?);
        }
        timings.network = started.elapsed();

        let prepared = Instant::now();
        let name = parts.id.to_string();
        let group = inner.cgroups.create(&name, &spec.limits)?;
        let entrances = group.entrances();
        parts.cgroup = Some(Arc::new(group));
        inner.write_bundle(parts, spec)?;
        timings.prepare = prepared.elapsed();

        let _turn = inner.creating.acquire().await;
        let created = Instant::now();
        let stdio = inner.run_create(parts, spec, entrances?).await?;
        timings.create = created.elapsed();
        Ok((stdio, timings))
    }
}

impl Inner {
    /// Writes config.json and the files that only this container has.
    fn write_bundle(&self, parts: &Parts, spec: &ContainerSpec) -> Result<()> {
        let bundle = self.bundle(parts.id);
        make_dir(&bundle)?;
        let address = parts.claim.as_ref().map(|claim| claim.address);
        let hostname = match spec.hostname.as_str() {
            "" => address.map_or("shoal".into(), |a| format!("shoal-{}", a.to_string().replace('.', "-"))),
            name => name.to_owned(),
        };
        let etc = [
            ("/etc/hosts", resolver::hosts(&hostname, address, spec.link.as_ref())),
            ("/etc/hostname", format!("{hostname}\n")),
            ("/etc/resolv.conf", self.network.as_ref().map_or_else(String::new, |n| n.resolver.text.clone())),
        ];
        let mut binds = Vec::new();
        for (target, text) in etc {
            // What the caller puts there goes first.
            let taken = spec.files.iter().map(|f| &f.target).chain(spec.binds.iter().map(|b| &b.target));
            if !taken.into_iter().any(|known| known == target) {
                binds.push(add_file(&bundle, binds.len(), target, text.as_bytes(), 0o644)?);
            }
        }
        for file in &spec.files {
            binds.push(add_file(&bundle, binds.len(), &file.target, &file.content, file.mode)?);
        }
        binds.extend(spec.binds.iter().chain(&spec.own).cloned());
        if let Some(bind) = binds.iter().find(|bind| !bind.target.starts_with('/')) {
            let reason = format!("the target {:?} of a bind is not absolute", bind.target);
            return Err(Error::Description { container: parts.id, reason });
        }

        let slot = parts.slot.as_ref().or(parts.claim.as_ref().map(|claim| &claim.slot));
        let namespace = slot.map(Slot::namespace_path);
        let description = oci::render(spec, &hostname, &binds, namespace.as_deref());
        let path = bundle.join("config.json");
        let text = description.to_string();
        fs::write(&path, text).map_err(Error::file("write", &path))
    }
}

/// What the file of a container's bundle is called that is mounted as the nth; /etc/hosts is the first.
fn file_name(number: usize) -> String {
    format!("file-{number}")
}

/// Writes a file of the container into its bundle and returns how to mount it.
fn add_file(bundle: &Path, number: usize, target: &str, content: &[u8], mode: u32) -> Result<Bind> {
    let source = bundle.join(file_name(number));
    fs::write(&source, content).map_err(Error::file("write", &source))?;
    fs::set_permissions(&source, fs::Permissions::from_mode(mode)).map_err(Error::file("write", &source))?;
    Ok(Bind { source, target: target.to_owned(), read_only: true })
}

/// Takes down what a failed creation made.
pub(super) async fn dismantled(mut parts: Parts, error: Error) -> Error {
    if let Err(left) = parts.dismantle().await {
        tracing::warn!(container = %parts.id, error = %left, "a failed creation left something behind");
    }
    error
}
