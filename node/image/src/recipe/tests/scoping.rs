//! Variables, the forms of commands, and what errors say.

use super::*;

fn error(elements: &[&str]) -> String {
    resolve_on(ImageConfig::default(), elements, &[]).unwrap_err().to_string()
}

#[test]
fn from_sees_only_global_arguments() {
    let recipe = Recipe::parse(&["ARG V=3.11", "ARG T=$V-slim", "FROM python:${T} AS a", "FROM a"]).unwrap();
    let given = BTreeMap::from([("V".to_owned(), "3.12".to_owned())]);
    let base = |args: &BTreeMap<String, String>| Globals::new(&recipe, args).unwrap().base(&recipe.stages[0].from).unwrap();
    assert_eq!(base(&BTreeMap::new()), "python:3.11-slim");
    assert_eq!(base(&given), "python:3.12-slim");
    assert_eq!(error(&["FROM $NOWHERE"]), "line 1: FROM: expected an image, but its variables are empty, found \"$NOWHERE\"");
}

#[test]
fn a_stage_gets_global_arguments_by_naming_them() {
    let (steps, config) = resolve(&["ARG V=1", "FROM base", "ENV A=x$V", "ARG V", "ENV B=x$V", "ARG W=${V}2", "RUN w"]);
    assert_eq!((config.env["A"].as_str(), config.env["B"].as_str()), ("x", "x1"));
    assert_eq!(run_steps(&steps)[0].env["W"], "12");
}

#[test]
fn build_arguments_need_a_declaration_and_env_beats_them() {
    let list = ["FROM base", "RUN before", "ARG A=default", "RUN after", "ENV A=env", "ARG A", "RUN last"];
    let (steps, _) = resolve_on(ImageConfig::default(), &list, &[("A", "given"), ("B", "unused")]).unwrap();
    let seen: Vec<_> = run_steps(&steps).iter().map(|run| run.env.get("A").cloned()).collect();
    assert_eq!(seen, [None, Some("given".to_owned()), Some("env".to_owned())]);
    assert!(!run_steps(&steps)[2].env.contains_key("B"));
}

#[test]
fn all_pairs_of_one_env_see_the_old_values() {
    let (_, config) = resolve(&["FROM base", "ENV a=hello", "ENV a=bye b=$a", "ENV c=$a", "ENV d rest of  $a \"q\""]);
    let expected = [("a", "bye"), ("b", "hello"), ("c", "bye"), ("d", "rest of  bye q")];
    assert_eq!(config.env, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
}

#[test]
fn commands_are_left_to_the_shell() {
    let (steps, config) = resolve(&["FROM base", "ENV A=1", "RUN echo $A '${B'", "CMD echo $A", "ENTRYPOINT [\"$A\"]"]);
    assert_eq!(commands(&steps), ["echo $A '${B'"]);
    // ENTRYPOINT after CMD of the same stage keeps it.
    assert_eq!(config.cmd.unwrap(), ["/bin/sh", "-c", "echo $A"]);
    assert_eq!(config.entrypoint.unwrap(), ["$A"]);
}

#[test]
fn entrypoint_clears_an_inherited_cmd() {
    let base = ImageConfig { cmd: Some(vec!["x".to_owned()]), ..ImageConfig::default() };
    assert_eq!(resolve_on(base, &["FROM base", "ENTRYPOINT [\"y\"]"], &[]).unwrap().1.cmd, None);
}

#[test]
fn proxies_need_no_declaration_and_are_no_part_of_the_step() {
    let recipe = Recipe::parse(&["FROM base", "RUN x"]).unwrap();
    let given = BTreeMap::from([("https_proxy".to_owned(), "http://p".to_owned())]);
    let globals = Globals::new(&recipe, &given).unwrap();
    let mut scope = globals.scope(BTreeMap::new());
    assert_eq!(scope.proxies()["https_proxy"], "http://p");
    let step = scope.resolve(&recipe.stages[0].instructions[0], &mut ImageConfig::default()).unwrap();
    assert!(!run_steps(&[step])[0].env.contains_key("https_proxy"));
}

#[test]
fn working_folders_follow_each_other() {
    let (steps, config) = resolve(&["FROM base", "WORKDIR /a/b", "WORKDIR ../c/./d", "COPY x y/", "COPY x .", "RUN z"]);
    assert_eq!(config.workdir.as_deref(), Some("/a/c/d"));
    let destinations: Vec<_> = transfers(&steps).into_iter().map(|copy| copy.destination).collect();
    assert_eq!(destinations, ["/a/c/d/y/", "/a/c/d/"]);
    assert_eq!(run_steps(&steps)[0].workdir, "/a/c/d");
}

#[test]
fn heredocs_reach_the_shell_whole_and_scripts_become_files() {
    let (steps, _) = resolve(&[
        "FROM base",
        "RUN <<EOF\na $X\n  b\nEOF\nRUN cat <<'E' > /x && y\n$Z\nE\nRUN <<-EOF\n\t#!/bin/env python3\n\tprint()\n\tEOF",
    ]);
    let runs = run_steps(&steps);
    assert_eq!(runs[0].argv[2], "a $X\n  b\n");
    assert_eq!(runs[1].argv[2], "cat <<'E' > /x && y\n$Z\nE");
    assert_eq!((runs[2].argv.len(), runs[2].script.as_deref()), (1, Some("#!/bin/env python3\nprint()\n")));
}

#[test]
fn inline_files_expand_unless_quoted() {
    let (steps, _) = resolve(&["FROM base", "ENV X=1", "COPY <<a.txt <<'b.txt' src /d/\n$X\na.txt\n$X\nb.txt"]);
    let copy = &transfers(&steps)[0];
    let inline: Vec<_> = copy.inline.iter().map(|file| (file.name.as_str(), file.content.as_str())).collect();
    assert_eq!((inline, copy.sources.len()), (vec![("a.txt", "1\n"), ("b.txt", "$X\n")], 1));
}

#[test]
fn mounts_of_run() {
    let (steps, _) = resolve(&[
        "FROM base",
        "ENV D=/c",
        "RUN --mount=type=cache,target=$D,id=k,sharing=locked --mount=type=secret,id=T,env=T \
         --mount=type=secret,id=S --mount=from=a,source=/x,target=y,rw --mount=type=tmpfs,target=/t,size=1m cmd",
    ]);
    let mounts = &run_steps(&steps)[0].mounts;
    let targets: Vec<_> = mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/c", "", "/run/secrets/S", "/y", "/t"]);
    assert_eq!(mounts[4].kind, MountKind::Tmpfs { size_bytes: Some(1 << 20) });
    assert!(matches!(&mounts[0].kind, MountKind::Cache { id, sharing: Sharing::Locked, .. } if id == "k"));
}

#[test]
fn copy_in_json_form_keeps_blanks_and_quotes() {
    let (steps, _) = resolve(&["FROM base", "ENV X=1", r#"COPY ["a b", "it's $X", "/d d/"]"#]);
    let copy = &transfers(&steps)[0];
    assert_eq!((&copy.sources[..], copy.destination.as_str()), (&["a b".into(), "it's 1".into()][..], "/d d/"));
}

#[test]
fn things_without_effect_stay_in_the_config() {
    let (_, config) = resolve(&[
        "FROM base",
        "LABEL a=1 \"b c\"=2",
        "EXPOSE 80 81/udp",
        "VOLUME /v",
        "STOPSIGNAL SIGINT",
        "HEALTHCHECK --interval=3s CMD curl x",
        "MAINTAINER me",
        "USER 1000:1000",
        "ONBUILD RUN x",
    ]);
    assert_eq!((config.labels["b c"].as_str(), config.labels["maintainer"].as_str()), ("2", "me"));
    assert_eq!(config.exposed_ports.len(), 2);
    assert_eq!(config.healthcheck.unwrap(), ["CMD-SHELL", "curl x"]);
    assert_eq!((config.user.as_deref(), &config.on_build[..]), (Some("1000:1000"), &["RUN x".to_owned()][..]));
}

#[test]
fn errors_say_line_instruction_and_what_was_expected() {
    for (list, expected) in [
        (&["RUN x"][..], "line 1: RUN: expected FROM or ARG, because no stage has begun"),
        (&["# only"], "line 1: recipe: expected at least one FROM"),
        (&["FROM a b c d"], "line 1: FROM: expected FROM [--platform=…] image [AS name], found \"a b c d\""),
        (
            &["FROM a", "", "COPY --form=x a b"],
            "line 3: COPY: unknown flag --form, expected --from, --chown, --chmod, --link, --parents or --exclude",
        ),
        (&["FROM a", "COPY a"], "line 2: COPY: expected source … destination, found \"a\""),
        (&["FROM a", "CMD [1]"], "line 2: CMD: expected a JSON array of strings, found [1]"),
        (&["FROM a", "SHELL bash"], "line 2: SHELL: expected SHELL [\"program\", \"argument\"], found \"bash\""),
        (&["FROM a", "ENV A=\"${B:?set B}\""], "line 2: ENV: variable B has no value: set B"),
        (&["FROM a", "ENV A=1 B"], "line 2: ENV: expected name=value for each pair, found \"B\""),
        (
            &["FROM a", "RUN --mount=type=ssh x"],
            "line 2: RUN: --mount=type=ssh is not supported: no agent is forwarded to builds; give a key as a secret",
        ),
        (&["FROM --platform=linux/arm64 a"], "line 1: FROM: platform linux/arm64 is not supported: images are built for linux/amd64"),
        (&["FROM a", "COPY --chmod=u+x a b"], "line 2: COPY: --chmod is \"u+x\", expected an octal mode, for example 755"),
    ] {
        assert_eq!(error(list), expected, "{list:?}");
    }
}
