//! What a world draws from its seed.

/// A small generator: equal seeds, equal draws.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Begins anew; `what` tells apart the dice of one seed.
    pub fn new(seed: u64, what: u64) -> Self {
        let mixed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ what.wrapping_mul(0xD1B5_4A32_D192_ED03);
        let mut dice = Self(mixed | 1);
        // The first draws of near seeds are alike.
        (0..4).for_each(|_| _ = dice.below(2));
        dice
    }

    /// Draws a number below this one.
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The high bits are the good ones.
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below.max(1)
    }

    /// Draws a number from the first to the last, both included.
    pub fn from(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// Says yes once in so many times.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Takes one of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[usize::try_from(self.below(from.len() as u64)).unwrap_or(0)])
    }

    /// Draws the bits of an id.
    pub fn bits(&mut self) -> u128 {
        (0..4).fold(0, |bits, _| bits << 32 | u128::from(self.below(1 << 31)))
    }
}
