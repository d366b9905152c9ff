//! Programs of the host that make bases: mmdebstrap, strip, patchelf, pip.
//!
//! Each runs in a process group of its own, with a deadline, and its output goes to the build's log. When the future
//! is dropped the whole group is killed.

mod folder;

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use crate::error::{Error, Result};
use crate::log::{BuildLog, Stream, Tail, Utf8};

pub use folder::remove as remove_work_folder;
pub(crate) use folder::{WorkFolder, empty};

/// A program to run on the host.
pub(crate) struct HostCommand<'a> {
    /// What it does, for errors: "mmdebstrap of bookworm".
    pub(crate) what: String,
    pub(crate) command: Command,
    pub(crate) limit: Duration,
    /// Gets the output; `None` keeps it for errors only.
    pub(crate) log: Option<&'a dyn BuildLog>,
}

/// The group of a child, killed when dropped before the child ended.
struct Group {
    pid: Option<rustix::process::Pid>,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            // It may have ended in the meantime; then there is nothing to do.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

impl HostCommand<'_> {
    /// Runs it to its end and returns what it wrote to stdout.
    pub(crate) async fn run(mut self) -> Result<String> {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let program = self.command.as_std().get_program().to_string_lossy().into_owned();
        let mut child = self.command.spawn().map_err(|source| Error::NoProgram { program, purpose: self.what.clone(), source })?;
        let mut group = Group { pid: child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)) };
        let mut tail = Tail::default();
        let ended = tokio::time::timeout(self.limit, follow(&mut child, self.log, &mut tail)).await;
        let Ok(ended) = ended else {
            return Err(Error::HostTimeout { what: self.what, limit: self.limit });
        };
        group.pid = None;
        let failed = |ended: String, tail: &Tail| Error::Host { what: self.what.clone(), ended, tail: tail.text() };
        match ended {
            Ok((status, output)) if status.success() => Ok(output),
            Ok((status, _)) => Err(failed(status.to_string(), &tail)),
            Err(error) => Err(failed(error.to_string(), &tail)),
        }
    }
}

/// Reads both outputs to their end, then waits for the exit. Returns stdout.
async fn follow(child: &mut Child, log: Option<&dyn BuildLog>, tail: &mut Tail) -> std::io::Result<(ExitStatus, String)> {
    let mut stdout = child.stdout.take().expect("stdout is a pipe");
    let mut stderr = child.stderr.take().expect("stderr is a pipe");
    let (mut out_text, mut err_text) = (Utf8::default(), Utf8::default());
    let (mut out_open, mut err_open) = (true, true);
    let mut output = String::new();
    while out_open || err_open {
        let (stream, text) = tokio::select! {
            text = piece(&mut stdout, &mut out_text), if out_open => (Stream::Stdout, text?),
            text = piece(&mut stderr, &mut err_text), if err_open => (Stream::Stderr, text?),
        };
        match (text, stream) {
            (None, Stream::Stdout) => out_open = false,
            (None, _) => err_open = false,
            (Some(text), _) => {
                tail.push(&text);
                if let Some(log) = log {
                    log.write(stream, &text);
                }
                if stream == Stream::Stdout {
                    output.push_str(&text);
                }
            }
        }
    }
    Ok((child.wait().await?, output))
}

async fn piece(from: &mut (impl AsyncRead + Unpin), text: &mut Utf8) -> std::io::Result<Option<String>> {
    let mut buffer = [0; 8192];
    let count = from.read(&mut buffer).await?;
    Ok((count > 0).then(|| text.push(&buffer[..count])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> HostCommand<'static> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        HostCommand { what: "the test".to_owned(), command, limit, log: None }
    }

    #[tokio::test]
    async fn output_comes_back_and_failures_carry_their_end() {
        let second = Duration::from_secs(10);
        assert_eq!(shell("echo a; echo b >&2", second).run().await.unwrap(), "a\n");
        let error = shell("echo why >&2; exit 3", second).run().await.unwrap_err().to_string();
        assert_eq!(error, "the test failed: exit status: 3\nlast output:\nwhy");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_its_children() {
        let error = shell("sleep 1000 & sleep 1000", Duration::from_millis(200)).run().await.unwrap_err();
        assert_eq!(error.to_string(), "the test did not end within 0 s");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let command = Command::new("/no/such/program");
        let command = HostCommand { what: "this".to_owned(), command, limit: Duration::from_secs(1), log: None };
        let error = command.run().await.unwrap_err().to_string();
        assert!(error.starts_with("/no/such/program is needed for this"), "{error}");
    }
}
