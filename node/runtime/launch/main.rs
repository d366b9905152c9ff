//! The first process of a sandbox made ahead: it waits for its job on stdin and becomes it.
//!
//! What a sandbox runs is fixed when it is made; this program is what makes the choice late. It is linked statically, so
//! that it runs whatever tree the sandbox is given, and has no dependencies.
//!
//! A job is the length of what follows as 4 bytes, the least one first, and then strings that end with a NUL each:
//! "1" if the job keeps stdin (else it gets /dev/null), the working directory (made where it is missing), the number of
//! arguments, the arguments, and "NAME=value" for each variable. A job that cannot be run ends with a sentence and code 127.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio, exit};

fn main() {
    let failed = match read() {
        Ok(job) => run(&job),
        Err(error) => format!("cannot read what to run: {error}"),
    };
    eprintln!("{failed}");
    exit(127);
}

fn read() -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    io::stdin().read_exact(&mut length)?;
    // Beyond its buffer nothing may be read: it could be meant for the job.
    let mut job = vec![0; u32::from_le_bytes(length) as usize];
    io::stdin().read_exact(&mut job)?;
    Ok(job)
}

/// Becomes the job; returns only with what stood in the way.
fn run(job: &[u8]) -> String {
    let mut strings = job.split(|byte| *byte == 0).map(|string| String::from_utf8_lossy(string).into_owned());
    let mut next = || strings.next().unwrap_or_default();
    let (keep, cwd, count) = (next() == "1", next(), next().parse().unwrap_or(0));
    let arguments: Vec<String> = (0..count).map(|_| next()).collect();
    let Some((program, arguments)) = arguments.split_first() else { return "there is nothing to run".to_owned() };
    if let Err(error) = fs::create_dir_all(&cwd) {
        return format!("cannot make the working directory {cwd}: {error}");
    }
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&cwd).env_clear();
    for variable in strings {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    if !keep {
        match File::open("/dev/null") {
            Ok(null) => drop(command.stdin(Stdio::from(null))),
            Err(error) => return format!("cannot open /dev/null: {error}"),
        }
    }
    let error = command.exec();
    format!("cannot run {program}: {error}")
}
