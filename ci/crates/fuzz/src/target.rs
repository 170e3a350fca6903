//! What can be fuzzed.

use std::collections::BTreeMap;

use memkv_poller::Rng;

/// One piece of the house under fuzz.
pub trait Target {
    /// The name on the command line and in the report.
    fn name(&self) -> &'static str;

    /// The next input. It holds all that `feed` needs.
    fn draw(&self, rng: &mut Rng) -> Vec<u8>;

    /// Feeds an input, any input: panics when the code under test, or what it answers, is wrong.
    fn feed(&mut self, input: &[u8]);

    /// Called after the last input of a run: panics when something is wrong that only shows now.
    fn finish(&mut self) {}

    /// What was reached so far.
    fn counts(&self) -> &Counts;
}

/// How often each thing that must be reached was reached.
#[derive(Default)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Counts for these things, all zero, none of which may stay so.
    pub fn of(names: impl IntoIterator<Item = String>) -> Counts {
        Counts(names.into_iter().map(|name| (name, 0)).collect())
    }

    /// One more.
    ///
    /// # Panics
    /// When the thing was not announced: the report would lack it in another run.
    pub fn bump(&mut self, name: &str) {
        *self.0.get_mut(name).unwrap_or_else(|| panic!("{name} was not announced")) += 1;
    }

    /// All counts by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (&**name, *count))
    }

    /// What was never reached.
    pub fn unreached(&self) -> impl Iterator<Item = &str> {
        self.iter().filter(|(_, count)| *count == 0).map(|(name, _)| name)
    }
}

/// The name of an enum's variant, out of its `Debug` text.
pub fn variant(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.chars().take_while(|c| c.is_alphanumeric()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_at_zero_is_unreached() {
        let mut counts = Counts::of(["a".to_owned(), "b".to_owned()]);
        counts.bump("b");
        assert_eq!(counts.unreached().collect::<Vec<_>>(), ["a"]);
        assert_eq!(counts.iter().collect::<Vec<_>>(), [("a", 0), ("b", 1)]);
    }

    #[test]
    fn variants_lose_their_fields() {
        assert_eq!(variant(&Some(3)), "Some");
        #[cfg(feature = "server")]
        assert_eq!(variant(&memkv_wire::FrameError::NewerVersion { got: 2 }), "NewerVersion");
    }
}
