//! Golden scripts: what the rules of shards and of calls do, as stories in `tests/golden`.

mod calls;
mod shards;

/// Returns the folder of some of the stories.
fn golden(of: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(of)
}
