//! Random numbers that a seed repeats.

/// A generator of random numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Begins a sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number of the sequence.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// Returns bytes; half of the time they repeat themselves, so that they compress.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let period = if self.below(2) == 0 { length.max(1) } else { 1 + self.below(64) as usize };
        let unit: Vec<u8> = (0..period).map(|_| self.number() as u8).collect();
        unit.iter().copied().cycle().take(length).collect()
    }
}
