//! What stories show of the state.

use shoal_state::model::{App, Environment, Function, Gang, Scaling, Schedule, Secret, Timing, pinned_id};
use shoal_state::{AppId, EnvironmentId, FunctionId, GangId, NodeId, SecretId, ShardId, State, TaskId, TokenId};

use shoal_stories::Line;

/// Shows a part of the state, for `show` lines.
pub(crate) fn show(state: &State, line: &Line<'_>) -> String {
    match line.plain[0] {
        "shard" => {
            let shard = &state.shards[&ShardId::new(line.nth(1) as u16).expect("a shard")];
            let short = |nodes: &[NodeId]| nodes.iter().map(|node| node.bits().to_string()).collect::<Vec<_>>().join(",");
            format!(
                "epoch {} home {} in sync [{}] joining [{}]",
                shard.epoch,
                shard.home.bits(),
                short(&shard.in_sync),
                short(&shard.joining)
            )
        }
        "tasks" => state.tasks.iter().map(|(id, task)| format!("{} stopping={} ", id.bits(), task.stopping.is_some())).collect(),
        // What is in place of older versions of a function: `show pinned APP FUNCTION`.
        "pinned" => {
            let (app, of) = (AppId::from_random(line.nth(1)), FunctionId::from_random(line.nth(2)));
            let tell = |version: u32| {
                let id = pinned_id(of, version);
                let max = state.functions.get(&id)?.scaling.containers_max;
                Some(format!(
                    "v{version} max={max} bound={} known {:?}",
                    state.bound.get(&id).map_or(0, |of| of.len()),
                    state.pinned_version(app, id)
                ))
            };
            let told: Vec<String> = (1..=99).filter_map(tell).collect();
            if told.is_empty() { "none".to_owned() } else { told.join(" | ") }
        }
        "gpus" => state.gpus.iter().map(|(id, kinds)| format!("{} {} ", id.bits(), kinds.join(","))).collect(),
        "gangs" => {
            let tell = |(id, gang): (&GangId, &Gang)| {
                let tasks: Vec<_> = gang
                    .tasks
                    .iter()
                    .map(|task| format!("{}{}", task.bits(), if state.tasks.contains_key(task) { "" } else { " gone" }))
                    .collect();
                format!("{} of {}: {}", id.bits(), gang.function, tasks.join(", "))
            };
            let told: Vec<_> = state.gangs.iter().map(tell).collect();
            if told.is_empty() { "none".to_owned() } else { told.join("; ") }
        }
        "token" => {
            let token = &state.tokens[&TokenId::from_random(line.nth(1))];
            format!("{:?}, revoked {:?}", token.purpose, token.revoked)
        }
        "members" => {
            let members = state.members.iter().map(|(id, member)| {
                let node = state.nodes.get(id);
                let labels: Vec<_> = node.iter().flat_map(|node| &node.labels).map(|(key, value)| format!("{key}={value}")).collect();
                format!("n{} at {} since {} [{}]", id.bits(), member.address, member.joined.0, labels.join(","))
            });
            members.collect::<Vec<_>>().join("; ")
        }
        "cluster" => format!("{:?}", state.cluster.as_ref().map(|cluster| (cluster.id[0], cluster.generation))),
        "schedules" => {
            let tell = |(id, schedule): (&FunctionId, &Schedule)| {
                let timing = match &schedule.timing {
                    Timing::Period(period) => format!("every {} s", period.nanos / 1_000_000_000),
                    Timing::Cron { expression, zone } => format!("{expression} in {zone}"),
                };
                let Schedule { since, next, last, .. } = schedule;
                format!("{}: {timing} since {}, next {}, last {:?}", id.bits(), since.0, next.0, last.map(|last| last.0))
            };
            let waiting: Vec<String> = state.firings.iter().map(|(id, due)| format!("{} for {}", id.bits(), due.0)).collect();
            let all: Vec<String> = state.schedules.iter().map(tell).collect();
            let staged = state.staged_schedules.len();
            format!("[{}] staged {staged}, without a call: [{}]", all.join(" | "), waiting.join(", "))
        }
        "objects" => {
            let objects = state.objects.iter().map(|(id, object)| format!("{} {} as {:?}", id.kind(), id.bits(), object.name));
            objects.collect::<Vec<_>>().join("; ")
        }
        "sandboxes" => {
            let sandboxes = state.sandboxes.iter().map(|(id, sandbox)| {
                let function = if state.functions.contains_key(&id.function()) { "" } else { ", function gone" };
                match &sandbox.ended {
                    Some(end) => format!("{} ended by {:?}: {}{function}", id.bits(), end.by, end.how),
                    None => format!("{} lives{function}", id.bits()),
                }
            });
            sandboxes.collect::<Vec<_>>().join("; ")
        }
        "voting" => format!("{:?}", state.voting.iter().map(|(id, voting)| (id.bits(), *voting)).collect::<Vec<_>>()),
        "removed" => format!("{:?}", state.removed.iter().map(|(id, removed)| (id.bits(), removed.why.as_str())).collect::<Vec<_>>()),
        "free" => format!("{:?}", state.free(NodeId::from_random(line.nth(1)))),
        "app" => {
            let app = &state.apps[&AppId::from_random(line.nth(1))];
            format!("{} as {:?}, {} deployments", app.state, app.name, app.deployments.len())
        }
        "releases" => {
            let releases = state.releases.get(&AppId::from_random(line.nth(1))).into_iter().flatten();
            let tell = |release: &shoal_state::model::Release| {
                format!("v{} {:?} of {:?} kept={}", release.version, release.kind, release.of, release.contents.is_some())
            };
            let told = releases.map(tell).collect::<Vec<_>>();
            if told.is_empty() { "none".to_owned() } else { told.join(" | ") }
        }
        "functions" => {
            let tell = |(id, function): (&FunctionId, &Function)| format!("{} max={}", id.bits(), function.scaling.containers_max);
            let layout = |app: &App| app.layout.functions.values().map(|id| id.bits().to_string()).collect::<Vec<_>>().join(",");
            let apps = state.apps.iter().map(|(id, app)| format!("app {} has [{}]", id.bits(), layout(app)));
            let functions = state.functions.iter().map(tell);
            apps.chain(functions).chain([format!("staged {}", state.staged.len())]).collect::<Vec<_>>().join(" | ")
        }
        "bound" => {
            let all = state.bound.values().flatten().map(|(id, bound)| {
                let function = &state.functions[id];
                let Scaling { containers_min, containers_max, .. } = function.scaling;
                let (parent, secrets) = (bound.parent.bits(), function.secrets.len());
                let parameters = String::from_utf8_lossy(&function.parameters);
                format!(
                    "{} of {parent} min={containers_min} max={containers_max} secrets={secrets} {parameters} used={}",
                    id.bits(),
                    bound.used.0
                )
            });
            let told = all.collect::<Vec<_>>().join(" | ");
            if told.is_empty() { format!("none of {} functions", state.functions.len()) } else { told }
        }
        "notes" => format!("{:?}", state.app_notes.get(&AppId::from_random(line.nth(1)))),
        "environments" => {
            let default = state.environment_default().map(|environment| environment.id.bits());
            let tell = |environment: &Environment| {
                let builder = state.environment_settings.get(&environment.id).map(|settings| settings.builder_version.clone());
                format!("{} {:?} suffix {:?} builder {builder:?}", environment.id.bits(), environment.name, environment.webhook_suffix)
            };
            let all = state.environments.values().map(tell).collect::<Vec<_>>().join(" | ");
            format!("{all} | default {default:?} | {} apps", state.apps.len())
        }
        "secrets" => {
            let tell =
                |(id, secret): (&SecretId, &Secret)| format!("{} {:?} notes {:?}", id.bits(), secret.name, state.secret_notes.get(id));
            format!("{} secrets {}", state.secrets.len(), state.secrets.iter().map(tell).collect::<Vec<_>>().join(" | "))
        }
        "parts" => format!("{} images, {} layers, {} mounts", state.images.len(), state.layers.len(), state.mounts.len()),
        other => panic!("nothing to show is called {other:?}"),
    }
}

/// Shortens ids to their numbers, so that a story can be read.
pub(crate) fn shorten(text: &str) -> String {
    let mut out = text.to_owned();
    for bits in 0..30u128 {
        for id in [
            NodeId::from_random(bits).to_string(),
            AppId::from_random(bits).to_string(),
            TaskId::from_random(bits).to_string(),
            GangId::from_random(bits).to_string(),
            FunctionId::from_random(bits).to_string(),
            EnvironmentId::from_random(bits).to_string(),
            TokenId::from_random(bits).to_string(),
            SecretId::from_random(bits).to_string(),
            shoal_state::ImageId::from_random(bits).to_string(),
            shoal_state::MountId::from_random(bits).to_string(),
        ] {
            out = out.replace(&id, &format!("{}-{bits}", &id[..2]));
        }
    }
    out
}
