//! What a leader must have before it decides.

/// Keeps in which term a leader has had everything that was decided before it: a leader that plans on less than that decides what was
/// decided otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Barrier {
    passed_in: Option<u64>,
}

impl Barrier {
    /// Says whether the leader of a term may decide. If not, it reads the latest state first, and then says so by [`Self::pass`].
    pub fn is_passed(&self, term: u64) -> bool {
        self.passed_in == Some(term)
    }

    /// Notes that this node has read the latest state as the leader of a term.
    pub fn pass(&mut self, term: u64) {
        self.passed_in = Some(term);
    }
}
