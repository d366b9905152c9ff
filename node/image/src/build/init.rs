//! The first process of a build container: a program that does nothing.
//!
//! A container lives as long as its first process, and a build runs many commands in one container. Images bring no
//! program that can be relied on (an empty image brings none at all), so we bring one: some fifty bytes of machine code
//! in an ELF file, without a libc, on any x86-64 Linux.
//!
//! It ignores SIGCHLD, so that orphans vanish when they end, and waits for ever.

/// Where the program is loaded.
const BASE: u32 = 0x0040_0000;
/// The ELF header and its one program header.
const HEADERS_BYTES: u32 = 64 + 56;

/// Returns the program file.
pub(super) fn program() -> Vec<u8> {
    let code = code(BASE + HEADERS_BYTES + CODE_BYTES);
    let size = u64::from(HEADERS_BYTES) + code.len() as u64 + SIGACTION.len() as u64;
    [&elf_header()[..], &program_header(size), &code, &SIGACTION].concat()
}

/// `struct sigaction` of the kernel: handler SIG_IGN, no flags, no restorer, an empty mask.
const SIGACTION: [u8; 32] = {
    let mut bytes = [0; 32];
    bytes[0] = 1;
    bytes
};

const CODE_BYTES: u32 = 34;

/// The instructions; `action` is the address of [`SIGACTION`].
fn code(action: u32) -> Vec<u8> {
    let mut code = Vec::new();
    // rt_sigaction(SIGCHLD, action, NULL, 8)
    code.extend([0xb8, 13, 0, 0, 0]); // mov eax, 13
    code.extend([0xbf, 17, 0, 0, 0]); // mov edi, 17
    code.push(0xbe); // mov esi, action
    code.extend(action.to_le_bytes());
    code.extend([0x31, 0xd2]); // xor edx, edx
    code.extend([0x41, 0xba, 8, 0, 0, 0]); // mov r10d, 8
    code.extend([0x0f, 0x05]); // syscall
    // pause(), again and again
    code.extend([0xb8, 34, 0, 0, 0]); // mov eax, 34
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xeb, 0xf7]); // jmp to the mov
    debug_assert_eq!(code.len(), CODE_BYTES as usize);
    code
}

fn elf_header() -> Vec<u8> {
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header.extend(2u16.to_le_bytes()); // an executable
    header.extend(62u16.to_le_bytes()); // for x86-64
    header.extend(1u32.to_le_bytes());
    header.extend(u64::from(BASE + HEADERS_BYTES).to_le_bytes()); // where it starts
    header.extend(64u64.to_le_bytes()); // where the program header is
    header.extend(0u64.to_le_bytes()); // no sections
    header.extend(0u32.to_le_bytes());
    for size in [64u16, 56, 1, 64, 0, 0] {
        header.extend(size.to_le_bytes());
    }
    header
}

/// One segment: the whole file, readable and executable.
fn program_header(size: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(1u32.to_le_bytes());
    header.extend(5u32.to_le_bytes());
    for value in [0, u64::from(BASE), u64::from(BASE), size, size, 0x1000] {
        header.extend(value.to_le_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::time::{Duration, Instant};

    #[test]
    fn it_runs_waits_and_dies_of_a_signal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("init");
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        // It may have been started with other signals ignored.
        let ignores_child = |status: &str| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
            u64::from_str_radix(mask, 16).unwrap() & (1 << 16) != 0
        };
        let status = || std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        while !(ignores_child(&status()) && status().contains("State:\tS")) {
            assert!(Instant::now() < deadline, "it never got to wait: {}", status());
            std::thread::yield_now();
        }
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
