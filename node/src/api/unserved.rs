//! What programs ask of functions that Shoal does not do: refused in words where the program would go wrong without it, and said in a
//! warning where it only goes slower.

use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::network_access::NetworkAccessType;

use super::error::Error;

fn refuse(tag: &str, asked: &[(&str, bool)]) -> Result<(), Error> {
    let tag = tag.trim_end_matches(".*");
    match asked.iter().find(|(_, asked)| *asked) {
        Some((what, _)) => Err(Error::Unimplemented(format!("'{tag}' asks for {what}, which Shoal does not serve yet: leave it out"))),
        None => Ok(()),
    }
}

/// Refuses a function that would miss what it asks for.
pub(super) fn check(tag: &str, view: &pb::Function) -> Result<(), Error> {
    let access = view.network_access.as_ref().map(pb::NetworkAccess::network_access_type);
    refuse(
        tag,
        &[
            ("volumes=", !view.volume_mounts.is_empty()),
            ("volumes= with a CloudBucketMount", !view.cloud_bucket_mounts.is_empty() || !view.s3_mounts.is_empty()),
            ("network_file_systems=", !view.shared_volume_mounts.is_empty()),
            ("proxy=", view.proxy_id.as_ref().is_some_and(|id| !id.is_empty())),
            ("a list of networks that it may reach", access == Some(NetworkAccessType::Allowlist)),
        ],
    )
}

/// Refuses options with which a function would miss what they ask for.
pub(super) fn check_options(tag: &str, options: &pb::FunctionOptions) -> Result<(), Error> {
    refuse(
        tag,
        &[
            ("with_options(volumes=)", !options.volume_mounts.is_empty()),
            ("with_options(volumes=) with a CloudBucketMount", !options.cloud_bucket_mounts.is_empty()),
            ("a certain version of its app", options.pinned_app_version.is_some_and(|version| version != 0)),
        ],
    )
}

/// Tells a user that the containers of a cluster have no other way to each other than the nodes' network. Programs find that out by
/// themselves, and take it: so they run, and not as fast as they might.
pub(super) fn slower(tag: &str, view: &pb::Function) -> Option<pb::Warning> {
    let size = view.experimental_group_size;
    let rdma = size > 0 && view.resources.as_ref().is_some_and(|resources| resources.rdma);
    let fabric = view.experimental_fabric_size > 1;
    let what = match (rdma, fabric) {
        (true, true) => "rdma=True and fabric_size=",
        (true, false) => "rdma=True",
        (false, true) => "fabric_size=",
        (false, false) => return None,
    };
    let message = format!(
        "function '{tag}' asks for {what}, which Shoal does not have: its {size} containers reach each other over the network of the nodes, by TCP and UDP, and each counts as a fabric of its own"
    );
    Some(pb::Warning { r#type: pb::warning::WarningType::FunctionConfiguration.into(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_missed_is_refused_by_its_name() {
        assert!(check("f", &pb::Function::default()).is_ok() && check_options("f", &pb::FunctionOptions::default()).is_ok());
        let bucket = || vec![pb::CloudBucketMount::default()];
        let said = check("K.*", &pb::Function { cloud_bucket_mounts: bucket(), ..Default::default() }).unwrap_err().to_string();
        assert!(said.contains("'K' asks for volumes= with a CloudBucketMount"), "{said}");
        let said = check_options("f", &pb::FunctionOptions { volume_mounts: vec![pb::VolumeMount::default()], ..Default::default() });
        assert!(said.unwrap_err().to_string().contains("with_options(volumes=)"));
    }

    #[test]
    fn what_only_goes_slower_is_a_warning() {
        let of = |rdma, fabric| {
            let resources = Some(pb::Resources { rdma, ..Default::default() });
            let view = pb::Function { resources, experimental_group_size: 4, experimental_fabric_size: fabric, ..Default::default() };
            slower("f", &view).map(|warning| warning.message)
        };
        assert_eq!(of(false, 0), None);
        assert!(of(true, 0).unwrap().contains("rdma=True, which") && of(false, 2).unwrap().contains("fabric_size=, which"));
        assert!(of(true, 2).unwrap().contains("rdma=True and fabric_size="));
    }
}
