//! What clients can ask for and Shoal does not have: a sentence for each thing, in the words of who asked for it.
//!
//! A user wrote `modal.Volume` and not the name of a method; the name stands behind, for whoever looks it up.

/// Things, each with what the names of its methods begin with; the first that fits counts.
const THINGS: [(&[&str], &str); 16] = [
    (&["SharedVolume"], "Shoal has no network file systems (modal.NetworkFileSystem)"),
    (&["Volume"], "Shoal has no volumes (modal.Volume) yet: keep what is small in a modal.Dict, and what is fixed in the image"),
    (
        &["SandboxGetTimeRangeStats"],
        "Shoal keeps no figures of sandboxes: `modal app stats` and `modal function metrics` tell what functions did",
    ),
    (
        &["ImageGetByTag", "ImageListTags", "ImageNameDelete", "ImagePublish", "ImageTagRevisions"],
        "Shoal has no names for images yet: `shoal image ls` on a node lists them by id",
    ),
    (&["Endpoint"], "Shoal has no endpoints for language models"),
    (&["Server", "Flash", "ContainerServerLifecycle", "FunctionGetFlash"], "Shoal has no servers (modal.Server) yet"),
    (&["Curl", "WebhookToken"], "Shoal has no web endpoints yet, and so no tokens for them"),
    (&["Tunnel", "SandboxGetTunnels", "SandboxCreateConnectToken"], "Shoal has no tunnels into containers (modal.forward) yet"),
    (&["Proxy"], "Shoal has no proxies (modal.Proxy): containers reach the internet by the address of their node"),
    (
        &["SandboxSnapshot", "SandboxRestore", "ContainerCheckpoint", "TaskSnapshot", "SandboxGetExitSnapshot"],
        "Shoal takes no snapshots of containers and sandboxes for clients yet",
    ),
    (&["PersistentSandbox"], "Shoal has no persistent sandboxes yet"),
    (&["WorkspaceBilling", "EnvironmentBilling"], "Shoal has no billing: the machines are yours"),
    (
        &["WorkspaceDashboard"],
        "Shoal has no dashboard yet: `shoal status`, `shoal task list` and `shoal explain` on a node tell how things stand",
    ),
    (
        &["WorkspaceMembers", "ServiceUser", "EnvironmentGetRoles", "EnvironmentRole", "Tokens", "TokenEnable", "TokenDisable"],
        "Shoal has no members, roles and service users, but tokens: `shoal token` on a node makes, limits and revokes them",
    ),
    (&["AuditLog"], "Shoal tells of its audit log on its nodes: `shoal audit`"),
    (&["AppPromote"], "Shoal has no staged deployments: deploy without --staged"),
];

/// Says in a sentence that a method is not served, by its path.
pub(super) fn sentence(path: &str) -> String {
    let method = path.rsplit('/').next().unwrap_or(path);
    match THINGS.iter().find(|(begins, _)| begins.iter().any(|begin| method.starts_with(begin))) {
        Some((_, what)) => format!("{what} ({method} is not served)"),
        None => format!("Shoal does not serve {method} yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_in_the_words_of_who_asked() {
        let of = |method: &str| sentence(&format!("/modal.client.ModalClient/{method}"));
        assert!(of("VolumeGetOrCreate").starts_with("Shoal has no volumes (modal.Volume) yet"));
        assert!(of("SharedVolumeList").contains("network file systems") && of("SandboxGetTimeRangeStats").contains("figures"));
        assert_eq!(of("ObjectSuggest"), "Shoal does not serve ObjectSuggest yet");
    }

    #[test]
    fn each_thing_has_a_method_that_clients_know() {
        let all = shoal_proto::methods::known_methods();
        for begin in THINGS.iter().flat_map(|(begins, _)| begins.iter()) {
            let fits = |path: &&str| path.rsplit('/').next().is_some_and(|method| method.starts_with(begin));
            assert!(all.iter().any(fits), "no client knows a method that begins with {begin}");
        }
    }
}
