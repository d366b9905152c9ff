//! One logical line becomes one typed instruction.

use super::error::Problem;
use super::instruction::{Command, From, Healthcheck, Instruction, InstructionName, Run, Transfer};
use super::lines::{Heredoc, Logical};
use super::words::{self, Template};

/// FROM or anything else.
pub(super) enum Parsed {
    From(From),
    Other(Instruction),
}

/// Parses one logical line.
pub(super) fn parse(line: &Logical, escape: char) -> Result<Parsed, Problem> {
    let name = InstructionName::parse(&line.name).ok_or(Problem::UnknownInstruction)?;
    let (flags, rest) = flags(name, &line.rest, escape)?;
    let arguments = Arguments { rest, escape, heredocs: &line.heredocs };
    let instruction = match name {
        InstructionName::From => return arguments.from(flags).map(Parsed::From),
        InstructionName::Run => Instruction::Run(arguments.run(flags)?),
        InstructionName::Copy => Instruction::Copy(arguments.transfer(flags)?),
        InstructionName::Add => Instruction::Add(arguments.transfer(flags)?),
        InstructionName::Arg => Instruction::Arg(arguments.arg()?),
        InstructionName::Env => Instruction::Env(arguments.pairs()?),
        InstructionName::Label => Instruction::Label(arguments.pairs()?),
        InstructionName::Cmd => Instruction::Cmd(arguments.command()?),
        InstructionName::Entrypoint => Instruction::Entrypoint(arguments.command()?),
        InstructionName::Shell => Instruction::Shell(arguments.shell()?),
        InstructionName::Workdir => Instruction::Workdir(arguments.single("WORKDIR path")?),
        InstructionName::User => Instruction::User(arguments.single("USER name[:group]")?),
        InstructionName::Stopsignal => Instruction::Stopsignal(arguments.single("STOPSIGNAL signal")?),
        InstructionName::Expose => Instruction::Expose(arguments.list("EXPOSE port[/protocol] …")?),
        InstructionName::Volume => Instruction::Volume(arguments.list("VOLUME path …")?),
        InstructionName::Maintainer => Instruction::Maintainer(arguments.single("MAINTAINER name")?.as_written().to_owned()),
        InstructionName::Healthcheck => Instruction::Healthcheck(arguments.healthcheck(flags)?),
        InstructionName::Onbuild => Instruction::Onbuild(arguments.onbuild()?),
    };
    Ok(Parsed::Other(instruction))
}

type Flags = Vec<(String, Template)>;

/// Takes the flags in front of the arguments. Flags without a value are "true".
fn flags(name: InstructionName, rest: &str, escape: char) -> Result<(Flags, &str), Problem> {
    let mut flags = Vec::new();
    let mut rest = rest;
    while !name.flags().is_empty() && rest.starts_with("--") {
        let word = words::raw(rest, escape).swap_remove(0);
        rest = rest[word.len()..].trim_start();
        let (flag, value) = word[2..].split_once('=').unwrap_or((&word[2..], "true"));
        if flag.is_empty() {
            break;
        }
        if !name.flags().contains(&flag) {
            return Err(Problem::UnknownFlag { flag: flag.to_owned(), known: name.flags_text() });
        }
        flags.push((flag.to_owned(), Template::new(value, escape)));
    }
    Ok((flags, rest))
}

struct Arguments<'a> {
    rest: &'a str,
    escape: char,
    heredocs: &'a [Heredoc],
}

impl Arguments<'_> {
    fn template(&self, text: impl Into<String>) -> Template {
        Template::new(text, self.escape)
    }

    fn wrong(&self, expected: &'static str) -> Problem {
        Problem::Arguments { expected, found: self.rest.to_owned() }
    }

    fn from(&self, flags: Flags) -> Result<From, Problem> {
        let words = words::raw(self.rest, self.escape);
        let (image, name) = match &words[..] {
            [image] => (image, None),
            [image, as_, name] if as_.eq_ignore_ascii_case("as") => (image, Some(name.to_ascii_lowercase())),
            _ => return Err(self.wrong("FROM [--platform=…] image [AS name]")),
        };
        let platform = flags.into_iter().next_back().map(|(_, value)| value);
        Ok(From { image: self.template(image), name, platform })
    }

    fn run(&self, flags: Flags) -> Result<Run, Problem> {
        if self.rest.is_empty() {
            return Err(self.wrong("RUN command, or RUN [\"program\", \"argument\"]"));
        }
        let mut run = Run { command: self.run_command()?, mounts: Vec::new(), network: None, security: None };
        for (flag, value) in flags {
            match flag.as_str() {
                "mount" => run.mounts.push(value),
                "network" => run.network = Some(value),
                _ => run.security = Some(value),
            }
        }
        Ok(run)
    }

    /// A heredoc alone is the script; otherwise the shell gets the line and the bodies and does the rest.
    fn run_command(&self) -> Result<Command, Problem> {
        match self.heredocs {
            [] => self.command(),
            [script] if script.token == self.rest => Ok(match script.content() {
                content if content.starts_with("#!") => Command::Script(content),
                content => Command::Shell(content),
            }),
            heredocs => {
                let bodies = heredocs.iter().map(|heredoc| format!("\n{}{}", heredoc.body, heredoc.name));
                Ok(Command::Shell(format!("{}{}", self.rest, bodies.collect::<String>())))
            }
        }
    }

    fn transfer(&self, flags: Flags) -> Result<Transfer, Problem> {
        let mut sources = self.words_or_json()?;
        let destination = sources.pop().ok_or_else(|| self.wrong("source … destination"))?;
        sources.retain(|source| self.heredocs.iter().all(|heredoc| heredoc.token != *source));
        if sources.is_empty() && self.heredocs.is_empty() {
            return Err(self.wrong("source … destination"));
        }
        Ok(Transfer {
            sources: sources.into_iter().map(|source| self.template(source)).collect(),
            heredocs: self.heredocs.to_vec(),
            destination: self.template(destination),
            flags,
        })
    }

    fn arg(&self) -> Result<Vec<(String, Option<Template>)>, Problem> {
        let words = words::raw(self.rest, self.escape);
        if words.is_empty() {
            return Err(self.wrong("ARG name[=default] …"));
        }
        words
            .iter()
            .map(|word| match word.split_once('=') {
                Some(("", _)) => Err(self.wrong("ARG name[=default] …")),
                Some((name, value)) => Ok((name.to_owned(), Some(self.template(value)))),
                None => Ok((words::unquoted(word, self.escape), None)),
            })
            .collect()
    }

    /// `name=value …`, or the older `name rest of the line`.
    fn pairs(&self) -> Result<Vec<(Template, Template)>, Problem> {
        let expected = "name=value …, or name value";
        let words = words::raw(self.rest, self.escape);
        let first = words.first().ok_or_else(|| self.wrong(expected))?;
        if !first.contains('=') {
            let (name, value) = self.rest.split_once(|c: char| c.is_ascii_whitespace()).ok_or_else(|| self.wrong(expected))?;
            return Ok(vec![(self.template(name), self.template(value.trim_start()))]);
        }
        words
            .iter()
            .map(|word| match word.split_once('=') {
                Some((name, value)) if !name.is_empty() => Ok((self.template(name), self.template(value))),
                _ => Err(Problem::Arguments { expected: "name=value for each pair", found: word.clone() }),
            })
            .collect()
    }

    /// A JSON array of strings is the exec form, everything else is for the shell.
    fn command(&self) -> Result<Command, Problem> {
        Ok(match self.json()? {
            Some(words) => Command::Exec(words),
            None => Command::Shell(self.rest.to_owned()),
        })
    }

    fn json(&self) -> Result<Option<Vec<String>>, Problem> {
        if !self.rest.starts_with('[') {
            return Ok(None);
        }
        // Not JSON at all: `[ -f x ] && y` is a fine shell command.
        let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(self.rest) else { return Ok(None) };
        values
            .into_iter()
            .map(|value| match value {
                serde_json::Value::String(word) => Ok(word),
                _ => Err(Problem::Json { found: self.rest.to_owned() }),
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }

    fn shell(&self) -> Result<Vec<String>, Problem> {
        match self.json()? {
            Some(words) if !words.is_empty() => Ok(words),
            _ => Err(self.wrong("SHELL [\"program\", \"argument\"]")),
        }
    }

    fn single(&self, expected: &'static str) -> Result<Template, Problem> {
        match self.rest {
            "" => Err(self.wrong(expected)),
            rest => Ok(self.template(rest)),
        }
    }

    /// Blank-separated words without regard for quotes, or a JSON array.
    fn words_or_json(&self) -> Result<Vec<String>, Problem> {
        Ok(match self.json()? {
            // A literal of JSON must survive the expansion, but its variables are expanded all the same.
            Some(words) => words.iter().map(|word| self.quoted(word)).collect(),
            None => self.rest.split_ascii_whitespace().map(str::to_owned).collect(),
        })
    }

    fn quoted(&self, word: &str) -> String {
        word.chars()
            .flat_map(|c| {
                let escape = (c == '"' || c == '\'' || c == self.escape).then_some(self.escape);
                escape.into_iter().chain([c])
            })
            .collect()
    }

    fn list(&self, expected: &'static str) -> Result<Vec<Template>, Problem> {
        let words = self.words_or_json()?;
        match words.is_empty() {
            true => Err(self.wrong(expected)),
            false => Ok(words.into_iter().map(|word| self.template(word)).collect()),
        }
    }

    fn healthcheck(&self, flags: Flags) -> Result<Healthcheck, Problem> {
        let flags = flags.into_iter().map(|(name, value)| (name, value.as_written().to_owned())).collect();
        let (kind, rest) = self.rest.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((self.rest, ""));
        let rest = rest.trim();
        let command = match (kind.to_ascii_uppercase().as_str(), rest) {
            ("NONE", "") => None,
            ("CMD", rest) if !rest.is_empty() => Some(Arguments { rest, ..*self }.command()?),
            _ => return Err(self.wrong("HEALTHCHECK NONE, or HEALTHCHECK [flags] CMD command")),
        };
        Ok(Healthcheck { command, flags })
    }

    fn onbuild(&self) -> Result<String, Problem> {
        let first = self.rest.split_ascii_whitespace().next().unwrap_or_default();
        match InstructionName::parse(first) {
            None | Some(InstructionName::Onbuild | InstructionName::From | InstructionName::Maintainer) => {
                Err(self.wrong("ONBUILD instruction, which is not ONBUILD, FROM or MAINTAINER"))
            }
            Some(_) => {
                let bodies = self.heredocs.iter().map(|heredoc| format!("\n{}{}", heredoc.body, heredoc.name));
                Ok(format!("{}{}", self.rest, bodies.collect::<String>()))
            }
        }
    }
}
