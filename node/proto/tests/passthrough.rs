//! What passes through the node keeps fields that our schema lacks, in the same bytes.

use bytes::Bytes;
use prost::Message;
use shoal_proto::modal_client::{
    AppPublishRequest, ContainerArguments, Function, FunctionCreateRequest, FunctionData, FunctionGetInputsItem, FunctionGetOutputsItem,
    FunctionGetResponse, FunctionInput, FunctionPutInputsItem, FunctionPutOutputsItem, GenericResult, TaskResultRequest,
    function_data::RankedFunction,
};

/// A field that no client has yet: number 9999, a string of three bytes.
const UNKNOWN_FIELD: &[u8] = &[0xfa, 0xf0, 0x04, 3, b'n', b'e', b'w'];

/// Encodes `message` as a newer client would, with a field that we do not know.
fn from_newer_client(message: &impl Message) -> Bytes {
    let mut bytes = message.encode_to_vec();
    bytes.extend_from_slice(UNKNOWN_FIELD);
    bytes.into()
}

/// Sends `message` over the wire: what the other side decodes.
fn over_the_wire<M: Message + Default>(message: &M) -> M {
    M::decode(Bytes::from(message.encode_to_vec())).expect("an encoded message decodes")
}

#[test]
fn a_view_alone_would_forget_the_field() {
    let bytes = from_newer_client(&Function::default());
    let view = Function::decode(bytes).expect("unknown fields are no error");
    assert!(view.encode_to_vec().is_empty());
}

#[test]
fn a_function_reaches_the_container_as_it_was_created() {
    let function = from_newer_client(&Function { module_name: "hello".to_owned(), timeout_secs: 300, ..Default::default() });
    let created = over_the_wire(&FunctionCreateRequest { function: Some(function.clone()), ..Default::default() });
    let view = Function::decode(created.function.clone().expect("a function")).expect("the view decodes");
    assert_eq!((view.module_name.as_str(), view.timeout_secs), ("hello", 300));

    let arguments = over_the_wire(&ContainerArguments { function_def: created.function, ..Default::default() });
    assert_eq!(arguments.function_def, Some(function));
}

#[test]
fn each_gpu_choice_comes_back_as_it_was_created() {
    let choice = from_newer_client(&Function::default());
    let ranked_functions = vec![RankedFunction { rank: 0, function: Some(choice.clone()) }];
    let data = from_newer_client(&FunctionData { ranked_functions, ..Default::default() });
    let created = over_the_wire(&FunctionCreateRequest { function_data: Some(data.clone()), ..Default::default() });
    let view = FunctionData::decode(created.function_data.clone().expect("data")).expect("the view decodes");
    assert_eq!(view.ranked_functions[0].function, Some(choice));

    let found = over_the_wire(&FunctionGetResponse { function: created.function_data, ..Default::default() });
    assert_eq!(found.function, Some(data));
}

/// The way to change received bytes that the crate's page promises.
#[test]
fn appended_fields_override_and_the_rest_stays() {
    let received = from_newer_client(&Function { module_name: "hello".to_owned(), timeout_secs: 300, ..Default::default() });
    let mut changed = received.to_vec();
    Function { timeout_secs: 7, ..Default::default() }.encode(&mut changed).expect("a vector grows");
    let view = Function::decode(changed.as_slice()).expect("it decodes");
    assert_eq!((view.module_name.as_str(), view.timeout_secs), ("hello", 7));
    assert!(changed.starts_with(&received));
}

#[test]
fn arguments_and_results_pass_both_ways() {
    let input = from_newer_client(&FunctionInput { final_input: true, ..Default::default() });
    let put = over_the_wire(&FunctionPutInputsItem { input: Some(input.clone()), ..Default::default() });
    let got = over_the_wire(&FunctionGetInputsItem { input: put.input, ..Default::default() });
    assert_eq!(got.input, Some(input));

    let result = from_newer_client(&GenericResult { exception: "no".to_owned(), ..Default::default() });
    let put = over_the_wire(&FunctionPutOutputsItem { result: Some(result.clone()), ..Default::default() });
    let got = over_the_wire(&FunctionGetOutputsItem { result: put.result, ..Default::default() });
    assert_eq!(got.result.as_ref(), Some(&result));

    let failed = over_the_wire(&TaskResultRequest { result: Some(result.clone()), ..Default::default() });
    let got = over_the_wire(&FunctionGetOutputsItem { result: failed.result, ..Default::default() });
    assert_eq!(got.result, Some(result));
}

/// Ids derive from encodings, so equal maps must give equal bytes whatever the order they were filled in.
#[test]
fn equal_messages_have_equal_bytes() {
    let with_tags =
        |keys: [&str; 4]| AppPublishRequest { tags: keys.map(|key| (key.to_owned(), String::new())).into(), ..Default::default() };
    let one = with_tags(["a", "b", "c", "d"]).encode_to_vec();
    assert_eq!(one, with_tags(["d", "b", "a", "c"]).encode_to_vec());
}

/// Payloads may reach 2 MiB inline: they are slices of the request, not copies.
#[test]
fn payloads_are_not_copied() {
    let input = FunctionInput { final_input: true, method_name: Some("m".repeat(4096)), ..Default::default() };
    let request = FunctionPutInputsItem { input: Some(input.encode_to_vec().into()), ..Default::default() };
    let wire = Bytes::from(request.encode_to_vec());
    let payload = FunctionPutInputsItem::decode(wire.clone()).expect("it decodes").input.expect("an input");
    assert!(wire.as_ptr_range().contains(&payload.as_ptr()));
}
