//! The map of the system: what a node is made of, started in order of dependency and stopped in reverse.
//!
//! ```text
//! keys → storage (kv, chunks) → peers (QUIC) → raft → this node's entry in the state → calls, logs, trees (FUSE)
//!      → container engine → worker → scheduler → api, admin
//! ```

mod opening;
mod registration;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use shoal_calls::Calls;
use shoal_runtime::Engine;
use shoal_state::BootId;
use shoal_storage::kv::Kv;
use shoal_storage::store::Store;
use shoal_worker::Driver;
use shoal_worker::execs::Execs;
use shoal_worker::log::LogStore;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::opening::{builder, consensus, containers_door, copies, engine_config, listener, mount_trees};
use self::registration::register;
use crate::admin;
use crate::api::joined_logs;
use crate::api::{self, Api, Blobs, Files, Kept, Lifecycle, SealingKey, transport};
use crate::arguments;
use crate::audit::Audit;
use crate::authority::{self, Gate};
use crate::build_functions::BuildFunctions;
use crate::config::Config;
use crate::copies;
use crate::departure::{self, Departed};
use crate::doors;
use crate::execs;
use crate::folder::{self, Folder};
use crate::formation;
use crate::gangs::{self, Gangs};
use crate::homes::{self, Outbox};
use crate::images::{Images, StateCache, Unfinished};
use crate::join;
use crate::keeper::{EXIT_FINAL, EXIT_UNSTARTED, Listeners};
use crate::keys::{self, AuthorityFile, Keys};
use crate::members;
use crate::peers::Peers;
use crate::placements::Placements;
use crate::provider::NodeProvider;
use crate::renewal;
use crate::reports::{self, Reports};
use crate::room::{Room, overlays_budget};
use crate::roots::{Rooms, Roots};
use crate::schedules;
use crate::scheduling::{self, CrashLoops};
use crate::standing;
use crate::stderr;
use crate::sweep;
use crate::tasks::Tasks;
use crate::touched::Touched;
use crate::unread;
use crate::upkeep::{self, Upkeep};
use crate::zygotes::{self, Zygotes};

/// How long containers have for their exit hooks when the node stops.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long a node that stops waits until its chunks are on the disk.
const STORE_WAIT: Duration = Duration::from_secs(10);
/// Containers have one of so many connections for blobs, where they have a door of their own.
const CONNECTIONS_INSIDE: usize = 10;
/// Runs a node until it is told to stop.
pub(crate) fn run(config: Config, listeners: Listeners) -> anyhow::Result<i32> {
    let filter = stderr::filter(&config.log)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(|| stderr::Stderr)
        .init();
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start a runtime")?;
    let _folder = match Folder::take(&config.data) {
        Ok(folder) => folder,
        Err(error) => {
            let passes = error.downcast_ref::<folder::Error>().is_some_and(folder::Error::passes);
            return Ok(say(&error, if passes { EXIT_UNSTARTED } else { EXIT_FINAL }));
        }
    };
    let up = AtomicBool::new(false);
    match runtime.block_on(serve(Arc::new(config), listeners, &up)) {
        Err(error) if is_final(&error) => Ok(say(&error, EXIT_FINAL)),
        Err(error) if !up.load(Ordering::Relaxed) => Ok(say(&error, EXIT_UNSTARTED)),
        ended => ended,
    }
}

/// Says whether another start would fail for the same reason: the cluster has said no.
fn is_final(error: &anyhow::Error) -> bool {
    use shoal_peer::Error::{NoSecret, NoToken, Refused};
    let no = |error: &shoal_peer::Error| matches!(error, Refused { .. } | NoToken { .. } | NoSecret { .. });
    error.chain().any(|cause| cause.is::<Departed>() || cause.downcast_ref().is_some_and(no))
}

fn say(error: &anyhow::Error, code: i32) -> i32 {
    stderr::say(format_args!("{error:#}"));
    code
}

async fn serve(config: Arc<Config>, listeners: Listeners, up: &AtomicBool) -> anyhow::Result<i32> {
    let started = Instant::now();
    let connections = transport::raise_file_limit();
    // Containers that end in order still talk to the API: it is closed last.
    let (stop, stop_serving) = (CancellationToken::new(), CancellationToken::new());
    let boot = BootId::from_random(rand::random());
    if !config.join.is_empty() && !keys::belongs(&config.data) {
        let host = config.advertised_host().map(str::to_owned);
        let token = config.token()?;
        anyhow::ensure!(
            !token.is_empty(),
            "--join needs --token: `shoal token create --node` on a node of the cluster prints the whole command"
        );
        join::join(&config.data, &config.join, &token, host, config.peers().port()).await?;
    }
    let seeds = formation::given(&config)?;
    let forms = seeds.as_ref().filter(|_| !keys::belongs(&config.data));
    if let Some((seeds, secret)) = forms {
        formation::form(&config, seeds, secret).await?;
    }
    let mut keys = Keys::open(&config.data, api::now_seconds())?;
    if !config.join.is_empty() {
        join::warn_of_another(&config, keys.identity.fingerprint());
    }
    let gate = Arc::new(Gate::new(&mut keys, AuthorityFile::open(&config.data)?));
    let room = Room::open(&config.data);
    let kv = Kv::open(&config.data.join("kv")).context("cannot open the node's small values")?;
    let store = Store::open(&config.data.join("chunks"), config.disk.chunks()).context("cannot open the chunk store")?;
    let peers = formation::port_again(forms.is_some(), || Peers::open(&config, &keys, boot)).await?;
    let cluster = consensus(&config, &keys, &peers).await?;
    let copies = copies(&config, &cluster, &peers, &store);
    let upkeep = Upkeep::open(store.clone(), &kv, copies.clone()).context("cannot open the table of last uses")?;
    register(&config, &cluster, &keys, &peers, boot).await?;

    let (outbox, crashes) = (Outbox::default(), CrashLoops::default());
    let min_copies = config.calls.min_copies;
    anyhow::ensure!(
        (1..=shoal_calls::shards::members::COPIES).contains(&min_copies),
        "calls.min_copies is {min_copies}: records of calls have 1 or 2 copies; set one of these"
    );
    let kept = shoal_calls::calls::Options {
        min_copies,
        waiting_max: config.calls.inputs_waiting_max,
        ..shoal_calls::calls::Options::new(config.data.join("calls"), keys.node)
    };
    let calls = Calls::open(&kept, Some(Box::new(outbox.clone()))).context("cannot open the records of calls")?;
    let trees = mount_trees(&config, &store)?;
    arguments::write_own_folder(&config).context("cannot write what containers see of this node")?;
    let engine = Engine::open(engine_config(&config)).await.context("cannot open the container engine")?;
    let (data, overlays_bytes) = (config.data.clone(), config.disk.overlays_bytes);
    engine.bound_overlays(move |taken_bytes| overlays_budget(&data, overlays_bytes, taken_bytes));
    let kept = Kept::new(store.clone(), copies.clone());
    let cache = StateCache::new(cluster.clone(), kept.clone(), upkeep.clone());
    let unfinished = Unfinished::open(config.data.join("images/unfinished")).context("cannot open the list of builds that run")?;
    let images = Images::new(builder(&config, &store, Arc::new(cache), &engine, &trees)?, unfinished);
    let logs = LogStore::open_with(config.data.join("logs"), config.disk.logs()).context("cannot open the logs of containers")?;
    let roots = Roots::new(store.clone(), Arc::clone(&trees));
    let lifecycle = Lifecycle::new();
    let api = Api {
        calls: calls.clone(),
        intake: api::Intake::default(),
        joined: joined_logs::start(&peers, cluster.raft(), &logs),
        logs,
        tasks: Tasks::default(),
        execs: Execs::open(config.data.join("run/execs")).context("cannot make the folder for what processes in containers print")?,
        readings: crate::execs::Readings::default(),
        terminals: crate::terminals::Connected::default(),
        yielded: api::Yielded::default(),
        reports: Reports::new(&peers, cluster.raft(), &calls, &crashes, &lifecycle),
        crashes,
        yields: Arc::default(),
        gangs: Gangs::new(&peers, cluster.raft(), &calls),
        placements: Placements::default(),
        images: images.clone(),
        build_functions: BuildFunctions::default(),
        kept,
        copies: copies.clone(),
        store: store.clone(),
        upkeep: upkeep.clone(),
        room: room.clone(),
        audit: Audit::open(&config.data.join("audit"), config.audit, || api::now().0).context("cannot open the audit log")?,
        touched: Touched::open(config.data.join("images/touched"), roots.clone(), copies.clone())
            .context("cannot open the lists of what images read first")?,
        roots,
        worker: Arc::default(),
        blobs: Blobs::open(store.clone(), &kv, upkeep.uses.clone(), copies.clone(), keys.urls, &config.advertised())
            .context("cannot open the blobs")?,
        files: Files::open(store.clone(), &kv).context("cannot open the uploaded files")?,
        sealing: SealingKey::new(keys.sealing),
        lifecycle,
        config: Arc::clone(&config),
        engine: engine.clone(),
        peers: peers.clone(),
        gate,
        cluster: cluster.clone(),
    };
    join::serve(&api);
    doors::serve(&api);
    renewal::serve(&api);
    authority::serve(&api);
    standing::serve(&api);
    execs::serve(&api);
    crate::audit::joined::serve(&api);
    gangs::serve(&api);
    copies.chunks().serve_blobs(&api.blobs);
    copies::asks::serve(&api);
    if let Some((seeds, secret)) = seeds {
        formation::serve(&api, seeds, secret);
    }
    homes::start(&peers, cluster.raft(), &calls);
    let listener = listener(listeners.api)?;
    let told = homes::open(cluster.raft(), &calls, &api.reports).await.context("cannot take the shards home")?;
    let inside = containers_door(&api, &engine, config.api, connections / CONNECTIONS_INSIDE, &stop_serving)?;
    engine.make_ahead(zygotes::ahead(&config, Rooms::new(trees)?, arguments::shm_bytes()));
    let zygotes = Zygotes::open(&config, engine.clone(), api.roots.clone()).context("cannot open the zygotes")?;
    let provider = NodeProvider::new(api.clone(), zygotes.clone(), stop.clone());
    let state = cluster.clone();
    let worker = Driver::start(
        shoal_worker::Config::new(keys.node, boot),
        move || state.local(),
        cluster.raft().watch(),
        Arc::new(engine.clone()),
        provider,
        api.logs.clone(),
    );
    let _ = api.worker.set(worker.handle());
    let scheduler = tokio::spawn(scheduling::run(api.clone(), stop.clone()));
    let schedules = tokio::spawn(schedules::run(api.clone(), stop.clone()));
    let serving = tokio::spawn(transport::serve(api.clone(), listener, connections, stop_serving.clone()));
    let apps = tokio::spawn(sweep::run(api.clone(), stop.clone()));
    let disk = tokio::spawn(upkeep::run(api.clone(), stop.clone()));
    let unread = tokio::spawn(unread::run(api.clone(), stop.clone()));
    let homes = tokio::spawn(homes::run(api.clone(), outbox, told, stop.clone()));
    let reports = tokio::spawn(reports::run(api.reports.clone(), peers.clone(), stop.clone()));
    let gangs_alone = tokio::spawn(gangs::alone::run(api.clone(), stop.clone()));
    let doors = tokio::spawn(doors::run(api.clone(), stop.clone()));
    let certificate = tokio::spawn(renewal::run(api.clone(), config.data.clone(), keys.identity, stop.clone()));
    let voters = tokio::spawn(members::run(api.clone(), stop.clone()));
    let authority = tokio::spawn(authority::run(api.clone(), stop.clone()));
    let away = tokio::spawn(copies.others().clone().look_at_all(stop.clone()));
    let repair = tokio::spawn(copies::repair::run(api.clone(), stop.clone()));
    let blobs = tokio::spawn(copies::blobs::run(api.clone(), stop.clone()));
    let images_watch = tokio::spawn(zygotes::unused::run(api.clone(), zygotes, stop.clone()));
    let operators = tokio::spawn({
        let (api, path, stop) = (api.clone(), config.admin_socket(), stop_serving.clone());
        async move { admin::serve(api, &path, stop).await }
    });
    tracing::info!(node = %keys.node, api = %config.api, data = %config.data.display(), ms = started.elapsed().as_millis(), "the node is up");
    up.store(true, Ordering::Relaxed);

    let mut departed = None;
    let broken = tokio::select! {
        out = departure::out(&api) => {
            let why = out.to_string();
            departed = Some(out);
            Some(why)
        }
        signal = wait_for_signal() => signal.map(|()| None)?,
        why = cluster.raft().stopped() => Some(why.to_string()),
        why = room.watch(kv, store.clone()) => Some(why),
        why = calls.ended() => Some(format!("the records of calls have ended: {why}")),
    };
    match &broken {
        None => tracing::info!("the node stops"),
        Some(why) if departed.is_some() => tracing::error!(why, "the node is out of the cluster, and stops"),
        Some(why) => tracing::error!(why, "the node cannot go on, and stops to be started anew"),
    }
    stop.cancel();
    let _ = tokio::join!(
        scheduler,
        schedules,
        apps,
        disk,
        voters,
        authority,
        homes,
        reports,
        doors,
        certificate,
        images_watch,
        away,
        repair,
        blobs,
        unread,
        gangs_alone
    );
    images.close();
    // Without its records nothing that containers still do would count.
    worker.handle().shutdown(if broken.is_none() { STOP_GRACE } else { Duration::ZERO }).await;
    if let Err(error) = engine.close().await {
        tracing::warn!(%error, "the container engine did not close in order");
    }
    stop_serving.cancel();
    let _ = tokio::join!(serving, operators, inside);
    if let Err(error) = calls.stop().await {
        tracing::warn!(%error, "the records of calls did not close in order");
    }
    // What is not in its index is read again by the next start.
    match tokio::time::timeout(STORE_WAIT, store.sync_async()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the chunk store did not close in order"),
        Err(_) => tracing::warn!(waited = ?STORE_WAIT, "the chunk store did not reach the disk, the node stops without it"),
    }
    cluster.raft().shutdown().await;
    peers.endpoint.close().await;
    if let Some(departed) = departed {
        return Err(departed.into());
    }
    broken.map_or(Ok(0), |why| Err(anyhow::anyhow!(why)))
}

async fn wait_for_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot take SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot take SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
