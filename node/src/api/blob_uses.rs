//! Which calls name which blobs: a blob stays for as long as a call is kept that names it.
//!
//! Arguments and results that are too long for a message are blobs, and the message names them. Noted when the message comes,
//! and on disk before the message counts.

use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_state::{BlobId, CallId, InputId};

use super::error::Error;
use super::{Api, blocking};

/// An input that names a blob is shorter, in bytes: a longer one holds its arguments itself.
const NAMING_BYTES_MAX: usize = 1024;

/// Returns the blobs that inputs name instead of holding their arguments.
fn named(items: &[pb::FunctionPutInputsItem]) -> Vec<BlobId> {
    let prefix = BlobId::PREFIX.as_bytes();
    let one = |item: &pb::FunctionPutInputsItem| {
        let bytes = item.input.as_ref().filter(|bytes| bytes.len() <= NAMING_BYTES_MAX)?;
        // Most inputs name none: only those that look so are decoded.
        bytes.windows(prefix.len()).any(|window| window == prefix).then_some(())?;
        match pb::FunctionInput::decode(bytes.clone()).ok()?.args_oneof? {
            pb::function_input::ArgsOneof::ArgsBlobId(id) => id.parse().ok(),
            pb::function_input::ArgsOneof::Args(_) => None,
        }
    };
    items.iter().filter_map(one).collect()
}

/// Notes which blobs the inputs of a call name.
pub(super) async fn note_inputs(api: &Api, call: CallId, items: &[pb::FunctionPutInputsItem]) -> Result<(), Error> {
    note(api, call, named(items)).await
}

/// Notes which blob the result of an input names, if it names one.
pub(super) async fn note_result(api: &Api, input: InputId, result: &pb::GenericResult) -> Result<(), Error> {
    let Some(pb::generic_result::DataOneof::DataBlobId(id)) = &result.data_oneof else { return Ok(()) };
    // An input that is not known has no reader.
    let (Ok(blob), Ok(info)) = (id.parse(), api.calls.call_of(input).await) else { return Ok(()) };
    note(api, info.open.call, vec![blob]).await
}

async fn note(api: &Api, call: CallId, named: Vec<BlobId>) -> Result<(), Error> {
    if named.is_empty() {
        return Ok(());
    }
    let blobs = api.blobs.clone();
    blocking(move || blobs.name(&named, call)).await.map_err(Error::failed("cannot note which blobs a call names"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_inputs_that_name_a_blob_are_found() {
        let item = |input: pb::FunctionInput| pb::FunctionPutInputsItem { input: Some(input.encode_to_vec().into()), ..Default::default() };
        let blob = BlobId::from_random(7);
        let args = |args| pb::FunctionInput { args_oneof: Some(args), ..Default::default() };
        let items = [
            item(args(pb::function_input::ArgsOneof::Args(b"bl-looks like one".to_vec().into()))),
            item(args(pb::function_input::ArgsOneof::ArgsBlobId(blob.to_string()))),
            item(pb::FunctionInput::default()),
            pb::FunctionPutInputsItem::default(),
        ];
        assert_eq!(named(&items), [blob]);
    }
}
