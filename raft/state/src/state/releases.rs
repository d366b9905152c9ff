//! Publishing: everything that a client made for an app becomes the version that answers calls, at once; and the way back.

use imbl::{OrdMap, Vector};

use super::{Applied, State};
use crate::model::{
    AppLayout, AppState, Deployment, Function, Lasting, NewRelease, Publish, Release, ReleaseContents, ReleaseKind, Scaling, pinned_id,
};
use crate::{AppId, DefinitionId, Event, FunctionId, Refused, Timestamp};

/// How many versions of an app can come back.
pub const RELEASES_KEPT: usize = 20;

/// How many versions of an app its history tells of.
pub const HISTORY_KEPT: usize = 200;

/// How long a definition waits for the publish it was made for, in milliseconds: longer than the longest build.
pub(super) const STAGED_MS: u64 = 86_400_000;

impl State {
    pub(super) fn stage_function(&mut self, id: FunctionId, definition: DefinitionId, function: &Function) -> Applied {
        let app = self.live_app(function.app)?;
        let published = app.layout.functions.values().any(|of| *of == id);
        if let Some(other) = self.functions.get(&id).filter(|other| other.app != function.app) {
            return Err(Refused::OtherApp { id, app: function.app, holder: other.app });
        }
        if !published {
            return self.put_function(id, function);
        }
        self.has_parts(id, function)?;
        self.staged.insert((id, definition), function.clone());
        Ok(vec![])
    }

    pub(super) fn publish(&mut self, id: AppId, publish: &Publish) -> Applied {
        let environment = self.live_app(id)?.environment;
        if let Lasting::Deployed(new) = &publish.lasting
            && self.is_repeated(id, new)
        {
            return Ok(vec![]);
        }
        if let Some(missing) = publish.layout.functions.values().find(|function| !self.functions.contains_key(*function)) {
            return Err(Refused::NoFunction { id: *missing });
        }
        if let Lasting::Deployed(new) = &publish.lasting {
            self.hold_name(id, environment, &new.deployment.name)?;
        }
        let mut events = vec![Event::AppChanged(id)];
        for (function, definition) in &publish.definitions {
            // What is not staged was new to the app, and is in place.
            let place = (*function, *definition);
            if self.staged.get(&place).is_some_and(|staged| staged.app == id)
                && let Some(staged) = self.staged.remove(&place)
            {
                self.define(*function, staged, &mut events);
            }
        }
        self.forget_stale(id, publish.at);
        if !publish.tags.is_empty() {
            self.app_notes.entry(id).or_default().tags = publish.tags.clone();
        }
        let app = self.live_app(id)?;
        app.layout = publish.layout.clone();
        match &publish.lasting {
            Lasting::Same if app.state == AppState::Initializing => app.state = AppState::Ephemeral,
            Lasting::Same => {}
            Lasting::Ephemeral => app.state = AppState::Ephemeral,
            Lasting::Detached => app.state = AppState::Detached,
            Lasting::Deployed(new) => self.release(id, new, ReleaseKind::Standard, None)?,
        }
        Ok(events)
    }

    pub(super) fn redeploy(&mut self, id: AppId, of: u32, kind: ReleaseKind, new: &NewRelease) -> Applied {
        let app = self.live_app(id)?;
        if app.state != AppState::Deployed {
            return Err(Refused::NotDeployed { id });
        }
        let (newest, layout) = (app.deployments.last().map_or(0, |last| last.version), app.layout.clone());
        if self.is_repeated(id, new) {
            return Ok(vec![]);
        }
        let contents = if of == newest { self.contents(&layout) } else { self.contents_of(id, of)? };
        for (function, of) in &contents.functions {
            self.has_parts(*function, of)?;
        }
        let mut events = vec![Event::AppChanged(id)];
        for (function, of) in contents.functions {
            self.define(function, of, &mut events);
        }
        self.live_app(id)?.layout = contents.layout;
        self.release(id, new, kind, Some(of))?;
        Ok(events)
    }

    /// Puts a function in place as it was in an older version, beside what is called without one.
    pub(super) fn pin_function(&mut self, app: AppId, of: FunctionId, version: u32, at: Timestamp) -> Applied {
        self.live_app(app)?;
        let id = pinned_id(of, version);
        if self.functions.contains_key(&id) {
            return Ok(vec![]);
        }
        let contents = self.contents_of(app, version)?;
        let function = contents.functions.get(&of).ok_or(Refused::NoFunction { id: of })?;
        // It runs when it is called, and not before.
        let scaling = Scaling { containers_min: 0, ..function.scaling };
        let function = Function { scaling, created: at, ..function.clone() };
        self.has_parts(id, &function)?;
        self.functions.insert(id, function);
        Ok(vec![Event::FunctionChanged(id)])
    }

    /// Returns the version of which a function is a part that was put in place beside the newest one, while that can come back.
    pub fn pinned_version(&self, app: AppId, id: FunctionId) -> Option<u32> {
        let holds = |release: &&Release| {
            let functions = release.contents.iter().flat_map(|contents| contents.functions.keys());
            functions.into_iter().any(|of| pinned_id(*of, release.version) == id)
        };
        self.releases.get(&app)?.iter().find(holds).map(|release| release.version)
    }

    /// Forgets what was put in place of a version that is too old to come back, but for what has tasks.
    fn forget_pinned(&mut self, version: u32, contents: &ReleaseContents) {
        for of in contents.functions.keys() {
            let id = pinned_id(*of, version);
            let bound: Vec<FunctionId> = self.bound.get(&id).into_iter().flat_map(|of| of.keys().copied()).collect();
            let runs = |id: &FunctionId| self.tasks_of.get(id).is_some_and(|tasks| !tasks.is_empty());
            if !self.functions.contains_key(&id) || runs(&id) || bound.iter().any(runs) {
                continue;
            }
            self.bound.remove(&id);
            bound.into_iter().chain([id]).for_each(|id| drop(self.functions.remove(&id)));
        }
    }

    pub(super) fn note_app(
        &mut self,
        id: AppId,
        created_by: Option<&String>,
        stopped_by: Option<&String>,
        tags: Option<&OrdMap<String, String>>,
    ) -> Applied {
        if !self.apps.contains_key(&id) {
            return Err(Refused::NoApp { id });
        }
        let notes = self.app_notes.entry(id).or_default();
        if let Some(by) = created_by.filter(|_| notes.created_by.is_empty()) {
            notes.created_by.clone_from(by);
        }
        if let Some(by) = stopped_by.filter(|_| notes.stopped_by.is_empty()) {
            notes.stopped_by.clone_from(by);
        }
        if let Some(tags) = tags {
            notes.tags = tags.clone();
        }
        Ok(vec![])
    }

    /// Forgets what was to be published of an app.
    pub(super) fn forget_staged(&mut self, app: AppId) {
        self.forget_stale(app, Timestamp(u64::MAX));
    }

    fn forget_stale(&mut self, app: AppId, at: Timestamp) {
        let stale = |staged: &Function| staged.app == app && staged.created.0.saturating_add(STAGED_MS) <= at.0;
        let ids: Vec<_> = self.staged.iter().filter(|(_, staged)| stale(staged)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| drop(self.staged.remove(&id)));
    }

    fn is_repeated(&self, id: AppId, new: &NewRelease) -> bool {
        self.releases.get(&id).is_some_and(|releases| releases.iter().any(|release| release.request == new.request))
    }

    /// Counts a version up and keeps what it consists of.
    fn release(&mut self, id: AppId, new: &NewRelease, kind: ReleaseKind, of: Option<u32>) -> Result<(), Refused> {
        let app = self.live_app(id)?;
        app.name.clone_from(&new.deployment.name);
        app.state = AppState::Deployed;
        let version = app.deployments.last().map_or(0, |last| last.version) + 1;
        app.deployments.push_back(Deployment { version, ..new.deployment.clone() });
        keep_last(&mut app.deployments, HISTORY_KEPT);
        let layout = app.layout.clone();
        let contents = Some(self.contents(&layout));
        let release = Release { version, kind, of, by: new.by.clone(), commit: new.commit.clone(), request: new.request, contents };
        let releases = self.releases.entry(id).or_default();
        releases.push_back(release);
        keep_last(releases, HISTORY_KEPT);
        let old = releases.len().saturating_sub(RELEASES_KEPT);
        let too_old = releases.iter_mut().take(old).filter_map(|release| Some((release.version, release.contents.take()?)));
        for (version, contents) in too_old.collect::<Vec<_>>() {
            self.forget_pinned(version, &contents);
        }
        self.take_schedules(id, new.request, new.deployment.at);
        Ok(())
    }

    fn contents(&self, layout: &AppLayout) -> ReleaseContents {
        let functions = layout.functions.values().filter_map(|id| Some((*id, self.functions.get(id)?.clone())));
        ReleaseContents { functions: functions.collect(), layout: layout.clone() }
    }

    fn contents_of(&self, id: AppId, version: u32) -> Result<ReleaseContents, Refused> {
        let releases = || self.releases.get(&id).into_iter().flatten();
        let found = releases().find(|release| release.version == version).and_then(|release| release.contents.clone());
        found.ok_or_else(|| {
            let kept: Vec<String> =
                releases().filter(|release| release.contents.is_some()).map(|release| format!("v{}", release.version)).collect();
            Refused::NoRelease { id, version, kept: if kept.is_empty() { "none".to_owned() } else { kept.join(", ") } }
        })
    }
}

fn keep_last<T: Clone>(list: &mut Vector<T>, count: usize) {
    while list.len() > count {
        list.pop_front();
    }
}
