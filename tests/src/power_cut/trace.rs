//! Reading what `strace` wrote: the calls that change a folder, in the order in which they took effect.
//!
//! A change takes effect when its call returns; a sync covers what had taken effect when it was called, and holds when it
//! returns; a line is said when the call that writes it begins, since that is when the writer believed in it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// The system calls that have to be traced.
pub const CALLS: &str = "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,\
rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat,copy_file_range,sendfile,\
fsync,fdatasync,sync,syncfs";

/// Something that happened. Paths are relative to the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A file or folder has this name now, if it had not.
    Made {
        /// Its path.
        path: PathBuf,
        /// Whether it is a folder.
        dir: bool,
    },
    /// Bytes were written.
    Wrote {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// The file was cut or extended to this length.
    Length {
        /// The file.
        path: PathBuf,
        /// Its length now.
        length: u64,
    },
    /// The file is at least this long.
    Allocated {
        /// The file.
        path: PathBuf,
        /// Its least length now.
        length: u64,
    },
    /// A part of the file became zeros.
    Punched {
        /// The file.
        path: PathBuf,
        /// Where the zeros begin.
        offset: u64,
        /// How many there are.
        length: u64,
    },
    /// A file or folder has another name.
    Renamed {
        /// Its old path.
        from: PathBuf,
        /// Its new path.
        to: PathBuf,
    },
    /// A name is gone.
    Removed {
        /// The path.
        path: PathBuf,
    },
    /// A sync of a file or folder began.
    SyncBegan {
        /// Who called it.
        thread: u32,
        /// `fsync` or `fdatasync`.
        call: &'static str,
        /// The file or folder.
        path: PathBuf,
    },
    /// The sync that this thread began has ended well.
    SyncEnded {
        /// Who called it.
        thread: u32,
    },
    /// The writer said a line.
    Said(String),
}

/// Reads a trace of a process that wrote into `root`.
pub fn parse(text: &str, root: &Path) -> Result<Vec<Event>> {
    let mut parser = Parser { root, begun: HashMap::new(), offsets: HashMap::new(), events: Vec::new() };
    for (number, line) in text.lines().enumerate() {
        parser.line(line).with_context(|| format!("line {} of the trace: {}", number + 1, &line[..line.len().min(200)]))?;
    }
    Ok(parser.events)
}

struct Parser<'a> {
    root: &'a Path,
    /// What each thread is in the middle of.
    begun: HashMap<u32, String>,
    /// Where `write` goes on, by file descriptor.
    offsets: HashMap<u32, u64>,
    events: Vec<Event>,
}

/// A file descriptor as strace shows it.
struct Fd {
    number: u32,
    path: Option<PathBuf>,
}

impl Parser<'_> {
    fn line(&mut self, line: &str) -> Result<()> {
        let (thread, rest) = line.split_once(' ').context("no thread")?;
        let (thread, rest) = (thread.parse()?, rest.trim_start());
        if rest.starts_with("+++") || rest.starts_with("---") {
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
            "write" if fd(first())?.number == 1 => {
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
        let args: Vec<&str> = args.split(", ").collect();
        match name {
            "fsync" | "fdatasync" => {
                if self.inside(&fd(args[0])?).is_some() {
                    self.events.push(Event::SyncEnded { thread });
                }
            }
            "open" | "openat" | "creat" => self.opened(name, &args, result as u32)?,
            "write" | "writev" | "pwrite64" | "pwritev" => self.wrote(name, &args, result)?,
            "lseek" => drop(self.offsets.insert(fd(args[0])?.number, result)),
            "ftruncate" | "fallocate" => self.resized(name, &args)?,
            _ => self.renamed(name, &args)?,
        }
        Ok(())
    }

    fn opened(&mut self, name: &str, args: &[&str], fd: u32) -> Result<()> {
        self.offsets.insert(fd, 0);
        let (path, flags) = match name {
            "openat" => (self.at(args[0], args[1])?, args[2]),
            _ => (self.at("AT_FDCWD", args[0])?, args.get(1).copied().unwrap_or("O_CREAT|O_TRUNC")),
        };
        let Some(path) = path else { return Ok(()) };
        ensure!(!flags.contains("O_APPEND") && !flags.contains("O_TMPFILE"), "{flags} is not modelled");
        if flags.contains("O_CREAT") || name == "creat" {
            self.events.push(Event::Made { path: path.clone(), dir: false });
        }
        if flags.contains("O_TRUNC") {
            self.events.push(Event::Length { path, length: 0 });
        }
        Ok(())
    }

    fn wrote(&mut self, name: &str, args: &[&str], written: u64) -> Result<()> {
        let file = fd(args[0])?;
        let offset = match name {
            "write" | "writev" => {
                let next = self.offsets.entry(file.number).or_default();
                *next += written;
                *next - written
            }
            _ => args.last().context("no offset")?.parse()?,
        };
        if let Some(path) = self.inside(&file) {
            let mut bytes = args[1..].iter().flat_map(|arg| strings(arg)).collect::<Vec<_>>().concat();
            ensure!(bytes.len() as u64 >= written, "strace left bytes out");
            bytes.truncate(written as usize);
            self.events.push(Event::Wrote { path, offset, bytes });
        }
        Ok(())
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
            "renameat" | "renameat2" => self.moved(self.at(args[0], args[1])?, self.at(args[2], args[3])?)?,
            _ if args.iter().any(|arg| self.names_inside(arg)) => bail!("{name} is not modelled"),
            _ => None,
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

    /// Returns the path that a folder and a name make, if it is in the folder of the writer.
    fn at(&self, dir: &str, name: &str) -> Result<Option<PathBuf>> {
        let name = strings(name).concat();
        let name = PathBuf::from(String::from_utf8(name)?);
        let dir = if dir.contains('<') { fd_path(dir)? } else { None };
        let whole = dir.map_or(name.clone(), |dir| dir.join(&name));
        ensure!(whole.is_absolute() || dir_is_irrelevant(&whole), "{} is a relative path", whole.display());
        Ok(whole.strip_prefix(self.root).ok().map(Path::to_owned))
    }

    /// Returns the path of an open file, if it has one and is in the folder of the writer.
    fn inside(&self, fd: &Fd) -> Option<PathBuf> {
        Some(fd.path.as_ref()?.strip_prefix(self.root).ok()?.to_owned())
    }

    fn names_inside(&self, arg: &str) -> bool {
        let named = strings(arg).concat();
        let open = fd_path(arg).ok().flatten();
        open.is_some_and(|path| path.starts_with(self.root)) || Path::new(&*String::from_utf8_lossy(&named)).starts_with(self.root)
    }
}

/// Before strace knows the working folder, names like "libc.so" are looked up in it; the writers use absolute paths.
fn dir_is_irrelevant(path: &Path) -> bool {
    path.is_relative()
}

fn fd(text: &str) -> Result<Fd> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    // A file without a name can't be found after a power cut.
    let path = if text.ends_with("(deleted)") { None } else { fd_path(text)? };
    Ok(Fd { number: text[..digits].parse().with_context(|| format!("no descriptor: {text}"))?, path })
}

/// Returns the path in `3<path>`.
fn fd_path(text: &str) -> Result<Option<PathBuf>> {
    let path = text.split_once('<').and_then(|(_, rest)| rest.rsplit_once('>'));
    path.map(|(path, _)| Ok(PathBuf::from(String::from_utf8(unescape(path))?))).transpose()
}

/// Returns the strings in quotes.
fn strings(text: &str) -> Vec<Vec<u8>> {
    text.split('"').skip(1).step_by(2).map(unescape).collect()
}

/// Reads `\x2f` as a byte; what is not escaped stands for itself.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4);
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = rest.strip_prefix(b"\\x").and_then(|digits| std::str::from_utf8(digits.get(..2)?).ok());
        match hex.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(parse(&text, Path::new("/r")).unwrap(), expected);
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
        assert_eq!(parse(&text, Path::new("/r")).unwrap(), expected);
    }

    #[test]
    fn what_the_model_does_not_know_is_an_error() {
        let link = format!("7 link(\"{0}\", \"{0}\") = 0\n", hex("/r/d"));
        assert!(parse(&link, Path::new("/r")).is_err());
    }
}
