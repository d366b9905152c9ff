//! Steps: instructions with all variables filled in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::Problem;
use super::instruction::Command;

/// What one instruction asks the builder to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Step {
    /// Only the config changed.
    Config,
    /// Make sure that this absolute folder exists.
    Directory(String),
    /// Run a command.
    Run(RunStep),
    /// Copy files.
    Transfer(TransferStep),
}

/// RUN, ready to be executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunStep {
    /// Program and arguments. For a script: its text is in `script` and the program is its path in the container.
    pub argv: Vec<String>,
    /// A script that has to be a file first.
    pub script: Option<String>,
    /// Environment of the command: that of the image over the build arguments. Secrets are not in it.
    pub env: BTreeMap<String, String>,
    /// Absolute working folder.
    pub workdir: String,
    /// `name[:group]`, or nothing for root.
    pub user: Option<String>,
    /// `--mount`.
    pub mounts: Vec<Mount>,
    /// `--network`.
    pub network: Network,
}

/// Which network a RUN has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Network {
    /// That of builds.
    Default,
    /// None at all.
    None,
}

/// COPY or ADD, ready to be executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TransferStep {
    /// ADD: sources may be addresses, archives of the context are unpacked.
    pub is_add: bool,
    /// Stage, image or nothing for the context.
    pub from: Option<String>,
    /// Paths, patterns or addresses.
    pub sources: Vec<String>,
    /// Files given inline: name and bytes.
    pub inline: Vec<Inline>,
    /// Absolute destination; ends in `/` when it must be a folder.
    pub destination: String,
    /// `--chown` as `user[:group]`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<u32>,
    /// `--parents`: keep the folders of the source.
    pub parents: bool,
    /// `--exclude` patterns.
    pub exclude: Vec<String>,
    /// `--checksum` of ADD, for example `sha256:…`.
    pub checksum: Option<String>,
    /// `--unpack` of ADD.
    pub unpack: Option<bool>,
}

/// A file given inline by a heredoc.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inline {
    /// Name within the destination.
    pub name: String,
    /// Text, variables filled in.
    pub content: String,
}

/// `RUN --mount`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Absolute path in the container; empty only for a secret that is given by environment alone.
    pub target: String,
}

/// What a `--mount` brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A folder that outlives the build, shared by builds of this node.
    Cache {
        /// Which cache: `id`, or the target.
        id: String,
        /// Whether several builds may use it at once.
        sharing: Sharing,
        /// `mode`.
        mode: u32,
        /// `uid`, `gid`.
        owner: (u32, u32),
    },
    /// Files of the context, a stage or an image.
    Bind {
        /// Stage or image; nothing for the context.
        from: Option<String>,
        /// Path in it.
        source: String,
        /// Writes are allowed and thrown away.
        writable: bool,
    },
    /// An empty folder that vanishes.
    Tmpfs {
        /// `size` in bytes.
        size_bytes: Option<u64>,
    },
    /// A value of the build's secrets as a file or variable.
    Secret {
        /// Name of the variable in the secret.
        id: String,
        /// Give it as this variable.
        env: Option<String>,
        /// Fail when it is missing.
        required: bool,
        /// `mode` of the file.
        mode: u32,
        /// `uid`, `gid`.
        owner: (u32, u32),
    },
}

/// Who may use a cache at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sharing {
    /// Everybody.
    Shared,
    /// One after the other.
    Locked,
    /// Each build has its own.
    Private,
}

/// Returns program and arguments of a command.
pub(super) fn argv(command: &Command, shell: &[String], script_path: &str) -> (Vec<String>, Option<String>) {
    match command {
        Command::Exec(words) => (words.clone(), None),
        Command::Script(text) => (vec![script_path.to_owned()], Some(text.clone())),
        Command::Shell(text) => (shell.iter().cloned().chain([text.clone()]).collect(), None),
    }
}

/// Parses the value of `--mount` after expansion. Relative targets are taken from `workdir`.
pub(super) fn mount(text: &str, workdir: &str) -> Result<Mount, Problem> {
    let options = Options::parse(text)?;
    let kind = match options.get("type").unwrap_or("bind") {
        "cache" => options.cache()?,
        "bind" => options.bind()?,
        "tmpfs" => MountKind::Tmpfs { size_bytes: options.size()? },
        "secret" => options.secret()?,
        "ssh" => {
            let reason = "no agent is forwarded to builds; give a key as a secret";
            return Err(Problem::Unsupported { what: "--mount=type=ssh".to_owned(), reason });
        }
        _ => return Err(options.wrong("type", "cache, bind, tmpfs or secret")),
    };
    let target = match (options.get("target"), &kind) {
        (Some(target), _) => super::scope::absolute(workdir, target),
        (None, MountKind::Secret { env: Some(_), .. }) => String::new(),
        (None, MountKind::Secret { id, .. }) => format!("/run/secrets/{id}"),
        (None, _) => return Err(options.wrong("target", "a path in the container")),
    };
    Ok(Mount { kind, target })
}

struct Options {
    text: String,
    pairs: BTreeMap<String, String>,
}

impl Options {
    const KNOWN: &[&str] =
        &["type", "target", "source", "from", "id", "sharing", "uid", "gid", "mode", "size", "env", "required", "readonly", "rw"];

    fn parse(text: &str) -> Result<Options, Problem> {
        let mut options = Options { text: text.to_owned(), pairs: BTreeMap::new() };
        for field in text.split(',') {
            let (name, value) = field.split_once('=').unwrap_or((field, "true"));
            let name = match name.trim().to_ascii_lowercase().as_str() {
                "dst" | "destination" => "target".to_owned(),
                "src" => "source".to_owned(),
                "ro" => "readonly".to_owned(),
                "readwrite" => "rw".to_owned(),
                other => other.to_owned(),
            };
            if !Self::KNOWN.contains(&name.as_str()) {
                let expected = "type, target, source, from, id, sharing, uid, gid, mode, size, env, required or rw";
                return Err(Problem::Value { what: "--mount option".to_owned(), value: name, expected });
            }
            options.pairs.insert(name, value.to_owned());
        }
        Ok(options)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.pairs.get(name).map(String::as_str)
    }

    fn wrong(&self, name: &str, expected: &'static str) -> Problem {
        Problem::Value { what: format!("{name} of --mount"), value: self.text.clone(), expected }
    }

    fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| matches!(value, "true" | "1" | ""))
    }

    fn number(&self, name: &str, radix: u32, default: u32) -> Result<u32, Problem> {
        match self.get(name) {
            None => Ok(default),
            Some(text) => {
                u32::from_str_radix(text.trim_start_matches("0o"), radix).map_err(|_| self.wrong(name, "a number (octal for mode)"))
            }
        }
    }

    fn owner(&self) -> Result<(u32, u32), Problem> {
        Ok((self.number("uid", 10, 0)?, self.number("gid", 10, 0)?))
    }

    fn cache(&self) -> Result<MountKind, Problem> {
        let sharing = match self.get("sharing").unwrap_or("shared") {
            "shared" => Sharing::Shared,
            "locked" => Sharing::Locked,
            "private" => Sharing::Private,
            _ => return Err(self.wrong("sharing", "shared, locked or private")),
        };
        let id = self.get("id").or(self.get("target")).unwrap_or_default().to_owned();
        Ok(MountKind::Cache { id, sharing, mode: self.number("mode", 8, 0o755)?, owner: self.owner()? })
    }

    fn bind(&self) -> Result<MountKind, Problem> {
        let source = self.get("source").unwrap_or("/").to_owned();
        Ok(MountKind::Bind { from: self.get("from").map(str::to_owned), source, writable: self.flag("rw") })
    }

    fn secret(&self) -> Result<MountKind, Problem> {
        let target_name = self.get("target").and_then(|target| target.rsplit('/').next());
        let id = self.get("id").or(target_name).ok_or_else(|| self.wrong("id", "the name of a secret's variable"))?;
        Ok(MountKind::Secret {
            id: id.to_owned(),
            env: self.get("env").map(str::to_owned),
            required: self.flag("required"),
            mode: self.number("mode", 8, 0o400)?,
            owner: self.owner()?,
        })
    }

    fn size(&self) -> Result<Option<u64>, Problem> {
        let Some(text) = self.get("size") else { return Ok(None) };
        let lower = text.to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match lower[digits.len()..].trim_end_matches('b').trim_end_matches('i') {
            "" => Some(1),
            "k" => Some(1 << 10),
            "m" => Some(1 << 20),
            "g" => Some(1 << 30),
            _ => None,
        };
        match (digits.parse::<u64>(), unit) {
            (Ok(number), Some(unit)) => Ok(Some(number.saturating_mul(unit))),
            _ => Err(self.wrong("size", "bytes, or a number with k, m or g")),
        }
    }
}
