//! Builds by a function, with a shell in the place of the client's program.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use shoal_runtime::{Limits, NetworkMode};

use super::containers::Running;
use super::*;

/// Runs a shell's text, which says how it ended by the file `outcome` of its bind.
struct Shell {
    text: &'static str,
    over: Vec<Digest>,
    timeout: Duration,
}

struct Said(tempfile::TempDir);

impl FunctionRun for Said {
    fn outcome(&self) -> Option<Result<(), String>> {
        let said = std::fs::read_to_string(self.0.path().join("outcome")).ok()?;
        Some(if said == "good\n" { Ok(()) } else { Err(said.trim_end().to_owned()) })
    }
}

impl FunctionRunner for Shell {
    fn prepare(&self, _image: Digest) -> BoxFuture<'_, Result<PreparedFunction, RunnerFailure>> {
        async move {
            let dir = tempfile::tempdir()?;
            let bind = shoal_runtime::Bind { source: dir.path().to_owned(), target: "/__modal/task".to_owned(), read_only: false };
            Ok(PreparedFunction {
                over: self.over.clone(),
                argv: ["/bin/sh", "-c", self.text].map(str::to_owned).to_vec(),
                env: BTreeMap::from([("KEY".to_owned(), "value".to_owned())]),
                cwd: "/root".to_owned(),
                binds: vec![bind],
                limits: Limits::default(),
                network: NetworkMode::None,
                startup: Duration::ZERO,
                timeout: self.timeout,
                run: Box::new(Said(dir)),
            })
        }
        .boxed()
    }
}

fn by_function(base: &Outcome, shell: Shell) -> BuildRequest {
    let base = base.as_ref().unwrap_or_else(|error| panic!("{}", error.full_text()));
    let record = LayerRecord { manifest: base.manifest, config: base.config.clone() };
    let function = BuildFunction { name: "f".to_owned(), identity: Digest::of(shell.text.as_bytes()), runner: Arc::new(shell) };
    BuildRequest {
        bases: BTreeMap::from([("base".to_owned(), BaseImage { key: base.key, record })]),
        function: Some(function),
        ..BuildRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_function_leaves_is_the_image_and_what_lay_over_it_is_not() {
    let Some(running) = Running::start().await else { return };
    let world = &running.world;
    let base = world.build(request(&["FROM mini:1", "ENV KEPT=yes", "RUN echo old > /old; mkdir /root"])).await;
    let over = world.context(&[("root/program.py", "the program\n"), ("pkg/client.py", "the client\n"), ("root/lib/__init__.py", "")]);
    let text = "pwd > /made; echo $KEY >> /made; cat program.py /pkg/client.py >> /made; rm /old; echo x > program.py; \
                mkdir __pycache__; echo c > __pycache__/program.cpython-312.pyc; echo c > __pycache__/own.cpython-312.pyc; \
                echo data > lib/data; echo c > /pkg/cached; echo good > /__modal/task/outcome; echo said";
    let shell = || Shell { text, over: vec![over], timeout: Duration::from_secs(60) };
    let handle = world.builder.get_or_start(by_function(&base, shell()), None);
    let record = handle.wait().await.unwrap_or_else(|error| panic!("{}", error.full_text()));
    assert_eq!(world.text(&record, "made"), "/root\nvalue\nthe program\nthe client\n");
    assert_eq!(record.config.env["KEPT"], "yes");
    assert!(log_text(&handle).contains("=> Step 0: running function 'f'\nsaid\n"), "{}", log_text(&handle));
    let tree = world.tree(&record);
    let there = |name: &str| tree.get(&Path::parse(name).unwrap()).is_some();
    for name in ["root/lib/data", "root/__pycache__/own.cpython-312.pyc"] {
        assert!(there(name), "{name} is the function's own");
    }
    for name in ["old", "root/program.py", "root/lib/__init__.py", "root/__pycache__/program.cpython-312.pyc", "pkg", "__modal", "__shoal"]
    {
        assert!(!there(name), "{name} must not be in the image");
    }
    // The same function on the same base is known, whatever its id is now.
    let again = BuildRequest { builder_version: "other".to_owned(), ..by_function(&base, shell()) };
    let handle = world.builder.get_or_start(again, None);
    assert_eq!(handle.wait().await.unwrap().manifest, record.manifest);
    assert!(log_text(&handle).contains("the result of the function f is known"), "{}", log_text(&handle));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_fails_says_so_with_its_last_words() {
    let Some(running) = Running::start().await else { return };
    let base = running.world.build(request(&["FROM mini:1", "RUN mkdir /root"])).await;
    for (text, expected) in [
        ("echo words; echo raised X > /__modal/task/outcome; exit 1", "the function f raised X\nlast output:\nwords"),
        ("echo words; exit 3", "the function f ended with exit code 3\nlast output:\nwords"),
        ("echo words", "the function f ended without a result\nlast output:\nwords"),
        ("sleep 1000", "the function f did not end within 3 s: give it longer with timeout="),
    ] {
        let shell = Shell { text, over: vec![], timeout: Duration::from_secs(3) };
        let error = running.world.build(by_function(&base, shell)).await.unwrap_err().full_text();
        assert_eq!(error, expected);
    }
    running.end().await;
}
