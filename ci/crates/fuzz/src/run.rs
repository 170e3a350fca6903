//! The loop: draw, feed, catch, report.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use memkv_poller::Rng;

use crate::target::Target;

/// Inputs between two looks at the clock.
const BATCH: u64 = 64;

/// What a run of one target came to.
pub struct Report {
    target: &'static str,
    inputs: u64,
    seconds: f64,
    counts: Vec<(String, u64)>,
    unreached: usize,
    failure: Option<Vec<u8>>,
}

/// How long a run goes on, if nothing panics.
#[derive(Clone, Copy)]
pub enum Until {
    /// So much time has passed.
    Time(Duration),
    /// So many inputs were fed: the same run on every machine.
    Inputs(u64),
}

impl Report {
    /// No panic, and nothing unreached.
    pub fn passed(&self) -> bool {
        self.failure.is_none() && self.unreached == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { target, inputs, seconds, counts, failure, .. } = self;
        for (name, count) in counts {
            let mark = if *count == 0 { "   <- never reached" } else { "" };
            writeln!(f, "{count:>12}  {name}{mark}")?;
        }
        writeln!(f, "{inputs:>12}  inputs in {seconds:.1} s")?;
        match failure {
            None => Ok(()),
            Some(input) if input.is_empty() => {
                writeln!(f, "PANIC after the last input; the seed shows it again")
            }
            Some(input) => {
                let hex = to_hex(input);
                writeln!(f, "PANIC on {} bytes; to see it again:", input.len())?;
                writeln!(f, "memkv-ci-fuzz --target {target} --input {hex}")
            }
        }
    }
}

/// Feeds `target` the inputs of its corpus, then such as are drawn from `seed`, to the end or to its
/// first panic. The panic's own
/// message goes to standard error as always.
pub fn run(target: &mut dyn Target, corpus: &[Vec<u8>], seed: u64, until: Until) -> Report {
    let began = Instant::now();
    let mut rng = Rng::seeded(seed);
    let (mut inputs, mut failure) = (0, None);
    let goes_on = |inputs| match until {
        Until::Time(long) => began.elapsed() < long,
        Until::Inputs(count) => inputs < count,
    };
    // After a panic the target is only asked for its counts, so its state cannot mislead.
    let panics = |target: &mut dyn Target, input: &[u8]| {
        catch_unwind(AssertUnwindSafe(|| target.feed(input))).is_err()
    };
    for input in corpus {
        if failure.is_none() && panics(target, input) {
            failure = Some(input.clone());
        }
    }
    while failure.is_none() && goes_on(inputs) {
        for _ in 0..BATCH {
            let input = target.draw(&mut rng);
            inputs += 1;
            if panics(target, &input) {
                failure = Some(input);
                break;
            }
        }
    }
    if failure.is_none() && catch_unwind(AssertUnwindSafe(|| target.finish())).is_err() {
        // Any of the inputs may have caused it: only the seed repeats them all.
        failure = Some(Vec::new());
    }
    let counts = target.counts();
    let unreached = counts.unreached().count();
    let counts = counts.iter().map(|(name, count)| (name.to_owned(), count)).collect();
    let seconds = began.elapsed().as_secs_f64();
    Report { target: target.name(), inputs, seconds, counts, unreached, failure }
}

/// Hexadecimal digits of `bytes`.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of hexadecimal digits.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let (pairs, rest) = digits.as_ref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Counts;

    /// Panics on an input that contains 7.
    struct Picky(Counts);

    impl Target for Picky {
        fn name(&self) -> &'static str {
            "picky"
        }
        fn draw(&self, rng: &mut Rng) -> Vec<u8> {
            vec![rng.below(1000) as u8, rng.below(9) as u8]
        }
        fn feed(&mut self, input: &[u8]) {
            self.0.bump("fed");
            assert!(!input.contains(&7), "planted");
        }
        fn counts(&self) -> &Counts {
            &self.0
        }
    }

    #[test]
    fn a_panic_is_caught_and_its_input_printed() {
        let mut picky = Picky(Counts::of(["fed".to_owned()]));
        let report = run(&mut picky, &[], 3, Until::Inputs(100_000));
        assert!(!report.passed());
        let input = report.failure.clone().expect("7 is drawn soon");
        assert!(input.contains(&7));
        let line = format!("--target picky --input {}", to_hex(&input));
        assert!(report.to_string().contains(&line), "{report}");
    }

    #[test]
    fn what_only_the_end_shows_fails_the_run() {
        struct Late(Counts);
        impl Target for Late {
            fn name(&self) -> &'static str {
                "late"
            }
            fn draw(&self, _rng: &mut Rng) -> Vec<u8> {
                vec![1]
            }
            fn feed(&mut self, _input: &[u8]) {}
            fn finish(&mut self) {
                panic!("planted");
            }
            fn counts(&self) -> &Counts {
                &self.0
            }
        }
        let report = run(&mut Late(Counts::default()), &[], 3, Until::Inputs(5));
        assert!(!report.passed());
        assert!(report.to_string().contains("after the last input"), "{report}");
    }

    #[test]
    fn a_thing_never_reached_fails_the_run() {
        let mut picky = Picky(Counts::of(["fed".to_owned(), "other".to_owned()]));
        let report = run(&mut picky, &[], 3, Until::Inputs(0));
        assert!(!report.passed());
        assert!(report.to_string().contains("never reached"));
    }

    #[test]
    fn hexadecimal_goes_both_ways() {
        assert_eq!(from_hex("00ffA1"), Some(vec![0, 255, 161]));
        assert_eq!(to_hex(&[0, 255, 161]), "00ffa1");
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("0g"), None);
    }
}
