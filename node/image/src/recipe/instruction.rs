//! The instructions there are, with their parts as written. Nothing is expanded here.

use std::collections::BTreeMap;

use super::lines::Heredoc;
use super::words::Template;

/// The instructions there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionName {
    /// Files from the context, a URL or an archive.
    Add,
    /// A build argument.
    Arg,
    /// Default command.
    Cmd,
    /// Files from the context, a stage or an image.
    Copy,
    /// Program in front of the command.
    Entrypoint,
    /// Environment variables.
    Env,
    /// Ports, kept in the config.
    Expose,
    /// Begins a stage.
    From,
    /// Kept in the config.
    Healthcheck,
    /// Kept in the config.
    Label,
    /// Kept in the config as a label.
    Maintainer,
    /// An instruction for images made from this one.
    Onbuild,
    /// Runs a command.
    Run,
    /// Shell of the shell form.
    Shell,
    /// Kept in the config.
    Stopsignal,
    /// User of later commands.
    User,
    /// Kept in the config.
    Volume,
    /// Working folder, created when missing.
    Workdir,
}

impl InstructionName {
    const ALL: [(&'static str, InstructionName); 18] = [
        ("ADD", InstructionName::Add),
        ("ARG", InstructionName::Arg),
        ("CMD", InstructionName::Cmd),
        ("COPY", InstructionName::Copy),
        ("ENTRYPOINT", InstructionName::Entrypoint),
        ("ENV", InstructionName::Env),
        ("EXPOSE", InstructionName::Expose),
        ("FROM", InstructionName::From),
        ("HEALTHCHECK", InstructionName::Healthcheck),
        ("LABEL", InstructionName::Label),
        ("MAINTAINER", InstructionName::Maintainer),
        ("ONBUILD", InstructionName::Onbuild),
        ("RUN", InstructionName::Run),
        ("SHELL", InstructionName::Shell),
        ("STOPSIGNAL", InstructionName::Stopsignal),
        ("USER", InstructionName::User),
        ("VOLUME", InstructionName::Volume),
        ("WORKDIR", InstructionName::Workdir),
    ];

    /// All names, for messages.
    pub(super) fn list() -> String {
        Self::ALL.map(|(name, _)| name).join(", ")
    }

    /// Reads a name in any case.
    pub(super) fn parse(word: &str) -> Option<InstructionName> {
        Self::ALL.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, kind)| *kind)
    }

    /// The flags that the instruction has.
    pub(super) fn flags(self) -> &'static [&'static str] {
        match self {
            InstructionName::From => &["platform"],
            InstructionName::Run => &["mount", "network", "security"],
            InstructionName::Copy => &["from", "chown", "chmod", "link", "parents", "exclude"],
            InstructionName::Add => &["chown", "chmod", "link", "checksum", "keep-git-dir", "unpack", "exclude"],
            InstructionName::Healthcheck => &["interval", "timeout", "start-period", "start-interval", "retries"],
            _ => &[],
        }
    }

    /// The same, for messages.
    pub(super) fn flags_text(self) -> &'static str {
        match self {
            InstructionName::From => "--platform",
            InstructionName::Run => "--mount, --network or --security",
            InstructionName::Copy => "--from, --chown, --chmod, --link, --parents or --exclude",
            InstructionName::Add => "--chown, --chmod, --link, --checksum, --keep-git-dir, --unpack or --exclude",
            _ => "--interval, --timeout, --start-period, --start-interval or --retries",
        }
    }
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Text for the shell.
    Shell(String),
    /// Program and arguments.
    Exec(Vec<String>),
    /// A heredoc that begins with `#!`: run as a file of its own.
    Script(String),
}

/// RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What to run; heredocs are part of it.
    pub command: Command,
    /// `--mount` values as written.
    pub mounts: Vec<Template>,
    /// `--network`.
    pub network: Option<Template>,
    /// `--security`.
    pub security: Option<Template>,
}

/// COPY and ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Paths, patterns or, for ADD, addresses. Heredocs are not among them.
    pub sources: Vec<Template>,
    /// Files given inline.
    pub heredocs: Vec<Heredoc>,
    /// Where to.
    pub destination: Template,
    /// Flags by name, in order.
    pub flags: Vec<(String, Template)>,
}

impl Transfer {
    /// Returns the last value of a flag.
    pub fn flag(&self, name: &str) -> Option<&Template> {
        self.flags.iter().rev().find(|(flag, _)| flag == name).map(|(_, value)| value)
    }
}

/// HEALTHCHECK: kept, never run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthcheck {
    /// The command; nothing for NONE.
    pub command: Option<Command>,
    /// Flags as written.
    pub flags: BTreeMap<String, String>,
}

/// One instruction of a stage, variables unexpanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// ADD
    Add(Transfer),
    /// ARG: names, each perhaps with a default.
    Arg(Vec<(String, Option<Template>)>),
    /// CMD
    Cmd(Command),
    /// COPY
    Copy(Transfer),
    /// ENTRYPOINT
    Entrypoint(Command),
    /// ENV: all values see the variables as they were before the instruction.
    Env(Vec<(Template, Template)>),
    /// EXPOSE
    Expose(Vec<Template>),
    /// HEALTHCHECK
    Healthcheck(Healthcheck),
    /// LABEL
    Label(Vec<(Template, Template)>),
    /// MAINTAINER
    Maintainer(String),
    /// ONBUILD: the instruction as text.
    Onbuild(String),
    /// RUN
    Run(Run),
    /// SHELL
    Shell(Vec<String>),
    /// STOPSIGNAL
    Stopsignal(Template),
    /// USER
    User(Template),
    /// VOLUME
    Volume(Vec<Template>),
    /// WORKDIR
    Workdir(Template),
}

/// FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    /// Image, stage or `scratch`.
    pub image: Template,
    /// Name after AS, in lower case.
    pub name: Option<String>,
    /// `--platform`.
    pub platform: Option<Template>,
}
