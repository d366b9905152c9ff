//! GPUs that are asked for, held against those that the cluster has: what can never be had is refused at once.

use shoal_proto::modal_client as pb;
use shoal_state::State;

use super::error::Error;

/// Refuses a GPU that no node has; `what` asks for it.
pub(crate) fn check(state: &State, what: &str, gpu: Option<&pb::GpuConfig>) -> Result<(), Error> {
    match gpu.filter(|gpu| gpu.count > 0) {
        Some(gpu) if gpu.count > most(state) => Err(refuse(state, what, &[gpu])),
        _ => Ok(()),
    }
}

/// Picks the first of the choices of function `name` that the cluster has the GPUs for. There must be one.
pub(super) fn choose<T>(state: &State, name: &str, choices: Vec<(T, pb::Function)>) -> Result<(T, pb::Function), Error> {
    let asks = |view: &pb::Function| gpu_of(view).map_or(0, |gpu| gpu.count);
    match choices.iter().position(|(_, view)| asks(view) <= most(state)) {
        Some(first) => choices.into_iter().nth(first).ok_or_else(|| Error::Invalid("FunctionCreate names no function".to_owned())),
        None => {
            let gpus: Vec<_> = choices.iter().filter_map(|(_, view)| gpu_of(view)).collect();
            Err(if gpus.is_empty() {
                Error::Invalid("FunctionCreate names no function".to_owned())
            } else {
                refuse(state, &format!("function '{name}'"), &gpus)
            })
        }
    }
}

fn gpu_of(view: &pb::Function) -> Option<&pb::GpuConfig> {
    view.resources.as_ref()?.gpu_config.as_ref().filter(|gpu| gpu.count > 0)
}

/// Returns how many GPUs the node with the most of them has.
fn most(state: &State) -> u32 {
    state.nodes.values().map(|node| node.capacity.gpus).max().unwrap_or(0)
}

fn refuse(state: &State, what: &str, gpus: &[&pb::GpuConfig]) -> Error {
    let mut wanted: Vec<String> = gpus.iter().map(|gpu| named(gpu)).collect();
    wanted.dedup();
    let there = match most(state) {
        0 => "this cluster has no GPU".to_owned(),
        most => format!("no node of this cluster has more than {most}"),
    };
    Error::Invalid(format!(
        "{what} asks for gpu={}, and {there}: leave gpu= out, or run it on a cluster that has one (`shoal node list` shows what nodes have)",
        wanted.join(" or ")
    ))
}

/// Writes a GPU as a program does: `"H100"`, `"A100:4"`.
fn named(gpu: &pb::GpuConfig) -> String {
    let name = if gpu.gpu_type.is_empty() { "any" } else { gpu.gpu_type.as_str() };
    if gpu.count == 1 { format!("{name:?}") } else { format!("\"{name}:{}\"", gpu.count) }
}

#[cfg(test)]
mod tests {
    use shoal_state::model::{Node, Resources};
    use shoal_state::{BootId, NodeId, Timestamp};

    use super::*;

    fn cluster(gpus: &[u32]) -> State {
        let mut state = State::default();
        for (number, gpus) in gpus.iter().enumerate() {
            let capacity = Resources { gpus: *gpus, ..Resources::default() };
            let node = Node::new("", BootId::from_random(1), capacity, Timestamp(0));
            state.nodes.insert(NodeId::from_random(number as u128), node);
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

    #[test]
    fn a_gpu_that_no_node_has_is_refused_by_name() {
        let said = choose(&cluster(&[0]), "train", vec![((), function(Some(gpu("H100", 1))))]).unwrap_err().to_string();
        assert!(said.starts_with("function 'train' asks for gpu=\"H100\", and this cluster has no GPU: leave gpu= out"), "{said}");
        let said = choose(&cluster(&[1, 2]), "train", vec![((), function(Some(gpu("A100", 4))))]).unwrap_err().to_string();
        assert!(said.contains("gpu=\"A100:4\"") && said.contains("more than 2"), "{said}");
        assert!(choose(&cluster(&[1, 2]), "train", vec![((), function(Some(gpu("A100", 2))))]).is_ok());
    }

    #[test]
    fn the_first_choice_that_can_be_had_is_taken() {
        let choices = || vec![(1, function(Some(gpu("H100", 8)))), (2, function(Some(gpu("A100", 1)))), (3, function(None))];
        assert_eq!(choose(&cluster(&[8]), "train", choices()).unwrap().0, 1);
        assert_eq!(choose(&cluster(&[2]), "train", choices()).unwrap().0, 2);
        assert_eq!(choose(&cluster(&[0]), "train", choices()).unwrap().0, 3);
        let said = choose(&cluster(&[0]), "train", choices()[..2].to_vec()).unwrap_err().to_string();
        assert!(said.contains("gpu=\"H100:8\" or \"A100\""), "{said}");
    }

    #[test]
    fn what_asks_for_none_needs_none() {
        assert!(check(&cluster(&[]), "an image", None).is_ok());
        assert!(check(&cluster(&[]), "an image", Some(&gpu("", 0))).is_ok());
        assert!(check(&cluster(&[0]), "an image", Some(&gpu("T4", 1))).is_err());
    }
}
