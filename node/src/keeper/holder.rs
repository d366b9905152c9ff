//! Who listens on a port, for the sentence that says it is taken.

use std::fs;
use std::net::SocketAddr;

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENS: &str = "0A";

/// Finds the process that listens on a port of this machine: its id and what it is called. None when it is out of sight.
pub(super) fn of(address: SocketAddr) -> Option<(u32, String)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inode = tables.iter().find_map(|table| listening(table, address.port()))?;
    let socket = format!("socket:[{inode}]");
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.into_iter().find(|pid| has(*pid, &socket))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((pid, name.trim().to_owned()))
}

/// Returns the inode of the socket that listens on a port, from the text of a table.
fn listening(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let of = u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok()?;
        (of == port && *fields.get(3)? == LISTENS).then(|| fields.get(9)?.parse().ok())?
    })
}

fn has(pid: u32, socket: &str) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|target| target.to_str() == Some(socket)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_by_its_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(of(listener.local_addr().unwrap()).map(|(pid, _)| pid), Some(std::process::id()));
    }

    #[test]
    fn only_what_listens_counts() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                        0: 0100007F:1D2E 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
                        1: 00000000:1D2E 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1\n";
        assert_eq!(listening(table, 7470), Some(22));
        assert_eq!(listening(table, 7471), None);
        assert_eq!(listening("garbage\nmore", 1), None);
    }
}
