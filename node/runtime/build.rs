//! Builds the launcher: a static program that the crate carries inside it.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=launch/main.rs");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let to = Path::new(&variable("OUT_DIR")).join("launch");
    // Naming the target keeps the flag from build scripts' own settings and makes the linker honour it.
    let target = format!("{}-unknown-linux-gnu", variable("CARGO_CFG_TARGET_ARCH"));
    let flags = ["target-feature=+crt-static", "opt-level=s", "panic=abort", "strip=symbols", "lto=fat", "codegen-units=1"];
    let status = Command::new(variable("RUSTC"))
        .args(["--edition", "2024", "--target", &target])
        .args(flags.iter().flat_map(|flag| ["-C", flag]))
        .args(["launch/main.rs", "-o"])
        .arg(&to)
        .status()
        .expect("rustc runs");
    assert!(status.success(), "the launcher does not build: is the static C library there (package libc6-dev)?");
    let size = fs::metadata(&to).map_or(0, |file| file.len());
    assert!(size > 0, "the launcher is empty");
}
