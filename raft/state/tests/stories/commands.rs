//! The commands that lines of stories say.

use shoal_state::model::{
    App, AppLayout, AppState, Bound, Changes, Cluster, Deployment, Environment, EnvironmentChange, Function, Lasting, Member, NewRelease,
    NewSchedule, Node, Object, Period, Publish, ReleaseKind, Resources, Sandbox, SandboxEnd, SandboxEndBy, Scaling, Secret, ShardChange,
    Task, TaskEnd, Timing, Token, TokenLimits, TokenPurpose, Voting,
};
use shoal_state::{
    AppId, BootId, Command, DefinitionId, DictId, Digest, EnvironmentId, FunctionId, GangId, NodeId, ObjectId, QueueId, SandboxId,
    SecretId, ShardId, TaskId, Timestamp, TokenId,
};

use crate::MAIN;
use shoal_stories::Line;

fn resources(line: &Line<'_>, cpu: u64, memory: u64, gpus: u64) -> Resources {
    Resources {
        cpu_milli: line.number("cpu", cpu) as u32,
        memory_bytes: line.number("memory", memory),
        gpus: line.number("gpus", gpus) as u32,
        disk_bytes: line.number("disk", 0),
        ..Resources::default()
    }
}

/// A container of a gang, written `TASK@NODE` or `TASK@NODE/FUNCTION`.
fn member_of_gang(line: &Line<'_>, member: &str) -> (TaskId, Task) {
    let (task, place) = member.split_once('@').expect("TASK@NODE");
    let (node, function) = place.split_once('/').unwrap_or((place, "1"));
    let number = |text: &str| -> u128 { text.parse().expect("a number") };
    let place = (NodeId::from_random(number(node)), BootId::from_random(line.number("boot", 1).into()));
    let decided = Task::new((FunctionId::from_random(number(function)), AppId::from_random(1)), place, Timestamp(0));
    (TaskId::from_random(number(task)), Task { resources: resources(line, 1000, 1 << 20, 0), ..decided })
}

fn function(line: &Line<'_>) -> Function {
    let plain = Function::new(AppId::from_random(line.number("app", 1).into()), format!("f{}", line.plain[0]), Timestamp(0));
    Function {
        image: line.text("image").map(|id| shoal_state::ImageId::from_random(id.parse().expect("a number"))),
        mounts: line.text("mount").map(|id| shoal_state::MountId::from_random(id.parse().expect("a number"))).into_iter().collect(),
        scaling: Scaling {
            containers_max: line.number("max", 0) as u32,
            containers_min: line.number("min", 0) as u32,
            ..Scaling::default()
        },
        ..plain
    }
}

fn token(line: &Line<'_>) -> Token {
    let environment = line.text("environment").map(|id| EnvironmentId::from_random(id.parse().expect("a number")));
    let reads_only = line.has("reader");
    let limited = environment.is_some() || reads_only;
    Token {
        secret_hash: shoal_state::Digest::of(b"a secret"),
        purpose: if limited { TokenPurpose::Limited(TokenLimits { environment, reads_only }) } else { TokenPurpose::Client },
        label: String::new(),
        created: Timestamp(0),
        expires: None,
        revoked: None,
    }
}

/// Reads `1:5,2:6` as pairs.
fn pairs<'a>(line: &Line<'a>, key: &str) -> Vec<(&'a str, &'a str)> {
    let text = line.text(key).unwrap_or_default();
    text.split(',').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once(':').expect("a pair")).collect()
}

fn id(text: &str) -> u128 {
    text.parse().expect("a number")
}

fn new_release(line: &Line<'_>, name: &str) -> NewRelease {
    NewRelease {
        deployment: Deployment {
            version: 0,
            name: name.to_owned(),
            tag: String::new(),
            at: Timestamp(line.number("at", 10)),
            client_version: String::new(),
        },
        by: "alice".to_owned(),
        commit: vec![],
        request: Digest::of(&line.number("request", 0).to_le_bytes()),
    }
}

/// `publish APP functions=TAG:FUNCTION,… definitions=FUNCTION:DEFINITION,… name=NAME request=N`.
fn publish(line: &Line<'_>) -> Publish {
    let functions = pairs(line, "functions").into_iter().map(|(tag, function)| (tag.to_owned(), FunctionId::from_random(id(function))));
    let definitions = pairs(line, "definitions").into_iter();
    Publish {
        layout: AppLayout { functions: functions.collect(), ..AppLayout::default() },
        definitions: definitions.map(|(of, is)| (FunctionId::from_random(id(of)), DefinitionId::from_random(id(is)))).collect(),
        tags: pairs(line, "tags").into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        lasting: match line.text("name") {
            Some(name) => Lasting::Deployed(new_release(line, name)),
            None => Lasting::Same,
        },
        at: Timestamp(line.number("at", 10)),
    }
}

fn secret(line: &Line<'_>) -> Secret {
    Secret {
        environment: EnvironmentId::from_random(line.number("environment", 1).into()),
        name: line.text("name").map(str::to_owned).unwrap_or_default(),
        keys: vec![],
        sealed: vec![],
        content_hash: Digest::of(line.text("content").unwrap_or("").as_bytes()),
        updated: Timestamp(line.number("at", 10)),
    }
}

/// The commands of version 2: what is published, environments, secrets.
fn registry_command(line: &Line<'_>) -> Command {
    let environment = || EnvironmentId::from_random(line.nth(0));
    let app = || AppId::from_random(line.nth(0));
    match line.verb {
        "stage" => Command::StageFunction {
            id: FunctionId::from_random(line.nth(0)),
            definition: DefinitionId::from_random(line.number("definition", 0).into()),
            function: Box::new(function(line)),
        },
        "publish" => Command::Publish { id: app(), publish: Box::new(publish(line)) },
        "rollback" | "rollover" => Command::Redeploy {
            id: app(),
            of: line.number("of", 0) as u32,
            kind: if line.verb == "rollback" { ReleaseKind::Rollback } else { ReleaseKind::Rollover },
            release: Box::new(new_release(line, "web")),
        },
        "pin" => Command::PinFunction {
            app: app(),
            of: FunctionId::from_random(line.number("of", 1).into()),
            version: line.number("version", 1) as u32,
            at: Timestamp(line.number("at", 10)),
        },
        "note" => Command::NoteApp {
            id: app(),
            created_by: line.text("created_by").map(str::to_owned),
            stopped_by: line.text("stopped_by").map(str::to_owned),
            tags: line.text("tags").is_some().then(|| publish(line).tags),
        },
        "update_environment" => Command::UpdateEnvironment {
            id: environment(),
            change: EnvironmentChange {
                name: line.text("name").map(str::to_owned),
                webhook_suffix: line.text("suffix").map(str::to_owned),
                builder_version: line.text("builder").map(str::to_owned),
            },
        },
        "remove_environment" => Command::RemoveEnvironment { id: environment(), at: Timestamp(9), why: "asked".to_owned() },
        "make_default" => Command::SetSetting { key: shoal_state::SETTING_DEFAULT.to_owned(), value: environment().to_string() },
        "write_secret" => Command::WriteSecret {
            id: SecretId::from_random(line.nth(0)),
            secret: Box::new(secret(line)),
            app: line.text("app").map(|app| AppId::from_random(id(app))),
            by: "alice".to_owned(),
            expected: line.text("expected").map(|content| Digest::of(content.as_bytes())),
        },
        "dict" | "queue" => Command::CreateObject {
            id: object(line),
            object: Object {
                environment: EnvironmentId::from_random(line.number("in", 1).into()),
                name: line.text("name").map(str::to_owned).unwrap_or_default(),
                created: Timestamp(line.number("at", 10)),
                created_by: "alice".to_owned(),
            },
        },
        "stage_schedules" | "fire" | "end_firings" | "reschedule" => schedule_command(line),
        "sandbox" => Command::CreateSandbox {
            id: SandboxId::from_random(line.nth(0)),
            sandbox: Box::new(Sandbox {
                app: AppId::from_random(line.number("app", 1).into()),
                sealed: vec![],
                timeout_ms: 1000,
                created: Timestamp(line.number("at", 10)),
                created_by: "alice".to_owned(),
                ended: None,
            }),
            function: Box::new(function(line)),
        },
        "end_sandbox" => Command::EndSandbox {
            id: SandboxId::from_random(line.nth(0)),
            end: SandboxEnd {
                at: Timestamp(line.number("at", 20)),
                by: line.text("by").map_or(SandboxEndBy::Termination, |code| SandboxEndBy::Itself(code.parse().expect("a code"))),
                how: line.text("how").unwrap_or("exit").to_string(),
            },
        },
        "forget_sandboxes" => {
            Command::ForgetSandboxes { ids: (0..line.plain.len()).map(|index| SandboxId::from_random(line.nth(index))).collect() }
        }
        "remove_dict" | "remove_queue" => Command::RemoveObject { id: object(line) },
        other => panic!("no command is called {other:?}"),
    }
}

/// `stage_schedules APP period=FUNCTION:SECONDS,… cron=FUNCTION:ZONE,… next=N`, `fire FUNCTION due=N next=N`.
fn schedule_command(line: &Line<'_>) -> Command {
    let function = || FunctionId::from_random(line.nth(0));
    let at = |key| Timestamp(line.number(key, 10));
    match line.verb {
        "stage_schedules" => {
            let period = |seconds: &str| Timing::Period(Period { nanos: id(seconds) as u64 * 1_000_000_000, ..Period::default() });
            let cron = |zone: &str| Timing::Cron { expression: "@daily".to_owned(), zone: zone.to_owned() };
            let periods = pairs(line, "period").into_iter().map(|(of, seconds)| (of, period(seconds)));
            let crons = pairs(line, "cron").into_iter().map(|(of, zone)| (of, cron(zone)));
            let new = |(of, timing): (&str, Timing)| (FunctionId::from_random(id(of)), NewSchedule { timing, next: at("next") });
            Command::StageSchedules {
                app: AppId::from_random(line.nth(0)),
                request: Digest::of(&line.number("request", 0).to_le_bytes()),
                at: at("at"),
                schedules: periods.chain(crons).map(new).collect(),
            }
        }
        "fire" => Command::Fire { id: function(), due: at("due"), next: at("next") },
        "end_firings" => {
            let firings = pairs(line, "of").into_iter();
            Command::EndFirings { firings: firings.map(|(of, due)| (FunctionId::from_random(id(of)), Timestamp(id(due) as u64))).collect() }
        }
        "reschedule" => Command::Reschedule { id: function(), from: at("from"), next: at("next") },
        other => panic!("no command is called {other:?}"),
    }
}

fn object(line: &Line<'_>) -> ObjectId {
    match line.verb.ends_with("dict") {
        true => DictId::from_random(line.nth(0)).into(),
        false => QueueId::from_random(line.nth(0)).into(),
    }
}

/// What functions need: images, results of build steps, files.
fn part_command(line: &Line<'_>) -> Command {
    let digest = |number: u128| Digest::of(&number.to_le_bytes());
    let (image, mount) = (|| shoal_state::ImageId::from_random(line.nth(0)), || shoal_state::MountId::from_random(line.nth(0)));
    let (manifest, record) = (digest(0), shoal_state::model::Definition::default());
    match line.verb {
        "image" => {
            let image_of = shoal_state::model::Image { key: digest(0), manifest: Some(manifest), record, built: Timestamp(0) };
            Command::PutImage { id: image(), image: image_of }
        }
        "layer" => Command::PutLayer { key: digest(line.nth(0)), layer: shoal_state::model::Layer { manifest, record } },
        "mount" => Command::PutMount { id: mount(), mount: shoal_state::model::Mount { manifest, content_sha256: String::new() } },
        "name_mount" => Command::NameMount { name: line.plain[1].to_owned(), id: mount() },
        "remove_image" => Command::RemoveImage { id: image() },
        "remove_layers" => Command::RemoveLayers { keys: line.plain.iter().map(|key| digest(id(key))).collect() },
        "remove_mount" => Command::RemoveMount { id: mount() },
        other => panic!("no command is called {other:?}"),
    }
}

pub(crate) fn command(line: &Line<'_>) -> Command {
    let node = |index| NodeId::from_random(line.nth(index));
    match line.verb {
        "environment" => Command::CreateEnvironment {
            environment: Environment {
                webhook_suffix: line.text("suffix").map(str::to_owned).unwrap_or_default(),
                ..Environment::new(EnvironmentId::from_random(line.nth(0)), line.plain[1], Timestamp(0))
            },
        },
        "node" => Command::PutNode {
            id: node(0),
            node: Node::new(
                format!("n{}", line.plain[0]),
                BootId::from_random(line.number("boot", 1).into()),
                resources(line, 4000, 1 << 30, 0),
                Timestamp(0),
            ),
        },
        "token" => Command::CreateToken { id: TokenId::from_random(line.nth(0)), token: token(line) },
        "revoke" => Command::RevokeToken { id: TokenId::from_random(line.nth(0)), at: Timestamp(7) },
        "drain" => Command::DrainNode { id: node(0), draining: true },
        "undrain" => Command::DrainNode { id: node(0), draining: false },
        "app" => Command::CreateApp {
            id: AppId::from_random(line.nth(0)),
            app: App::new(
                line.text("environment").map_or(MAIN, |of| EnvironmentId::from_random(id(of))),
                AppState::Ephemeral,
                Timestamp(0),
            ),
        },
        "deploy" => Command::PublishApp {
            id: AppId::from_random(line.nth(0)),
            layout: AppLayout::default(),
            deployment: Some(Deployment {
                version: 0,
                name: line.plain[1].to_owned(),
                tag: String::new(),
                at: Timestamp(0),
                client_version: String::new(),
            }),
            detached: false,
        },
        "stop_app" => Command::StopApp { id: AppId::from_random(line.nth(0)), at: Timestamp(9), why: "asked".to_owned() },
        "remove_app" => Command::RemoveApp { id: AppId::from_random(line.nth(0)) },
        "function" => Command::PutFunction { id: FunctionId::from_random(line.nth(0)), function: Box::new(function(line)) },
        "assign" => Command::Assign {
            id: TaskId::from_random(line.nth(0)),
            task: Task {
                generation: line.number("generation", 1),
                resources: resources(line, 1000, 1 << 20, 0),
                gpus: line.text("gpu").map(|list| list.split(',').map(|gpu| gpu.parse().expect("a number")).collect()).unwrap_or_default(),
                ..Task::new(
                    (FunctionId::from_random(line.number("function", 1).into()), AppId::from_random(line.number("app", 1).into())),
                    (NodeId::from_random(line.number("node", 1).into()), BootId::from_random(line.number("boot", 1).into())),
                    Timestamp(0),
                )
            },
        },
        "gang" => Command::AssignGang {
            id: GangId::from_random(line.nth(0)),
            tasks: line.plain[1..].iter().map(|member| member_of_gang(line, member)).collect(),
        },
        "gpus" => Command::PutGpus { id: node(0), kinds: line.plain[1..].iter().map(|kind| (*kind).to_owned()).collect() },
        "stop_task" => Command::StopTask { id: TaskId::from_random(line.nth(0)), why: "asked".to_owned() },
        "end_task" => Command::EndTask {
            id: TaskId::from_random(line.nth(0)),
            generation: line.number("generation", 1),
            end: TaskEnd { at: Timestamp(0), how: "exit code 0".to_owned() },
        },
        "init_shards" => Command::InitShards { home: node(0) },
        "shard" => Command::ChangeShard {
            shard: ShardId::new(line.nth(0) as u16).expect("a shard"),
            epoch: line.number("epoch", 1),
            change: match line.plain[1] {
                "promote" => ShardChange::Promote(node(2)),
                "invite" => ShardChange::Invite(node(2)),
                "join" => ShardChange::Join(node(2)),
                "drop" => ShardChange::Drop(node(2)),
                "abort" => ShardChange::Abort(node(2)),
                other => panic!("no change of a shard is called {other:?}"),
            },
        },
        "version" => Command::SetVersion { version: line.nth(0) as u32 },
        "image" | "layer" | "mount" | "name_mount" | "remove_image" | "remove_layers" | "remove_mount" => part_command(line),
        "bind" | "use_bound" | "forget_bound" => bound_command(line),
        "found" | "admit" | "remove_node" | "label" | "join_token" | "voting" | "recover" => member_command(line),
        _ => registry_command(line),
    }
}

/// Functions that are made of others: `bind 11 parent=1 max=2 secret=1 used=20`.
fn bound_command(line: &Line<'_>) -> Command {
    let function = || FunctionId::from_random(line.nth(0));
    match line.verb {
        "bind" => {
            let changes = Changes {
                containers_max: line.text("max").is_some().then(|| line.number("max", 0) as u32),
                secrets: line.text("secret").map(|secret| SecretId::from_random(id(secret))).into_iter().collect(),
                ..Changes::default()
            };
            let at = Timestamp(line.number("used", 10));
            let parent = FunctionId::from_random(line.number("parent", 1).into());
            let bound = Bound { parent, parameters: b"x=1".to_vec(), options: vec![], changes, created: at, used: at };
            Command::BindFunction { id: function(), bound: Box::new(bound) }
        }
        "use_bound" => Command::UseBound { id: function(), at: Timestamp(line.number("at", 10)) },
        "forget_bound" => Command::ForgetBound {
            ids: line.plain.iter().map(|of| FunctionId::from_random(id(of))).collect(),
            unused_since: Timestamp(line.number("since", 10)),
        },
        other => panic!("no command is called {other:?}"),
    }
}

/// The cluster, and who belongs to it.
fn member_command(line: &Line<'_>) -> Command {
    let node = || NodeId::from_random(line.nth(0));
    let at = Timestamp(line.number("at", 10));
    match line.verb {
        "found" => Command::FoundCluster { cluster: Cluster { id: [line.nth(0) as u8; 16], generation: 1, founded: at } },
        "admit" => Command::AdmitNode {
            id: node(),
            member: Member {
                address: format!("n{}:7470", line.plain[0]),
                version: line.number("version", 3) as u32,
                release: "1.0".to_owned(),
                joined: at,
            },
            token: line.text("token").map(|token| TokenId::from_random(id(token))),
            at,
        },
        "voting" => {
            let voting = match line.plain[1] {
                "must" => Some(Voting::Must),
                "must_not" => Some(Voting::MustNot),
                "auto" => None,
                other => panic!("no vote is called {other:?}"),
            };
            Command::SetVoting { id: node(), voting }
        }
        "recover" => Command::RecoverCluster { survivor: node(), generation: line.number("generation", 2) as u32, at },
        "remove_node" => Command::RemoveNode { id: node(), at, why: "asked by alice".to_owned() },
        "label" => {
            let labels = pairs(line, "labels").into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
            Command::LabelNode { id: node(), labels: labels.collect() }
        }
        "join_token" => Command::CreateToken {
            id: TokenId::from_random(line.nth(0)),
            token: Token {
                purpose: TokenPurpose::Node,
                expires: line.text("expires").map(|_| Timestamp(line.number("expires", 0))),
                ..token(line)
            },
        },
        other => panic!("no command is called {other:?}"),
    }
}
