//! Kinds of GPUs, by the names that the SDK has for them.

use std::fmt;

/// The most GPUs that one machine is believed to have.
const GPUS_MAX: u32 = 64;

/// A kind of GPU: `H100`, `A100-80GB`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(String);

impl Kind {
    /// Takes a name as programs and machines write it.
    pub fn new(name: &str) -> Self {
        let name = name.trim().to_ascii_uppercase().replace([' ', '_'], "-");
        Self(match name.as_str() {
            "A10G" => "A10".to_owned(),
            // What the SDK means by it where memory is not said.
            "A100" | "A100-40G" => "A100-40GB".to_owned(),
            "A100-80G" => "A100-80GB".to_owned(),
            _ => name,
        })
    }

    /// Returns its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A list that does not say which GPUs a machine has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} does not say which GPUs a machine has: expected a kind and a number up to {GPUS_MAX}, as \"H100:2\"")]
pub struct NotAnInventory {
    text: String,
}

/// Reads which GPUs a machine has, `["H100:2", "L4"]`: the kind of each, in the order of their numbers.
///
/// # Errors
/// When an entry is not a kind and a number.
pub fn inventory(entries: &[String]) -> Result<Vec<Kind>, NotAnInventory> {
    let mut all = Vec::new();
    for entry in entries {
        let wrong = || NotAnInventory { text: entry.clone() };
        let (name, count) = entry.split_once(':').unwrap_or((entry, "1"));
        let count: u32 = count.trim().parse().map_err(|_| wrong())?;
        if name.trim().is_empty() || count == 0 || count > GPUS_MAX {
            return Err(wrong());
        }
        all.extend((0..count).map(|_| Kind::new(name)));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_names_each_gpu() {
        let read = |entries: &[&str]| inventory(&entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>());
        let kinds = read(&["h100:2", "A100"]).unwrap();
        assert_eq!(kinds.iter().map(Kind::as_str).collect::<Vec<_>>(), ["H100", "H100", "A100-40GB"]);
        for wrong in ["H100:0", "H100:x", ":2", "H100:65"] {
            assert!(read(&[wrong]).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
    }
}
