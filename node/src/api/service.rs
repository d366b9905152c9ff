//! The methods of the service, each a line: who answers it. Decode, call one function, encode.

use std::future::Future;

use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::modal_client_server::ModalClient;
use tonic::{Request, Response, Status};

use super::error::Error;
use super::{Api, Caller, app, blob, environment, function, mount, secret, task, token};

/// Finds who calls: the layer in front put it there.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::unauthenticated("this call did not pass the door"))
}

async fn answer<'a, Q, A, F>(
    api: &'a Api,
    caller: &'a Caller,
    request: Q,
    method: impl FnOnce(&'a Api, &'a Caller, Q) -> F,
) -> Result<Response<A>, Status>
where
    F: Future<Output = Result<A, Error>>,
{
    Ok(Response::new(method(api, caller, request).await?))
}

macro_rules! methods {
    ($($name:ident: $request:ty => $response:ty, $function:path;)*) => {
        #[tonic::async_trait]
        impl ModalClient for Api {
            $(
                async fn $name(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    let caller = caller(&request)?;
                    answer(self, &caller, request.into_inner(), $function).await
                }
            )*
        }
    };
}

methods! {
    client_hello: () => pb::ClientHelloResponse, token::hello;
    workspace_name_lookup: () => pb::WorkspaceNameLookupResponse, token::workspace;
    token_info_get: pb::TokenInfoGetRequest => pb::TokenInfoGetResponse, token::info;
    environment_get_or_create: pb::EnvironmentGetOrCreateRequest => pb::EnvironmentGetOrCreateResponse, environment::get_or_create;
    environment_create: pb::EnvironmentCreateRequest => (), environment::create;
    environment_list: () => pb::EnvironmentListResponse, environment::list;
    app_create: pb::AppCreateRequest => pb::AppCreateResponse, app::create;
    app_get_or_create: pb::AppGetOrCreateRequest => pb::AppGetOrCreateResponse, app::get_or_create;
    app_get_by_deployment_name: pb::AppGetByDeploymentNameRequest => pb::AppGetByDeploymentNameResponse, app::by_name;
    app_get_layout: pb::AppGetLayoutRequest => pb::AppGetLayoutResponse, app::get_layout;
    app_get_info: pb::AppGetInfoRequest => pb::AppGetInfoResponse, app::info;
    app_get_lifecycle: pb::AppGetLifecycleRequest => pb::AppGetLifecycleResponse, app::get_lifecycle;
    app_publish: pb::AppPublishRequest => pb::AppPublishResponse, app::publish;
    app_heartbeat: pb::AppHeartbeatRequest => (), app::heartbeat;
    app_client_disconnect: pb::AppClientDisconnectRequest => (), app::disconnect;
    app_stop: pb::AppStopRequest => (), app::stop_request;
    app_list: pb::AppListRequest => pb::AppListResponse, app::list;
    app_deployment_history: pb::AppDeploymentHistoryRequest => pb::AppDeploymentHistoryResponse, app::history;
    mount_get_or_create: pb::MountGetOrCreateRequest => pb::MountGetOrCreateResponse, mount::get_or_create;
    mount_batched_check_existence: pb::MountBatchedCheckExistenceRequest => pb::MountBatchedCheckExistenceResponse, mount::check;
    mount_put_file: pb::MountPutFileRequest => pb::MountPutFileResponse, mount::put_file;
    blob_create: pb::BlobCreateRequest => pb::BlobCreateResponse, blob::create;
    blob_get: pb::BlobGetRequest => pb::BlobGetResponse, blob::get_url;
    secret_get_or_create: pb::SecretGetOrCreateRequest => pb::SecretGetOrCreateResponse, secret::get_or_create;
    secret_list: pb::SecretListRequest => pb::SecretListResponse, secret::list;
    secret_delete: pb::SecretDeleteRequest => (), secret::delete;
    function_precreate: pb::FunctionPrecreateRequest => pb::FunctionPrecreateResponse, function::precreate;
    function_create: pb::FunctionCreateRequest => pb::FunctionCreateResponse, function::create;
    function_get: pb::FunctionGetRequest => pb::FunctionGetResponse, function::get;
    function_get_by_id: pb::FunctionGetByIdRequest => pb::FunctionGetByIdResponse, function::get_by_id;
    class_create: pb::ClassCreateRequest => pb::ClassCreateResponse, function::class_create;
    class_get: pb::ClassGetRequest => pb::ClassGetResponse, function::class_get;
    task_list: pb::TaskListRequest => pb::TaskListResponse, task::list;
    container_stop: pb::ContainerStopRequest => pb::ContainerStopResponse, task::stop;
}
