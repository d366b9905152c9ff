//! What functions need (images, files), who needs it, and taking away what nobody does.

use super::{Applied, State};
use crate::model::{AppState, Definition, Function};
use crate::{AppId, Digest, Event, FunctionId, ImageId, MountId, Refused};

impl State {
    /// Returns every function that may run: those of apps that live or still have tasks, as they are now, as they are to be
    /// from the next publish on, and as they were in versions that can come back. One may come several times.
    pub fn runnable(&self) -> impl Iterator<Item = (FunctionId, &Function)> {
        let now = self.functions.iter().map(|(id, function)| (*id, function));
        let next = self.staged.iter().map(|((id, _), function)| (*id, function));
        let versions = self.releases.values().flatten().filter_map(|release| release.contents.as_ref());
        let before = versions.flat_map(|contents| contents.functions.iter().map(|(id, function)| (*id, function)));
        now.chain(next).chain(before).filter(|(_, function)| self.may_run(function.app))
    }

    fn may_run(&self, app: AppId) -> bool {
        let lives = self.apps.get(&app).is_some_and(|app| app.state != AppState::Stopped);
        lives || self.tasks.values().any(|task| task.app == app)
    }

    /// Returns the chunks that hold definitions of functions and classes.
    pub fn definitions(&self) -> impl Iterator<Item = Digest> {
        let stored = |definition: &Definition| if let Definition::Stored(digest) = definition { Some(*digest) } else { None };
        let staged = self.staged.values();
        let versions = self.releases.values().flatten().filter_map(|release| release.contents.as_ref());
        let functions = self.functions.values().chain(staged).chain(versions.flat_map(|contents| contents.functions.values()));
        let classes = self.classes.values().map(|class| &class.definition);
        functions.map(|function| &function.definition).chain(classes).filter_map(stored)
    }

    pub(super) fn remove_image(&mut self, id: ImageId) -> Applied {
        if let Some((function, of)) = self.runnable().find(|(_, function)| function.image == Some(id)) {
            return Err(Refused::ImageUsed { id, function, app: of.app });
        }
        self.images.remove(&id).ok_or(Refused::NoSuchImage { id })?;
        Ok(vec![Event::ImageChanged(id)])
    }

    pub(super) fn remove_layers(&mut self, keys: &[Digest]) -> Applied {
        for key in keys {
            self.layers.remove(key);
        }
        Ok(vec![])
    }

    pub(super) fn remove_mount(&mut self, id: MountId) -> Applied {
        if let Some((function, of)) = self.runnable().find(|(_, function)| function.mounts.contains(&id)) {
            return Err(Refused::MountUsed { id, function, app: of.app });
        }
        if let Some((name, _)) = self.named_mounts.iter().find(|(_, named)| **named == id) {
            return Err(Refused::MountNamed { id, name: name.clone() });
        }
        self.mounts.remove(&id);
        Ok(vec![Event::RegistryChanged])
    }
}
