//! What all clients of a run share: the model, the counters, the clock, the names of keys.

use std::rc::Rc;

use memkv_poller::{Clock, Rng};
use memkv_sim::SimClock;
use memkv_store::Durability;
use memkv_wire::{CrcList, SharedKey};

use crate::counters::{Count, Counters};
use crate::model::{KeyId, Model, Now, Version};
use crate::options::{FaultMode, Options, SPACES};
use crate::values;

/// Shared by the clients of one run.
pub struct Stage {
    pub options: Rc<Options>,
    pub model: Model,
    pub counters: Counters,
    pub rng: Rng,
    pub clock: SimClock,
    /// Requests sent so far, not counting repetitions.
    pub requests: u64,
    /// Prints every step.
    pub verbose: bool,
    names: Vec<Vec<u8>>,
    lengths: Vec<u64>,
    /// Room for a meta.
    pub meta: Vec<u8>,
    /// Room for a value.
    pub scratch: Vec<u8>,
}

/// The key by which a tenant's clients connect: its id and its secret.
pub fn credential(space: usize) -> (u32, SharedKey) {
    let (tenant, _) = SPACES[space];
    let id = if tenant == "red" { 1 } else { 2 };
    (id, SharedKey::from_bytes([id as u8; 32]))
}

impl Stage {
    pub fn new(options: Rc<Options>, clock: SimClock, mut rng: Rng, verbose: bool) -> Stage {
        let keys = options.keys * SPACES.len() as u32;
        let names = (0..options.keys).map(name).collect();
        let lengths = (0..keys).map(|_| draw_length(&mut rng, &options)).collect();
        let mut model = Model::new(keys, options.evicting);
        model.flushing = options.durability == Durability::Power;
        Stage {
            model,
            counters: Counters::default(),
            rng,
            clock,
            requests: 0,
            verbose,
            names,
            lengths,
            meta: Vec::new(),
            scratch: Vec::new(),
            options,
        }
    }

    pub fn now(&self) -> Now {
        Now { nanos: self.clock.now().as_nanos(), unix: self.clock.unix_seconds() }
    }

    pub fn bump(&mut self, count: Count) {
        self.counters.bump(count);
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.rng.below(bound)
    }

    /// True once in `of` times.
    pub fn chance(&mut self, of: u64) -> bool {
        self.rng.below(of) == 0
    }

    /// A key's bytes on the wire.
    pub fn name(&self, key: KeyId) -> &[u8] {
        &self.names[(key % self.options.keys) as usize]
    }

    /// A key of a space, often a hot one.
    pub fn pick_key(&mut self, space: usize) -> KeyId {
        let hot = self.rng.below(1_000) < u64::from(self.options.hot);
        let among =
            if hot { self.options.hot_keys.min(self.options.keys) } else { self.options.keys };
        space as u32 * self.options.keys + self.rng.below(u64::from(among)) as u32
    }

    /// Whether puts of a key may carry a time to live.
    pub fn is_mortal(&self, key: KeyId) -> bool {
        self.options.ttl && key % self.options.keys % 4 == 3
    }

    /// The length of the next value of a key: mostly the same one, as content-addressed blocks have it.
    pub fn pick_length(&mut self, key: KeyId) -> u64 {
        if self.rng.below(8) == 0 {
            return draw_length(&mut self.rng, &self.options);
        }
        self.lengths[key as usize]
    }

    /// A value too long to ride inline, for the few seeds with extents of 4 MiB.
    pub fn long_length(&mut self) -> u64 {
        (4 << 20) - 100_000 + self.rng.below(600_000)
    }

    /// Makes a value's bytes in `scratch`, and its CRCs if they are not known yet.
    pub fn make_value(&mut self, key: KeyId, version: Version) -> CrcList {
        let length = self.model.length(version);
        self.scratch.clear();
        values::append(key, version, length, &mut self.scratch);
        let known = self.model.crcs(version);
        if !known.as_slice().is_empty() {
            return known;
        }
        let crcs = CrcList::of(&self.scratch, self.options.extent as usize)
            .expect("no value has more than 16 extents");
        self.model.set_crcs(version, crcs);
        crcs
    }
}

/// Key names of many lengths, all different; each says its number in its first bytes.
fn name(number: u32) -> Vec<u8> {
    let mut name = format!("k{number:04}/").into_bytes();
    let length = match number % 7 {
        0 => 512,
        6 => 6,
        n => 16 + n as usize * 9,
    };
    while name.len() < length {
        name.push(b'a' + (name.len() as u32 * 7 + number) as u8 % 26);
    }
    name
}

/// The number of the key of these bytes.
pub fn number_of(name: &[u8]) -> Option<u32> {
    std::str::from_utf8(name.get(1..5)?).ok()?.parse().ok()
}

/// Median at most a unit; some of several extents, up to the sixteen that a value may have.
fn draw_length(rng: &mut Rng, options: &Options) -> u64 {
    let unit = 16_384;
    let length = match rng.below(100) {
        0..=29 => 16 + rng.below(2_048),
        30..=54 => 2_048 + rng.below(unit - 2_048),
        55..=74 => unit - 8 + rng.below(16),
        75..=91 => unit + rng.below(2 * unit),
        92..=97 => 3 * unit + rng.below(3 * unit),
        _ => 6 * unit + rng.below(10 * unit),
    };
    let length = length.min(u64::from(options.extent) * 16).min(250 << 10);
    // A tail too short for a stamp cannot be recognized on a disk: none where that matters.
    let tail = length % u64::from(options.extent) % u64::from(options.transfer);
    if options.faults != FaultMode::None && (1..16).contains(&tail) {
        length - tail
    } else {
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_say_their_number() {
        let names: Vec<Vec<u8>> = (0..200).map(name).collect();
        for (number, name) in names.iter().enumerate() {
            assert_eq!(number_of(name), Some(number as u32));
            assert!((1..=512).contains(&name.len()));
        }
        assert_eq!(number_of(b"kxyzw/"), None);
    }

    #[test]
    fn the_median_value_is_at_most_a_unit() {
        let options = Options::draw(1, 100);
        let mut rng = Rng::seeded(1);
        let mut lengths: Vec<u64> = (0..1_001).map(|_| draw_length(&mut rng, &options)).collect();
        lengths.sort_unstable();
        assert!(lengths[500] <= 16_384 && lengths[1_000] > 5 * 16_384);
    }
}
