//! Reading what `strace` wrote: the calls that change a folder, in the order in which they took effect.
//!
//! A change takes effect when its call returns; a sync covers what had taken effect when it was called, and holds when it
//! returns; a line is said when the call that writes it begins, since that is when the writer believed in it.
//!
//! What the model has no notion of is refused with the line that shows it, if it touches the folder.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::event::Event;
use super::strace::{Fd, fd, fd_path, strings};

/// The system calls that have to be traced.
pub const CALLS: &str = "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,\
rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat,mknod,mknodat,copy_file_range,\
sendfile,splice,mmap,io_uring_setup,fsync,fdatasync,sync,syncfs";

/// What of a trace counts.
#[derive(Debug)]
pub struct Scope<'a> {
    /// The folder, as the kernel names it: absolute and without links.
    pub root: &'a Path,
    /// Paths in it that do not count, with all below them.
    pub left_out: &'a [PathBuf],
    /// Whether lines on standard output are what the writer says.
    pub says: bool,
}

/// What happened in a folder.
#[derive(Debug, Default)]
pub struct Record {
    /// In the order in which it took effect.
    pub events: Vec<Event>,
    /// How late it certainly was when each of them was seen, in µs since 1970; all 0 in a trace without times.
    pub times: Vec<u64>,
}

/// Reads a trace of a process that wrote into a folder; with times where strace was told `-ttt`.
pub fn parse(mut text: impl BufRead, scope: Scope<'_>) -> Result<Record> {
    let mut parser = Parser { scope, begun: HashMap::new(), places: HashMap::new(), events: Vec::new() };
    let (mut line, mut number) = (Vec::new(), 0);
    let (mut now, mut times) = (0, Vec::new());
    while text.read_until(b'\n', &mut line)? > 0 {
        number += 1;
        let read = std::str::from_utf8(&line).context("not text")?.trim_end_matches('\n');
        let at = || format!("line {number} of the trace: {}", &read[..read.len().min(200)]);
        now = now.max(parser.line(read).with_context(at)?);
        times.resize(parser.events.len(), now);
        line.clear();
    }
    Ok(Record { events: parser.events, times })
}

struct Parser<'a> {
    scope: Scope<'a>,
    /// What each thread is in the middle of.
    begun: HashMap<u32, String>,
    /// Where `write` goes on, by descriptor and file of the folder. A forked child has other files behind equal numbers.
    places: HashMap<(u32, PathBuf), Place>,
    events: Vec<Event>,
}

/// Where `write` goes on.
#[derive(Debug, Clone, Copy)]
enum Place {
    Offset(u64),
    /// At the end, wherever that is.
    End,
}

impl Parser<'_> {
    /// Takes a line; returns the time that it names.
    fn line(&mut self, line: &str) -> Result<u64> {
        let (thread, rest) = line.split_once(' ').context("no thread")?;
        let (time, rest) = time(rest.trim_start())?;
        self.call(thread.parse()?, rest)?;
        Ok(time)
    }

    fn call(&mut self, thread: u32, rest: &str) -> Result<()> {
        // The second is said of a process that strace lets go.
        if rest.starts_with("+++") || rest.starts_with("---") || rest.ends_with("<detached ...>") {
            return Ok(());
        }
        if let Some(rest) = rest.strip_prefix("<... ") {
            let (_, end) = rest.split_once(" resumed>").context("no end of a call")?;
            let begin = self.begun.remove(&thread).context("a call ends that did not begin")?;
            return self.ended(thread, &(begin + end));
        }
        if let Some(begin) = rest.strip_suffix("<unfinished ...>") {
            let begin = begin.trim_end().to_owned();
            self.began(thread, &begin)?;
            self.begun.insert(thread, begin);
            return Ok(());
        }
        self.began(thread, rest)?;
        self.ended(thread, rest)
    }

    fn began(&mut self, thread: u32, call: &str) -> Result<()> {
        let (name, args) = call.split_once('(').context("no call")?;
        let first = || args.split([',', ')']).next().unwrap_or_default();
        match name {
            "fsync" | "fdatasync" => {
                if let Some(path) = self.inside(&fd(first())?) {
                    let call = if name == "fsync" { "fsync" } else { "fdatasync" };
                    self.events.push(Event::SyncBegan { thread, call, path });
                }
            }
            "write" if self.scope.says && fd(first())?.number == 1 => {
                let text = String::from_utf8(strings(args).concat())?;
                self.events.extend(text.lines().map(|line| Event::Said(line.to_owned())));
            }
            "sync" | "syncfs" => bail!("{name} is not modelled"),
            _ => {}
        }
        Ok(())
    }

    fn ended(&mut self, thread: u32, call: &str) -> Result<()> {
        let (call, result) = call.rsplit_once(" = ").context("no result")?;
        let (name, args) = call.trim_end().trim_end_matches(')').split_once('(').context("no call")?;
        let result = result.split(['<', ' ']).next().unwrap_or_default();
        // A call that failed changed nothing; one without a result was cut off by the end of the process.
        let Some(result) = result.parse::<u64>().ok() else { return Ok(()) };
        if matches!(name, "write" | "writev" | "pwrite64" | "pwritev") {
            return self.wrote(name, args, result);
        }
        let args: Vec<&str> = args.split(", ").collect();
        match name {
            "fsync" | "fdatasync" => {
                if self.inside(&fd(args[0])?).is_some() {
                    self.events.push(Event::SyncEnded { thread });
                }
            }
            "open" | "openat" | "creat" => self.opened(name, &args, result as u32)?,
            "lseek" => self.moved_to(&fd(args[0])?, result),
            "ftruncate" | "fallocate" => self.resized(name, &args)?,
            "copy_file_range" | "splice" => self.refuse(name, &args[2..3])?,
            "sendfile" => self.refuse(name, &args[..1])?,
            "mmap" if args[2].contains("PROT_WRITE") && args[3].contains("MAP_SHARED") => self.refuse(name, &args[4..5])?,
            "mmap" => {}
            "io_uring_setup" => bail!("{name} is not modelled"),
            _ => self.renamed(name, &args)?,
        }
        Ok(())
    }

    fn opened(&mut self, name: &str, args: &[&str], fd: u32) -> Result<()> {
        let (path, flags) = match name {
            "openat" => (self.at(args[0], args[1])?, args[2]),
            _ => (self.at("AT_FDCWD", args[0])?, args.get(1).copied().unwrap_or("O_CREAT|O_TRUNC")),
        };
        let Some(path) = path else { return Ok(()) };
        if flags.contains("O_TMPFILE") {
            // A file without a name is gone after a power cut; giving it one is refused.
            return Ok(());
        }
        let place = if flags.contains("O_APPEND") { Place::End } else { Place::Offset(0) };
        self.places.insert((fd, path.clone()), place);
        if flags.contains("O_CREAT") || name == "creat" {
            self.events.push(Event::Made { path: path.clone(), dir: false });
        }
        if flags.contains("O_TRUNC") {
            self.events.push(Event::Length { path, length: 0 });
        }
        Ok(())
    }

    /// Takes a write. Most of what a node writes goes to sockets, so the file is looked at before the bytes.
    fn wrote(&mut self, name: &str, args: &str, written: u64) -> Result<()> {
        let (first, rest) = args.split_once(", ").context("no bytes")?;
        let file = fd(first)?;
        let Some(path) = self.inside(&file) else { return Ok(()) };
        let mut bytes = strings(rest).concat();
        ensure!(bytes.len() as u64 >= written, "strace left bytes out");
        bytes.truncate(written as usize);
        let unknown = "the trace does not show how this descriptor was opened";
        let place = self.places.get_mut(&(file.number, path.clone()));
        let offset = match (name, place) {
            (_, Some(Place::End)) => {
                self.events.push(Event::Appended { path, bytes });
                return Ok(());
            }
            ("write" | "writev", place) => {
                let Place::Offset(next) = place.context(unknown)? else { unreachable!("the end was dealt with") };
                *next += written;
                *next - written
            }
            _ => args.rsplit(", ").next().context("no offset")?.parse()?,
        };
        self.events.push(Event::Wrote { path, offset, bytes });
        Ok(())
    }

    fn moved_to(&mut self, file: &Fd, offset: u64) {
        if let Some(path) = self.inside(file)
            && let Some(Place::Offset(at)) = self.places.get_mut(&(file.number, path))
        {
            *at = offset;
        }
    }

    fn resized(&mut self, name: &str, args: &[&str]) -> Result<()> {
        let Some(path) = self.inside(&fd(args[0])?) else { return Ok(()) };
        let event = match (name, args[1]) {
            ("ftruncate", length) => Event::Length { path, length: length.parse()? },
            (_, "0") => Event::Allocated { path, length: args[2].parse::<u64>()? + args[3].parse::<u64>()? },
            (_, mode) if mode.contains("PUNCH_HOLE") => Event::Punched { path, offset: args[2].parse()?, length: args[3].parse()? },
            (_, mode) => bail!("fallocate with {mode} is not modelled"),
        };
        self.events.push(event);
        Ok(())
    }

    fn renamed(&mut self, name: &str, args: &[&str]) -> Result<()> {
        let cwd = "AT_FDCWD";
        let event = match name {
            "mkdir" => self.at(cwd, args[0])?.map(|path| Event::Made { path, dir: true }),
            "mkdirat" => self.at(args[0], args[1])?.map(|path| Event::Made { path, dir: true }),
            "unlink" | "rmdir" => self.at(cwd, args[0])?.map(|path| Event::Removed { path }),
            "unlinkat" => self.at(args[0], args[1])?.map(|path| Event::Removed { path }),
            "rename" => self.moved(self.at(cwd, args[0])?, self.at(cwd, args[1])?)?,
            "renameat2" if args[4].contains("EXCHANGE") => return self.refuse(name, args),
            "renameat" | "renameat2" => self.moved(self.at(args[0], args[1])?, self.at(args[2], args[3])?)?,
            // The new name is what matters: a second name of a file outside.
            "link" => return self.refuse_at(name, cwd, args[1]),
            "linkat" => return self.refuse_at(name, args[2], args[3]),
            "symlink" => return self.refuse_at(name, cwd, args[1]),
            "symlinkat" => return self.refuse_at(name, args[1], args[2]),
            _ => return self.refuse(name, args),
        };
        self.events.extend(event);
        Ok(())
    }

    fn moved(&self, from: Option<PathBuf>, to: Option<PathBuf>) -> Result<Option<Event>> {
        match (from, to) {
            (Some(from), Some(to)) => Ok(Some(Event::Renamed { from, to })),
            (None, None) => Ok(None),
            _ => bail!("a rename in or out of the folder is not modelled"),
        }
    }

    /// Fails if the call touches the folder.
    fn refuse(&self, name: &str, args: &[&str]) -> Result<()> {
        ensure!(!args.iter().any(|arg| self.names_inside(arg)), "{name} is not modelled");
        Ok(())
    }

    fn refuse_at(&self, call: &str, dir: &str, name: &str) -> Result<()> {
        ensure!(self.at(dir, name)?.is_none(), "{call} is not modelled");
        Ok(())
    }

    /// Returns the path that a folder and a name make, if it is in the folder of the writer.
    fn at(&self, dir: &str, name: &str) -> Result<Option<PathBuf>> {
        let name = strings(name).concat();
        let name = PathBuf::from(String::from_utf8(name)?);
        let dir = if dir.contains('<') { fd_path(dir)? } else { None };
        let whole = dir.map_or(name.clone(), |dir| dir.join(&name));
        ensure!(whole.is_absolute() || dir_is_irrelevant(&whole), "{} is a relative path", whole.display());
        Ok(self.counts(&whole))
    }

    /// Returns the path of an open file, if it has one and is in the folder of the writer.
    fn inside(&self, fd: &Fd) -> Option<PathBuf> {
        self.counts(fd.path.as_ref()?)
    }

    /// Returns a path in the folder as seen from there, unless it is left out.
    fn counts(&self, path: &Path) -> Option<PathBuf> {
        let path = path.strip_prefix(self.scope.root).ok()?;
        let left_out = self.scope.left_out.iter().any(|left_out| path.starts_with(left_out));
        (!left_out).then(|| path.to_owned())
    }

    fn names_inside(&self, arg: &str) -> bool {
        let named = strings(arg).concat();
        let open = fd_path(arg).ok().flatten();
        let named = String::from_utf8_lossy(&named);
        open.is_some_and(|path| self.counts(&path).is_some()) || self.counts(Path::new(&*named)).is_some()
    }
}

/// Takes the time from the front of a line, in µs since 1970; 0 when there is none.
fn time(line: &str) -> Result<(u64, &str)> {
    if !line.starts_with(|letter: char| letter.is_ascii_digit()) {
        return Ok((0, line));
    }
    let (time, rest) = line.split_once(' ').context("nothing after the time")?;
    let (seconds, micros) = time.split_once('.').context("a time without a fraction")?;
    ensure!(micros.len() == 6, "a time that is not in µs");
    Ok((seconds.parse::<u64>()? * 1_000_000 + micros.parse::<u64>()?, rest.trim_start()))
}

/// Before strace knows the working folder, names like "libc.so" are looked up in it; the writers use absolute paths.
fn dir_is_irrelevant(path: &Path) -> bool {
    path.is_relative()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Result<Vec<Event>> {
        let scope = Scope { root: Path::new("/r"), left_out: &["run".into()], says: true };
        Ok(parse(text.as_bytes(), scope)?.events)
    }

    fn hex(text: &str) -> String {
        text.bytes().map(|byte| format!("\\x{byte:02x}")).collect()
    }

    #[test]
    fn calls_of_threads_are_put_together() {
        let text = format!(
            "7 openat(AT_FDCWD<{cwd}>, \"{file}\", O_RDWR|O_CREAT|O_CLOEXEC, 0666) = 3<{file}>\n\
             7 pwrite64(3<{file}>, \"{data}\", 2, 9 <unfinished ...>\n\
             8 fdatasync(3<{file}> <unfinished ...>\n\
             7 <... pwrite64 resumed>)              = 2\n\
             8 <... fdatasync resumed>)             = 0\n\
             9 openat(AT_FDCWD<{cwd}>, \"{none}\", O_RDONLY) = -1 ENOENT (No such file or directory)\n\
             8 write(3<{file}>, \"{data}\", 2) = 1\n\
             8 write(3<{file}>, \"{data}\", 2) = 2\n\
             8 write(1<{cwd}>, \"{said}\", 8) = 8\n\
             7 +++ exited with 0 +++\n",
            cwd = hex("/home"),
            file = hex("/r/f"),
            none = hex("/r/none"),
            data = hex("ab"),
            said = hex("ack 5\n"),
        );
        let file = || PathBuf::from("f");
        let expected = [
            Event::Made { path: file(), dir: false },
            Event::SyncBegan { thread: 8, call: "fdatasync", path: file() },
            Event::Wrote { path: file(), offset: 9, bytes: b"ab".to_vec() },
            Event::SyncEnded { thread: 8 },
            Event::Wrote { path: file(), offset: 0, bytes: b"a".to_vec() },
            Event::Wrote { path: file(), offset: 1, bytes: b"ab".to_vec() },
            Event::Said("ack 5".to_owned()),
        ];
        assert_eq!(events(&text).unwrap(), expected);
    }

    #[test]
    fn names_change() {
        let text = format!(
            "7 mkdir(\"{dir}\", 0777) = 0\n\
             7 rename(\"{dir}\", \"{new}\") = 0\n\
             7 unlinkat(5<{root}>, \"{name}\", AT_REMOVEDIR) = 0\n\
             7 pwrite64(3<{dir}>(deleted), \"{name}\", 1, 0) = 1\n\
             7 fallocate(3<{dir}>, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, 4096, 8192) = 0\n\
             7 fallocate(3<{dir}>, 0, 0, 8192) = 0\n",
            root = hex("/r"),
            dir = hex("/r/d"),
            new = hex("/r/e"),
            name = hex("e"),
        );
        let expected = [
            Event::Made { path: "d".into(), dir: true },
            Event::Renamed { from: "d".into(), to: "e".into() },
            Event::Removed { path: "e".into() },
            Event::Punched { path: "d".into(), offset: 4096, length: 8192 },
            Event::Allocated { path: "d".into(), length: 8192 },
        ];
        assert_eq!(events(&text).unwrap(), expected);
    }

    #[test]
    fn a_file_that_is_appended_to_grows_at_its_end() {
        let file = hex("/r/f");
        let text = format!(
            "7 openat(AT_FDCWD<{cwd}>, \"{file}\", O_WRONLY|O_CREAT|O_APPEND|O_CLOEXEC, 0666) = 3<{file}>\n\
             7 writev(3<{file}>, [{{iov_base=\"{data}\", iov_len=2}}, {{iov_base=\"{data}\", iov_len=2}}], 2) = 4\n\
             7 openat(AT_FDCWD<{cwd}>, \"{file}\", O_WRONLY|O_CLOEXEC) = 3<{file}>\n\
             7 write(3<{file}>, \"{data}\", 2) = 2\n",
            cwd = hex("/"),
            data = hex("ab"),
        );
        let expected = [
            Event::Made { path: "f".into(), dir: false },
            Event::Appended { path: "f".into(), bytes: b"abab".to_vec() },
            Event::Wrote { path: "f".into(), offset: 0, bytes: b"ab".to_vec() },
        ];
        assert_eq!(events(&text).unwrap(), expected);
    }

    #[test]
    fn events_have_the_time_at_which_they_were_seen() {
        let text = format!(
            "7 1700000000.000001 mkdir(\"{0}\", 0777) = 0\n\
             8 1700000000.000005 epoll_wait(4<anon_inode:[eventpoll]>,  <unfinished ...>\n\
             7 1700000000.000007 rmdir(\"{0}\" <unfinished ...>\n\
             8 1700000000.000008 <... epoll_wait resumed>[], 4, 1000) = 0\n\
             7 1700000000.000009 <... rmdir resumed>) = 0\n\
             7 1700000000.000010 execve(\"{0}\", [], [] <detached ...>\n",
            hex("/r/d"),
        );
        let scope = Scope { root: Path::new("/r"), left_out: &[], says: false };
        let record = parse(text.as_bytes(), scope).unwrap();
        assert_eq!(record.events, [Event::Made { path: "d".into(), dir: true }, Event::Removed { path: "d".into() }]);
        assert_eq!(record.times, [1_700_000_000_000_001, 1_700_000_000_000_009]);
    }

    #[test]
    fn what_the_model_does_not_know_is_an_error_where_it_counts() {
        let calls = [
            "link(\"{}\", \"{}\") = 0",
            "linkat(AT_FDCWD, \"/proc/self/fd/3\", AT_FDCWD, \"{}\", 0) = 0",
            "symlink(\"{}\", \"{}\") = 0",
            "renameat2(AT_FDCWD, \"{}\", AT_FDCWD, \"{}\", RENAME_EXCHANGE) = 0",
            "copy_file_range(4<{}>, NULL, 3<{}>, NULL, 7, 0) = 7",
            "sendfile(3<{}>, 4<{}>, NULL, 7) = 7",
            "splice(4</pipe>, NULL, 3<{}>, NULL, 7, 0) = 7",
            "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3<{}>, 0) = 0",
            "fallocate(3<{}>, FALLOC_FL_COLLAPSE_RANGE, 0, 4096) = 0",
            "truncate(\"{}\", 0) = 0",
            "pwritev2(3<{}>, [], 0, 0, 0) = 0",
            "write(3<{}>, \"\", 0) = 0",
            "syncfs(3<{}>) = 0",
        ];
        for call in calls {
            let of = |path: &str| format!("7 {}\n", call.replace("{}", &hex(path)));
            assert!(events(&of("/r/d")).is_err(), "{call}");
            if !call.starts_with("syncfs") {
                assert_eq!(events(&of("/r/run/d")).unwrap(), [], "{call}");
                assert_eq!(events(&of("/elsewhere")).unwrap(), [], "{call}");
            }
        }
        assert!(events("7 io_uring_setup(32, {}) = 3<anon_inode:[io_uring]>\n").is_err());
    }
}
