//! The wire that Shoal's clients speak: hand-written `.proto` files, one a noun, and the code generated from them.
//!
//! - [`modal_client`] has every message and enum, the server trait
//!   [`modal_client::modal_client_server::ModalClient`] and a client. A method of the trait that is not implemented
//!   answers UNIMPLEMENTED.
//! - [`methods`] tells a served RPC from one that clients know and Shoal lacks, and from one that nobody knows.
//! - [`DESCRIPTOR_SET`] holds the descriptors of it all.
//!
//! # Bytes that pass through
//!
//! The generated code forgets fields that it does not know, and clients newer than this crate send such fields. So
//! whatever is stored and handed on (a function's definition, arguments, results) is declared as `bytes` in the
//! messages that carry it, which is the same on the wire. To look inside, decode the view, a message of the same
//! name that is declared whole:
//!
//! ```
//! use prost::Message as _;
//! use shoal_proto::modal_client::{Function, FunctionCreateRequest};
//!
//! let request = FunctionCreateRequest { function: Some(Function::default().encode_to_vec().into()), ..Default::default() };
//! let view = Function::decode(request.function.clone().unwrap_or_default())?;
//! assert_eq!(view.module_name, "");
//! # Ok::<(), prost::DecodeError>(())
//! ```
//!
//! `bytes-fields.txt` lists all such fields. To change a few fields of bytes that pass through, append the encoding of
//! a view with only these fields set: a decoder takes the last value of a field. That way lists grow, messages are
//! merged, and nothing can be set to zero, since zeros are not encoded.
//!
//! # Caveats
//!
//! Decoding keeps the numbers of unknown enum values, but the generated getters answer the first value for them.
//! A message that is decoded and encoded again loses fields this crate does not declare.

pub mod methods;

/// Types and services of the package `modal.client`, by the names that its clients give them.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod modal_client {
    tonic::include_proto!("modal.client");
}

/// Types and the service of the package `modal.task_command_router`: the worker channel.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod task_command_router {
    tonic::include_proto!("modal.task_command_router");
}

// By this name the generated code of one package finds the types of the other.
use modal_client as client;

/// An encoded `google.protobuf.FileDescriptorSet` of everything declared here.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
