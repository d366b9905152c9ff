//! Tasks: the containers that the cluster decided to run.

use shoal_proto::modal_client as pb;
use shoal_state::model::Gang;
use shoal_state::{Command, GangId, State, TaskId};

use super::error::Error;
use super::{Api, Caller, Identity, environment, seconds};

pub(super) async fn list(api: &Api, _caller: &Caller, request: pb::TaskListRequest) -> Result<pb::TaskListResponse, Error> {
    let state = api.read_latest().await?;
    let app: Option<shoal_state::AppId> = if request.app_id.is_empty() { None } else { Some(request.app_id.parse()?) };
    // An app is in one environment: who names it means that one.
    let all = app.is_some() && request.environment_name.is_empty();
    let environment = environment::find(&state, &request.environment_name)?.id;
    let tasks = state.tasks.iter().filter_map(|(id, task)| {
        let of = state.apps.get(&task.app)?;
        let wanted = (all || of.environment == environment) && app.is_none_or(|app| app == task.app);
        wanted.then(|| pb::TaskStats {
            task_id: id.to_string(),
            app_id: task.app.to_string(),
            app_description: of.description.clone(),
            started_at: seconds(task.created),
            enqueued_at: seconds(task.created),
        })
    });
    Ok(pb::TaskListResponse { tasks: tasks.collect() })
}

/// Tells of a container, and for a while of one that has ended on this node.
pub(super) async fn info(api: &Api, _caller: &Caller, request: pb::TaskGetInfoRequest) -> Result<pb::TaskGetInfoResponse, Error> {
    let id: TaskId = request.task_id.parse()?;
    let state = api.read_latest_unless(|state| state.tasks.contains_key(&id)).await?;
    if let Some(task) = state.tasks.get(&id) {
        let began = seconds(task.created);
        let started_at = if api.tasks.get(id).is_some_and(|known| known.hello.is_some()) { began } else { 0.0 };
        let info = pb::TaskInfo { id: id.to_string(), enqueued_at: began, started_at, ..Default::default() };
        return Ok(pb::TaskGetInfoResponse { app_id: task.app.to_string(), info: Some(info) });
    }
    let ended =
        api.tasks.ended(id).ok_or_else(|| Error::NotFound(format!("Container '{id}' not found: it ended long ago, or never was")))?;
    let info = pb::TaskInfo {
        id: id.to_string(),
        enqueued_at: seconds(ended.created),
        started_at: seconds(ended.created),
        finished_at: seconds(ended.end.at),
        result: Some(pb::GenericResult { exception: ended.end.how, ..Default::default() }),
        ..Default::default()
    };
    Ok(pb::TaskGetInfoResponse { app_id: ended.app.to_string(), info: Some(info) })
}

fn stats(id: GangId, gang: &Gang, state: &State) -> Option<pb::ClusterStats> {
    let app = state.functions.get(&gang.function)?.app;
    Some(pb::ClusterStats {
        app_id: app.to_string(),
        task_ids: gang.tasks.iter().map(ToString::to_string).collect(),
        cluster_id: id.to_string(),
        started_at: seconds(gang.created),
    })
}

/// Tells of the containers of a clustered function that are one.
pub(super) async fn gang(api: &Api, _caller: &Caller, request: pb::ClusterGetRequest) -> Result<pb::ClusterGetResponse, Error> {
    let id: GangId = request.cluster_id.parse()?;
    let state = api.read_latest_unless(|state| state.gangs.contains_key(&id)).await?;
    let found = state.gangs.get(&id).and_then(|gang| stats(id, gang, &state));
    let absent = || Error::NotFound(format!("Cluster '{id}' not found: its containers have ended, or it never was"));
    Ok(pb::ClusterGetResponse { cluster: Some(found.ok_or_else(absent)?) })
}

/// Lists those of an environment.
pub(super) async fn gangs(api: &Api, _caller: &Caller, request: pb::ClusterListRequest) -> Result<pb::ClusterListResponse, Error> {
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?.id;
    let is_in = |gang: &Gang| {
        let app = state.functions.get(&gang.function).and_then(|function| state.apps.get(&function.app));
        app.is_some_and(|app| app.environment == environment)
    };
    let clusters = state.gangs.iter().filter(|(_, gang)| is_in(gang)).filter_map(|(id, gang)| stats(*id, gang, &state));
    Ok(pb::ClusterListResponse { clusters: clusters.collect() })
}

/// Stops a container: at once, or when it has done what it works on. A container may stop itself alone.
pub(super) async fn stop(api: &Api, caller: &Caller, request: pb::ContainerStopRequest) -> Result<pb::ContainerStopResponse, Error> {
    let id: TaskId = request.task_id.parse()?;
    if let Identity::Task(own) = caller.identity
        && own != id
    {
        return Err(Error::Denied(format!("container {own} may stop itself, and not container {id}")));
    }
    let state = api.read_latest_unless(|state| state.tasks.contains_key(&id)).await?;
    let absent = || Error::NotFound(format!("Container '{id}' not found: it has ended, or never was"));
    let task = state.tasks.get(&id).ok_or_else(absent)?;
    if request.graceful {
        // It is told so when it asks for its next input, and then ends by itself.
        api.calls.stop_task(id, task.function).await.map_err(super::call::refused)?;
    } else {
        api.propose(Command::StopTask { id, why: "stopped by a user".to_owned() }).await?;
    }
    Ok(pb::ContainerStopResponse {})
}
