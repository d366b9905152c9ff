//! What the container of a sandbox is to be, and what its end means.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_runtime::{ContainerSpec, ExitStatus, NetworkMode};
use shoal_state::model::{Function, Sandbox, SandboxEnd, SandboxEndBy, Task};
use shoal_state::{Command, SandboxId, State, TaskId};
use shoal_worker::{ContainerPlan, Ended};
use tokio_util::task::AbortOnDropHandle;

use crate::api::{Api, Error, environment_name, now, sandbox};
use crate::arguments;
use crate::images;
use crate::provider::limits;
use crate::roots::Root;
use crate::zygotes;

/// Where a sandbox runs when neither it nor its image says.
const WORKDIR: &str = "/";
/// What runs in a sandbox that names no program, in an image that names none.
const IDLE: [&str; 2] = ["sleep", "infinity"];
/// Between two attempts to note that a sandbox's time is over.
const AGAIN: Duration = Duration::from_secs(1);

/// What a sandbox holds on this node while it runs.
pub(crate) struct Planned {
    pub(crate) plan: ContainerPlan,
    pub(crate) root: Root,
    /// What ends it in time.
    pub(crate) timeout: AbortOnDropHandle<()>,
}

/// Finds the sandbox that a task is of.
pub(crate) fn of_task<'a>(state: &'a State, task: &Task) -> Option<(SandboxId, &'a Sandbox)> {
    let id = SandboxId::of(task.function);
    state.sandboxes.get(&id).map(|sandbox| (id, sandbox))
}

/// Says what a sandbox's container is to be: its image without a client, its own program, its own environment. It has no channel.
pub(crate) async fn plan(api: &Api, state: &State, id: TaskId, task: &Task, function: &Function) -> Result<Planned, Error> {
    let sandbox_id = SandboxId::of(task.function);
    let (image_id, image) = images::image_of(state, function)?;
    let record = images::read_record(api, &image).await?;
    let manifest = image.manifest.ok_or_else(|| Error::Precondition("its image was not built".to_owned()))?;
    let wanted = api.definition(&function.definition).await?;
    let wanted = pb::Sandbox::decode(wanted).map_err(Error::failed(format!("cannot decode sandbox {sandbox_id}")))?;
    let files = images::files(state, function);
    api.touched.starts(&[&[manifest][..], &files].concat()).await;
    let root = api.roots.get(&[manifest], &files, record.config.path().to_owned()).await?;
    api.touched.started(manifest, &root);
    api.upkeep.secrets_used(&function.secrets, now().0 / 1000);
    let variables = sandbox::variables(api, state, sandbox_id, function)?;

    let asked = if wanted.entrypoint_args.is_empty() { record.config.cmd.clone().unwrap_or_default() } else { wanted.entrypoint_args };
    let program: Vec<String> = record.config.entrypoint.clone().unwrap_or_default().into_iter().chain(asked).collect();
    let program = if program.is_empty() { IDLE.map(str::to_owned).to_vec() } else { program };
    let mut spec = ContainerSpec::new(&root.dir, program);
    let workdir = wanted.workdir.filter(|workdir| !workdir.is_empty()).or_else(|| record.config.workdir.clone());
    spec.cwd = workdir.unwrap_or_else(|| WORKDIR.to_owned());
    spec.env = environment(api.config.egress().env(), record.config.env.clone(), variables);
    let own = [
        ("MODAL_TASK_ID", id.to_string()),
        ("MODAL_SANDBOX_ID", function.tag.clone()),
        ("MODAL_IMAGE_ID", image_id.to_string()),
        ("MODAL_ENVIRONMENT", environment_name(state, task.app)),
    ];
    spec.env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    spec.binds.push(arguments::own_folder(&api.config));
    spec.hostname = zygotes::HOSTNAME.to_owned();
    spec.limits = limits(function, state.nodes.get(&api.cluster.node).map(|node| node.capacity));
    spec.network = if function.block_network { NetworkMode::NodeOnly } else { NetworkMode::Nat };
    spec.limits.disk_bytes = spec.limits.disk_bytes.or(Some(api.config.disk.overlay_bytes).filter(|bytes| *bytes > 0));
    api.tasks.starts_plain(id, "it is a sandbox's".to_owned());
    let mut plan = ContainerPlan::new(spec);
    plan.stop_signal = libc::SIGTERM;
    let timeout_ms = state.sandboxes.get(&sandbox_id).map_or(0, |sandbox| sandbox.timeout_ms);
    Ok(Planned { plan, root, timeout: AbortOnDropHandle::new(tokio::spawn(end_in_time(api.clone(), sandbox_id, timeout_ms))) })
}

/// Returns the environment of a sandbox's program: what is of the node, the image's, then the user's.
fn environment(
    egress: BTreeMap<String, String>,
    image: BTreeMap<String, String>,
    variables: BTreeMap<String, String>,
) -> Vec<(String, String)> {
    let fixed = [("PATH", shoal_runtime::DEFAULT_PATH), ("HOME", arguments::WORKDIR), ("LANG", "C.UTF-8")];
    let mut env: BTreeMap<String, String> = fixed.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    env.extend(egress);
    env.extend(image);
    env.extend(variables);
    env.into_iter().collect()
}

/// Ends a sandbox when its time is over.
async fn end_in_time(api: Api, id: SandboxId, timeout_ms: u64) {
    tokio::time::sleep(Duration::from_millis(timeout_ms)).await;
    let how = format!("its timeout of {} s is over", timeout_ms / 1000);
    loop {
        let end = SandboxEnd { at: now(), by: SandboxEndBy::Timeout, how: how.clone() };
        match api.propose(Command::EndSandbox { id, end }).await {
            Ok(()) | Err(Error::Refused(_)) => return,
            Err(error) => tracing::warn!(sandbox = %id, %error, "cannot note that the time of a sandbox is over, trying again"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Says what the end of a sandbox's container means for the sandbox, should nothing else have ended it.
pub(crate) fn end_of(end: &Ended) -> SandboxEnd {
    let by = match end.exit.map(|exit| exit.status) {
        // The node ended it, and not because somebody had ended the sandbox.
        _ if end.why.is_some() && end.exit.is_none_or(|exit| !exit.oom && exit.disk.is_none()) => SandboxEndBy::Platform,
        Some(ExitStatus::Code(code)) => SandboxEndBy::Itself(code),
        Some(ExitStatus::Signal(signal)) => SandboxEndBy::Itself(128 + signal),
        None => SandboxEndBy::Platform,
    };
    SandboxEnd { at: now(), by, how: end.how.clone() }
}

#[cfg(test)]
mod tests {
    use shoal_runtime::Exit;

    use super::*;

    #[test]
    fn the_end_of_a_container_is_its_programs_unless_the_node_ended_it() {
        let ended = |exit: Option<ExitStatus>, why: Option<&str>| Ended {
            exit: exit.map(|status| Exit { status, oom: false, disk: None }),
            why: why.map(str::to_owned),
            how: "so".to_owned(),
            phases: Vec::new(),
        };
        assert_eq!(end_of(&ended(Some(ExitStatus::Code(3)), None)).by, SandboxEndBy::Itself(3));
        assert_eq!(end_of(&ended(Some(ExitStatus::Signal(9)), None)).by, SandboxEndBy::Itself(137));
        assert_eq!(end_of(&ended(Some(ExitStatus::Signal(15)), Some("the node stops"))).by, SandboxEndBy::Platform);
        assert_eq!(end_of(&ended(None, Some("cannot create the container"))).by, SandboxEndBy::Platform);
        let oom = Ended { exit: Some(Exit { status: ExitStatus::Signal(9), oom: true, disk: None }), ..ended(None, Some("oom")) };
        assert_eq!(end_of(&oom).by, SandboxEndBy::Itself(137));
    }

    #[test]
    fn the_users_variables_win() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let env = environment(map(&[("SSL", "node")]), map(&[("PATH", "/img"), ("A", "img")]), map(&[("A", "mine")]));
        let value = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!((value("A"), value("PATH"), value("SSL"), value("HOME")), (Some("mine"), Some("/img"), Some("node"), Some("/root")));
    }
}
