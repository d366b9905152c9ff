//! Files of containers whose bytes do not come: their users are told which chunk of which image, and who could not be asked for it.
//!
//! A sentence goes to what the container has printed, and to what `shoal explain` says of its task, while a read waits and when it has
//! failed. The node's own log has each read.

use std::collections::{BTreeSet, HashMap};

use shoal_fs::Trouble;
use shoal_state::{Digest, State, TaskId};
use shoal_storage::manifest::Path;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::api::Api;

/// How many reads may wait to be told of. Beyond it they are in the node's log alone.
const WAITING_MAX: usize = 256;
/// Of how many chunks the user of one task is told.
const CHUNKS_MAX: usize = 16;

/// Tells until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    let (tell, mut heard) = mpsc::channel(WAITING_MAX);
    api.roots.on_trouble(move |file, trouble| {
        let _dropped_when_full = tell.try_send((file, trouble));
    });
    let mut told: HashMap<TaskId, BTreeSet<(Digest, bool)>> = HashMap::new();
    loop {
        let (file, trouble) = tokio::select! {
            Some(next) = heard.recv() => next,
            () = stop.cancelled() => return,
        };
        let Some(worker) = api.worker.get() else { continue };
        let containers = worker.containers();
        let Some(task) = containers.iter().find(|one| one.readers.contains(&trouble.process)).map(|one| one.task) else { continue };
        told.retain(|known, _| containers.iter().any(|one| one.task == *known));
        let of_task = told.entry(task).or_default();
        if of_task.len() >= CHUNKS_MAX || !of_task.insert((trouble.chunk, trouble.failed)) {
            continue;
        }
        let sentence = sentence(&api.local(), task, file.as_ref(), &trouble);
        api.tasks.note(task, sentence.clone());
        worker.say(task, sentence).await;
    }
}

/// Says what a read of a task's file waits for, or why it failed.
fn sentence(state: &State, task: TaskId, file: Option<&Path>, trouble: &Trouble) -> String {
    let file = file.map_or_else(|| "a file".to_owned(), Path::to_string);
    let function = state.tasks.get(&task).and_then(|task| state.functions.get(&task.function));
    let image = function.and_then(|function| function.image).map_or_else(String::new, |image| format!(" of image {image}"));
    // Who is to be looked after is known by name.
    let why = state.nodes.iter().fold(trouble.why.clone(), |why, (id, node)| why.replace(&id.to_string(), &node.name));
    let seconds = trouble.waited.as_secs_f32();
    let read = match trouble.failed {
        true => format!("reading {file} failed with an I/O error after {seconds:.1} s"),
        false => format!("reading {file} has taken {seconds:.1} s so far"),
    };
    format!("{read}: chunk {}{image} cannot be had: {why}", trouble.chunk)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_state::model::{Function, Node, Resources, Task};
    use shoal_state::{AppId, BootId, FunctionId, ImageId, NodeId, Timestamp};

    use super::*;

    #[test]
    fn the_sentence_names_file_chunk_image_and_who_could_not_be_asked() {
        let (app, function, image) = (AppId::from_random(1), FunctionId::from_random(2), ImageId::from_random(3));
        let (task, node, boot) = (TaskId::from_random(4), NodeId::from_random(5), BootId::from_random(6));
        let mut state = State::default();
        state.nodes.insert(node, Node::new("attic", boot, Resources::default(), Timestamp(0)));
        state.functions.insert(function, Function { image: Some(image), ..Function::new(app, "work", Timestamp(0)) });
        state.tasks.insert(task, Task::new((function, app), (node, boot), Timestamp(0)));
        let (chunk, file) = (Digest::of(b"lost"), Path::parse("/usr/lib/x.py").unwrap());
        let why = format!("node {node} does not answer");
        let mut trouble = Trouble { process: 7, chunk, why, waited: Duration::from_millis(3040), failed: false };
        let rest = format!("chunk {chunk} of image {image} cannot be had: node attic does not answer");
        let said = |trouble: &Trouble, file| sentence(&state, task, file, trouble);
        assert_eq!(said(&trouble, Some(&file)), format!("reading /usr/lib/x.py has taken 3.0 s so far: {rest}"));
        trouble.failed = true;
        assert_eq!(said(&trouble, None), format!("reading a file failed with an I/O error after 3.0 s: {rest}"));
    }
}
