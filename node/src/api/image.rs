//! Images: what a client describes is built once, by whoever asks first, and joined by all others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use shoal_image::build::{LogEntry, LogPiece};
use shoal_image::log::Stream;
use shoal_proto::modal_client as pb;
use shoal_state::{Command, ImageId, Refused};
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tonic::Status;

use super::error::Error;
use super::{Api, Caller, Identity, gpu, times};
use crate::images::{self, Asked, ImageRecord, Joined};
use crate::upkeep::Thing;
use crate::upkeep::gc::users_of;

/// How long one stream may last, whatever the client asks.
const STREAM_MAX: Duration = Duration::from_secs(55);
/// Answers that may wait for the client.
const QUEUE: usize = 16;
/// Pieces of log in one answer.
const PIECES_AT_ONCE: usize = 200;
/// How many builds a connection is remembered to have heard of. Beyond it those that nobody follows are forgotten.
const TOLD_MAX: usize = 256;

/// How far one connection was told the lines of builds. A client whose program names one image several times follows its
/// build as often; each line is for it once. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    builds: Arc<Mutex<HashMap<(ImageId, SystemTime), Teller>>>,
}

/// The number of the last piece that was told. Whoever holds it tells.
type Teller = Arc<AsyncMutex<u64>>;

impl Told {
    fn teller(&self, id: ImageId, started: SystemTime) -> Teller {
        let mut builds = self.builds.lock();
        if builds.len() >= TOLD_MAX {
            builds.retain(|_, teller| Arc::strong_count(teller) > 1);
        }
        builds.entry((id, started)).or_default().clone()
    }
}

fn metadata(record: &ImageRecord) -> pb::ImageMetadata {
    pb::ImageMetadata {
        python_version_info: record.metadata.python_version_info.clone(),
        python_packages: record.metadata.python_packages.clone(),
        workdir: record.config.workdir.clone(),
        libc_version_info: record.metadata.libc_version_info.clone(),
        image_builder_version: Some(record.metadata.image_builder_version.clone()),
    }
}

fn result(record: &ImageRecord) -> pb::GenericResult {
    use pb::generic_result::GenericStatus;
    match &record.failure {
        None => pb::GenericResult { status: GenericStatus::Success.into(), ..Default::default() },
        Some(failure) => pb::GenericResult { status: GenericStatus::Failure.into(), exception: failure.clone(), ..Default::default() },
    }
}

/// Returns the record of an image that was built.
async fn built(api: &Api, id: ImageId) -> Result<Option<ImageRecord>, Error> {
    match api.local().images.get(&id).filter(|image| image.manifest.is_some()) {
        Some(image) => Ok(Some(images::read_record(api, image).await?)),
        None => Ok(None),
    }
}

pub(super) async fn get_or_create(
    api: &Api,
    caller: &Caller,
    request: pb::ImageGetOrCreateRequest,
) -> Result<pb::ImageGetOrCreateResponse, Error> {
    let Identity::Client(_) = caller.identity else {
        return Err(Error::Unimplemented("images are built for clients; build it before the container starts".to_owned()));
    };
    gpu::check(&api.local(), "the build of this image", request.image.as_ref().and_then(|image| image.gpu_config.as_ref()))?;
    let mut asked = Asked { request: request.clone(), apart: String::new() };
    let mut wanted = images::request(api, request).await?;
    if wanted.ignore_cache {
        // An image of its own: what is known under the usual name stays as it is.
        wanted.apart = caller.key();
        asked.apart.clone_from(&wanted.apart);
    }
    let id = ImageId::derive(&[wanted.key().as_bytes()]);
    api.upkeep.uses.touch(Thing::Image(id), api.store.now());
    if !(wanted.force_build || wanted.ignore_cache)
        && let Some(record) = built(api, id).await?
    {
        return Ok(pb::ImageGetOrCreateResponse {
            image_id: id.to_string(),
            result: Some(result(&record)),
            metadata: Some(metadata(&record)),
        });
    }
    api.images.build(api, id, asked, wanted).await?;
    Ok(pb::ImageGetOrCreateResponse { image_id: id.to_string(), ..Default::default() })
}

fn task_log(entry: LogEntry) -> pb::TaskLogs {
    let since = entry.at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let line = pb::TaskLogs {
        timestamp: since.as_secs_f64(),
        timestamp_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        ..Default::default()
    };
    match entry.piece {
        LogPiece::Text { stream, data } => {
            let file_descriptor = match stream {
                Stream::Stdout => pb::FileDescriptor::Stdout,
                Stream::Stderr => pb::FileDescriptor::Stderr,
                Stream::Info => pb::FileDescriptor::Info,
            };
            pb::TaskLogs { data, file_descriptor: file_descriptor.into(), ..line }
        }
        LogPiece::Saving { done, total } => {
            let progress = pb::TaskProgress { len: total, pos: done, ..Default::default() };
            pb::TaskLogs { task_progress: Some(progress), ..line }
        }
    }
}

pub(super) async fn join(
    api: &Api,
    caller: &Caller,
    request: pb::ImageJoinStreamingRequest,
) -> Result<tonic::codegen::BoxStream<pb::ImageJoinStreamingResponse>, Error> {
    let id: ImageId = request.image_id.parse()?;
    let mut build = api.images.join(id);
    let mut from = request.last_entry_id.parse().unwrap_or(0);
    if build.is_none() && api.images.resume(api, id).await? {
        // Its lines are counted anew.
        (build, from) = (api.images.join(id), 0);
    }
    if build.is_none() && !api.read_latest_unless(|state| state.images.contains_key(&id)).await?.images.contains_key(&id) {
        return Err(Error::NotFound(format!("Image '{id}' not found: it was never built here; ask for it again")));
    }
    let wait = Duration::try_from_secs_f32(request.timeout.max(0.0)).unwrap_or_default().min(STREAM_MAX);
    let (send, receive) = mpsc::channel(QUEUE);
    // Who asks for the lines of a build by name gets them whatever it was told before.
    let told = if request.include_logs_for_finished { Told::default() } else { caller.told.clone() };
    let until = Instant::now() + wait;
    let api = api.clone();
    tokio::spawn(async move {
        if let Some(joined) = build
            && !follow(id, &joined, &told, from, until, &send).await
        {
            return;
        }
        let _ = send.send(outcome(&api, id).await.map_err(Status::from)).await;
    });
    Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receive)))
}

type Answers = mpsc::Sender<Result<pb::ImageJoinStreamingResponse, Status>>;

/// Sends a build's log from piece `from` on, but for what this connection was told. True when the build's outcome is there.
async fn follow(id: ImageId, joined: &Joined, told: &Told, mut from: u64, until: Instant, send: &Answers) -> bool {
    let Joined { build, recorded, .. } = joined;
    let teller = told.teller(id, build.times().0);
    // Another stream of this connection tells until it ends, and when the build has ended it has told everything.
    let mut told = tokio::select! {
        told = teller.lock() => told,
        () = tokio::time::sleep_until(until.into()) => return false,
        () = send.closed() => return false,
    };
    from = from.max(*told);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        tokio::select! {
            _ = tokio::time::timeout(left, build.changed(from)) => {}
            () = send.closed() => return false,
        }
        // Asked before the read: all that was said before the outcome is then in the read.
        let done = build.outcome().is_some();
        for some in build.entries_after(from).chunks(PIECES_AT_ONCE) {
            from = some.last().map_or(from, |last| last.id);
            let task_logs = some.iter().cloned().map(task_log).collect();
            let answer = pb::ImageJoinStreamingResponse { task_logs, entry_id: from.to_string(), ..Default::default() };
            if send.send(Ok(answer)).await.is_err() {
                return false;
            }
            *told = from;
        }
        if done {
            break;
        }
        if left.is_zero() {
            return false;
        }
    }
    drop(told);
    let _ = tokio::time::timeout(STREAM_MAX, recorded.clone().wait_for(|recorded| *recorded)).await;
    true
}

async fn outcome(api: &Api, id: ImageId) -> Result<pb::ImageJoinStreamingResponse, Error> {
    let state = api.local();
    let image = state.images.get(&id).ok_or_else(|| Error::Unavailable(format!("the build of image {id} left no outcome; ask again")))?;
    let record = images::read_record(api, image).await?;
    Ok(pb::ImageJoinStreamingResponse { result: Some(result(&record)), metadata: Some(metadata(&record)), eof: true, ..Default::default() })
}

/// Says where the lines of an image's build are. A base is an image of its own, with a build of its own.
pub(super) async fn build_chain(
    api: &Api,
    _caller: &Caller,
    request: pb::ImageBuildChainGetRequest,
) -> Result<pb::ImageBuildChainGetResponse, Error> {
    let id: ImageId = request.image_id.parse()?;
    let state = api.read_latest_unless(|state| state.images.contains_key(&id)).await?;
    let image = state.images.get(&id).ok_or_else(|| Error::NotFound(format!("Image '{id}' not found")))?;
    let record = images::read_record(api, image).await?;
    let (app, task) = images::build_log(id);
    let time = |ms: u64| Some(times::of_ms(ms));
    let step = pb::ImageBuildStep {
        image_id: id.to_string(),
        started_at: time(record.started_ms),
        finished_at: time(record.finished_ms),
        builder_app_id: app.to_string(),
        builder_task_id: task.to_string(),
    };
    Ok(pb::ImageBuildChainGetResponse { build_steps: vec![step] })
}

/// Takes an image away, unless a function that may run needs it. Its chunks go with the next collection.
pub(crate) async fn remove(api: &Api, id: ImageId) -> Result<(), Error> {
    let state = api.read_latest().await?;
    let users = users_of(&state, id);
    if let Some(user) = users.first() {
        let of_app = users.iter().filter(|other| other.app_id == user.app_id);
        let mut functions: Vec<&str> = of_app.map(|user| user.function.as_str()).collect();
        functions.sort_unstable();
        functions.dedup();
        let others = users.iter().filter(|other| other.app_id != user.app_id).count();
        let others = if others > 0 { format!(", and by {others} functions of other apps") } else { String::new() };
        return Err(Error::Precondition(format!(
            "image {id} is needed by {} of app {} ({}){others}: stop the app first (`modal app stop {}`), or deploy it with another image; versions of a deployed app that can come back need their images too",
            functions.join(", "),
            user.app,
            user.app_id,
            user.app_id
        )));
    }
    match api.propose(Command::RemoveImage { id }).await {
        Err(Error::Refused(Refused::NoSuchImage { .. })) => Err(Error::NotFound(format!("Image '{id}' not found"))),
        done => done,
    }
}

pub(super) async fn delete(api: &Api, _caller: &Caller, request: pb::ImageDeleteRequest) -> Result<(), Error> {
    remove(api, request.image_id.parse()?).await
}

pub(super) async fn from_id(api: &Api, _caller: &Caller, request: pb::ImageFromIdRequest) -> Result<pb::ImageFromIdResponse, Error> {
    let id: ImageId = request.image_id.parse()?;
    let record = built(api, id).await?.ok_or_else(|| Error::NotFound(format!("Image '{id}' not found")))?;
    Ok(pb::ImageFromIdResponse { image_id: id.to_string(), metadata: Some(metadata(&record)) })
}
