//! Who sees which variable, and what an instruction then means.
//!
//! - ARG before the first FROM is seen by FROM only; a stage gets it by naming it again.
//! - ARG inside a stage is seen from there on, takes the build argument when one was given, and is part of the
//!   environment of RUN. ENV beats it, whatever the order.
//! - ENV sees what was before the instruction, also for its second pair.
//! - Proxy arguments need no ARG, reach RUN only and are not part of what identifies a step.
//! - RUN, CMD, ENTRYPOINT and SHELL are never expanded here: the shell does that.

use std::collections::BTreeMap;

use crate::config::ImageConfig;

use super::error::Problem;
use super::instruction::{Command, From, Instruction, Run, Transfer};
use super::step::{self, Inline, Network, RunStep, Step, TransferStep};
use super::words::Template;
use super::{Error, Located, Recipe};

/// Where the builder puts the text of a `RUN <<EOF` that begins with `#!`.
pub(crate) const SCRIPT_PATH: &str = "/__shoal/script";

/// Arguments that need no ARG.
const PROXY_ARGS: [&str; 10] =
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "FTP_PROXY", "ftp_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"];

/// The platform arguments every recipe may use.
const PLATFORM_ARGS: [(&str, &str); 8] = [
    ("TARGETPLATFORM", "linux/amd64"),
    ("TARGETOS", "linux"),
    ("TARGETARCH", "amd64"),
    ("TARGETVARIANT", ""),
    ("BUILDPLATFORM", "linux/amd64"),
    ("BUILDOS", "linux"),
    ("BUILDARCH", "amd64"),
    ("BUILDVARIANT", ""),
];

/// The variables outside stages.
#[derive(Debug, Clone)]
pub struct Globals {
    build_args: BTreeMap<String, String>,
    args: BTreeMap<String, String>,
}

impl Globals {
    /// Evaluates the ARG instructions before the first FROM.
    pub fn new(recipe: &Recipe, build_args: &BTreeMap<String, String>) -> Result<Globals, Error> {
        let args = PLATFORM_ARGS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut globals = Globals { build_args: build_args.clone(), args };
        for arg in &recipe.global_args {
            let (name, default) = &arg.value;
            let given = globals.build_args.get(name).cloned();
            let value = match (given, default) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => {
                    let value = default.expand(&|name| globals.args.get(name).cloned());
                    Some(value.map_err(|problem| problem.at(arg.line, arg.name()))?)
                }
                (None, None) => None,
            };
            if let Some(value) = value {
                globals.args.insert(name.clone(), value);
            }
        }
        Ok(globals)
    }

    /// Returns the image that FROM names.
    ///
    /// Errors when the name is empty after expansion or the platform is not ours.
    pub fn base(&self, from: &Located<From>) -> Result<String, Error> {
        let expand = |template: &Template| {
            template.expand(&|name| self.args.get(name).cloned()).map_err(|problem| problem.at(from.line, from.name()))
        };
        if let Some(platform) = &from.value.platform {
            let platform = expand(platform)?;
            if !matches!(platform.as_str(), "" | "linux" | "linux/amd64" | "linux/x86_64" | "linux/amd64/v1") {
                let what = format!("platform {platform}");
                let problem = Problem::Unsupported { what, reason: "images are built for linux/amd64" };
                return Err(problem.at(from.line, from.name()));
            }
        }
        let image = expand(&from.value.image)?;
        if image.is_empty() {
            let found = from.value.image.as_written().to_owned();
            let problem = Problem::Arguments { expected: "an image, but its variables are empty", found };
            return Err(problem.at(from.line, from.name()));
        }
        Ok(image)
    }

    /// Begins a stage. `inherited` are the arguments of the stage it is made from, see [`Scope::args`].
    pub fn scope(&self, inherited: BTreeMap<String, String>) -> Scope<'_> {
        Scope { globals: self, args: inherited, cmd_is_own: false }
    }
}

/// The variables at one place of a stage.
#[derive(Debug)]
pub struct Scope<'a> {
    globals: &'a Globals,
    args: BTreeMap<String, String>,
    /// CMD was set by this stage, so ENTRYPOINT leaves it.
    cmd_is_own: bool,
}

impl Scope<'_> {
    /// Returns the arguments declared so far: what a stage made from this one inherits.
    pub fn args(&self) -> &BTreeMap<String, String> {
        &self.args
    }

    /// Returns the proxy settings among the build arguments: environment of RUN without being part of the step.
    pub fn proxies(&self) -> BTreeMap<String, String> {
        let given = &self.globals.build_args;
        PROXY_ARGS.iter().filter_map(|name| Some(((*name).to_owned(), given.get(*name)?.clone()))).collect()
    }

    /// Applies one instruction to the config and returns what remains to be done.
    pub fn resolve(&mut self, at: &Located<Instruction>, config: &mut ImageConfig) -> Result<Step, Error> {
        self.apply(&at.value, config).map_err(|problem| problem.at(at.line, at.name()))
    }

    fn apply(&mut self, instruction: &Instruction, config: &mut ImageConfig) -> Result<Step, Problem> {
        match instruction {
            Instruction::Run(run) => return self.run(run, config).map(Step::Run),
            Instruction::Copy(transfer) => return self.transfer(false, transfer, config).map(Step::Transfer),
            Instruction::Add(transfer) => return self.transfer(true, transfer, config).map(Step::Transfer),
            Instruction::Workdir(path) => {
                let path = absolute(config.workdir_or_root(), &self.expand(path, config)?);
                config.workdir = Some(path.clone());
                return Ok(Step::Directory(path));
            }
            Instruction::Arg(args) => self.declare(args, config)?,
            Instruction::Env(pairs) => config.env.extend(self.pairs(pairs, config)?),
            Instruction::Label(pairs) => config.labels.extend(self.pairs(pairs, config)?),
            Instruction::Maintainer(name) => {
                config.labels.insert("maintainer".to_owned(), name.clone());
            }
            Instruction::User(user) => config.user = Some(self.expand(user, config)?).filter(|user| !user.is_empty()),
            Instruction::Shell(words) => config.shell = Some(words.clone()),
            Instruction::Cmd(command) => {
                config.cmd = Some(words(command, config));
                self.cmd_is_own = true;
            }
            Instruction::Entrypoint(command) => {
                config.entrypoint = Some(words(command, config));
                if !self.cmd_is_own {
                    config.cmd = None;
                }
            }
            Instruction::Expose(ports) => config.exposed_ports.extend(self.all(ports, config)?),
            Instruction::Volume(paths) => config.volumes.extend(self.all(paths, config)?),
            Instruction::Stopsignal(signal) => config.stop_signal = Some(self.expand(signal, config)?),
            Instruction::Healthcheck(check) => {
                config.healthcheck = Some(match &check.command {
                    None => vec!["NONE".to_owned()],
                    Some(Command::Exec(argv)) => [vec!["CMD".to_owned()], argv.clone()].concat(),
                    Some(Command::Shell(text) | Command::Script(text)) => vec!["CMD-SHELL".to_owned(), text.clone()],
                });
            }
            Instruction::Onbuild(trigger) => config.on_build.push(trigger.clone()),
        }
        Ok(Step::Config)
    }

    fn value(&self, name: &str, config: &ImageConfig) -> Option<String> {
        config.env.get(name).or_else(|| self.args.get(name)).cloned()
    }

    fn expand(&self, template: &Template, config: &ImageConfig) -> Result<String, Problem> {
        template.expand(&|name| self.value(name, config))
    }

    fn all(&self, templates: &[Template], config: &ImageConfig) -> Result<Vec<String>, Problem> {
        templates.iter().map(|template| self.expand(template, config)).collect()
    }

    fn pairs(&self, pairs: &[(Template, Template)], config: &ImageConfig) -> Result<Vec<(String, String)>, Problem> {
        pairs.iter().map(|(name, value)| Ok((self.expand(name, config)?, self.expand(value, config)?))).collect()
    }

    fn declare(&mut self, args: &[(String, Option<Template>)], config: &ImageConfig) -> Result<(), Problem> {
        for (name, default) in args {
            let given = self.globals.build_args.get(name).cloned();
            let value = match (given, default) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.expand(default, config)?),
                (None, None) => self.globals.args.get(name).cloned(),
            };
            if let Some(value) = value {
                self.args.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    fn run(&self, run: &Run, config: &ImageConfig) -> Result<RunStep, Problem> {
        let workdir = config.workdir_or_root().to_owned();
        let (argv, script) = step::argv(&run.command, config.shell_or_default(), SCRIPT_PATH);
        let mounts = run.mounts.iter().map(|mount| step::mount(&self.expand(mount, config)?, &workdir)).collect::<Result<_, _>>()?;
        if let Some(security) = &run.security
            && self.expand(security, config)? != "sandbox"
        {
            let reason = "commands run in a sandbox";
            return Err(Problem::Unsupported { what: format!("--security={}", security.as_written()), reason });
        }
        let mut env = self.args.clone();
        env.extend(config.env.clone());
        let network = self.network(run, config)?;
        Ok(RunStep { argv, script, env, workdir, user: config.user.clone(), mounts, network })
    }

    fn network(&self, run: &Run, config: &ImageConfig) -> Result<Network, Problem> {
        let Some(network) = &run.network else { return Ok(Network::Default) };
        match self.expand(network, config)?.as_str() {
            "default" => Ok(Network::Default),
            "none" => Ok(Network::None),
            "host" => {
                Err(Problem::Unsupported { what: "--network=host".to_owned(), reason: "commands must not reach the node's own ports" })
            }
            other => Err(Problem::Value { what: "--network".to_owned(), value: other.to_owned(), expected: "default or none" }),
        }
    }

    fn transfer(&self, is_add: bool, transfer: &Transfer, config: &ImageConfig) -> Result<TransferStep, Problem> {
        let value = |name: &str| self.value(name, config);
        let flag = |name: &str| transfer.flag(name).map(|value| self.expand(value, config)).transpose();
        let destination = self.expand(&transfer.destination, config)?;
        let mut inline = Vec::new();
        for heredoc in &transfer.heredocs {
            let content = match heredoc.expand {
                true => transfer.destination.like(heredoc.content()).expand_body(&value)?,
                false => heredoc.content(),
            };
            inline.push(Inline { name: heredoc.name.clone(), content });
        }
        let exclude = transfer.flags.iter().filter(|(name, _)| name == "exclude");
        Ok(TransferStep {
            is_add,
            from: flag("from")?,
            sources: self.all(&transfer.sources, config)?,
            inline,
            destination: destination_path(config.workdir_or_root(), &destination),
            chown: flag("chown")?,
            chmod: flag("chmod")?.map(|mode| parse_mode(&mode)).transpose()?,
            parents: flag("parents")?.is_some_and(|value| value == "true"),
            exclude: exclude.map(|(_, value)| self.expand(value, config)).collect::<Result<_, _>>()?,
            checksum: flag("checksum")?,
            unpack: flag("unpack")?.map(|value| value == "true"),
        })
    }
}

fn words(command: &Command, config: &ImageConfig) -> Vec<String> {
    step::argv(command, config.shell_or_default(), SCRIPT_PATH).0
}

fn parse_mode(text: &str) -> Result<u32, Problem> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(Problem::Value { what: "--chmod".to_owned(), value: text.to_owned(), expected: "an octal mode, for example 755" }),
    }
}

/// Joins a path to the working folder and removes `.`, `..` and doubled slashes.
pub(crate) fn absolute(workdir: &str, path: &str) -> String {
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("{workdir}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Like [`absolute`], and keeps the slash that says "folder".
fn destination_path(workdir: &str, path: &str) -> String {
    let folder = path.ends_with('/') || path.ends_with("/.") || path == ".";
    match absolute(workdir, path) {
        root if root == "/" => root,
        path if folder => format!("{path}/"),
        path => path,
    }
}
