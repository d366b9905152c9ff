//! Tasks: the containers that the cluster decided to run.

use shoal_proto::modal_client as pb;
use shoal_state::{Command, TaskId};

use super::error::Error;
use super::{Api, Caller, environment, seconds};

pub(super) async fn list(api: &Api, _caller: &Caller, request: pb::TaskListRequest) -> Result<pb::TaskListResponse, Error> {
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?.id;
    let app: Option<shoal_state::AppId> = if request.app_id.is_empty() { None } else { Some(request.app_id.parse()?) };
    let tasks = state.tasks.iter().filter_map(|(id, task)| {
        let of = state.apps.get(&task.app)?;
        let wanted = of.environment == environment && app.is_none_or(|app| app == task.app);
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

pub(super) async fn stop(api: &Api, _caller: &Caller, request: pb::ContainerStopRequest) -> Result<pb::ContainerStopResponse, Error> {
    let id: TaskId = request.task_id.parse()?;
    let state = api.read_latest_unless(|state| state.tasks.contains_key(&id)).await?;
    if !state.tasks.contains_key(&id) {
        return Err(Error::NotFound(format!("Container '{id}' not found: it has ended, or never was")));
    }
    api.propose(Command::StopTask { id, why: "stopped by a user".to_owned() }).await?;
    Ok(pb::ContainerStopResponse {})
}
