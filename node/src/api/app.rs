//! Apps: created, published, kept alive by their client, stopped.

use shoal_proto::modal_client as pb;
use shoal_state::model::{App, AppLayout, AppState, Deployment};
use shoal_state::{AppId, Command, State};

use super::error::Error;
use super::{Api, Caller, environment, function, seconds};

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

fn lifecycle(app: &App) -> pb::AppLifecycle {
    let last = app.deployments.last();
    pb::AppLifecycle {
        app_state: state_of(app).into(),
        created_at: seconds(app.created),
        deployed_at: last.map_or(0.0, |deployment| seconds(deployment.at)),
        version: last.and_then(|deployment| i32::try_from(deployment.version).ok()).unwrap_or(0),
        stopped_at: app.stopped.as_ref().map_or(0.0, |(at, _)| seconds(*at)),
        ..Default::default()
    }
}

fn metadata(state: &State, id: AppId, app: &App) -> pb::AppHandleMetadata {
    pb::AppHandleMetadata {
        description: app.description.clone(),
        app_id: id.to_string(),
        environment_name: state.environments.get(&app.environment).map(|environment| environment.name.clone()).unwrap_or_default(),
        lifecycle: Some(lifecycle(app)),
        functions: app.layout.functions.iter().map(|(tag, id)| (tag.clone(), id.to_string())).collect(),
        ..Default::default()
    }
}

async fn make(api: &Api, caller: &Caller, environment: &str, name: &str, description: &str, state: AppState) -> Result<AppId, Error> {
    let environment = environment::find(&api.local(), environment)?.id;
    let id = AppId::derive(&[&caller.identity.scope(), caller.key().as_bytes()]);
    let app = App {
        environment,
        name: name.to_owned(),
        description: description.to_owned(),
        state,
        created: api.now(),
        stopped: None,
        layout: AppLayout::default(),
        deployments: shoal_state::imbl::Vector::new(),
    };
    api.propose(Command::CreateApp { id, app }).await?;
    api.lifecycle.beat(id);
    Ok(id)
}

pub(super) async fn create(api: &Api, caller: &Caller, request: pb::AppCreateRequest) -> Result<pb::AppCreateResponse, Error> {
    let state = match request.app_state() {
        pb::AppState::Detached => AppState::Detached,
        pb::AppState::Initializing | pb::AppState::Deployed => AppState::Initializing,
        _ => AppState::Ephemeral,
    };
    let id = make(api, caller, &request.environment_name, "", &request.description, state).await?;
    Ok(pb::AppCreateResponse { app_id: id.to_string(), app_page_url: api.page(caller, id), app_logs_url: api.page(caller, id) })
}

pub(super) async fn get_or_create(
    api: &Api,
    caller: &Caller,
    request: pb::AppGetOrCreateRequest,
) -> Result<pb::AppGetOrCreateResponse, Error> {
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?.id;
    let found = state.app_deployed(environment, &request.app_name);
    let id = match (found, request.object_creation_type()) {
        (Some(_), pb::ObjectCreationType::CreateFailIfExists) => {
            return Err(Error::Exists(format!("App '{}' already exists", request.app_name)));
        }
        (Some(id), _) => id,
        (None, pb::ObjectCreationType::CreateIfMissing | pb::ObjectCreationType::CreateFailIfExists) => {
            make(api, caller, &request.environment_name, &request.app_name, &request.app_name, AppState::Deployed).await?
        }
        (None, _) => return Err(Error::NotFound(format!("App '{}' not found", request.app_name))),
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
    Ok(pb::AppGetByDeploymentNameResponse {
        app_id: found.map(|id| id.to_string()).unwrap_or_default(),
        environment_name: environment.name.clone(),
        lifecycle: found.and_then(|id| state.apps.get(&id)).map(lifecycle),
        ..Default::default()
    })
}

fn tags<Id: Clone + std::str::FromStr<Err = shoal_state::NotAnId>>(
    ids: std::collections::BTreeMap<String, String>,
) -> Result<shoal_state::imbl::OrdMap<String, Id>, Error> {
    ids.into_iter().map(|(tag, id)| Ok((tag, id.parse()?))).collect()
}

pub(super) async fn publish(api: &Api, caller: &Caller, request: pb::AppPublishRequest) -> Result<pb::AppPublishResponse, Error> {
    let (id, _) = find(api, &request.app_id).await?;
    let detached = request.app_state() == pb::AppState::Detached;
    let deployed = request.app_state() == pb::AppState::Deployed;
    let layout = AppLayout { functions: tags(request.function_ids)?, classes: tags(request.class_ids)? };
    let at = api.now();
    let deployment = deployed.then(|| Deployment {
        version: 0,
        name: request.name,
        tag: request.deployment_tag,
        at,
        client_version: if request.client_version.is_empty() { caller.client_version.clone() } else { request.client_version },
    });
    api.propose(Command::PublishApp { id, layout, deployment, detached }).await?;
    Ok(pb::AppPublishResponse { url: api.page(caller, id), deployed_at: seconds(at), ..Default::default() })
}

pub(super) async fn heartbeat(api: &Api, _caller: &Caller, request: pb::AppHeartbeatRequest) -> Result<(), Error> {
    let (id, app) = find(api, &request.app_id).await?;
    if let Some((_, why)) = &app.stopped {
        return Err(Error::Precondition(format!("App '{id}' is stopped: {why}")));
    }
    api.lifecycle.beat(id);
    Ok(())
}

pub(super) async fn disconnect(api: &Api, _caller: &Caller, request: pb::AppClientDisconnectRequest) -> Result<(), Error> {
    let (id, app) = find(api, &request.app_id).await?;
    if matches!(app.state, AppState::Ephemeral | AppState::Initializing) {
        stop(api, id, "its client disconnected").await?;
    }
    Ok(())
}

/// Stops an app: no new containers, those that run are asked to end, what waits is cancelled.
pub(crate) async fn stop(api: &Api, id: AppId, why: &str) -> Result<(), Error> {
    let functions: Vec<_> = api.local().functions.iter().filter(|(_, function)| function.app == id).map(|(id, _)| *id).collect();
    api.propose(Command::StopApp { id, at: api.now(), why: why.to_owned() }).await?;
    api.calls_stop(&functions).await;
    Ok(())
}

pub(super) async fn stop_request(api: &Api, _caller: &Caller, request: pb::AppStopRequest) -> Result<(), Error> {
    let (id, _) = find(api, &request.app_id).await?;
    stop(api, id, "stopped by a user").await
}

pub(super) async fn list(api: &Api, _caller: &Caller, request: pb::AppListRequest) -> Result<pb::AppListResponse, Error> {
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?.id;
    let mut apps: Vec<(&AppId, &App)> = state.apps.iter().filter(|(_, app)| app.environment == environment).collect();
    apps.sort_by_key(|(id, app)| (std::cmp::Reverse(app.created), **id));
    let item = |(id, app): (&AppId, &App)| pb::app_list_response::AppListItem {
        app_id: id.to_string(),
        description: app.description.clone(),
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
    Ok(pb::AppGetInfoResponse { info: Some(metadata(&api.local(), id, &app)), ..Default::default() })
}

pub(super) async fn get_lifecycle(
    api: &Api,
    _caller: &Caller,
    request: pb::AppGetLifecycleRequest,
) -> Result<pb::AppGetLifecycleResponse, Error> {
    let (_, app) = find(api, &request.app_id).await?;
    Ok(pb::AppGetLifecycleResponse { lifecycle: Some(lifecycle(&app)) })
}

pub(super) async fn history(
    api: &Api,
    _caller: &Caller,
    request: pb::AppDeploymentHistoryRequest,
) -> Result<pb::AppDeploymentHistoryResponse, Error> {
    let (id, app) = find(api, &request.app_id).await?;
    let item = |deployment: &Deployment| pb::AppDeploymentHistory {
        app_id: id.to_string(),
        version: deployment.version,
        client_version: deployment.client_version.clone(),
        deployed_at: seconds(deployment.at),
        tag: deployment.tag.clone(),
        deployment_type: pb::DeploymentType::Standard.into(),
        ..Default::default()
    };
    Ok(pb::AppDeploymentHistoryResponse {
        app_deployment_histories: app.deployments.iter().map(item).collect(),
        production_app_version: app.deployments.last().map_or(0, |last| last.version),
    })
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

/// Returns whether an app's client is still needed for it to live.
pub(crate) fn needs_client(app: &App) -> bool {
    matches!(app.state, AppState::Ephemeral | AppState::Initializing)
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
