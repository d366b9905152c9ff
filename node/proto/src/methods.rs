//! Which RPCs are served, and which ones clients know all the same.
//!
//! The server answers an RPC that it does not serve with a sentence, so it must tell one that a client can ask for
//! from a typing error. Paths are as HTTP/2 carries them: `/modal.client.ModalClient/AppCreate`.

include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// What Shoal knows of an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is declared in our schema: the generated server routes it.
    Served,
    /// The pinned client has it and Shoal does not serve it.
    Known,
    /// Neither the pinned client nor our schema has it.
    Unknown,
}

/// Returns the paths of all RPCs that our schema declares, sorted.
pub fn served_methods() -> &'static [&'static str] {
    SERVED
}

/// Returns the paths of all RPCs of the pinned client, sorted, served ones included.
pub fn known_methods() -> &'static [&'static str] {
    KNOWN
}

/// Returns the standing of the RPC at `path`.
pub fn standing(path: &str) -> Standing {
    if SERVED.binary_search(&path).is_ok() {
        Standing::Served
    } else if KNOWN.binary_search(&path).is_ok() {
        Standing::Known
    } else {
        Standing::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rpc_is_served_known_or_unknown() {
        assert_eq!(standing("/modal.client.ModalClient/AppCreate"), Standing::Served);
        assert_eq!(standing("/modal.client.ModalClient/VolumeGetOrCreate"), Standing::Known);
        assert_eq!(standing("/modal.task_command_router.TaskCommandRouter/TaskExecStart"), Standing::Served);
        assert_eq!(standing("/modal.task_command_router.TaskCommandRouter/TaskMountDirectory"), Standing::Known);
        assert_eq!(standing("/modal.client.ModalClient/AppCraete"), Standing::Unknown);
        assert_eq!(standing(""), Standing::Unknown);
    }

    #[test]
    fn what_is_served_is_known() {
        let strange: Vec<_> = served_methods().iter().filter(|path| !known_methods().contains(path)).collect();
        assert!(strange.is_empty(), "the pinned client has no {strange:?}");
    }
}
