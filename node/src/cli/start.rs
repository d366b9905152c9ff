//! `shoal start`: the keeper, and under it the node.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::config::Config;
use crate::{keeper, server};

/// The flags of a node; each overrides the configuration.
#[derive(Debug, Args, Serialize)]
pub(super) struct Start {
    /// The configuration file [default: /etc/shoal/shoal.toml, if it exists]
    #[arg(long)]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// The folder for everything the node keeps [default: /var/lib/shoal]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    /// Where clients are answered [default: 0.0.0.0:7470]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<SocketAddr>,
    /// Where web endpoints are answered [default: 0.0.0.0:7480]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    web: Option<SocketAddr>,
    /// Where other nodes reach this one, UDP [default: the address of the API]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    peers: Option<SocketAddr>,
    /// The name or address by which clients and other nodes reach this one, HOST or HOST:PORT
    #[arg(long, value_name = "HOST")]
    #[serde(skip_serializing_if = "Option::is_none")]
    advertise: Option<String>,
    /// Join the cluster of this node, instead of founding one. Counts only for a data folder that belongs to none
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "seeds")]
    #[serde(skip_serializing_if = "Option::is_none")]
    join: Option<String>,
    /// What lets this node join, from `shoal token create --node`; with --seeds, a random secret of 32 characters or more, the same on all
    #[arg(long, env = "SHOAL_TOKEN", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// A file with the token, instead of --token
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
    /// Become one cluster with these machines, HOST:PORT each: the same command on all of them, in any order of starts
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    seeds: Vec<String>,
    /// How many of the seeds found the cluster [default: all]; the others join it
    #[arg(long, value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    expect: Option<usize>,
    /// What people call this node [default: the machine's host name]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

impl Start {
    /// Holds the sockets and keeps a node running; under systemd, which does both, becomes the node.
    pub(super) fn keep(&self) -> anyhow::Result<i32> {
        if keeper::passed() {
            return self.serve();
        }
        let config = Config::load(self.config.as_deref(), self)?;
        // The child reads the same command line, with another command.
        let arguments = std::iter::once(OsString::from("serve")).chain(std::env::args_os().skip(2)).collect::<Vec<_>>();
        keeper::keep(config.api, config.web, &arguments, &config.data)
    }

    /// Runs the node on sockets that were handed over.
    pub(super) fn serve(&self) -> anyhow::Result<i32> {
        let config = Config::load(self.config.as_deref(), self)?;
        let listeners = keeper::take_passed()?;
        server::run(config, listeners)
    }
}
