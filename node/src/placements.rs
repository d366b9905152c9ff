//! Where functions may run, read out of their definitions for the scheduler.
//!
//! Definitions never change and are named by their content, so what was read of one is kept for as long as a function has it. A leader
//! reads what it has not read yet before it plans.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_scheduler::{Load, Placement};
use shoal_state::model::{Definition, Function};
use shoal_state::{FunctionId, State};

use crate::api::{Api, function, gpu};

/// How long a round waits for definitions that must come from another node. What has not come then is tried again.
const READ_WAIT: Duration = Duration::from_secs(1);
/// How many are read at a time.
const READ_AT_ONCE: usize = 64;

/// What was read of a function's definition.
#[derive(Debug, Clone)]
struct Read {
    definition: Definition,
    placement: Placement,
}

/// Where functions may run. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Placements(Arc<Mutex<HashMap<FunctionId, Read>>>);

impl Placements {
    /// Adds to what is known of the work where its functions may run; reads what was not read yet.
    pub(crate) async fn add_to(&self, api: &Api, state: &State, load: &mut Load) {
        let unread: Vec<_> = {
            let mut read = self.0.lock();
            read.retain(|id, _| state.functions.contains_key(id));
            let is_unread =
                |(id, function): &(&FunctionId, &Function)| read.get(id).is_none_or(|read| read.definition != function.definition);
            state.functions.iter().filter(is_unread).map(|(id, function)| (*id, function.clone())).collect()
        };
        for some in unread.chunks(READ_AT_ONCE) {
            let looks = some.iter().map(|(id, function)| async move {
                match tokio::time::timeout(READ_WAIT, function::definition(api, *id, function)).await {
                    Ok(Ok(bytes)) => Some((*id, Read { definition: function.definition.clone(), placement: read(&bytes) })),
                    Ok(Err(error)) => {
                        tracing::warn!(function = %id, %error, "cannot read where a function may run");
                        None
                    }
                    Err(_) => None,
                }
            });
            let done = join_all(looks).await;
            self.0.lock().extend(done.into_iter().flatten());
        }
        let read = self.0.lock();
        load.unread = state.functions.keys().copied().filter(|id| !read.contains_key(id)).collect();
        let asks = read.iter().filter(|(_, read)| !read.placement.is_any());
        load.placements = asks.map(|(id, read)| (*id, read.placement.clone())).collect();
    }
}

/// Finds in a definition where its function may run. One that cannot be read asks for nothing: its containers will say so.
fn read(definition: &[u8]) -> Placement {
    pb::Function::decode(definition).map(|function| of(definition, &function)).unwrap_or_default()
}

/// Returns where a function may run.
pub(crate) fn of(definition: &[u8], function: &pb::Function) -> Placement {
    let placement = function.scheduler_placement.clone().unwrap_or_default();
    let old = match function.cloud_provider() {
        pb::CloudProvider::Aws => "aws",
        pb::CloudProvider::Gcp => "gcp",
        pb::CloudProvider::Oci => "oci",
        pb::CloudProvider::Unspecified | pb::CloudProvider::Auto => "",
    };
    let cloud = if function.cloud_provider_str.is_empty() { old } else { function.cloud_provider_str.as_str() };
    Placement {
        regions: placement.regions,
        cloud: (!cloud.is_empty() && cloud != "auto").then(|| cloud.to_owned()),
        gpus: gpu::choices(definition, function),
        gang: (function.experimental_group_size > 0).then_some(function.experimental_group_size),
        nonpreemptible: placement.nonpreemptible || placement.lifecycle.as_deref() == Some("on-demand"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_ways_to_name_a_cloud_are_read() {
        let named = |cloud: pb::CloudProvider, text: &str| {
            let function = pb::Function { cloud_provider: Some(cloud.into()), cloud_provider_str: text.to_owned(), ..Default::default() };
            of(&[], &function).cloud
        };
        assert_eq!(named(pb::CloudProvider::Gcp, ""), Some("gcp".to_owned()));
        assert_eq!(named(pb::CloudProvider::Gcp, "house"), Some("house".to_owned()));
        assert_eq!(named(pb::CloudProvider::Auto, ""), None);
        assert_eq!(named(pb::CloudProvider::Unspecified, "auto"), None);
    }

    #[test]
    fn regions_are_read_from_the_bytes_of_a_definition() {
        let placement = pb::SchedulerPlacement { regions: vec!["eu".to_owned()], nonpreemptible: true, ..Default::default() };
        let function = pb::Function { scheduler_placement: Some(placement), ..Default::default() };
        let found = read(&function.encode_to_vec());
        assert_eq!((found.regions, found.nonpreemptible), (vec!["eu".to_owned()], true));
        assert!(read(b"\xff\xff").is_any());
    }
}
