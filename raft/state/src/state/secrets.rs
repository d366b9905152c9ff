//! Secrets: one of a name in an environment, replaced only by who knows what it was, gone with the app it belongs to.

use super::{Applied, State};
use crate::model::{Secret, SecretNotes};
use crate::{AppId, Digest, EnvironmentId, Event, Refused, SecretId};

impl State {
    pub(super) fn put_secret(&mut self, id: SecretId, secret: &Secret) -> Applied {
        if !self.environments.contains_key(&secret.environment) {
            return Err(Refused::NoEnvironment { id: secret.environment });
        }
        self.secrets.insert(id, secret.clone());
        Ok(vec![Event::RegistryChanged])
    }

    /// Finds a secret by name.
    pub fn secret_named(&self, environment: EnvironmentId, name: &str) -> Option<(SecretId, &Secret)> {
        let named = |secret: &&Secret| secret.environment == environment && secret.name == name;
        self.secrets.iter().find(|(_, secret)| !name.is_empty() && named(secret)).map(|(id, secret)| (*id, secret))
    }

    pub(super) fn write_secret(
        &mut self,
        id: SecretId,
        secret: &Secret,
        app: Option<AppId>,
        by: &str,
        expected: Option<Digest>,
    ) -> Applied {
        if !self.environments.contains_key(&secret.environment) {
            return Err(Refused::NoEnvironment { id: secret.environment });
        }
        match (self.secrets.get(&id), expected) {
            // The same request again: ids of new secrets are derived from theirs.
            (Some(_), None) => return Ok(vec![]),
            (None, None) => self.create_secret(id, secret, app, by)?,
            (None, Some(_)) => return Err(Refused::NoSecret { id }),
            (Some(held), Some(expected)) if held.content_hash != expected => return Err(Refused::SecretChanged { id }),
            (Some(_), Some(_)) => {}
        }
        self.secrets.insert(id, secret.clone());
        Ok(vec![Event::RegistryChanged])
    }

    fn create_secret(&mut self, id: SecretId, secret: &Secret, app: Option<AppId>, by: &str) -> Result<(), Refused> {
        if let Some((held, _)) = self.secret_named(secret.environment, &secret.name) {
            return Err(Refused::SecretExists { name: secret.name.clone(), id: held });
        }
        if let Some(app) = app {
            self.live_app(app)?;
        }
        self.secret_notes.insert(id, SecretNotes { created: secret.updated, created_by: by.to_owned(), app });
        Ok(())
    }

    pub(super) fn remove_secret(&mut self, id: SecretId) -> Applied {
        if !self.secrets.contains_key(&id) {
            return Err(Refused::NoSecret { id });
        }
        self.forget_secret(id);
        Ok(vec![Event::RegistryChanged])
    }

    pub(super) fn forget_secret(&mut self, id: SecretId) {
        self.secrets.remove(&id);
        self.secret_notes.remove(&id);
    }

    pub(super) fn forget_secrets_of(&mut self, app: AppId) {
        let of: Vec<SecretId> = self.secret_notes.iter().filter(|(_, notes)| notes.app == Some(app)).map(|(id, _)| *id).collect();
        of.into_iter().for_each(|id| self.forget_secret(id));
    }
}
