//! Environments: the default one, renames, and the end of one with all that is in it.

use super::{Applied, State};
use crate::model::{Environment, EnvironmentChange, EnvironmentSettings};
use crate::{AppId, ENVIRONMENT_DEFAULT, EnvironmentId, Event, Refused, SecretId, Timestamp};

/// The setting that names the default environment by id; without it, it is the one called [`ENVIRONMENT_DEFAULT`].
pub const SETTING_DEFAULT: &str = "environment.default";

impl State {
    pub(super) fn create_environment(&mut self, environment: &Environment) -> Applied {
        if let Some(held) = self.environment_named(&environment.name) {
            if held.id == environment.id {
                return Ok(vec![]);
            }
            return Err(Refused::EnvironmentExists { name: environment.name.clone(), id: held.id });
        }
        // Its name was another when it was created under this id.
        if let Some(renamed) = self.environments.get(&environment.id) {
            return Err(Refused::EnvironmentExists { name: renamed.name.clone(), id: renamed.id });
        }
        self.environments.insert(environment.id, environment.clone());
        Ok(vec![Event::RegistryChanged])
    }

    /// Finds an environment by name; the empty name means the default one.
    pub fn environment_named(&self, name: &str) -> Option<&Environment> {
        if name.is_empty() {
            return self.environment_default();
        }
        self.environments.values().find(|environment| environment.name == name)
    }

    /// Returns the environment that an empty name means.
    pub fn environment_default(&self) -> Option<&Environment> {
        let set = self.settings.get(SETTING_DEFAULT).and_then(|id| id.parse::<EnvironmentId>().ok());
        let set = set.and_then(|id| self.environments.get(&id));
        set.or_else(|| self.environments.values().find(|environment| environment.name == ENVIRONMENT_DEFAULT))
    }

    pub(super) fn update_environment(&mut self, id: EnvironmentId, change: &EnvironmentChange) -> Applied {
        let mut environment = self.environments.get(&id).ok_or(Refused::NoEnvironment { id })?.clone();
        let others = || self.environments.values().filter(|other| other.id != id);
        if let Some(name) = &change.name {
            if let Some(held) = others().find(|other| other.name == *name) {
                return Err(Refused::EnvironmentExists { name: name.clone(), id: held.id });
            }
            environment.name.clone_from(name);
        }
        if let Some(suffix) = &change.webhook_suffix {
            if let Some(held) = others().find(|other| other.webhook_suffix == *suffix) {
                return Err(Refused::SuffixHeld { suffix: suffix.clone(), holder: held.name.clone() });
            }
            environment.webhook_suffix.clone_from(suffix);
        }
        // Whoever names no environment means the same one after a rename.
        if self.environment_default().is_some_and(|default| default.id == id) {
            self.settings.insert(SETTING_DEFAULT.to_owned(), id.to_string());
        }
        self.environments.insert(id, environment);
        if let Some(builder_version) = &change.builder_version {
            self.environment_settings.insert(id, EnvironmentSettings { builder_version: builder_version.clone() });
        }
        Ok(vec![Event::RegistryChanged])
    }

    /// Apps whose containers have yet to end stay, stopped, until the last of them is gone.
    pub(super) fn remove_environment(&mut self, id: EnvironmentId, at: Timestamp, why: &str) -> Applied {
        let environment = self.environments.get(&id).ok_or(Refused::NoEnvironment { id })?;
        if self.environment_default().is_some_and(|default| default.id == id) {
            return Err(Refused::EnvironmentIsDefault { name: environment.name.clone() });
        }
        let apps: Vec<AppId> = self.apps.iter().filter(|(_, app)| app.environment == id).map(|(app, _)| *app).collect();
        let secrets: Vec<SecretId> =
            self.secrets.iter().filter(|(_, secret)| secret.environment == id).map(|(secret, _)| *secret).collect();
        let mut events = vec![Event::RegistryChanged];
        self.environments.remove(&id);
        self.environment_settings.remove(&id);
        for app in apps {
            events.extend(self.stop_app(app, at, why)?);
            self.forget_if_homeless(app);
        }
        for secret in secrets {
            self.forget_secret(secret);
        }
        self.forget_objects_of(id);
        Ok(events)
    }

    /// Forgets an app whose environment has ended, once no task is left of it.
    pub(super) fn forget_if_homeless(&mut self, app: AppId) {
        let homeless = self.apps.get(&app).is_some_and(|app| !self.environments.contains_key(&app.environment));
        if homeless && !self.tasks.values().any(|task| task.app == app) {
            self.forget_app(app);
        }
    }
}
