//! Placements by three nodes: what the scheduler decides goes through Raft, over QUIC and onto disks, and is applied.
//!
//! In each round the leader plans for as many containers as are wanted, by the scheduler and on the state of a real node, puts what it
//! decided into the log, and has the answers once a majority has it on disk and it is applied. Then the containers end, which makes room
//! for the next round and is not counted. There are no containers, calls and clients: what they cost is measured elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::Args;
use futures::future::BoxFuture;
use serde_json::json;
use shoal_peer::{Admission, Authority, Endpoint, Identity, Member, Service};
use shoal_raft::{Feed, Peer, Raft, Transport, Unsent};
use shoal_scheduler::{Load, PoolLoad, plan};
use shoal_state::model::{App, AppLayout, AppState, Definition, Environment, Function, Image, Node, Resources, TaskEnd};
use shoal_state::{AppId, BootId, Command, Digest, EnvironmentId, FunctionId, ImageId, NodeId, State, Timestamp, VERSION_KNOWN};

use crate::say;

const VOTERS: u128 = 3;
const RAFT: Service = Service::new(1, "answer a message of consensus");
/// How long the others may take to have what the first node has.
const SETTLE_WAIT: Duration = Duration::from_secs(30);
const GIB: u64 = 1 << 30;

/// What is placed, and where.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A folder on the disk that is measured, in which each node gets one for its log.
    #[arg(long)]
    dir: PathBuf,
    /// How many containers are wanted in a round.
    #[arg(long, default_value_t = 256)]
    containers: u64,
    /// How many functions want them.
    #[arg(long, default_value_t = 16)]
    functions: u32,
    /// How many machines there are, of 16 cores each.
    #[arg(long, default_value_t = 100)]
    machines: u32,
    /// For how long, in seconds, after a quarter of it that is not counted.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
}

/// Lets the nodes of this process in, and nobody else has a certificate.
#[derive(Debug)]
struct Known(Member);

impl Admission for Known {
    fn myself(&self) -> Member {
        self.0.clone()
    }

    fn admit(&self, _: &Member) -> Result<(), String> {
        Ok(())
    }
}

/// Carries messages of consensus, as a node does.
#[derive(Debug)]
struct Road(Endpoint);

impl Transport for Road {
    fn call<'a>(&'a self, peer: &'a Peer, request: Bytes, patience: Duration) -> BoxFuture<'a, Result<Bytes, Unsent>> {
        Box::pin(async move {
            let answer = self.0.call(peer.node, &peer.address, RAFT, request, patience).await;
            answer.map_err(|error| Unsent::Lost { why: error.to_string() })
        })
    }

    fn follow<'a>(&'a self, _: &'a Peer, _: Bytes) -> BoxFuture<'a, Result<Feed, Unsent>> {
        Box::pin(std::future::ready(Err(Unsent::Unreachable { why: "all nodes of this cluster vote".to_owned() })))
    }
}

/// A node as far as it takes part in consensus.
struct Voter {
    peer: Peer,
    raft: Raft,
    endpoint: Endpoint,
}

impl Voter {
    async fn start(number: u128, authority: &Authority, options: &Options) -> anyhow::Result<Self> {
        let node = NodeId::from_random(number);
        let (request, key) = Identity::ask()?;
        let identity = Identity::new(&key, &authority.certify(node, &request, seconds_now())?, authority.certificate())?;
        let boot = BootId::from_random(number);
        let member = Member { cluster: [1; 16], generation: 1, node, boot, version: VERSION_KNOWN, release: "bench".to_owned() };
        let endpoint = Endpoint::open(shoal_peer::Options {
            address: ([127, 0, 0, 1], 0).into(),
            identity,
            admission: Arc::new(Known(member)),
            reset_key: [u8::try_from(number)?; 32],
            segmentation: true,
        })?;
        let address = endpoint.address()?.to_string();
        let dir = options.dir.join(number.to_string());
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let transport = Arc::new(Road(endpoint.clone()));
        let raft = Raft::open(shoal_raft::Options { address: address.clone(), transport, ..shoal_raft::Options::alone(dir, node) }).await?;
        let answering = raft.clone();
        endpoint.serve(RAFT, move |mut stream, _| {
            let raft = answering.clone();
            async move {
                let Ok(Some(request)) = stream.next().await else { return };
                // Who gave up needs no answer.
                if let Ok(answer) = raft.answer(request).await
                    && stream.send(answer).await.is_ok()
                {
                    let _ = stream.finish();
                }
            }
        });
        Ok(Self { peer: Peer { node, address }, raft, endpoint })
    }

    async fn stop(self) {
        self.raft.shutdown().await;
        self.endpoint.close().await;
    }
}

fn seconds_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

fn now() -> Timestamp {
    Timestamp(seconds_now().cast_unsigned() * 1000)
}

/// Starts the voters and returns them, the leader first.
async fn found(options: &Options) -> anyhow::Result<Vec<Voter>> {
    let authority = Authority::make(seconds_now())?;
    let leader = Voter::start(1, &authority, options).await?;
    leader.raft.bootstrap_alone().await?;
    leader.raft.propose(vec![Command::SetVersion { version: VERSION_KNOWN }]).await?;
    let mut voters = vec![leader];
    for number in 2..=VOTERS {
        let voter = Voter::start(number, &authority, options).await?;
        voters[0].raft.add_learner(voter.peer.clone()).await?;
        voters.push(voter);
    }
    let nodes: Vec<_> = voters.iter().map(|voter| voter.peer.node).collect();
    voters[0].raft.set_voters(&nodes).await?;
    Ok(voters)
}

/// Puts machines and functions into the state.
async fn fill(raft: &Raft, options: &Options) -> anyhow::Result<Vec<FunctionId>> {
    let at = now();
    let (app, image) = (AppId::from_random(1), ImageId::from_random(1));
    let environment = Environment::new(EnvironmentId::from_random(1), "bench", at);
    let record = App::new(environment.id, AppState::Ephemeral, at);
    let built = Image { key: Digest::of(b"key"), manifest: Some(Digest::of(b"tree")), record: Definition::default(), built: at };
    let first = vec![
        Command::CreateEnvironment { environment },
        Command::CreateApp { id: app, app: record },
        Command::PutImage { id: image, image: built },
    ];
    let machine = |number: u32| {
        let capacity = Resources { cpu_milli: 16_000, memory_bytes: 64 * GIB, ..Resources::default() };
        let node = Node::new(format!("machine-{number}"), BootId::from_random(number.into()), capacity, at);
        Command::PutNode { id: NodeId::from_random(1000 + u128::from(number)), node }
    };
    let function = |number: u32| {
        let resources = Resources { cpu_milli: 125, memory_bytes: GIB / 8, ..Resources::default() };
        let plain = Function::new(app, format!("function-{number}"), at);
        let id = FunctionId::from_random(u128::from(number) + 1);
        (id, Command::PutFunction { id, function: Box::new(Function { image: Some(image), resources, ..plain }) })
    };
    let (ids, functions): (Vec<_>, Vec<_>) = (0..options.functions).map(function).unzip();
    let tags = ids.iter().enumerate().map(|(number, id)| (format!("function-{number}"), *id)).collect();
    let layout = AppLayout { functions: tags, classes: shoal_state::imbl::OrdMap::new() };
    let published = Command::PublishApp { id: app, layout, deployment: None, detached: false };
    let commands = first.into_iter().chain((0..options.machines).map(machine)).chain(functions).chain([published]);
    for answer in raft.propose(commands.collect()).await? {
        answer.context("the state does not take a machine or a function")?;
    }
    Ok(ids)
}

/// Plans and decides until all wanted containers are placed. Returns how many that were.
async fn place(raft: &Raft, load: &Load, wanted: u64) -> anyhow::Result<u64> {
    let mut placed = 0;
    while placed < wanted {
        let state = raft.local();
        let planned = plan(&state, load, now(), &mut rand::random);
        ensure!(!planned.commands.is_empty(), "only {placed} of {wanted} containers have room: {:?}", planned.waiting.first());
        for answer in raft.propose(planned.commands).await? {
            answer.context("a placement was refused")?;
            placed += 1;
        }
    }
    Ok(placed)
}

/// Ends all containers.
async fn end_all(raft: &Raft) -> anyhow::Result<()> {
    let end = TaskEnd { at: now(), how: "the round is over".to_owned() };
    let ends = |state: &State| -> Vec<Command> {
        state.tasks.iter().map(|(id, task)| Command::EndTask { id: *id, generation: task.generation, end: end.clone() }).collect()
    };
    raft.propose(ends(&raft.local())).await?;
    Ok(())
}

/// Places for as long as was asked and says how it went.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let voters = found(&options).await?;
    let raft = &voters[0].raft;
    let functions = fill(raft, &options).await?;
    let each = options.containers.div_ceil(functions.len().max(1) as u64);
    let pool = PoolLoad { waiting: each, ..PoolLoad::default() };
    let load = Load { pools: functions.iter().map(|function| (*function, pool)).collect::<BTreeMap<_, _>>(), ..Load::default() };
    let wanted = each * functions.len() as u64;
    let (whole, began) = (Duration::from_secs(options.seconds), Instant::now());
    let (mut taken, mut placed, mut rounds) = (Duration::ZERO, 0, Vec::new());
    while began.elapsed() < whole * 5 / 4 {
        let (counts, round) = (began.elapsed() >= whole / 4, Instant::now());
        let now_placed = place(raft, &load, wanted).await?;
        if counts {
            taken += round.elapsed();
            placed += now_placed;
            rounds.push(round.elapsed().as_secs_f64() * 1000.0);
        }
        end_all(raft).await?;
    }
    // The figure is of three nodes: the others have all of it too.
    let end = raft.watch().borrow().index;
    for voter in &voters[1..] {
        let mut applied = voter.raft.watch();
        let there = tokio::time::timeout(SETTLE_WAIT, applied.wait_for(|applied| applied.index >= end)).await;
        there.with_context(|| format!("node {} has not applied what was decided within {SETTLE_WAIT:?}", voter.peer.node))??;
    }
    rounds.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "a count of seconds of placements")]
    let per_second = placed as f64 / taken.as_secs_f64();
    say(&json!({ "per_second": per_second, "round_p50_ms": rounds.get(rounds.len() / 2), "in_a_round": wanted, "placed": placed }));
    for voter in voters {
        voter.stop().await;
    }
    Ok(())
}
