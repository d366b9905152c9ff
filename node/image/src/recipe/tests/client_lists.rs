//! What each image method of the clients sends, by builder version.

use super::*;

fn env(list: &[&str]) -> BTreeMap<String, String> {
    resolve(list).1.env
}

#[test]
fn debian_slim_of_every_builder_version() {
    let debconf = "RUN echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections";
    let requirements = "COPY /modal_requirements.txt /modal_requirements.txt";
    let build = "RUN apt-get install -y gcc gfortran build-essential";
    for (list, runs) in [
        (
            &[
                "FROM python:3.11.0-slim-bullseye",
                requirements,
                "RUN apt-get update ",
                build,
                "RUN pip install --upgrade pip",
                "RUN pip install -r /modal_requirements.txt",
                debconf,
            ][..],
            5,
        ),
        (
            &[
                "FROM python:3.11.10-slim-bookworm",
                requirements,
                "RUN apt-get update",
                build,
                "RUN pip install --upgrade pip wheel uv",
                "RUN uv pip install --system --compile-bytecode --no-cache --no-deps -r /modal_requirements.txt",
                debconf,
                "RUN rm /modal_requirements.txt",
            ],
            6,
        ),
        (
            &[
                "FROM python:3.11-slim-trixie",
                "RUN apt-get update",
                build,
                "RUN pip install --upgrade pip wheel uv",
                debconf,
                r#"CMD ["sleep", "172800"]"#,
            ],
            4,
        ),
    ] {
        let (steps, config) = resolve(list);
        assert_eq!(commands(&steps).len(), runs, "{list:?}");
        assert_eq!(commands(&steps)[0], "apt-get update");
        assert_eq!(config.cmd, (runs == 4).then(|| vec!["sleep".to_owned(), "172800".to_owned()]));
    }
}

#[test]
fn from_registry_with_add_python_and_setup_commands() {
    let (steps, config) = resolve(&[
        "FROM ubuntu:22.04",
        "COPY /python/. /usr/local",
        "RUN ln -s /usr/local/bin/python3 /usr/local/bin/python",
        "ENV TERMINFO_DIRS=/etc/terminfo:/lib/terminfo:/usr/share/terminfo:/usr/lib/terminfo",
        "RUN echo setup",
    ]);
    let copy = &transfers(&steps)[0];
    assert_eq!((copy.sources[0].as_str(), copy.destination.as_str()), ("/python/.", "/usr/local"));
    assert_eq!(config.env["TERMINFO_DIRS"], "/etc/terminfo:/lib/terminfo:/usr/share/terminfo:/usr/lib/terminfo");
}

#[test]
fn from_scratch_and_a_bare_tag() {
    assert_eq!(resolve(&["FROM scratch"]), (vec![], ImageConfig::default()));
    assert_eq!(resolve(&["FROM localhost:5000/a/b@sha256:00"]).0, vec![]);
}

#[test]
fn micromamba_keeps_its_shell() {
    let (steps, config) = resolve(&[
        "FROM mambaorg/micromamba:2.1.1-debian12-slim",
        r#"SHELL ["/usr/local/bin/_dockerfile_shell.sh"]"#,
        "ENV MAMBA_DOCKERFILE_ACTIVATE=1",
        "RUN micromamba install -n base -y python=3.11 pip -c conda-forge",
        r#"CMD ["sleep", "172800"]"#,
    ]);
    let run = &run_steps(&steps)[0];
    assert_eq!(run.argv, ["/usr/local/bin/_dockerfile_shell.sh", "micromamba install -n base -y python=3.11 pip -c conda-forge"]);
    let next = ["FROM base", "RUN micromamba install numpy scipy -c conda-forge -c bioconda --yes"];
    let (steps, _) = resolve_on(config, &next, &[]).unwrap();
    assert_eq!(run_steps(&steps)[0].argv[0], "/usr/local/bin/_dockerfile_shell.sh");
}

#[test]
fn pip_and_uv_lists() {
    let uv = "COPY --from=registry.example/astral-sh/uv:latest /uv /.uv/uv";
    let (steps, _) = resolve(&[
        "FROM base",
        "RUN python -m pip install 'b>=1' numpy --index-url https://a.example/simple --pre ",
        "COPY /.requirements.txt /.requirements.txt",
        "RUN python -m pip install -r /.requirements.txt",
        r#"RUN bash -c "[[ -v GITHUB_TOKEN ]] || (echo 'no token' && exit 1)""#,
        r#"RUN python3 -m pip install "git+https://u:$GITHUB_TOKEN@example.com/r""#,
        uv,
        "COPY /.0_requirements.txt /.uv/0/requirements.txt",
        "RUN /.uv/uv pip install --python $(command -v python) --compile-bytecode 'numpy>=2'",
    ]);
    assert_eq!(
        commands(&steps),
        [
            "python -m pip install 'b>=1' numpy --index-url https://a.example/simple --pre",
            "python -m pip install -r /.requirements.txt",
            r#"bash -c "[[ -v GITHUB_TOKEN ]] || (echo 'no token' && exit 1)""#,
            r#"python3 -m pip install "git+https://u:$GITHUB_TOKEN@example.com/r""#,
            "/.uv/uv pip install --python $(command -v python) --compile-bytecode 'numpy>=2'",
        ]
    );
    let copy = &transfers(&steps)[1];
    assert_eq!(copy.from.as_deref(), Some("registry.example/astral-sh/uv:latest"));
    assert_eq!((copy.sources[0].as_str(), copy.destination.as_str()), ("/uv", "/.uv/uv"));
}

#[test]
fn uv_sync_puts_its_environment_first() {
    let mut base = ImageConfig::default();
    base.env.insert("PATH".to_owned(), "/usr/local/bin:/bin".to_owned());
    let list = [
        "FROM base",
        "COPY /.pyproject.toml /.uv/pyproject.toml",
        "COPY /.uv.lock /.uv/uv.lock",
        "RUN /.uv/uv sync --project=/.uv --no-install-workspace --compile-bytecode --group=a --frozen",
        "ENV PATH=/.uv/.venv/bin:$PATH",
    ];
    let (_, config) = resolve_on(base, &list, &[]).unwrap();
    assert_eq!(config.env["PATH"], "/.uv/.venv/bin:/usr/local/bin:/bin");
}

#[test]
fn poetry_continues_over_three_elements_with_trailing_blanks() {
    let (steps, _) = resolve(&[
        "FROM base",
        "RUN python -m pip install poetry",
        "COPY /.poetry.lock /tmp/poetry/poetry.lock",
        "COPY /.pyproject.toml /tmp/poetry/pyproject.toml",
        "RUN cd /tmp/poetry && \\ ",
        "  poetry config virtualenvs.create false && \\ ",
        "poetry install --no-root --compile",
    ]);
    assert_eq!(commands(&steps)[1], "cd /tmp/poetry &&   poetry config virtualenvs.create false && poetry install --no-root --compile");
}

#[test]
fn env_values_are_quoted_as_the_client_quotes_them() {
    assert_eq!(env(&["FROM base", "ENV S='with space'"])["S"], "with space");
    assert_eq!(env(&["FROM base", "ENV D='$HOME/x'"])["D"], "$HOME/x");
    assert_eq!(env(&["FROM base", r#"ENV Q='quo'"'"'te'"#])["Q"], "quo'te");
    assert_eq!(env(&["FROM base", "ENV E=''"])["E"], "");
    assert_eq!(env(&["FROM base", "ENV N=plain-1.0"])["N"], "plain-1.0");
}

#[test]
fn workdir_cmd_entrypoint_and_shell() {
    let (steps, config) = resolve(&[
        "FROM base",
        "WORKDIR '/app dir'",
        r#"CMD ["python", "a b.py"]"#,
        "ENTRYPOINT []",
        r#"SHELL ["/bin/bash", "-lc"]"#,
        "RUN pwd",
    ]);
    assert_eq!(steps[0], Step::Directory("/app dir".to_owned()));
    assert_eq!(config.workdir.as_deref(), Some("/app dir"));
    assert_eq!(config.cmd.unwrap(), ["python", "a b.py"]);
    assert_eq!(config.entrypoint, Some(vec![]));
    assert_eq!(run_steps(&steps)[0].argv, ["/bin/bash", "-lc", "pwd"]);
}

#[test]
fn local_files_and_whole_dockerfiles() {
    let (steps, _) = resolve(&["FROM base", "COPY . /"]);
    let copy = &transfers(&steps)[0];
    assert_eq!((copy.sources[0].as_str(), copy.destination.as_str()), (".", "/"));

    let file = "# syntax=docker/dockerfile:1\nFROM python:3.12 AS Build\n\n# note\nRUN <<EOF\nset -e\nmake\nEOF\n\
                FROM base\ncopy --from=build --chown=1:2 --chmod=0755 --link /a /b/\n";
    let recipe = Recipe::parse(&file.split('\n').collect::<Vec<_>>()).unwrap();
    assert_eq!(recipe.stage("BUILD", 1), Some(0));
    assert_eq!(recipe.stages[1].instructions[0].line, 10);
    let (steps, _) = resolve(&[file]);
    let copy = &transfers(&steps)[0];
    assert_eq!((copy.from.as_deref(), copy.chown.as_deref(), copy.chmod), (Some("build"), Some("1:2"), Some(0o755)));
    assert_eq!(copy.destination, "/b/");
}

#[test]
fn a_command_with_a_raw_newline_is_refused_where_it_breaks() {
    let error = Recipe::parse(&["FROM base", "RUN echo a\necho b"]).unwrap_err();
    assert!(error.to_string().starts_with("line 3: echo: unknown instruction, expected one of ADD, ARG"), "{error}");
}
