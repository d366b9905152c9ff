//! What the state names of the chunk store: what must stay, and what is only kept because it may be used again. Pure.

use std::collections::BTreeSet;

use shoal_state::model::Definition;
use shoal_state::{Digest, ImageId, MountId, State};

use super::uses::Thing;

/// Something with what it needs of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Needs {
    /// What it is.
    pub(crate) thing: Thing,
    /// The root of its tree; an image whose build failed has none.
    pub(crate) tree: Option<Digest>,
    /// The chunk with what is kept of it beside its tree, when the log does not carry that itself.
    pub(crate) record: Option<Digest>,
}

/// All that the state names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// Definitions of functions and classes.
    pub(crate) definitions: Vec<Digest>,
    /// Images and files of functions that may run.
    pub(crate) used: Vec<Needs>,
    /// The rest: images, results of build steps and files that nothing needs now.
    pub(crate) cached: Vec<Needs>,
}

impl Named {
    /// Collects what a state names.
    pub(crate) fn of(state: &State) -> Self {
        let (mut images, mut mounts) = (BTreeSet::<ImageId>::new(), BTreeSet::<MountId>::new());
        for (_, function) in state.runnable() {
            images.extend(function.image);
            mounts.extend(function.mounts.iter().copied());
        }
        mounts.extend(state.named_mounts.values().copied());
        let mut named = Self { definitions: state.definitions().collect(), ..Self::default() };
        for (id, image) in &state.images {
            let needs = Needs { thing: Thing::Image(*id), tree: image.manifest, record: stored(&image.record) };
            named.add(needs, images.contains(id));
        }
        for (id, mount) in &state.mounts {
            named.add(Needs { thing: Thing::Mount(*id), tree: Some(mount.manifest), record: None }, mounts.contains(id));
        }
        for (key, layer) in &state.layers {
            named.add(Needs { thing: Thing::Layer(*key), tree: Some(layer.manifest), record: stored(&layer.record) }, false);
        }
        named
    }

    fn add(&mut self, needs: Needs, used: bool) {
        if used { self.used.push(needs) } else { self.cached.push(needs) }
    }

    /// Returns all that the state names but definitions.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Needs> {
        self.used.iter().chain(&self.cached)
    }
}

fn stored(definition: &Definition) -> Option<Digest> {
    if let Definition::Stored(digest) = definition { Some(*digest) } else { None }
}
