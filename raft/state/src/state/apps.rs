//! Apps, their names, and the functions and classes that are theirs.

use super::{Applied, State};
use crate::model::{App, AppLayout, AppState, Class, Deployment, Function};
use crate::{AppId, ClassId, EnvironmentId, Event, FunctionId, Refused, TaskId, Timestamp};

impl State {
    pub(super) fn create_app(&mut self, id: AppId, app: &App) -> Applied {
        if self.apps.contains_key(&id) {
            return Ok(vec![]);
        }
        if !self.environments.contains_key(&app.environment) {
            return Err(Refused::NoEnvironment { id: app.environment });
        }
        if app.state == AppState::Deployed {
            self.hold_name(id, app.environment, &app.name)?;
        }
        self.apps.insert(id, app.clone());
        Ok(vec![Event::AppChanged(id)])
    }

    /// Gives an app its name, or says who has it.
    pub(super) fn hold_name(&mut self, id: AppId, environment: EnvironmentId, name: &str) -> Result<(), Refused> {
        let place = (environment, name.to_owned());
        match self.deployed.get(&place) {
            Some(holder) if *holder != id => Err(Refused::NameHeld { id, name: name.to_owned(), holder: *holder }),
            _ => {
                self.deployed.insert(place, id);
                Ok(())
            }
        }
    }

    pub(super) fn live_app(&mut self, id: AppId) -> Result<&mut App, Refused> {
        match self.apps.get_mut(&id) {
            None => Err(Refused::NoApp { id }),
            Some(app) if app.state == AppState::Stopped => Err(Refused::AppStopped { id }),
            Some(app) => Ok(app),
        }
    }

    pub(super) fn publish_app(&mut self, id: AppId, layout: &AppLayout, deployment: Option<&Deployment>, detached: bool) -> Applied {
        let environment = self.live_app(id)?.environment;
        if let Some(missing) = layout.functions.values().find(|function| !self.functions.contains_key(*function)) {
            return Err(Refused::NoFunction { id: *missing });
        }
        if let Some(deployment) = deployment {
            self.hold_name(id, environment, &deployment.name)?;
        }
        let app = self.live_app(id)?;
        app.layout = layout.clone();
        match deployment {
            Some(deployment) => {
                app.name.clone_from(&deployment.name);
                app.state = AppState::Deployed;
                let version = app.deployments.last().map_or(0, |last| last.version) + 1;
                app.deployments.push_back(Deployment { version, ..deployment.clone() });
            }
            None => app.state = if detached { AppState::Detached } else { AppState::Ephemeral },
        }
        Ok(vec![Event::AppChanged(id)])
    }

    pub(super) fn stop_app(&mut self, id: AppId, at: Timestamp, why: &str) -> Applied {
        let app = self.apps.get_mut(&id).ok_or(Refused::NoApp { id })?;
        if app.state == AppState::Stopped {
            return Ok(vec![]);
        }
        if app.state == AppState::Deployed {
            self.deployed.remove(&(app.environment, app.name.clone()));
        }
        app.state = AppState::Stopped;
        app.stopped = Some((at, why.to_owned()));
        self.forget_staged(id);
        self.forget_schedules_of(id);
        self.forget_secrets_of(id);
        let mut events = vec![Event::AppChanged(id)];
        let tasks: Vec<TaskId> = self.tasks.iter().filter(|(_, task)| task.app == id).map(|(task, _)| *task).collect();
        for task in tasks {
            events.extend(self.stop_task(task, why)?);
        }
        self.end_sandboxes_of(id, at, why);
        Ok(events)
    }

    pub(super) fn remove_app(&mut self, id: AppId) -> Applied {
        let app = self.apps.get(&id).ok_or(Refused::NoApp { id })?;
        if app.state != AppState::Stopped || self.tasks.values().any(|task| task.app == id) {
            return Err(Refused::AppRuns { id });
        }
        self.forget_app(id);
        Ok(vec![Event::AppChanged(id)])
    }

    /// Takes away an app with all that belongs to it.
    pub(super) fn forget_app(&mut self, id: AppId) {
        self.apps.remove(&id);
        self.app_notes.remove(&id);
        self.releases.remove(&id);
        self.forget_staged(id);
        self.forget_schedules_of(id);
        self.forget_secrets_of(id);
        let functions: Vec<FunctionId> = self.functions.iter().filter(|(_, function)| function.app == id).map(|(id, _)| *id).collect();
        let classes: Vec<ClassId> = self.classes.values().filter(|class| class.app == id).map(|class| class.id).collect();
        functions.iter().for_each(|id| drop((self.functions.remove(id), self.bound.remove(id))));
        classes.iter().for_each(|id| drop(self.classes.remove(id)));
        self.forget_sandboxes_of(id);
    }

    pub(super) fn put_function(&mut self, id: FunctionId, function: &Function) -> Applied {
        self.live_app(function.app)?;
        self.has_parts(id, function)?;
        let mut events = Vec::new();
        self.define(id, function.clone(), &mut events);
        Ok(events)
    }

    /// Refuses a function whose image, files or secrets are not there.
    pub(super) fn has_parts(&self, id: FunctionId, function: &Function) -> Result<(), Refused> {
        if let Some(image) = function.image
            && !self.images.contains_key(&image)
        {
            return Err(Refused::NoImage { function: id, image });
        }
        if let Some(mount) = function.mounts.iter().find(|mount| !self.mounts.contains_key(*mount)) {
            return Err(Refused::NoMount { function: id, mount: *mount });
        }
        if let Some(secret) = function.secrets.iter().find(|secret| !self.secrets.contains_key(*secret)) {
            return Err(Refused::NoSecret { id: *secret });
        }
        Ok(())
    }

    pub(super) fn put_class(&mut self, class: &Class) -> Applied {
        self.live_app(class.app)?;
        self.classes.insert(class.id, class.clone());
        Ok(vec![Event::RegistryChanged])
    }

    /// Finds the app that is deployed under a name.
    pub fn app_deployed(&self, environment: EnvironmentId, name: &str) -> Option<AppId> {
        self.deployed.get(&(environment, name.to_owned())).copied()
    }
}
