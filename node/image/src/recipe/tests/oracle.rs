//! What another parser accepts, this one accepts with the same meaning.

use parse_dockerfile::{Command as TheirCommand, HereDoc, Instruction as Theirs, Source};
use proptest::prelude::*;

use super::*;

/// Instructions as lines that both parsers can be reduced to.
fn theirs(text: &str) -> Option<Vec<String>> {
    let file = parse_dockerfile::parse(text).ok()?;
    file.instructions.iter().map(|instruction| their_line(text, instruction)).collect()
}

fn their_line(text: &str, instruction: &Theirs<'_>) -> Option<String> {
    let command = |name: &str, command: &TheirCommand<'_>| match command {
        TheirCommand::Exec(words) => {
            let words: Vec<_> = words.value.iter().map(|word| word.value.to_string()).collect();
            format!("{name} exec {words:?}")
        }
        TheirCommand::Shell(shell) => format!("{name} shell {:?}", folded(shell.value)),
        _ => name.to_owned(),
    };
    let copy = |name: &str, src: &[Source<'_>], dest: &str| {
        let paths: Vec<_> = src
            .iter()
            .filter_map(|source| match source {
                Source::Path(path) => Some(path.value.to_string()),
                _ => None,
            })
            .collect();
        format!("{name} {paths:?} {dest:?}")
    };
    Some(match instruction {
        Theirs::From(from) => {
            let name = from.as_.as_ref().map(|(_, name)| name.value.to_ascii_lowercase());
            format!("FROM {:?} {name:?}", from.image.value)
        }
        Theirs::Run(run) if run.here_docs.is_empty() => command("RUN", &run.arguments),
        Theirs::Run(run) => {
            let bodies: Vec<_> =
                run.here_docs.iter().map(|HereDoc { value, .. }| value.replace("\r\n", "\n").trim_end().to_owned()).collect();
            format!("RUN heredoc {bodies:?}")
        }
        Theirs::Cmd(cmd) => command("CMD", &cmd.arguments),
        Theirs::Entrypoint(entrypoint) => command("ENTRYPOINT", &entrypoint.arguments),
        Theirs::Copy(it) => copy("COPY", &it.src, &it.dest.value),
        Theirs::Add(it) => copy("ADD", &it.src, &it.dest.value),
        Theirs::Env(_) => "ENV".to_owned(),
        Theirs::Arg(_) => "ARG".to_owned(),
        Theirs::Workdir(workdir) => format!("WORKDIR {:?}", workdir.arguments.value),
        Theirs::User(user) => format!("USER {:?}", user.arguments.value),
        other => format!("{:?}", other).split('(').next().map(|_| text[..0].to_owned())?,
    })
}

fn ours(text: &str) -> Result<Vec<String>, Error> {
    let recipe = Recipe::parse(&[text])?;
    let mut lines: Vec<_> = recipe.global_args.iter().map(|_| "ARG".to_owned()).collect();
    for stage in &recipe.stages {
        lines.push(format!("FROM {:?} {:?}", stage.from.value.image.as_written(), stage.from.value.name));
        lines.extend(stage.instructions.iter().map(|instruction| our_line(&instruction.value)));
    }
    Ok(lines)
}

fn our_line(instruction: &Instruction) -> String {
    let command = |name: &str, command: &Command| match command {
        Command::Exec(words) => format!("{name} exec {words:?}"),
        Command::Shell(text) | Command::Script(text) => format!("{name} shell {:?}", folded(text)),
    };
    let copy = |name: &str, transfer: &Transfer| {
        let paths: Vec<_> = transfer.sources.iter().map(|source| source.as_written().to_owned()).collect();
        format!("{name} {paths:?} {:?}", transfer.destination.as_written())
    };
    match instruction {
        Instruction::Run(run) => match &run.command {
            Command::Shell(text) if text.ends_with('\n') => format!("RUN heredoc {:?}", [text.trim_end()]),
            other => command("RUN", other),
        },
        Instruction::Cmd(it) => command("CMD", it),
        Instruction::Entrypoint(it) => command("ENTRYPOINT", it),
        Instruction::Copy(it) => copy("COPY", it),
        Instruction::Add(it) => copy("ADD", it),
        Instruction::Env(_) => "ENV".to_owned(),
        Instruction::Arg(_) => "ARG".to_owned(),
        Instruction::Workdir(path) => format!("WORKDIR {:?}", path.as_written()),
        Instruction::User(user) => format!("USER {:?}", user.as_written()),
        _ => String::new(),
    }
}

/// The other parser leaves continuations inside shell commands: blanks, backslash and newline become nothing.
fn folded(text: &str) -> String {
    let mut joined = String::new();
    for (index, line) in text.split('\n').enumerate() {
        let bare = line.trim();
        if index > 0 && (bare.is_empty() || bare.starts_with('#')) {
            continue;
        }
        let end = line.trim_end_matches([' ', '\t', '\r']);
        joined.push_str(end.strip_suffix('\\').unwrap_or(line));
    }
    joined.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// Instructions that both are expected to know.
fn instruction() -> impl Strategy<Value = String> {
    let word = "[a-z/.]{1,6}";
    prop_oneof![
        (word, word).prop_map(|(a, b)| format!("RUN {a} && {b}")),
        (word, word).prop_map(|(a, b)| format!("RUN {a} \\\n  # note\n\n  {b}")),
        (word, word).prop_map(|(a, b)| format!("run {a} \\ \t\n{b}")),
        (word, word).prop_map(|(a, b)| format!("RUN [\"{a}\", \"{b} x\"]")),
        (word, word).prop_map(|(a, b)| format!("RUN <<EOF\n{a}\n# {b}\n\\\nEOF")),
        (word, word).prop_map(|(a, b)| format!("Copy {a} {a} \\\n {b}/")),
        (word, word).prop_map(|(a, b)| format!("COPY --from={a} {a} {b}")),
        (word, word).prop_map(|(a, b)| format!("ADD [\"{a}\", \"{b}\"]")),
        (word, word).prop_map(|(a, b)| format!("CMD [\"{a}\" , \"{b}\"]")),
        (word, word).prop_map(|(a, b)| format!("ENTRYPOINT {a} \"{b}\"")),
        (word, word).prop_map(|(a, b)| format!("ENV A={a} \\\n B=\"{b}\"")),
        word.prop_map(|a| format!("ARG X={a}")),
        word.prop_map(|a| format!("WORKDIR {a}")),
        word.prop_map(|a| format!("  USER {a}  ")),
        word.prop_map(|a| format!("FROM {a} AS {}", a.replace(['/', '.'], "x"))),
        Just("# comment".to_owned()),
        Just(String::new()),
        "[ -~]{0,12}",
    ]
}

/// Instructions with the rarer parts of the grammar, which the oracle and this parser may read differently.
fn odd_instruction() -> impl Strategy<Value = String> {
    let word = "[a-z/.$]{1,6}";
    prop_oneof![
        (word, word).prop_map(|(a, b)| format!("RUN --mount=type=cache,target=/{a},id={b} --network=none {a}")),
        (word, word).prop_map(|(a, b)| format!("RUN --mount=type=secret,id={a},env={b} true")),
        (word, word).prop_map(|(a, b)| format!("ENV A=${{{a}:-{b}}} B=${{{a}:+$B}} C=${{X%%{b}}}")),
        (word, word).prop_map(|(a, b)| format!("COPY --chown={a}:0 --chmod=0{b} --link a b /{a}")),
        (word, word).prop_map(|(a, b)| format!("COPY <<{a} <<-\"{b}\" /dest/\nx\n{a}\n\ty\n\t{b}")),
        word.prop_map(|a| format!("HEALTHCHECK --interval={a} CMD {a}")),
        word.prop_map(|a| format!("ONBUILD RUN {a}")),
        word.prop_map(|a| format!("SHELL [\"/bin/{a}\", \"-c\"]")),
        word.prop_map(|a| format!("VOLUME [\"{a}\"]\nEXPOSE {a}/tcp\nSTOPSIGNAL {a}\nLABEL {a}=\"{a}\"")),
        word.prop_map(|a| format!("FROM --platform=linux/{a} ${{X}} AS {a}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_the_oracle_accepts_means_the_same_here(
        head in prop_oneof![Just(""), Just("# syntax=x\n"), Just("# escape=\\\n"), Just("ARG V=1\n")],
        body in prop::collection::vec(instruction(), 0..8),
        crlf in prop::bool::weighted(0.1),
    ) {
        let mut text = format!("{head}FROM base\n{}\n", body.join("\n"));
        if crlf {
            text = text.replace('\n', "\r\n");
        }
        if let Some(theirs) = theirs(&text) {
            let ours = ours(&text);
            prop_assert_eq!(ours.as_ref(), Ok(&theirs), "{}", text);
        }
    }

    #[test]
    fn no_damaged_recipe_makes_the_parser_panic(
        body in prop::collection::vec(prop_oneof![4 => instruction(), 1 => odd_instruction()], 1..6),
        splices in prop::collection::vec((any::<prop::sample::Index>(), "[ -~\n\té\u{0}]{0,5}", 0usize..6), 0..6),
    ) {
        let mut text: Vec<char> = format!("FROM base AS one\n{}\n", body.join("\n")).chars().collect();
        for (at, new, gone) in splices {
            let at = at.index(text.len() + 1);
            let end = (at + gone).min(text.len());
            text.splice(at..end, new.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(error) = resolve_on(ImageConfig::default(), &[&text], &[("X", "value")]) {
            let said = error.to_string();
            prop_assert!(said.contains("line "), "{said}");
        }
        let _ = Recipe::parse_trigger(&text, 1);
        let lines: Vec<&str> = text.lines().collect();
        let _ = Recipe::parse(&lines);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "(FROM a\n)?(.|\n|[$\\{\\}'\"<\\\\])*") {
        let _ = resolve_on(ImageConfig::default(), &[&text], &[]);
    }
}
