//! Dicts and queues: one of a name and kind in an environment. What they hold is in shards and never here.
//!
//! There may be very many, and each one more is looked for by its name first: so the names are kept sorted beside them. Each change
//! copies what lies beside it in the maps, hence what they hold is shared.

use std::sync::Arc;

use imbl::OrdMap;

use super::{Applied, State};
use crate::model::Object;
use crate::{EnvironmentId, Event, ObjectId, Refused};

/// Which dict or queue has a name: by kind, environment and name. It follows from the objects, and is not written.
pub(super) type ObjectNames = OrdMap<(&'static str, EnvironmentId, Arc<str>), ObjectId>;

fn place(id: ObjectId, environment: EnvironmentId, name: &str) -> (&'static str, EnvironmentId, Arc<str>) {
    (id.kind(), environment, name.into())
}

impl State {
    /// Finds a dict or a queue by its name: one like `like`.
    pub fn object_named(&self, like: ObjectId, environment: EnvironmentId, name: &str) -> Option<(ObjectId, &Object)> {
        let id = self.object_names.get(&place(like, environment, name))?;
        self.objects.get(id).map(|object| (*id, &**object))
    }

    /// Finds out which object has which name, of a state that was read.
    pub(super) fn name_objects(&mut self) {
        let named = self.objects.iter().filter(|(_, object)| !object.name.is_empty());
        self.object_names = named.map(|(id, object)| (place(*id, object.environment, &object.name), *id)).collect();
    }

    fn drop_object(&mut self, id: ObjectId) -> Option<Arc<Object>> {
        let object = self.objects.remove(&id)?;
        self.object_names.remove(&place(id, object.environment, &object.name));
        Some(object)
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
        self.objects.insert(id, Arc::new(object.clone()));
        if !object.name.is_empty() {
            self.object_names.insert(place(id, object.environment, &object.name), id);
        }
        Ok(vec![Event::RegistryChanged])
    }

    pub(super) fn remove_object(&mut self, id: ObjectId) -> Applied {
        self.drop_object(id).ok_or(Refused::NoObject { id })?;
        Ok(vec![Event::RegistryChanged])
    }

    pub(super) fn forget_objects_of(&mut self, environment: EnvironmentId) {
        let of: Vec<ObjectId> = self.objects.iter().filter(|(_, object)| object.environment == environment).map(|(id, _)| *id).collect();
        of.into_iter().for_each(|id| drop(self.drop_object(id)));
    }
}
