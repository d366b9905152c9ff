//! Queues and dicts by many clients at once, and the same of Redis: what is put is taken or read again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use redis::aio::MultiplexedConnection;
use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::modal_client_client::ModalClientClient;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use crate::login::{Login, request};
use crate::{load, say};

/// A pickled number, as the official client sends it.
const VALUE: &[u8] = b"\x80\x04K\x01.";
/// How many entries are there for reads alone.
const KEPT: u64 = 1024;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// An item is put into a queue, and one taken out; of Redis, RPUSH and LPOP.
    Queues,
    /// An entry is put into a dict and read again; of Redis, SET and GET.
    Entries,
    /// An entry of a dict is read; of Redis, GET.
    Reads,
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What is done.
    #[arg(long, value_enum)]
    what: What,
    /// Where the node answers, such as `http://127.0.0.1:7470`.
    #[arg(long, conflicts_with = "redis")]
    url: Option<String>,
    /// Where Redis answers, such as `redis+unix:///run/redis.sock`.
    #[arg(long)]
    redis: Option<String>,
    #[command(flatten)]
    login: Login,
    /// What names of this run begin with.
    #[arg(long)]
    prefix: String,
    /// How many do it at once.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Over how many connections.
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// How many queues, or dicts, they share.
    #[arg(long, default_value_t = 8)]
    objects: usize,
    /// For how long, in seconds, after a quarter of it that is not counted.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// A connection.
#[derive(Clone)]
enum Server {
    Node { channel: Channel, metadata: MetadataMap },
    Redis(MultiplexedConnection),
}

/// One of the clients, with the queue or dict that it has to do with: its id, or with Redis its name.
struct User {
    server: Server,
    what: What,
    object: Arc<str>,
}

impl User {
    async fn put(&mut self, number: u64) -> anyhow::Result<()> {
        let object = self.object.as_ref();
        match (&mut self.server, self.what) {
            (Server::Node { channel, metadata }, What::Queues) => {
                let wanted = pb::QueuePutRequest { queue_id: object.to_owned(), values: vec![VALUE.into()], ..Default::default() };
                ModalClientClient::new(channel.clone()).queue_put(request(metadata, wanted)).await?;
            }
            (Server::Node { channel, metadata }, What::Entries | What::Reads) => {
                let entry = pb::DictEntry { key: key(number).into(), value: VALUE.into() };
                let wanted = pb::DictUpdateRequest { dict_id: object.to_owned(), updates: vec![entry], ..Default::default() };
                ModalClientClient::new(channel.clone()).dict_update(request(metadata, wanted)).await?;
            }
            (Server::Redis(redis), What::Queues) => redis::cmd("RPUSH").arg(object).arg(VALUE).query_async::<()>(redis).await?,
            (Server::Redis(redis), What::Entries | What::Reads) => {
                redis::cmd("HSET").arg(object).arg(key(number)).arg(VALUE).query_async::<()>(redis).await?;
            }
        }
        Ok(())
    }

    /// Takes or reads what there is; none if there is nothing.
    async fn get(&mut self, number: u64) -> anyhow::Result<Option<Vec<u8>>> {
        let object = self.object.as_ref();
        Ok(match (&mut self.server, self.what) {
            (Server::Node { channel, metadata }, What::Queues) => {
                let wanted = pb::QueueGetRequest { queue_id: object.to_owned(), n_values: 1, timeout: 10.0, ..Default::default() };
                let found = ModalClientClient::new(channel.clone()).queue_get(request(metadata, wanted)).await?.into_inner();
                found.values.first().map(|value| value.to_vec())
            }
            (Server::Node { channel, metadata }, What::Entries | What::Reads) => {
                let wanted = pb::DictGetRequest { dict_id: object.to_owned(), key: key(number).into() };
                let found = ModalClientClient::new(channel.clone()).dict_get(request(metadata, wanted)).await?.into_inner();
                found.found.then(|| found.value.unwrap_or_default().to_vec())
            }
            (Server::Redis(redis), What::Queues) => redis::cmd("LPOP").arg(object).query_async(redis).await?,
            (Server::Redis(redis), What::Entries | What::Reads) => {
                redis::cmd("HGET").arg(object).arg(key(number)).query_async(redis).await?
            }
        })
    }
}

fn key(number: u64) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

impl load::Client for User {
    async fn turn(&mut self, number: u64, _turn: usize) -> anyhow::Result<()> {
        let number = if self.what == What::Reads { number % KEPT } else { number };
        if self.what != What::Reads {
            self.put(number).await.with_context(|| format!("cannot put {number}"))?;
        }
        match self.get(number).await.with_context(|| format!("cannot get {number}"))? {
            Some(found) if found == VALUE => Ok(()),
            found => bail!("{:?} gave {found:?} instead of what was put", self.object),
        }
    }
}

/// Connects.
async fn connect(options: &Options) -> anyhow::Result<Server> {
    if let Some(url) = &options.redis {
        let client = redis::Client::open(url.as_str()).with_context(|| format!("{url} is no place where Redis is"))?;
        return Ok(Server::Redis(client.get_multiplexed_async_connection().await.with_context(|| format!("cannot reach {url}"))?));
    }
    let Some(url) = &options.url else { bail!("give --url or --redis") };
    let metadata = options.login.metadata()?;
    let channel = Endpoint::from_shared(url.clone())?.connect().await.with_context(|| format!("cannot reach {url}"))?;
    Ok(Server::Node { channel, metadata })
}

/// Makes a queue or a dict by its name and returns its id; Redis knows it by its name.
async fn object(server: &Server, what: What, name: String) -> anyhow::Result<Arc<str>> {
    let Server::Node { channel, metadata } = server else { return Ok(name.into()) };
    let (mut client, kind) = (ModalClientClient::new(channel.clone()), pb::ObjectCreationType::CreateIfMissing.into());
    let id = if what == What::Queues {
        let wanted = pb::QueueGetOrCreateRequest { deployment_name: name, object_creation_type: kind, ..Default::default() };
        client.queue_get_or_create(request(metadata, wanted)).await?.into_inner().queue_id
    } else {
        let wanted = pb::DictGetOrCreateRequest { deployment_name: name, object_creation_type: kind, ..Default::default() };
        client.dict_get_or_create(request(metadata, wanted)).await?.into_inner().dict_id
    };
    Ok(id.into())
}

/// Does it for as long as was asked and says how it went.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let mut servers = Vec::new();
    for _ in 0..options.connections {
        servers.push(connect(&options).await?);
    }
    let mut objects = Vec::new();
    for number in 0..options.objects {
        objects.push(object(&servers[0], options.what, format!("{}-{number}", options.prefix)).await.context("cannot make it")?);
    }
    let user = |client: usize| User {
        server: servers[client % servers.len()].clone(),
        what: options.what,
        object: Arc::clone(&objects[client % objects.len()]),
    };
    if options.what == What::Reads {
        for object in 0..objects.len() {
            for number in 0..KEPT {
                user(object).put(number).await.context("cannot put what is to be read")?;
            }
        }
    }
    let taken = load::measure((0..options.clients).map(user).collect(), Duration::from_secs(options.seconds)).await?;
    say(&taken.line(1));
    Ok(())
}
