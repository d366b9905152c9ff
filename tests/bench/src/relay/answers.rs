//! What clients and entrypoints are answered, and where they reach it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use parking_lot::Mutex;
use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::modal_client_server::{ModalClient, ModalClientServer};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use super::pools::{Call, Pool};

/// How long a heartbeat is held, as by a node.
const HEARTBEAT_HELD: Duration = Duration::from_secs(14);
/// How many inputs of a map may be under way, as by a node.
const INPUTS_OUTSTANDING: u32 = 1000;
/// The largest message, in bytes, as by a node.
const MESSAGE_BYTES_MAX: usize = 110 << 20;
/// What the null server answers: a pickled `None`.
const NONE_PICKLED: &[u8] = b"\x80\x04N.";

/// What all doors have in common.
#[derive(Debug, Default)]
struct Shared {
    functions: HashMap<String, pb::FunctionGetResponse>,
    pools: HashMap<String, Arc<Pool>>,
    calls: Mutex<HashMap<u64, Arc<Call>>>,
    next: AtomicU64,
}

/// One door to the relay: the real one, or the null server's.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    shared: Arc<Shared>,
    null: bool,
}

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn absent(what: &str, id: &str) -> Status {
    Status::not_found(format!("the relay knows no {what} {id:?}"))
}

/// Ids say where things are: the call's number, and for inputs their place in it.
fn number(id: &str, prefix: &str) -> Result<u64, Status> {
    let digits = id.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| absent("call", id))
}

impl Relay {
    /// Begins to serve these functions, each by the pool of its id.
    pub(super) fn new(functions: HashMap<String, pb::FunctionGetResponse>, pools: HashMap<String, Arc<Pool>>) -> Self {
        Self { shared: Arc::new(Shared { functions, pools, ..Shared::default() }), null: false }
    }

    /// Returns the door to the null server.
    pub(super) fn null(&self) -> Self {
        Self { null: true, ..self.clone() }
    }

    /// Returns the pool of the function of a tag.
    pub(super) fn pool_of(&self, tag: &str) -> anyhow::Result<Arc<Pool>> {
        let id = self.shared.functions.get(tag).map(|function| &function.function_id);
        id.and_then(|id| self.shared.pools.get(id)).cloned().with_context(|| format!("no function {tag:?}"))
    }

    fn call(&self, number: u64) -> Result<Arc<Call>, Status> {
        self.shared.calls.lock().get(&number).cloned().ok_or_else(|| absent("call", &number.to_string()))
    }

    /// Hands inputs to the entrypoints of a function, and says what they are called.
    fn put(
        &self,
        function: &str,
        call: u64,
        invocation: i32,
        inputs: Vec<pb::FunctionPutInputsItem>,
    ) -> Result<Vec<pb::FunctionPutInputsResponseItem>, Status> {
        let (pool, found) = (self.shared.pools.get(function).ok_or_else(|| absent("function", function))?, self.call(call)?);
        found.inputs.fetch_add(inputs.len() as u64, Ordering::Relaxed);
        let name = |idx: i32| format!("in-{call}-{idx}");
        let jwt = |idx: i32| format!("e30.{call}.{idx}");
        let said = inputs.iter().map(|item| pb::FunctionPutInputsResponseItem {
            idx: item.idx,
            input_id: name(item.idx),
            input_jwt: jwt(item.idx),
        });
        let said = said.collect();
        if self.null {
            inputs.into_iter().for_each(|item| found.put(nothing(item.idx, name(item.idx))));
            return Ok(said);
        }
        let item = |item: pb::FunctionPutInputsItem| pb::FunctionGetInputsItem {
            input_id: name(item.idx),
            input: item.input,
            function_call_id: format!("fc-{call}"),
            function_call_invocation_type: invocation,
            function_map_idx: Some(item.idx),
            attempt_token: name(item.idx),
            ..Default::default()
        };
        pool.put(inputs.into_iter().map(item).collect());
        Ok(said)
    }
}

/// The output of the null server.
fn nothing(idx: i32, input_id: String) -> pb::FunctionGetOutputsItem {
    let mut result = pb::GenericResult { status: pb::generic_result::GenericStatus::Success.into(), ..Default::default() };
    result.data_oneof = Some(pb::generic_result::DataOneof::Data(NONE_PICKLED.into()));
    pb::FunctionGetOutputsItem {
        result: Some(result.encode_to_vec().into()),
        idx,
        input_id,
        data_format: pb::DataFormat::Pickle.into(),
        output_created_at: seconds_now(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl ModalClient for Relay {
    async fn client_hello(&self, _: Request<()>) -> Result<Response<pb::ClientHelloResponse>, Status> {
        Ok(Response::new(pb::ClientHelloResponse::default()))
    }

    async fn function_get(&self, request: Request<pb::FunctionGetRequest>) -> Result<Response<pb::FunctionGetResponse>, Status> {
        let tag = request.into_inner().object_tag;
        self.shared.functions.get(&tag).cloned().map(Response::new).ok_or_else(|| absent("function", &tag))
    }

    async fn function_map(&self, request: Request<pb::FunctionMapRequest>) -> Result<Response<pb::FunctionMapResponse>, Status> {
        let request = request.into_inner();
        let call = self.shared.next.fetch_add(1, Ordering::Relaxed);
        self.shared.calls.lock().insert(call, Arc::default());
        let invocation = request.function_call_invocation_type;
        Ok(Response::new(pb::FunctionMapResponse {
            function_call_id: format!("fc-{call}"),
            pipelined_inputs: self.put(&request.function_id, call, invocation, request.pipelined_inputs)?,
            retry_policy: Some(pb::FunctionRetryPolicy::default()),
            function_call_jwt: format!("e30.{call}.-"),
            sync_client_retries_enabled: false,
            max_inputs_outstanding: INPUTS_OUTSTANDING,
        }))
    }

    async fn function_put_inputs(
        &self,
        request: Request<pb::FunctionPutInputsRequest>,
    ) -> Result<Response<pb::FunctionPutInputsResponse>, Status> {
        let request = request.into_inner();
        let call = number(&request.function_call_id, "fc-")?;
        let invocation = pb::FunctionCallInvocationType::Sync.into();
        Ok(Response::new(pb::FunctionPutInputsResponse { inputs: self.put(&request.function_id, call, invocation, request.inputs)? }))
    }

    async fn function_finish_inputs(&self, _: Request<pb::FunctionFinishInputsRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn function_get_outputs(
        &self,
        request: Request<pb::FunctionGetOutputsRequest>,
    ) -> Result<Response<pb::FunctionGetOutputsResponse>, Status> {
        let request = request.into_inner();
        let call = self.call(number(&request.function_call_id, "fc-")?)?;
        let after = request.last_entry_id.split('-').next().and_then(|place| place.parse().ok()).unwrap_or(0);
        let outputs = call.read(after, Duration::from_secs_f32(request.timeout.clamp(0.0, 55.0))).await;
        let finished = call.outputs.lock().len() as u64;
        Ok(Response::new(pb::FunctionGetOutputsResponse {
            idxs: outputs.iter().map(|output| output.idx).collect(),
            last_entry_id: format!("{}-0", after + outputs.len()),
            num_unfinished_inputs: i32::try_from(call.inputs.load(Ordering::Relaxed).saturating_sub(finished)).unwrap_or(i32::MAX),
            outputs,
        }))
    }

    async fn container_hello(&self, _: Request<()>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn container_heartbeat(
        &self,
        _: Request<pb::ContainerHeartbeatRequest>,
    ) -> Result<Response<pb::ContainerHeartbeatResponse>, Status> {
        tokio::time::sleep(HEARTBEAT_HELD).await;
        Ok(Response::new(pb::ContainerHeartbeatResponse::default()))
    }

    async fn container_log(&self, _: Request<pb::ContainerLogRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn task_result(&self, request: Request<pb::TaskResultRequest>) -> Result<Response<()>, Status> {
        let result = pb::GenericResult::decode(request.into_inner().result.unwrap_or_default()).unwrap_or_default();
        eprintln!("an entrypoint behind the relay ended: {}", result.exception);
        Ok(Response::new(()))
    }

    async fn function_get_inputs(
        &self,
        request: Request<pb::FunctionGetInputsRequest>,
    ) -> Result<Response<pb::FunctionGetInputsResponse>, Status> {
        let through = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred?.pid());
        let request = request.into_inner();
        let (id, max) = (request.function_id, usize::try_from(request.batch_max_size).unwrap_or_default().max(1));
        let pool = self.shared.pools.get(&id).ok_or_else(|| absent("function", &id))?;
        pool.asks(through.unwrap_or_default());
        let inputs = pool.take_batch(max, Duration::from_millis(request.batch_linger_ms)).await;
        Ok(Response::new(pb::FunctionGetInputsResponse { inputs, ..Default::default() }))
    }

    async fn function_put_outputs(&self, request: Request<pb::FunctionPutOutputsRequest>) -> Result<Response<()>, Status> {
        for output in request.into_inner().outputs {
            let call = self.call(number(&output.input_id, "in-")?)?;
            let place = output.input_id.rsplit('-').next().and_then(|place| place.parse().ok());
            call.put(pb::FunctionGetOutputsItem {
                idx: place.unwrap_or_default(),
                input_id: output.input_id,
                result: output.result,
                data_format: output.data_format,
                input_started_at: output.input_started_at,
                output_created_at: output.output_created_at,
                retry_count: output.retry_count,
                ..Default::default()
            });
        }
        Ok(Response::new(()))
    }
}

fn service(relay: Relay) -> ModalClientServer<Relay> {
    ModalClientServer::new(relay).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn server() -> Server {
    Server::builder().initial_stream_window_size(4 << 20).initial_connection_window_size(16 << 20).tcp_nodelay(true)
}

/// Answers clients on a port of this machine, and says which.
pub(super) async fn serve_clients(relay: Relay) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen")?;
    let port = listener.local_addr()?.port();
    // tonic sets what concerns sockets only on those that it accepts itself.
    let incoming = tokio_stream::StreamExt::map(TcpListenerStream::new(listener), |stream| {
        stream.inspect(|stream| {
            let _ = stream.set_nodelay(true);
        })
    });
    tokio::spawn(server().add_service(service(relay)).serve_with_incoming(incoming));
    Ok(port)
}

/// Answers the entrypoints that find this socket.
pub(super) fn serve_entrypoints(relay: Relay, socket: &Path) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    tokio::spawn(server().add_service(service(relay)).serve_with_incoming(UnixListenerStream::new(listener)));
    Ok(())
}
