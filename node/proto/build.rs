//! Compiles the .proto files of `schema/` with protox (no protoc needed) and generates types, server and client.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;
use prost_types::FileDescriptorSet;

const SCHEMA: &str = "schema";
const KNOWN: &str = "known-rpcs.txt";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={SCHEMA}");
    println!("cargo:rerun-if-changed={KNOWN}");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);

    let descriptors = protox::compile(proto_files(Path::new(SCHEMA))?, [SCHEMA])?;
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    fs::write(out_dir.join("methods.rs"), method_tables(&descriptors)?)?;

    tonic_prost_build::configure()
        .build_server(true)
        .build_client(true)
        // A method that the server does not implement yet answers UNIMPLEMENTED.
        .generate_default_stubs(true)
        // Payloads are slices of the received message, not copies.
        .bytes(".")
        // Maps are encoded in the order of their keys, so that equal messages have equal bytes.
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}

/// Lists the .proto files below `folder`, in order.
fn proto_files(folder: &Path) -> Result<BTreeSet<PathBuf>, Box<dyn Error>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.append(&mut proto_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.insert(path);
        }
    }
    Ok(found)
}

/// Writes the sorted paths of the declared and of the known methods as two constants.
fn method_tables(descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let known = fs::read_to_string(KNOWN)?;
    let known = known.lines().filter(|line| line.starts_with('/')).map(str::to_owned).collect();
    Ok(format!("{}{}", table("SERVED", &declared(descriptors)), table("KNOWN", &known)))
}

fn declared(descriptors: &FileDescriptorSet) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                paths.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    paths
}

fn table(name: &str, paths: &BTreeSet<String>) -> String {
    format!("const {name}: &[&str] = &{:#?};\n", paths.iter().collect::<Vec<_>>())
}
