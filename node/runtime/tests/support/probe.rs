//! The program that the tests run in containers: static, so that it needs nothing but itself.
//! Its first argument says what to do.

use std::{
    env, fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process, thread,
    time::Duration,
};

unsafe extern "C" {
    fn _exit(code: i32) -> !;
    fn signal(number: i32, handler: usize) -> usize;
    fn getuid() -> u32;
    fn getgid() -> u32;
}

const INT: i32 = 2;
const TERM: i32 = 15;
const IGNORE: usize = 1;

extern "C" fn on_interrupt(_: i32) {
    // What an exit hook does: takes a moment, says something, chooses its code.
    thread::sleep(Duration::from_millis(200));
    say("bye");
    process::exit(3);
}

fn say(line: &str) {
    println!("{line}");
    io::stdout().flush().unwrap();
}

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let word = |i: usize| words.get(i).map_or("", String::as_str);
    match word(0) {
        "exit" => process::exit(word(1).parse().unwrap()),
        "abort" => process::abort(),
        "lines" => lines(word(1).parse().unwrap()),
        "echo" => {
            io::copy(&mut io::stdin(), &mut io::stdout()).unwrap();
        }
        "hooked" => {
            unsafe { signal(INT, on_interrupt as *const () as usize) };
            say("ready");
            sleep();
        }
        "stubborn" => {
            unsafe { signal(INT, IGNORE) };
            unsafe { signal(TERM, IGNORE) };
            say("ready");
            sleep();
        }
        "sleep" => {
            say("ready");
            sleep();
        }
        "jobs" => await_job(),
        "fill" => fill(word(1).parse().unwrap()),
        "cores" => say(&thread::available_parallelism().unwrap().to_string()),
        "burn" => burn(Duration::from_millis(word(1).parse().unwrap())),
        "write" => fs::write(word(1), word(2)).unwrap(),
        "cat" => print!("{}", fs::read_to_string(word(1)).unwrap()),
        "env" => say(&env::var(word(1)).unwrap_or_default()),
        "cwd" => say(env::current_dir().unwrap().to_str().unwrap()),
        "id" => say(&format!("{} {}", unsafe { getuid() }, unsafe { getgid() })),
        "connect" => connect(word(1).parse().unwrap()),
        "listen" => listen(word(1).parse().unwrap()),
        "dns" => dns(),
        "fillfile" => fill_file(word(1), word(2).parse().unwrap()),
        other => panic!("what is {other:?}?"),
    }
}

fn sleep() -> ! {
    loop {
        thread::sleep(Duration::from_secs(60));
    }
}

/// Waits for a job as a program does that goes on from a snapshot, and says what it was.
fn await_job() {
    say("waiting");
    let mut length = [0; 4];
    io::stdin().read_exact(&mut length).unwrap();
    let mut job = vec![0; u32::from_le_bytes(length) as usize];
    io::stdin().read_exact(&mut job).unwrap();
    let job = String::from_utf8(job).unwrap();
    // Whether stdin stays, where, how many arguments, and those: the program, what it is to do, with what.
    say(&format!("job for {}", job.split('\0').nth(5).unwrap()));
    say(&format!("own file {}", fs::read_to_string("/task/name").unwrap()));
}

/// Prints numbered lines and ends without any farewell, as os._exit does.
fn lines(count: u32) {
    let mut out = io::stdout().lock();
    for number in 0..count {
        writeln!(out, "line {number}").unwrap();
        if number % 10 == 0 {
            eprintln!("note {number}");
        }
    }
    out.flush().unwrap();
    unsafe { _exit(0) }
}

fn fill(bytes: usize) {
    let mut memory = vec![0u8; bytes];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    say(&format!("full {}", memory.len()));
    sleep();
}

fn burn(time: Duration) {
    let start = std::time::Instant::now();
    let work = |_| thread::spawn(move || while start.elapsed() < time {});
    (0..2).map(work).collect::<Vec<_>>().into_iter().for_each(|t| t.join().unwrap());
}

fn connect(to: SocketAddr) {
    let start = std::time::Instant::now();
    match TcpStream::connect_timeout(&to, Duration::from_secs(4)) {
        Ok(mut stream) => {
            let mut text = String::new();
            stream.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
            stream.read_to_string(&mut text).unwrap();
            say(&format!("open {text}"));
        }
        Err(error) => say(&format!("shut after {} ms: {error}", start.elapsed().as_millis())),
    }
}

fn listen(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    say("ready");
    for stream in listener.incoming() {
        stream.unwrap().write_all(b"hello").unwrap();
    }
}

/// Asks the first server of resolv.conf for the root's name servers; any answer will do.
fn dns() {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap();
    let server = text.lines().find_map(|line| line.strip_prefix("nameserver ")).expect("a nameserver");
    let server: Ipv4Addr = server.trim().parse().unwrap();
    let question = [0x5a, 0xa5, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    let mut answer = [0; 512];
    let asked = socket.connect((server, 53)).and_then(|()| socket.send(&question));
    match asked.and_then(|_| socket.recv(&mut answer)) {
        Ok(_) if answer[..2] == question[..2] => say("answered"),
        Ok(_) => say("answered something else"),
        Err(error) => say(&format!("no answer: {error}")),
    }
}

fn fill_file(path: &str, bytes: usize) {
    let block = vec![7u8; 1 << 20];
    let mut file = fs::File::create(path).unwrap();
    for _ in 0..bytes.div_ceil(block.len()) {
        if let Err(error) = file.write_all(&block) {
            say(&format!("stopped: {:?}", error.kind()));
            return;
        }
    }
    say("fits");
}
