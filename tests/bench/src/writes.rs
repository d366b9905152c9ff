//! Small durable writes by many clients at once: spawned calls, inputs and names of dicts to Shoal, keys to etcd.
//!
//! Each client writes, waits for the answer and writes again. All of them go over the same number of connections, in turn to
//! the addresses that are given.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::modal_client_client::ModalClientClient;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use crate::login::{Login, request};
use crate::{load, say};

/// A pickled `((1,), {})`.
const ARGUMENTS: &[u8] = b"\x80\x04K\x01\x85}\x86.";

/// How many inputs the official client puts into one request of a map.
const INPUTS_A_REQUEST: usize = 49;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Calls of a function that has no room to run.
    Spawns,
    /// Inputs of such calls, one call a client, as many a request as the official client sends.
    Inputs,
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
    #[command(flatten)]
    login: Login,
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

/// A call that a client has begun.
#[derive(Debug, Default)]
struct Call {
    function: String,
    id: String,
}

/// What one client writes to.
#[derive(Clone)]
struct Target {
    options: Arc<Options>,
    channel: Channel,
    metadata: MetadataMap,
}

impl Target {
    /// Begins a call of one of the functions.
    async fn call(
        &self,
        number: u64,
        kind: pb::FunctionCallType,
        pipelined_inputs: Vec<pb::FunctionPutInputsItem>,
    ) -> anyhow::Result<Call> {
        let functions = &self.options.functions;
        let function = functions[usize::try_from(number)? % functions.len()].clone();
        let wanted = pb::FunctionMapRequest {
            function_id: function.clone(),
            function_call_type: kind.into(),
            function_call_invocation_type: pb::FunctionCallInvocationType::Async.into(),
            pipelined_inputs,
            ..Default::default()
        };
        let begun = ModalClientClient::new(self.channel.clone()).function_map(request(&self.metadata, wanted)).await?;
        Ok(Call { function, id: begun.into_inner().function_call_id })
    }

    /// Returns the call that a client's inputs are of, where they are of one.
    async fn open(&self, client: u64) -> anyhow::Result<Call> {
        match self.options.what {
            What::Inputs => self.call(client, pb::FunctionCallType::Map, Vec::new()).await,
            What::Spawns | What::Dicts | What::Etcd => Ok(Call::default()),
        }
    }

    /// Writes once; `turn`: how often this client has written before.
    async fn write(&self, number: u64, call: &Call, turn: usize) -> anyhow::Result<()> {
        let mut client = ModalClientClient::new(self.channel.clone());
        match self.options.what {
            What::Spawns => {
                self.call(number, pb::FunctionCallType::Unary, vec![item(0)?]).await?;
            }
            What::Inputs => {
                let wanted = pb::FunctionPutInputsRequest {
                    function_id: call.function.clone(),
                    function_call_id: call.id.clone(),
                    inputs: (0..INPUTS_A_REQUEST).map(|of| item(turn * INPUTS_A_REQUEST + of)).collect::<anyhow::Result<_>>()?,
                };
                client.function_put_inputs(request(&self.metadata, wanted)).await?;
            }
            What::Dicts => {
                let wanted = pb::DictGetOrCreateRequest {
                    deployment_name: format!("{}-{number}", self.options.prefix),
                    object_creation_type: pb::ObjectCreationType::CreateIfMissing.into(),
                    ..Default::default()
                };
                client.dict_get_or_create(request(&self.metadata, wanted)).await?;
            }
            What::Etcd => {
                let mut grpc = Grpc::new(self.channel.clone());
                grpc.ready().await?;
                let wanted = PutRequest { key: format!("{}-{number}", self.options.prefix).into(), value: ARGUMENTS.repeat(4) };
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
                let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
                grpc.unary(request(&self.metadata, wanted), path, codec).await?;
            }
        }
        Ok(())
    }
}

/// One of the clients.
struct Writer {
    target: Target,
    call: Call,
}

impl load::Client for Writer {
    async fn turn(&mut self, number: u64, turn: usize) -> anyhow::Result<()> {
        self.target.write(number, &self.call, turn).await.with_context(|| format!("write {number} failed"))
    }
}

/// Returns an input, by its number in its call.
fn item(idx: usize) -> anyhow::Result<pb::FunctionPutInputsItem> {
    let input = pb::FunctionInput {
        data_format: pb::DataFormat::Pickle.into(),
        args_oneof: Some(pb::function_input::ArgsOneof::Args(ARGUMENTS.into())),
        ..Default::default()
    };
    Ok(pb::FunctionPutInputsItem { idx: i32::try_from(idx)?, input: Some(input.encode_to_vec().into()), ..Default::default() })
}

/// Writes for as long as was asked and says how it went.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    if matches!(options.what, What::Spawns | What::Inputs) && options.functions.is_empty() {
        bail!("calls want at least one --function");
    }
    let options = Arc::new(options);
    let metadata = options.login.metadata()?;
    let mut targets = Vec::new();
    for url in options.urls.iter().cycle().take(options.urls.len() * options.connections) {
        let channel = Endpoint::from_shared(url.clone())?.connect().await.with_context(|| format!("cannot reach {url}"))?;
        targets.push(Target { options: Arc::clone(&options), channel, metadata: metadata.clone() });
    }
    let mut clients = Vec::new();
    for client in 0..options.clients {
        let target = targets[client % targets.len()].clone();
        let call = target.open(client as u64).await.context("no call could be begun")?;
        clients.push(Writer { target, call });
    }
    let taken = load::measure(clients, Duration::from_secs(options.seconds)).await?;
    // What is counted are requests, but of inputs each one.
    let each = if options.what == What::Inputs { INPUTS_A_REQUEST } else { 1 };
    say(&taken.line(each));
    Ok(())
}
