//! Results as containers bring them, made to fit into a record.
//!
//! A value over 2 MiB comes as a blob, but the texts about an exception come as they are, and a message may have any
//! length. A container would send an output that is refused for ever, or end with it; so what is too long is shortened.

use prost::Message as _;
use shoal_calls::calls::PAYLOAD_BYTES_MAX;
use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::generic_result::GenericStatus;

/// How much is kept of the text of an exception, in bytes, when it is shortened. Its pickled form has all of it.
const EXCEPTION_BYTES_MAX: usize = 64 << 10;
/// How much is kept of a traceback, in bytes, when it is shortened.
const TRACEBACK_BYTES_MAX: usize = 256 << 10;

/// Encodes an output for its record.
pub(super) fn record(output: &pb::FunctionPutOutputsItem, result: &pb::GenericResult) -> bytes::Bytes {
    let whole = output.encode_to_vec();
    if whole.len() <= PAYLOAD_BYTES_MAX {
        return whole.into();
    }
    let with = |result: &pb::GenericResult| {
        pb::FunctionPutOutputsItem { result: Some(result.encode_to_vec().into()), ..output.clone() }.encode_to_vec()
    };
    let mut short = pb::GenericResult {
        exception: shortened(&result.exception, EXCEPTION_BYTES_MAX),
        traceback: shortened(&result.traceback, TRACEBACK_BYTES_MAX),
        ..result.clone()
    };
    let mut encoded = with(&short);
    if encoded.len() > PAYLOAD_BYTES_MAX {
        // What the client shows frames from; the text of the traceback remains.
        (short.serialized_tb, short.tb_line_cache) = Default::default();
        encoded = with(&short);
    }
    if encoded.len() > PAYLOAD_BYTES_MAX {
        let exception = format!("the result has {} bytes: more than {PAYLOAD_BYTES_MAX} must come as a blob", whole.len());
        encoded = with(&pb::GenericResult { status: GenericStatus::Failure.into(), exception, ..Default::default() });
    }
    encoded.into()
}

/// Cuts out the middle of a long text: how it begins and how it ends say the most.
fn shortened(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let head = (0..=bytes_max / 2).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let tail = (text.len() - bytes_max / 2..text.len()).find(|start| text.is_char_boundary(*start)).unwrap_or(text.len());
    format!("{}\n[… {} bytes left out …]\n{}", &text[..head], tail - head, &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(result: &pb::GenericResult) -> pb::GenericResult {
        let output = pb::FunctionPutOutputsItem { result: Some(result.encode_to_vec().into()), retry_count: 3, ..Default::default() };
        let bytes = record(&output, result);
        assert!(bytes.len() <= PAYLOAD_BYTES_MAX);
        let kept = pb::FunctionPutOutputsItem::decode(bytes).unwrap();
        assert_eq!(kept.retry_count, 3);
        pb::GenericResult::decode(kept.result.unwrap()).unwrap()
    }

    #[test]
    fn a_result_that_fits_is_kept_as_it_is() {
        let result = pb::GenericResult { exception: "x".repeat(1 << 20), traceback: "y".repeat(1 << 19), ..Default::default() };
        assert_eq!(recorded(&result), result);
    }

    #[test]
    fn long_texts_lose_their_middle_and_nothing_else() {
        let text = format!("begin {}é end", "é".repeat(3 << 20));
        let result = pb::GenericResult {
            status: GenericStatus::Failure.into(),
            exception: text.clone(),
            traceback: text,
            serialized_tb: b"frames".as_slice().into(),
            data_oneof: Some(pb::generic_result::DataOneof::DataBlobId("bl-1".to_owned())),
            ..Default::default()
        };
        let kept = recorded(&result);
        assert!(kept.exception.len() < EXCEPTION_BYTES_MAX + 100 && kept.traceback.len() < TRACEBACK_BYTES_MAX + 100);
        for text in [&kept.exception, &kept.traceback] {
            assert!(text.starts_with("begin é") && text.ends_with("é end") && text.contains("bytes left out"));
        }
        assert_eq!((kept.serialized_tb, kept.data_oneof), (result.serialized_tb, result.data_oneof));
    }

    #[test]
    fn frames_go_before_the_value_does() {
        let data = Some(pb::generic_result::DataOneof::Data(vec![1; 2 << 20].into()));
        let frames = pb::GenericResult { serialized_tb: vec![2; 1 << 20].into(), data_oneof: data.clone(), ..Default::default() };
        let kept = recorded(&frames);
        assert_eq!((kept.data_oneof, kept.serialized_tb.len()), (data, 0));
        let huge = pb::generic_result::DataOneof::Data(vec![1; 4 << 20].into());
        let kept = recorded(&pb::GenericResult { data_oneof: Some(huge), ..Default::default() });
        assert!(kept.exception.contains("must come as a blob"));
        assert_eq!(kept.status(), GenericStatus::Failure);
    }
}
