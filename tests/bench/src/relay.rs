//! The relay: the least that stands between the real client and real entrypoints.
//!
//! Everything is in memory. There is no log, no state, no placement, no credentials, no limit: an input goes from the call
//! that brings it to the entrypoint that asks next, and its output back to whoever polls. The entrypoints are the client's
//! own, in containers made by the node's engine, as many as the node has. So what a call through a node takes longer than
//! one through the relay is what Shoal adds.
//!
//! A second port leads to the **null** server, which answers outputs itself as soon as it is asked: what a call takes there is
//! the client's own time.
//!
//! Orders come on stdin, one a line. `bare FUNCTION COUNT` runs so many more entrypoints at once, each by a plain `runsc run`,
//! and says how long it took until all have asked for their first input; they are gone then. `keep FUNCTION COUNT` runs some
//! that stay, and answers when all wait. The end of stdin ends everything.
//!
//! | file | subject |
//! |---|---|
//! | `pools` | inputs and outputs that wait |
//! | `answers` | what clients and entrypoints are answered |
//! | `entrypoints` | their containers |
//!
//! Caveats. Calls are never forgotten, inputs that an entrypoint loses are lost, and nobody is asked who they are.

mod answers;
mod entrypoints;
mod pools;

use std::collections::HashMap;
use std::io::BufRead as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::modal_client_client::ModalClientClient;
use shoal_runtime::{Engine, EngineConfig};
use tokio::sync::mpsc;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use self::answers::{Relay, serve_clients, serve_entrypoints};
use self::entrypoints::{Bare, bare, end_all, keep, start};
use crate::raw::Raw;
use crate::say;

/// What the relay serves.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// A JSON file that says what to run and where it comes from.
    #[arg(long)]
    setup: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Setup {
    /// An empty folder to work in.
    work: PathBuf,
    runsc: PathBuf,
    /// The root of entrypoints, a folder.
    folder: PathBuf,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    cwd: String,
    /// Folders that entrypoints see: (here, there).
    binds: Vec<(PathBuf, String)>,
    /// Where an entrypoint finds its arguments and its channel.
    task_dir: String,
    socket: String,
    /// The node that knows the functions, and a token.
    node: String,
    token_id: String,
    token_secret: String,
    app: String,
    functions: Vec<FunctionSetup>,
    /// Control groups for what plain `runsc run`s start.
    #[serde(default)]
    groups: Vec<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
struct FunctionSetup {
    tag: String,
    /// The folder with its arguments.
    dir: PathBuf,
    /// How many entrypoints serve it.
    containers: usize,
}

/// The functions as the node describes them to clients, by tag.
async fn described(setup: &Setup) -> anyhow::Result<HashMap<String, pb::FunctionGetResponse>> {
    let channel: Channel = Endpoint::from_shared(setup.node.clone())?.connect().await.context("cannot reach the node")?;
    let mut node = ModalClientClient::new(channel);
    let mut found = HashMap::new();
    for function in &setup.functions {
        let wanted = pb::FunctionGetRequest { app_name: setup.app.clone(), object_tag: function.tag.clone(), ..Default::default() };
        let mut request = Request::new(wanted);
        for (name, value) in [("x-modal-token-id", &setup.token_id), ("x-modal-token-secret", &setup.token_secret)] {
            request.metadata_mut().insert(name, value.parse().context("a token that cannot be sent")?);
        }
        let answer = node.function_get(request).await.with_context(|| format!("cannot look up function {}", function.tag))?;
        found.insert(function.tag.clone(), answer.into_inner());
    }
    Ok(found)
}

/// Hands on the lines of stdin, which a thread reads.
fn orders() -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel(8);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receive
}

/// Serves until stdin ends.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let text = std::fs::read(&options.setup).with_context(|| format!("cannot read {}", options.setup.display()))?;
    let setup: Setup = serde_json::from_slice(&text).with_context(|| format!("cannot read {}", options.setup.display()))?;
    let functions = described(&setup).await?;
    let pools = functions.values().map(|function| (function.function_id.clone(), Arc::default())).collect();
    let relay = Relay::new(functions, pools);
    let engine = EngineConfig { runsc: setup.runsc.clone(), ..EngineConfig::new(setup.work.join("engine")) };
    let engine = Engine::open(engine).await.context("cannot open an engine")?;
    let served = serve(&setup, &relay, &engine).await;
    engine.close().await.context("cannot close the engine")?;
    served
}

async fn serve(setup: &Setup, relay: &Relay, engine: &Engine) -> anyhow::Result<()> {
    let mut orders = orders();
    let mut containers = Vec::new();
    for function in &setup.functions {
        serve_entrypoints(relay.clone(), &function.dir.join(&setup.socket))?;
        for _ in 0..function.containers {
            containers.push(start(setup, engine, function).await?);
            relay.pool_of(&function.tag)?.all_asked(1).await.with_context(|| format!("function {}", function.tag))?;
        }
    }
    let null = relay.null();
    say(&json!({"relay": serve_clients(relay.clone()).await?, "null": serve_clients(null).await?}));
    let mut raw = Raw::new(&setup.runsc, &setup.work.join("raw"), &setup.groups)?;
    let mut kept = Vec::new();
    while let Some(order) = orders.recv().await {
        let found = obey(&order, setup, relay, &mut raw, &mut kept).await;
        if found.is_err() {
            // Nothing may be left running.
            end_all(std::mem::take(&mut kept))?;
        }
        say(&found?);
    }
    end_all(kept)?;
    for container in containers {
        container.destroy().await.context("cannot take an entrypoint down")?;
    }
    Ok(())
}

async fn obey(order: &str, setup: &Setup, relay: &Relay, raw: &mut Raw, kept: &mut Vec<Bare>) -> anyhow::Result<Value> {
    let words: Vec<&str> = order.split(' ').collect();
    let [what, tag, count] = words[..] else { bail!("{order:?} is not an order") };
    let function = setup.functions.iter().find(|function| function.tag == tag).with_context(|| format!("no function {tag:?}"))?;
    let (pool, count) = (relay.pool_of(tag)?, count.parse().with_context(|| format!("{count:?} is no number"))?);
    match what {
        "bare" => {
            let taken = bare(setup, raw, &pool, function, count).await?;
            Ok(json!({"ms": taken.as_secs_f64() * 1000.0}))
        }
        "keep" => {
            keep(setup, raw, &pool, function, count, kept).await?;
            Ok(json!({}))
        }
        _ => bail!("{order:?} is not an order"),
    }
}
