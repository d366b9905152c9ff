//! GPUs that are asked for, held against those that the cluster has: what can never be had is refused at once.

use prost::Message as _;
use prost::bytes::Bytes;
use shoal_gpu::{Kind, Request};
use shoal_proto::modal_client as pb;
use shoal_scheduler::{gpu_words, gpus_there};
use shoal_state::State;

use super::error::Error;

/// Refuses a GPU that no node has; `what` asks for it.
pub(crate) fn check(state: &State, what: &str, gpu: Option<&pb::GpuConfig>) -> Result<(), Error> {
    let asked = request(gpu);
    if can(state, &asked) { Ok(()) } else { Err(refuse(state, what, &[asked])) }
}

/// Picks the first of the choices of function `name` that the cluster has the GPUs for; there must be one. With it come the choices
/// that there are, the best first.
pub(super) fn choose(state: &State, name: &str, choices: Vec<(Bytes, pb::Function)>) -> Result<(Bytes, pb::Function), Error> {
    let asked: Vec<pb::GpuConfig> = choices.iter().map(|(_, view)| gpu_of(view).cloned().unwrap_or_default()).collect();
    let first = choices.iter().position(|(_, view)| can(state, &request(gpu_of(view))));
    let Some((bytes, view)) = first.and_then(|first| choices.into_iter().nth(first)) else {
        let asked: Vec<Request> = asked.iter().map(|gpu| request(Some(gpu))).collect();
        return Err(if asked.is_empty() {
            Error::Invalid("FunctionCreate names no function".to_owned())
        } else {
            refuse(state, &format!("function '{name}'"), &asked)
        });
    };
    if asked.len() < 2 {
        return Ok((bytes, view));
    }
    // The others go with it: which of them is taken is decided anew for each container.
    let all = Choices { choices: asked }.encode_to_vec();
    Ok(([&bytes[..], &all].concat().into(), view))
}

/// What stands behind the definition of a function that has several choices. Clients overlook it: the wire has no field of this number.
#[derive(Clone, PartialEq, prost::Message)]
struct Choices {
    #[prost(message, repeated, tag = "100001")]
    choices: Vec<pb::GpuConfig>,
}

/// Reads which GPUs a function accepts, the best first; nothing where it asks for none.
pub(crate) fn choices(definition: &[u8], view: &pb::Function) -> Vec<Request> {
    let own = gpu_of(view);
    let all = Choices::decode(definition).unwrap_or_default().choices;
    // Options of a function that was bound from this one may ask for another.
    if own.is_some_and(|own| all.contains(own)) || (own.is_none() && all.iter().any(|gpu| gpu.count == 0)) {
        return all.iter().map(|gpu| request(Some(gpu))).collect();
    }
    own.map(|own| vec![request(Some(own))]).unwrap_or_default()
}

fn gpu_of(view: &pb::Function) -> Option<&pb::GpuConfig> {
    view.resources.as_ref()?.gpu_config.as_ref().filter(|gpu| gpu.count > 0)
}

/// Reads one choice; older clients name a kind by a number.
fn request(gpu: Option<&pb::GpuConfig>) -> Request {
    let Some(gpu) = gpu.filter(|gpu| gpu.count > 0) else { return Request::new("", 0) };
    let old = || gpu.r#type().as_str_name().trim_start_matches("GPU_TYPE_").replace('_', "-");
    let name = if gpu.gpu_type.is_empty() && gpu.r#type() != pb::GpuType::Unspecified { old() } else { gpu.gpu_type.clone() };
    Request::new(&name, gpu.count)
}

/// Says whether a node has what is asked for.
fn can(state: &State, asked: &Request) -> bool {
    let kinds = |kinds: &Vec<String>| kinds.iter().map(|kind| Kind::new(kind)).collect::<Vec<_>>();
    asked.count == 0 || state.gpus.values().any(|node| shoal_gpu::fits(std::slice::from_ref(asked), &kinds(node)))
}

fn refuse(state: &State, what: &str, asked: &[Request]) -> Error {
    let there = match state.gpus.is_empty() {
        true => "this cluster has no GPU: leave gpu= out".to_owned(),
        false => format!("no node of this cluster has that; there are {}: ask for one of these", gpus_there(state)),
    };
    Error::Invalid(format!(
        "{what} asks for {}, and {there}, or run it on a cluster that has one (`shoal node list` shows what nodes have)",
        gpu_words(asked)
    ))
}

#[cfg(test)]
mod tests {
    use shoal_state::NodeId;

    use super::*;

    fn cluster(nodes: &[&[&str]]) -> State {
        let mut state = State::default();
        for (number, kinds) in nodes.iter().enumerate().filter(|(_, kinds)| !kinds.is_empty()) {
            state.gpus.insert(NodeId::from_random(number as u128), kinds.iter().map(|kind| (*kind).to_owned()).collect());
        }
        state
    }

    fn gpu(name: &str, count: u32) -> pb::GpuConfig {
        pb::GpuConfig { gpu_type: name.to_owned(), count, ..Default::default() }
    }

    fn function(gpu_config: Option<pb::GpuConfig>) -> pb::Function {
        let resources = Some(pb::Resources { gpu_config, ..Default::default() });
        pb::Function { function_name: "train".to_owned(), resources, ..Default::default() }
    }

    fn chosen(state: &State, choices: &[Option<(&str, u32)>]) -> Result<pb::Function, String> {
        let choices = choices.iter().map(|choice| {
            let view = function(choice.map(|(name, count)| gpu(name, count)));
            (view.encode_to_vec().into(), view)
        });
        choose(state, "train", choices.collect()).map(|(_, view)| view).map_err(|error| error.to_string())
    }

    #[test]
    fn a_gpu_that_no_node_has_is_refused_with_what_there_is() {
        let said = chosen(&cluster(&[&[]]), &[Some(("H100", 1))]).unwrap_err();
        assert!(said.starts_with("function 'train' asks for gpu=\"H100\", and this cluster has no GPU: leave gpu= out"), "{said}");
        let two = cluster(&[&["A100-40GB"], &["A100-80GB", "A100-80GB"]]);
        let said = chosen(&two, &[Some(("A100", 3)), Some(("H100!", 1))]).unwrap_err();
        assert!(said.contains("gpu=\"A100:3\" or \"H100!\", and no node") && said.contains("there are A100-40GB, A100-80GB:2"), "{said}");
        assert!(chosen(&two, &[Some(("A100", 2))]).is_ok());
    }

    #[test]
    fn the_first_choice_that_can_be_had_is_taken_and_the_others_go_with_it() {
        let wanted = [Some(("H100", 8)), Some(("A100", 1)), None];
        let has = |state: &State| gpu_of(&chosen(state, &wanted).unwrap()).map(|gpu| gpu.gpu_type.clone());
        assert_eq!(has(&cluster(&[&["H100"; 8]])), Some("H100".to_owned()));
        assert_eq!(has(&cluster(&[&["A100-80GB"]])), Some("A100".to_owned()));
        assert_eq!(has(&cluster(&[])), None);
        let views = wanted.iter().map(|choice| function(choice.map(|(name, count)| gpu(name, count))));
        let all = views.map(|view| (view.encode_to_vec().into(), view)).collect();
        let (bytes, view) = choose(&cluster(&[&["A100-80GB"]]), "train", all).unwrap();
        let told: Vec<String> = choices(&bytes, &view).iter().map(|choice| format!("{choice}")).collect();
        assert_eq!(told, ["H100:8", "A100", "any:0"]);
        let other = [&bytes[..], &function(Some(gpu("L4", 1))).encode_to_vec()].concat();
        let view = pb::Function::decode(&other[..]).unwrap();
        assert_eq!(choices(&other, &view), [Request::new("L4", 1)], "an option of a bound function");
    }

    #[test]
    fn what_asks_for_none_needs_none() {
        assert!(check(&cluster(&[]), "an image", None).is_ok());
        assert!(check(&cluster(&[]), "an image", Some(&gpu("", 0))).is_ok());
        assert!(check(&cluster(&[]), "an image", Some(&gpu("T4", 1))).is_err());
        let old = pb::GpuConfig { r#type: pb::GpuType::A10080gb.into(), count: 1, ..Default::default() };
        assert_eq!(request(Some(&old)), Request::new("A100-80GB", 1));
    }
}
