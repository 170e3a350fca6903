//! Randomness that is handed in, so that a run can be repeated from its seed.

/// A small seeded generator. The same seed gives the same numbers, always; it is not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(fastrand::Rng);

impl Rng {
    /// The generator of this seed.
    pub fn seeded(seed: u64) -> Rng {
        Rng(fastrand::Rng::with_seed(seed))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// A number in `0..bound`, each equally likely.
    ///
    /// # Panics
    /// When `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below zero");
        self.0.u64(..bound)
    }

    /// A generator of its own, seeded from this one: what it draws later leaves this one alone.
    pub fn fork(&mut self) -> Rng {
        Rng::seeded(self.next_u64())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let mut a = Rng::seeded(7);
        let mut b = Rng::seeded(7);
        let mut c = Rng::seeded(8);
        let draw = |rng: &mut Rng| (0..64).map(|_| rng.next_u64()).collect::<Vec<_>>();
        let first = draw(&mut a);
        assert_eq!(first, draw(&mut b));
        assert_ne!(first, draw(&mut c));
    }

    #[test]
    fn below_stays_below_and_reaches_every_value() {
        let mut rng = Rng::seeded(1);
        let mut seen = [0u32; 5];
        for _ in 0..1000 {
            seen[usize::try_from(rng.below(5)).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&count| count > 100), "{seen:?}");
    }

    #[test]
    fn a_fork_draws_its_own_numbers() {
        let mut parent = Rng::seeded(3);
        let mut child = parent.fork();
        let mut same = Rng::seeded(3);
        let mut twin = same.fork();
        for _ in 0..10 {
            assert_eq!(child.next_u64(), twin.next_u64());
        }
        assert_eq!(parent.next_u64(), same.next_u64());
    }
}
