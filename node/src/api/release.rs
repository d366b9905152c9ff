//! Versions of apps: publishing one, their history, the way back to an old one, fresh containers for the newest.

use prost::bytes::Bytes;
use shoal_proto::modal_client as pb;
use shoal_state::imbl::OrdMap;
use shoal_state::model::{App, AppLayout, Deployment, Lasting, NewRelease, Publish, Release, ReleaseKind};
use shoal_state::{AppId, Command, DefinitionId, Digest, FunctionId, State};

use super::error::Error;
use super::{Api, Caller, app, schedule, seconds, token};

/// The longest description of a user's repository that is kept, in bytes; a longer one is left out.
const COMMIT_BYTES_MAX: usize = 4096;

fn tagged<Id: Clone + std::str::FromStr<Err = shoal_state::NotAnId>>(
    ids: std::collections::BTreeMap<String, String>,
) -> Result<OrdMap<String, Id>, Error> {
    ids.into_iter().map(|(tag, id)| Ok((tag, id.parse()?))).collect()
}

/// Finds which staged definition of each function is meant: what the client names, else the newest there is.
fn definitions(state: &State, layout: &AppLayout, named: &std::collections::BTreeMap<String, String>) -> OrdMap<FunctionId, DefinitionId> {
    let newest = |function: &FunctionId| {
        let staged = state.staged.range((*function, DefinitionId::MIN)..=(*function, DefinitionId::MAX));
        staged.max_by_key(|(_, staged)| staged.created).map(|((_, definition), _)| *definition)
    };
    let meant = |function: &FunctionId| {
        let named = named.get(&function.to_string()).and_then(|definition| definition.parse().ok());
        Some((*function, named.or_else(|| newest(function))?))
    };
    layout.functions.values().filter_map(meant).collect()
}

fn new_release(api: &Api, caller: &Caller, name: String, tag: String, client_version: String, commit: Option<Bytes>) -> NewRelease {
    let key = caller.key();
    NewRelease {
        deployment: Deployment {
            version: 0,
            name,
            tag,
            at: api.now(),
            client_version: if client_version.is_empty() { caller.client_version.clone() } else { client_version },
        },
        by: token::name_of(api, caller),
        commit: commit.filter(|commit| commit.len() <= COMMIT_BYTES_MAX).map(|commit| commit.to_vec()).unwrap_or_default(),
        request: Digest::of(&[caller.identity.scope().as_slice(), key.as_bytes()].concat()),
    }
}

pub(super) async fn publish(api: &Api, caller: &Caller, request: pb::AppPublishRequest) -> Result<pb::AppPublishResponse, Error> {
    if request.staged {
        return Err(Error::Unimplemented("Shoal has no staged deployments: deploy without --staged".to_owned()));
    }
    let (id, _) = app::find(api, &request.app_id).await?;
    let state = request.app_state();
    let layout = AppLayout { functions: tagged(request.function_ids)?, classes: tagged(request.class_ids)? };
    let known = if state == pb::AppState::Deployed { api.read_latest().await? } else { api.local() };
    let definitions = definitions(&known, &layout, &request.definition_ids);
    let lasting = match state {
        pb::AppState::Deployed => {
            let (name, tag, version) = (request.name, request.deployment_tag, request.client_version);
            Lasting::Deployed(new_release(api, caller, name, tag, version, request.commit_info))
        }
        pb::AppState::Detached => Lasting::Detached,
        pb::AppState::Unspecified => Lasting::Same,
        _ => Lasting::Ephemeral,
    };
    if let Lasting::Deployed(release) = &lasting {
        let functions = schedule::published(&known, layout.functions.values().copied(), &definitions);
        schedule::stage(api, id, release, functions).await?;
    }
    let at = api.now();
    let publish = Publish { layout, definitions, tags: request.tags.into_iter().collect(), lasting, at };
    api.propose(Command::Publish { id, publish: Box::new(publish) }).await?;
    api.lifecycle.called(id);
    let deployed_at = if state == pb::AppState::Deployed { deployed_at(api, id) } else { seconds(at) };
    Ok(pb::AppPublishResponse { url: api.page(caller, id), deployed_at, ..Default::default() })
}

fn deployed_at(api: &Api, id: AppId) -> f64 {
    api.local().apps.get(&id).and_then(|app| app.deployments.last()).map_or(0.0, |last| seconds(last.at))
}

pub(super) async fn history(
    api: &Api,
    _caller: &Caller,
    request: pb::AppDeploymentHistoryRequest,
) -> Result<pb::AppDeploymentHistoryResponse, Error> {
    let (id, _) = app::find(api, &request.app_id).await?;
    let state = api.read_latest().await?;
    let deployments = state.apps.get(&id).map(|app| app.deployments.clone()).unwrap_or_default();
    let newest = deployments.last().map_or(0, |last| last.version);
    let release = |version| state.releases.get(&id)?.iter().find(|release| release.version == version);
    let histories = deployments.iter().map(|deployment| line(id, deployment, release(deployment.version), newest));
    Ok(pb::AppDeploymentHistoryResponse { app_deployment_histories: histories.collect(), production_app_version: newest })
}

fn line(id: AppId, deployment: &Deployment, release: Option<&Release>, newest: u32) -> pb::AppDeploymentHistory {
    let kind = match release.map_or(ReleaseKind::Standard, |release| release.kind) {
        ReleaseKind::Standard => pb::DeploymentType::Standard,
        ReleaseKind::Rollback => pb::DeploymentType::Rollback,
        ReleaseKind::Rollover => pb::DeploymentType::Rollover,
    };
    pb::AppDeploymentHistory {
        app_id: id.to_string(),
        version: deployment.version,
        client_version: deployment.client_version.clone(),
        deployed_at: seconds(deployment.at),
        deployed_by: release.map(|release| release.by.clone()).unwrap_or_default(),
        tag: deployment.tag.clone(),
        rollback_version: release.and_then(|release| release.of).unwrap_or(0),
        rollback_allowed: deployment.version != newest && release.is_some_and(|release| release.contents.is_some()),
        commit_info: release.filter(|release| !release.commit.is_empty()).map(|release| release.commit.clone().into()),
        deployment_type: kind.into(),
        ..Default::default()
    }
}

/// Makes `of` the newest version of an app again; returns when it was deployed.
async fn redeploy(api: &Api, caller: &Caller, id: AppId, app: &App, of: u32, kind: ReleaseKind) -> Result<f64, Error> {
    let old = app.deployments.iter().find(|deployment| deployment.version == of);
    let (tag, version) = old.map(|old| (old.tag.clone(), old.client_version.clone())).unwrap_or_default();
    let release = Box::new(new_release(api, caller, app.name.clone(), tag, version, None));
    schedule::stage(api, id, &release, schedule::released(&*api.read_latest().await?, id, of)).await?;
    api.propose(Command::Redeploy { id, of, kind, release }).await?;
    Ok(deployed_at(api, id))
}

pub(super) async fn rollback(api: &Api, caller: &Caller, request: pb::AppRollbackRequest) -> Result<pb::AppRollbackResponse, Error> {
    let (id, app) = app::find(api, &request.app_id).await?;
    let newest = app.deployments.last().map_or(0, |last| i64::from(last.version));
    let of = if request.version < 0 { newest + i64::from(request.version) } else { i64::from(request.version) };
    let absent = || Error::Precondition(format!("App '{}' is at its first version: there is none to go back to", app.name));
    let of = u32::try_from(of).ok().filter(|of| *of > 0).ok_or_else(absent)?;
    let deployed_at = redeploy(api, caller, id, &app, of, ReleaseKind::Rollback).await?;
    Ok(pb::AppRollbackResponse { url: api.page(caller, id), deployed_at, ..Default::default() })
}

pub(super) async fn rollover(api: &Api, caller: &Caller, request: pb::AppRolloverRequest) -> Result<pb::AppRolloverResponse, Error> {
    let (id, app) = app::find(api, &request.app_id).await?;
    let newest = app.deployments.last().map_or(0, |last| last.version);
    let deployed_at = redeploy(api, caller, id, &app, newest, ReleaseKind::Rollover).await?;
    Ok(pb::AppRolloverResponse { url: api.page(caller, id), deployed_at, ..Default::default() })
}
