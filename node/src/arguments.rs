//! What the client's own entrypoint finds in its container: the arguments file, and its environment.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use prost::Message as _;
use prost::bytes::Bytes;
use shoal_image::build::OWN_FOLDER;
use shoal_proto::modal_client as pb;
use shoal_runtime::Bind;
use shoal_state::model::{App, Function, Task};
use shoal_state::{State, TaskId};

use crate::api::{Api, Error, app, environment_name, function};
use crate::config::Config;
use crate::zygotes;

/// The folder of a task's own things in its container: a folder that every tree has, over which the task's is mounted.
pub(crate) const TASK_DIR: &str = "/__modal/task";
/// The task's channel, in [`TASK_DIR`].
pub(crate) const SOCKET: &str = "api.sock";
/// The arguments, in [`TASK_DIR`].
pub(crate) const ARGUMENTS: &str = "arguments.bin";
/// Where functions run when their image names no folder.
pub(crate) const WORKDIR: &str = "/root";

/// Encodes the arguments of a task.
pub(crate) async fn encode(api: &Api, state: &State, id: TaskId, task: &Task, function: &Function) -> Result<Vec<u8>, Error> {
    let (definition, view) = definition(api, task, function).await?;
    let absent = || Error::NotFound(format!("App '{}' not found", task.app));
    let app = state.apps.get(&task.app).ok_or_else(absent)?;
    let arguments = pb::ContainerArguments {
        task_id: id.to_string(),
        function_id: task.function.to_string(),
        app_id: task.app.to_string(),
        function_def: Some(definition),
        serialized_params: function.parameters.clone().into(),
        environment_name: environment_name(state, task.app),
        app_layout: Some(layout(api, app, &view).await?),
        ..Default::default()
    };
    Ok(arguments.encode_to_vec())
}

/// Returns the definition of a task's function, as it came and as this node reads it.
pub(crate) async fn definition(api: &Api, task: &Task, function: &Function) -> Result<(Bytes, pb::Function), Error> {
    let definition = function::definition(api, task.function, function).await?;
    let view = pb::Function::decode(definition.clone()).map_err(Error::failed(format!("cannot decode function {}", task.function)))?;
    Ok((definition, view))
}

/// The app's layout with an object for every dependency: the entrypoint hydrates exactly those that the function names.
async fn layout(api: &Api, app: &App, view: &pb::Function) -> Result<pb::AppLayout, Error> {
    let mut layout = app::layout(api, app).await?;
    for dependency in &view.object_dependencies {
        if !layout.objects.iter().any(|object| object.object_id == dependency.object_id) {
            layout.objects.push(dependency_object(api, &dependency.object_id).await?);
        }
    }
    Ok(layout)
}

/// A dependency that is not of the app's own layout: a function of another app is described, other things are only named.
async fn dependency_object(api: &Api, id: &str) -> Result<pb::Object, Error> {
    use pb::object::HandleMetadataOneof;
    let metadata = match id.parse::<shoal_state::FunctionId>() {
        Ok(_) => {
            let (function_id, found) = function::find(api, id).await?;
            Some(HandleMetadataOneof::FunctionHandleMetadata(function::handle_metadata(api, function_id, &found).await?))
        }
        Err(_) => None,
    };
    Ok(pb::Object { object_id: id.to_owned(), handle_metadata_oneof: metadata })
}

/// Writes what every container sees of this node: by what it reaches the world as this node does.
pub(crate) fn write_own_folder(config: &Config) -> anyhow::Result<()> {
    let dir = own_dir(config);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    config.egress().write_files(&dir)?;
    zygotes::write_programs(&dir)
}

/// Size of /dev/shm, in bytes: half of the machine's memory, for the limit of a container's own memory counts what is in it.
pub(crate) fn shm_bytes() -> u64 {
    let memory = rustix::system::sysinfo();
    memory.totalram * u64::from(memory.mem_unit) / 2
}

fn own_dir(config: &Config) -> PathBuf {
    config.data.join("run/own")
}

/// Shows that folder to a container. A folder, because a file can only be mounted over one that the image has.
pub(crate) fn own_folder(config: &Config) -> Bind {
    Bind { source: own_dir(config), target: OWN_FOLDER.to_owned(), read_only: true }
}

/// What an environment is made of.
pub(crate) struct Variables<'a> {
    /// The image's own.
    pub(crate) image: &'a BTreeMap<String, String>,
    /// The secrets', which win over the image's.
    pub(crate) secrets: BTreeMap<String, String>,
    /// The image's id, for the client.
    pub(crate) image_id: String,
    /// The environment's name.
    pub(crate) environment: String,
    /// What names the node's own certificates; an image that names others wins.
    pub(crate) egress: BTreeMap<String, String>,
}

/// Returns the environment of a task's program; without a task, that of what all programs of an image have in common.
pub(crate) fn environment(id: Option<TaskId>, variables: Variables<'_>) -> Vec<(String, String)> {
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), shoal_runtime::DEFAULT_PATH.to_owned()),
        ("HOME".to_owned(), WORKDIR.to_owned()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
    ]);
    env.extend(variables.egress);
    env.extend(variables.image.clone());
    env.extend(variables.secrets);
    let path = env.get("PYTHONPATH").map_or_else(String::new, |own| format!(":{own}"));
    env.extend(
        [
            ("PYTHONPATH", format!("{WORKDIR}:/pkg{path}")),
            ("MODAL_SERVER_URL", format!("unix://{TASK_DIR}/{SOCKET}")),
            ("MODAL_IS_REMOTE", "1".to_owned()),
            ("MODAL_CONTAINER_ARGUMENTS_PATH", format!("{TASK_DIR}/{ARGUMENTS}")),
            ("MODAL_CLOUD_PROVIDER", "shoal".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    if let Some(id) = id {
        let own = [("MODAL_TASK_ID", id.to_string()), ("MODAL_IMAGE_ID", variables.image_id), ("MODAL_ENVIRONMENT", variables.environment)];
        env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    }
    env.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_win_over_the_image_and_the_task_over_both() {
        let image = BTreeMap::from([("A".to_owned(), "image".to_owned()), ("PYTHONPATH".to_owned(), "/lib".to_owned())]);
        let secrets = BTreeMap::from([("A".to_owned(), "secret".to_owned()), ("MODAL_TASK_ID".to_owned(), "forged".to_owned())]);
        let id = TaskId::from_random(1);
        let variables = Variables {
            image: &image,
            secrets,
            image_id: String::new(),
            environment: "main".to_owned(),
            egress: BTreeMap::from([("PIP_CERT".to_owned(), "/ca.pem".to_owned())]),
        };
        let env: BTreeMap<String, String> = environment(Some(id), variables).into_iter().collect();
        assert_eq!(env["A"], "secret");
        assert_eq!(env["MODAL_TASK_ID"], id.to_string());
        assert_eq!(env["PYTHONPATH"], "/root:/pkg:/lib");
        assert_eq!(env["PIP_CERT"], "/ca.pem");
    }
}
