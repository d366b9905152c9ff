//! Our schema against the pinned client: `tests/subset.py` compares them, here it is run.
//!
//! It needs a Python that has the client; `SHOAL_CLIENT_PYTHON` names it. Without one these tests skip.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::process::{Command, Output};

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, MethodDescriptorProto};
use shoal_proto::DESCRIPTOR_SET;

/// Returns the Python that has the client, or says why the test skips.
fn client_python() -> Option<OsString> {
    let python = env::var_os("SHOAL_CLIENT_PYTHON");
    if python.is_none() {
        eprintln!("skipped: SHOAL_CLIENT_PYTHON names no Python with the pinned client");
    }
    python
}

fn compare(python: &OsString, descriptors: &[u8]) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("descriptors.bin");
    fs::write(&file, descriptors).expect("descriptors are written");
    Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/subset.py"))
        .arg("check")
        .arg(&file)
        .output()
        .expect("the client's Python runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What we declare, with ways to spoil it.
struct Doctored(FileDescriptorSet);

impl Doctored {
    fn message(&mut self, name: &str) -> &mut DescriptorProto {
        let all = self.0.file.iter_mut().flat_map(|file| &mut file.message_type);
        all.into_iter().find(|message| message.name() == name).expect("a message of ours")
    }

    fn field(&mut self, message: &str, name: &str) -> &mut FieldDescriptorProto {
        let fields = &mut self.message(message).field;
        fields.iter_mut().find(|field| field.name() == name).expect("a field of ours")
    }

    fn r#enum(&mut self, name: &str) -> &mut EnumDescriptorProto {
        let all = self.0.file.iter_mut().flat_map(|file| &mut file.enum_type);
        all.into_iter().find(|found| found.name() == name).expect("an enum of ours")
    }

    fn method(&mut self, name: &str) -> &mut MethodDescriptorProto {
        let services = self.0.file.iter_mut().flat_map(|file| &mut file.service);
        services.flat_map(|service| &mut service.method).find(|method| method.name() == name).expect("an RPC of ours")
    }
}

#[test]
fn our_schema_is_a_subset_of_the_pinned_clients() {
    let Some(python) = client_python() else { return };
    let output = compare(&python, DESCRIPTOR_SET);
    println!("{}", text(&output).trim_end());
    assert!(output.status.success(), "{}", text(&output));
}

/// One fault each: the comparison must fail and name what is wrong.
#[test]
fn a_wrong_schema_is_found_out() {
    type Spoil = fn(&mut Doctored);
    let faults: &[(&str, Spoil)] = &[
        ("field modal.client.TaskLogs.timestamp_ns: ours is (13,", |d| {
            d.message("TaskLogs").field.retain(|field| field.number() != 13);
            d.field("TaskLogs", "timestamp_ns").number = Some(13);
        }),
        ("field modal.client.BlobGetRequest.blob_id: ours is (1, 'plain', 'bytes'", |d| {
            d.field("BlobGetRequest", "blob_id").set_type(Type::Bytes);
        }),
        ("field modal.client.AppLifecycle.version: ours is (6, 'repeated'", |d| {
            d.field("AppLifecycle", "version").set_label(Label::Repeated);
        }),
        ("field modal.client.FunctionCreateRequest.function: ours is (1, 'oneof _function', 'bytes'", |d| {
            d.field("FunctionCreateRequest", "function").proto3_optional = None;
        }),
        ("field modal.client.Image.arch: missing in ours", |d| {
            d.message("Image").field.retain(|field| field.name() != "arch");
        }),
        ("field modal.client.AppHeartbeatRequest.pulse: the client has none", |d| {
            let mut field = d.field("AppHeartbeatRequest", "app_id").clone();
            field.name = Some("pulse".to_owned());
            d.message("AppHeartbeatRequest").field.push(field);
        }),
        ("bytes-fields.txt: modal.client.BuildFunction.input is in no message of ours", |d| {
            for file in &mut d.0.file {
                file.message_type.retain(|message| message.name() != "BuildFunction");
            }
        }),
        ("value of modal.client.AppState APP_STATE_STOPPED: ours is 50", |d| {
            let values = &mut d.r#enum("AppState").value;
            values.iter_mut().find(|value| value.name() == "APP_STATE_STOPPED").expect("a value").number = Some(50);
        }),
        ("rpc /modal.client.ModalClient/AppGetLogs: ours is (modal.client.AppGetLogsRequest) -> modal", |d| {
            d.method("AppGetLogs").server_streaming = None;
        }),
        ("rpc /modal.client.ModalClient/TaskReboot: the client has none", |d| {
            d.method("TaskResult").name = Some("TaskReboot".to_owned());
        }),
    ];

    let Some(python) = client_python() else { return };
    for (complaint, spoil) in faults {
        let mut doctored = Doctored(FileDescriptorSet::decode(DESCRIPTOR_SET).expect("our descriptors decode"));
        spoil(&mut doctored);
        let output = compare(&python, &doctored.0.encode_to_vec());
        assert!(!output.status.success(), "not noticed: {complaint}");
        assert!(text(&output).contains(complaint), "expected {complaint:?} in:\n{}", text(&output));
    }
}
