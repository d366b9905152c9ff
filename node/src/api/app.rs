//! Apps: created, published, kept alive by their client, stopped.

use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_state::model::{App, AppState};
use shoal_state::{AppId, Command, EnvironmentId, State};

use super::error::Error;
use super::{Api, Caller, environment, function, schedule, seconds, time, token};

/// Finds an app by id. Found locally needs no confirmation; an absence does.
pub(super) async fn find(api: &Api, id: &str) -> Result<(AppId, App), Error> {
    let parsed: AppId = id.parse()?;
    let state = api.read_latest_unless(|state| state.apps.contains_key(&parsed)).await?;
    let app = state.apps.get(&parsed).ok_or_else(|| Error::NotFound(format!("App '{id}' not found")))?;
    Ok((parsed, app.clone()))
}

fn state_of(app: &App) -> pb::AppState {
    match app.state {
        AppState::Initializing => pb::AppState::Initializing,
        AppState::Ephemeral => pb::AppState::Ephemeral,
        AppState::Detached => pb::AppState::Detached,
        AppState::Deployed => pb::AppState::Deployed,
        AppState::Stopped => pb::AppState::Stopped,
    }
}

pub(super) fn lifecycle(state: &State, id: AppId, app: &App) -> pb::AppLifecycle {
    let (last, notes) = (app.deployments.last(), state.app_notes.get(&id).cloned().unwrap_or_default());
    let release = state.releases.get(&id).and_then(|releases| releases.last());
    pb::AppLifecycle {
        app_state: state_of(app).into(),
        created_at: seconds(app.created),
        created_by: notes.created_by,
        deployed_at: last.map_or(0.0, |deployment| seconds(deployment.at)),
        deployed_by: release.map(|release| release.by.clone()).unwrap_or_default(),
        version: last.and_then(|deployment| i32::try_from(deployment.version).ok()).unwrap_or(0),
        stopped_at: app.stopped.as_ref().map_or(0.0, |(at, _)| seconds(*at)),
        stopped_by: notes.stopped_by,
    }
}

fn metadata(state: &State, id: AppId, app: &App) -> pb::AppHandleMetadata {
    pb::AppHandleMetadata {
        description: app.description.clone(),
        app_id: id.to_string(),
        environment_name: state.environments.get(&app.environment).map(|environment| environment.name.clone()).unwrap_or_default(),
        lifecycle: Some(lifecycle(state, id, app)),
        functions: app.layout.functions.iter().map(|(tag, id)| (tag.clone(), id.to_string())).collect(),
        ..Default::default()
    }
}

/// What a client wants an app to be.
struct Wanted {
    environment: EnvironmentId,
    name: String,
    description: String,
    state: AppState,
    tags: std::collections::BTreeMap<String, String>,
}

/// Returns the id of the app that a request makes, the same on each try.
fn id_of(caller: &Caller) -> AppId {
    AppId::derive(&[&caller.identity.scope(), caller.key().as_bytes()])
}

async fn make(api: &Api, caller: &Caller, wanted: Wanted) -> Result<AppId, Error> {
    let id = id_of(caller);
    let fresh = App::new(wanted.environment, wanted.state, api.now());
    let app = App { name: wanted.name, description: wanted.description, ..fresh };
    let created_by = Some(token::name_of(api, caller));
    let tags = (!wanted.tags.is_empty()).then(|| wanted.tags.into_iter().collect());
    api.propose_all(vec![Command::CreateApp { id, app }, Command::NoteApp { id, created_by, stopped_by: None, tags }]).await?;
    api.lifecycle.beat(id, caller.connection);
    Ok(id)
}

pub(super) async fn create(api: &Api, caller: &Caller, request: pb::AppCreateRequest) -> Result<pb::AppCreateResponse, Error> {
    let state = match request.app_state() {
        pb::AppState::Detached => AppState::Detached,
        pb::AppState::Initializing | pb::AppState::Deployed => AppState::Initializing,
        _ => AppState::Ephemeral,
    };
    let environment = environment::find_latest(api, &request.environment_name).await?.id;
    let wanted = Wanted { environment, name: String::new(), description: request.description, state, tags: request.tags };
    let id = make(api, caller, wanted).await?;
    Ok(pb::AppCreateResponse { app_id: id.to_string(), app_page_url: api.page(caller, id), app_logs_url: api.page(caller, id) })
}

pub(super) async fn get_or_create(
    api: &Api,
    caller: &Caller,
    request: pb::AppGetOrCreateRequest,
) -> Result<pb::AppGetOrCreateResponse, Error> {
    if request.app_name.parse::<AppId>().is_ok() {
        let (id, app) = find(api, &request.app_name).await?;
        let metadata = metadata(&api.local(), id, &app);
        return Ok(pb::AppGetOrCreateResponse { app_id: id.to_string(), handle_metadata: Some(metadata) });
    }
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?;
    let (environment, environment_name) = (environment.id, environment.name.clone());
    let found = state.app_deployed(environment, &request.app_name);
    let id = match (found, request.object_creation_type()) {
        // Not this one, should an earlier try of this request have made it.
        (Some(found), pb::ObjectCreationType::CreateFailIfExists) if found != id_of(caller) => {
            return Err(Error::Exists(format!("App '{}' already exists", request.app_name)));
        }
        (Some(id), _) => id,
        (None, pb::ObjectCreationType::CreateIfMissing | pb::ObjectCreationType::CreateFailIfExists) => {
            let (name, description) = (request.app_name.clone(), request.app_name.clone());
            let wanted = Wanted { environment, name, description, state: AppState::Deployed, tags: Default::default() };
            match make(api, caller, wanted).await {
                // Another client was faster.
                Err(Error::Refused(shoal_state::Refused::NameHeld { holder, .. }))
                    if request.object_creation_type() == pb::ObjectCreationType::CreateIfMissing =>
                {
                    holder
                }
                made => made?,
            }
        }
        (None, _) => return Err(Error::NotFound(format!("App '{}' not found in environment '{environment_name}'", request.app_name))),
    };
    let state = api.local();
    let metadata = state.apps.get(&id).map(|app| metadata(&state, id, app));
    Ok(pb::AppGetOrCreateResponse { app_id: id.to_string(), handle_metadata: metadata })
}

pub(super) async fn by_name(
    api: &Api,
    _caller: &Caller,
    request: pb::AppGetByDeploymentNameRequest,
) -> Result<pb::AppGetByDeploymentNameResponse, Error> {
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?;
    let found = state.app_deployed(environment.id, &request.name);
    let previous = if found.is_none() { stopped_lately(&state, environment.id, &request.name) } else { None };
    let told = found.or(previous).and_then(|id| Some(lifecycle(&state, id, state.apps.get(&id)?)));
    Ok(pb::AppGetByDeploymentNameResponse {
        app_id: found.map(|id| id.to_string()).unwrap_or_default(),
        previous_app_id: previous.map(|id| id.to_string()).unwrap_or_default(),
        environment_name: environment.name.clone(),
        lifecycle: told,
    })
}

/// Finds the app that had a name last, and is stopped.
fn stopped_lately(state: &State, environment: EnvironmentId, name: &str) -> Option<AppId> {
    let had = |app: &App| app.environment == environment && app.name == name && !name.is_empty();
    let stopped = state.apps.iter().filter_map(|(id, app)| Some((app.stopped.as_ref().filter(|_| had(app))?.0, *id)));
    stopped.max().map(|(_, id)| id)
}

pub(super) async fn heartbeat(api: &Api, caller: &Caller, request: pb::AppHeartbeatRequest) -> Result<(), Error> {
    let (id, app) = find(api, &request.app_id).await?;
    if let Some((_, why)) = &app.stopped {
        return Err(Error::Precondition(format!("App '{id}' is stopped: {why}")));
    }
    api.lifecycle.beat(id, caller.connection);
    Ok(())
}

pub(super) async fn disconnect(api: &Api, _caller: &Caller, request: pb::AppClientDisconnectRequest) -> Result<(), Error> {
    let (id, app) = find(api, &request.app_id).await?;
    match app.state {
        AppState::Ephemeral | AppState::Initializing => stop(api, id, "its client disconnected").await?,
        // Ctrl-C leaves a detached app alone: it lives on for what its client was waiting for, too.
        AppState::Detached if request.reason() != pb::AppDisconnectReason::KeyboardInterrupt && !works(api, id) => {
            stop(api, id, "its client disconnected, and nothing was left to do").await?;
        }
        AppState::Detached => api.lifecycle.left(id),
        AppState::Deployed | AppState::Stopped => {}
    }
    Ok(())
}

/// Says whether any input of an app waits or runs, or the app keeps containers without one.
pub(crate) fn works(api: &Api, id: AppId) -> bool {
    let state = api.local();
    let load = api.reports.load(&state);
    state.functions.iter().filter(|(_, function)| function.app == id).any(|(function, settings)| {
        let pool = load.pools.get(function).copied().unwrap_or_default();
        settings.scaling.containers_min > 0 || pool.waiting + pool.running + pool.delayed > 0
    })
}

/// Stops an app: no new containers, those that run are asked to end, what waits is cancelled.
pub(crate) async fn stop(api: &Api, id: AppId, why: &str) -> Result<(), Error> {
    stop_by(api, id, why, None).await
}

/// Stops an app as [`stop`] does, and keeps whose wish it was.
pub(crate) async fn stop_by(api: &Api, id: AppId, why: &str, stopped_by: Option<String>) -> Result<(), Error> {
    let functions: Vec<_> = api.local().functions.iter().filter(|(_, function)| function.app == id).map(|(id, _)| *id).collect();
    let mut commands = vec![Command::StopApp { id, at: api.now(), why: why.to_owned() }];
    if stopped_by.is_some() {
        commands.push(Command::NoteApp { id, created_by: None, stopped_by, tags: None });
    }
    api.propose_all(commands).await?;
    api.calls_stop(&functions).await;
    Ok(())
}

pub(super) async fn stop_request(api: &Api, caller: &Caller, request: pb::AppStopRequest) -> Result<(), Error> {
    let (id, _) = find(api, &request.app_id).await?;
    stop_by(api, id, "stopped by a user", Some(token::name_of(api, caller))).await
}

/// Says what an app is called, and when a schedule calls it next: the client's lists have no other place for that.
fn description(state: &State, id: AppId, app: &App) -> String {
    match schedule::next_run(state, id) {
        Some(next) => format!("{} (next run {})", app.description, time(next.0)),
        None => app.description.clone(),
    }
}

pub(super) async fn list(api: &Api, _caller: &Caller, request: pb::AppListRequest) -> Result<pb::AppListResponse, Error> {
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?.id;
    let mut apps: Vec<(&AppId, &App)> = state.apps.iter().filter(|(_, app)| app.environment == environment).collect();
    apps.sort_by_key(|(id, app)| (std::cmp::Reverse(app.created), **id));
    let item = |(id, app): (&AppId, &App)| pb::app_list_response::AppListItem {
        app_id: id.to_string(),
        description: description(&state, *id, app),
        state: state_of(app).into(),
        created_at: seconds(app.created),
        stopped_at: app.stopped.as_ref().map_or(0.0, |(at, _)| seconds(*at)),
        n_running_tasks: i32::try_from(state.tasks.values().filter(|task| task.app == *id).count()).unwrap_or(i32::MAX),
        name: app.name.clone(),
        metadata: Some(metadata(&state, *id, app)),
    };
    Ok(pb::AppListResponse { apps: apps.into_iter().map(item).collect() })
}

pub(super) async fn info(api: &Api, _caller: &Caller, request: pb::AppGetInfoRequest) -> Result<pb::AppGetInfoResponse, Error> {
    let (id, app) = find(api, &request.app_id).await?;
    let state = api.local();
    let mut function_info_summaries = std::collections::BTreeMap::new();
    for of in app.layout.functions.values() {
        if let Some(function) = state.functions.get(of) {
            let view = pb::Function::decode(function::definition(api, *of, function).await?);
            let view = view.map_err(Error::failed(format!("cannot decode function {of}")))?;
            function_info_summaries.insert(of.to_string(), summary(view));
        }
    }
    Ok(pb::AppGetInfoResponse { info: Some(metadata(&state, id, &app)), function_info_summaries })
}

fn summary(view: pb::Function) -> pb::app_get_info_response::FunctionInfoSummary {
    let gpu = view.resources.and_then(|resources| resources.gpu_config).filter(|gpu| gpu.count > 0);
    pb::app_get_info_response::FunctionInfoSummary {
        gpu_config: gpu.into_iter().collect(),
        schedule: view.schedule,
        requires_proxy_auth: view.webhook_config.as_ref().map(|webhook| webhook.requires_proxy_auth),
        web_function: view.webhook_config.is_some(),
        ..Default::default()
    }
}

pub(super) async fn get_lifecycle(
    api: &Api,
    _caller: &Caller,
    request: pb::AppGetLifecycleRequest,
) -> Result<pb::AppGetLifecycleResponse, Error> {
    let (id, app) = find(api, &request.app_id).await?;
    Ok(pb::AppGetLifecycleResponse { lifecycle: Some(lifecycle(&api.local(), id, &app)) })
}

pub(super) async fn get_tags(api: &Api, _caller: &Caller, request: pb::AppGetTagsRequest) -> Result<pb::AppGetTagsResponse, Error> {
    let (id, _) = find(api, &request.app_id).await?;
    let state = api.read_latest().await?;
    let tags = state.app_notes.get(&id).map(|notes| notes.tags.iter().map(|(key, value)| (key.clone(), value.clone())).collect());
    Ok(pb::AppGetTagsResponse { tags: tags.unwrap_or_default() })
}

pub(super) async fn set_tags(api: &Api, _caller: &Caller, request: pb::AppSetTagsRequest) -> Result<(), Error> {
    let (id, _) = find(api, &request.app_id).await?;
    let tags = Some(request.tags.into_iter().collect());
    api.propose(Command::NoteApp { id, created_by: None, stopped_by: None, tags }).await
}

/// Returns everything that a container or a redeploy must know of an app's objects.
pub(crate) async fn layout(api: &Api, app: &App) -> Result<pb::AppLayout, Error> {
    let state = api.local();
    let mut objects = Vec::new();
    for id in app.layout.functions.values() {
        if let Some(found) = state.functions.get(id) {
            let metadata = function::handle_metadata(api, *id, found).await?;
            objects.push(object(id.to_string(), pb::object::HandleMetadataOneof::FunctionHandleMetadata(metadata)));
        }
    }
    for (tag, id) in &app.layout.classes {
        let metadata = function::class_metadata(api, &state, app, tag).await?;
        objects.push(object(id.to_string(), pb::object::HandleMetadataOneof::ClassHandleMetadata(metadata)));
    }
    Ok(pb::AppLayout {
        objects,
        function_ids: app.layout.functions.iter().map(|(tag, id)| (tag.clone(), id.to_string())).collect(),
        class_ids: app.layout.classes.iter().map(|(tag, id)| (tag.clone(), id.to_string())).collect(),
    })
}

fn object(object_id: String, metadata: pb::object::HandleMetadataOneof) -> pb::Object {
    pb::Object { object_id, handle_metadata_oneof: Some(metadata) }
}

pub(super) async fn get_layout(api: &Api, _caller: &Caller, request: pb::AppGetLayoutRequest) -> Result<pb::AppGetLayoutResponse, Error> {
    let (_, app) = find(api, &request.app_id).await?;
    Ok(pb::AppGetLayoutResponse { app_layout: Some(layout(api, &app).await?) })
}

/// Returns whether an app ends with its client: at once, or when its work is done.
pub(crate) fn has_client(app: &App) -> bool {
    matches!(app.state, AppState::Ephemeral | AppState::Initializing | AppState::Detached)
}

/// Refuses what only a living app may do.
pub(super) async fn must_live(api: &Api, id: AppId) -> Result<(), Error> {
    let state = api.read_latest_unless(|state| state.apps.get(&id).is_some_and(|app| app.stopped.is_none())).await?;
    match state.apps.get(&id) {
        None => Err(Error::NotFound(format!("App '{id}' not found"))),
        Some(App { stopped: Some((_, why)), .. }) => Err(Error::Precondition(format!("App '{id}' is stopped: {why}"))),
        Some(_) => Ok(()),
    }
}
