//! Small durable writes by many clients at once: spawned calls and names of dicts to Shoal, keys to etcd.
//!
//! Each client writes, waits for the answer and writes again. All of them go over the same number of connections, in turn to
//! the addresses that are given.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use prost::Message as _;
use serde_json::json;
use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::modal_client_client::ModalClientClient;
use tokio::task::JoinSet;
use tonic::Request;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use crate::say;

/// How long one write may take before the run counts as broken.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);
/// A pickled `((1,), {})`.
const ARGUMENTS: &[u8] = b"\x80\x04K\x01\x85}\x86.";

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Calls of a function that has no room to run.
    Spawns,
    /// Names of dicts that there are not yet: each is an entry of the cluster's log.
    Dicts,
    /// Keys of etcd, with as many bytes as an input has.
    Etcd,
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What is written.
    #[arg(long, value_enum)]
    what: What,
    /// Where servers answer, such as `http://10.0.0.1:7470`.
    #[arg(long = "url", required = true)]
    urls: Vec<String>,
    /// The functions to call, in turn.
    #[arg(long = "function")]
    functions: Vec<String>,
    #[arg(long, default_value = "")]
    token_id: String,
    #[arg(long, default_value = "")]
    token_secret: String,
    /// What the names of this run begin with.
    #[arg(long)]
    prefix: String,
    /// How many write at once.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Connections to each address.
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// For how long, in seconds, after a quarter of it that is not counted.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
}

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// What is of no interest of `etcdserverpb.PutResponse` is skipped, and that is all of it.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// What one client writes to.
#[derive(Clone)]
struct Target {
    options: Arc<Options>,
    channel: Channel,
    metadata: MetadataMap,
}

impl Target {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request.set_timeout(WRITE_DEADLINE);
        request
    }

    async fn write(&self, number: u64) -> anyhow::Result<()> {
        let mut client = ModalClientClient::new(self.channel.clone());
        match self.options.what {
            What::Spawns => {
                let functions = &self.options.functions;
                let which = usize::try_from(number)? % functions.len();
                let input = pb::FunctionInput {
                    data_format: pb::DataFormat::Pickle.into(),
                    args_oneof: Some(pb::function_input::ArgsOneof::Args(ARGUMENTS.into())),
                    ..Default::default()
                };
                let item = pb::FunctionPutInputsItem { input: Some(input.encode_to_vec().into()), ..Default::default() };
                let wanted = pb::FunctionMapRequest {
                    function_id: functions[which].clone(),
                    function_call_type: pb::FunctionCallType::Unary.into(),
                    function_call_invocation_type: pb::FunctionCallInvocationType::Async.into(),
                    pipelined_inputs: vec![item],
                    ..Default::default()
                };
                client.function_map(self.request(wanted)).await?;
            }
            What::Dicts => {
                let wanted = pb::DictGetOrCreateRequest {
                    deployment_name: format!("{}-{number}", self.options.prefix),
                    object_creation_type: pb::ObjectCreationType::CreateIfMissing.into(),
                    ..Default::default()
                };
                client.dict_get_or_create(self.request(wanted)).await?;
            }
            What::Etcd => {
                let mut grpc = Grpc::new(self.channel.clone());
                grpc.ready().await?;
                let wanted = PutRequest { key: format!("{}-{number}", self.options.prefix).into(), value: ARGUMENTS.repeat(4) };
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
                let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
                grpc.unary(self.request(wanted), path, codec).await?;
            }
        }
        Ok(())
    }
}

/// Writes for as long as was asked and says how it went.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    if options.what == What::Spawns && options.functions.is_empty() {
        bail!("--what spawns wants at least one --function");
    }
    let options = Arc::new(options);
    let mut metadata = MetadataMap::new();
    for (name, value) in [("x-modal-token-id", &options.token_id), ("x-modal-token-secret", &options.token_secret)] {
        metadata.insert(name, value.parse().context("a token that cannot be sent")?);
    }
    let mut targets = Vec::new();
    for url in options.urls.iter().cycle().take(options.urls.len() * options.connections) {
        let channel = Endpoint::from_shared(url.clone())?.connect().await.with_context(|| format!("cannot reach {url}"))?;
        targets.push(Target { options: Arc::clone(&options), channel, metadata: metadata.clone() });
    }
    let whole = Duration::from_secs(options.seconds);
    let (next, counted_from) = (Arc::new(AtomicU64::new(0)), Instant::now() + whole / 4);
    let until = counted_from + whole;
    let mut clients = JoinSet::new();
    for client in 0..options.clients {
        let (target, next) = (targets[client % targets.len()].clone(), Arc::clone(&next));
        clients.spawn(async move {
            let mut taken = Vec::new();
            loop {
                let began = Instant::now();
                if began >= until {
                    return anyhow::Ok(taken);
                }
                let number = next.fetch_add(1, Ordering::Relaxed);
                target.write(number).await.with_context(|| format!("write {number} failed"))?;
                if began >= counted_from {
                    taken.push(began.elapsed().as_secs_f64() * 1000.0);
                }
            }
        });
    }
    let mut all = Vec::new();
    while let Some(taken) = clients.join_next().await {
        all.extend(taken??);
    }
    all.sort_by(f64::total_cmp);
    let at = |percent: usize| all.get((all.len() * percent / 100).min(all.len().saturating_sub(1))).copied().unwrap_or(f64::NAN);
    #[expect(clippy::cast_precision_loss, reason = "a count of seconds of writes")]
    let per_second = all.len() as f64 / whole.as_secs_f64();
    // With those that are not counted: what servers used meanwhile is for all of them.
    let begun = next.load(Ordering::Relaxed);
    say(&json!({ "per_second": per_second, "p50_ms": at(50), "p99_ms": at(99), "writes": all.len(), "begun": begun }));
    Ok(())
}
