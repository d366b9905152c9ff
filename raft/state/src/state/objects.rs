//! Dicts and queues: one of a name and kind in an environment. What they hold is in shards and never here.

use super::{Applied, State};
use crate::model::Object;
use crate::{EnvironmentId, Event, ObjectId, Refused};

impl State {
    /// Finds a dict or a queue by its name: one like `like`.
    pub fn object_named(&self, like: ObjectId, environment: EnvironmentId, name: &str) -> Option<(ObjectId, &Object)> {
        let fits = |(id, object): &(&ObjectId, &Object)| id.is_like(like) && object.environment == environment && object.name == name;
        if name.is_empty() { None } else { self.objects.iter().find(fits).map(|(id, object)| (*id, object)) }
    }

    pub(super) fn create_object(&mut self, id: ObjectId, object: &Object) -> Applied {
        if self.objects.contains_key(&id) {
            // The same request again: ids are derived from theirs.
            return Ok(vec![]);
        }
        if !self.environments.contains_key(&object.environment) {
            return Err(Refused::NoEnvironment { id: object.environment });
        }
        if let Some((held, _)) = self.object_named(id, object.environment, &object.name) {
            return Err(Refused::ObjectExists { name: object.name.clone(), id: held });
        }
        self.objects.insert(id, object.clone());
        Ok(vec![Event::RegistryChanged])
    }

    pub(super) fn remove_object(&mut self, id: ObjectId) -> Applied {
        self.objects.remove(&id).ok_or(Refused::NoObject { id })?;
        Ok(vec![Event::RegistryChanged])
    }

    pub(super) fn forget_objects_of(&mut self, environment: EnvironmentId) {
        let of: Vec<ObjectId> = self.objects.iter().filter(|(_, object)| object.environment == environment).map(|(id, _)| *id).collect();
        of.iter().for_each(|id| drop(self.objects.remove(id)));
    }
}
