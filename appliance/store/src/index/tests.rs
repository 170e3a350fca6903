//! The index against maps of the standard library, and what it takes.

use std::collections::{BTreeMap, HashMap};

use memkv_journal::{BlockId, UnitRange};
use proptest::prelude::*;

use super::*;
use crate::DriveId;
use crate::block::Extent;

/// A hash as the store's hasher would give it: uniform, and the same for the same number.
fn key(number: u64) -> KeyHash {
    let mut state = number.wrapping_add(1);
    let mut word = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    KeyHash(u128::from(word()) << 64 | u128::from(word()))
}

fn extent(start: u32, length: u32) -> Extent {
    let range = UnitRange { start, count: crate::reserve::units_for(length) };
    Extent { drive: DriveId(63), range, offset: u64::from(start) * 16384, length, crc: !start }
}

fn block(number: u64, extents: Vec<Extent>) -> Block {
    Block {
        id: BlockId { hash: key(number).0, generation: GENERATION_MAX - number },
        length: extents.iter().map(|e| u64::from(e.length)).sum(),
        expires: number % 3 * EXPIRES_MAX / 2,
        flags: 0,
        extents: extents.into(),
        verified: u16::MAX,
        corrupt: false,
    }
}

/// Asserts that the index tells everything of a block as it was told.
fn assert_same(index: &Index, slot: Slot, block: &Block) {
    let entry = index.get(slot);
    assert_eq!(entry.id(), block.id);
    assert_eq!((entry.hash(), entry.generation()), (block.hash(), block.id.generation));
    assert_eq!((entry.length(), entry.expires()), (block.length, block.expires));
    assert_eq!((entry.is_corrupt(), index.flags(slot)), (block.corrupt, block.flags));
    let spans: Vec<_> = block.extents.iter().map(Extent::span).collect();
    assert_eq!(index.spans(slot).collect::<Vec<_>>(), spans);
    let all = ((1u32 << block.extents.len()) - 1) as u16;
    assert_eq!(index.verified(slot) & all, block.verified & all);
    assert_eq!(index.units(slot), spans.iter().map(|s| u64::from(s.range.count)).sum::<u64>());
    assert!(block.extents.iter().all(|e| index.is_on(slot, e.drive)));
    assert!(!index.is_on(slot, DriveId(7)));
}

#[test]
fn an_entry_tells_all_that_it_was_told() {
    let mut index = Index::default();
    let mut blocks = vec![
        block(0, vec![extent(0, 1)]),
        block(1, vec![extent(u32::MAX, 16384)]),
        block(2, vec![extent(5, 4 << 20)]),
        block(3, (0..16).map(|n| extent(n * 256, 4 << 20)).collect()),
        block(4, vec![extent(7, 16384), extent(9, 16384), extent(90, 3)]),
    ];
    // Flags that only another version knows, and units that do not follow from the length.
    blocks.push(Block { flags: 0x8002, ..block(5, vec![extent(3, 100)]) });
    let mut wide = extent(3, 100);
    wide.range.count = 9;
    blocks.push(block(6, vec![wide]));
    blocks.push(Block { verified: 0, corrupt: true, ..block(7, vec![extent(8, 20000)]) });
    blocks.push(Block { verified: 0b101, ..block(8, (0..3).map(|n| extent(n, 9)).collect()) });
    let slots: Vec<_> = blocks.iter().map(|block| index.insert(block)).collect();
    for (block, &slot) in blocks.iter().zip(&slots) {
        assert_same(&index, slot, block);
        assert_eq!(index.lookup(block.hash()), Some(slot));
    }
    index.mark_verified(slots[8], 0b10);
    assert_eq!(index.verified(slots[8]), 0b111);
    index.mark_verified(slots[7], 1);
    assert_eq!(index.verified(slots[7]), 1);
    index.mark_corrupt(slots[0]);
    assert!(index.get(slots[0]).is_corrupt());
    // Nothing of that has touched anything else.
    blocks[8].verified = 0b111;
    blocks[7].verified = 1;
    blocks[0].corrupt = true;
    for (block, &slot) in blocks.iter().zip(&slots) {
        assert_same(&index, slot, block);
    }
}

#[test]
fn a_block_that_is_read_is_pinned_until_the_last_reader_is_done() {
    let mut index = Index::default();
    let slot = index.insert(&block(1, vec![extent(0, 1)]));
    assert!(index.unread(slot).is_none());
    index.pin(slot, false);
    index.pin(slot, false);
    assert!(index.unread(slot).is_some());
    index.unpublish(slot);
    index.unpin(slot, false);
    assert_eq!(index.pins(slot), 1);
    index.unpin(slot, false);
    assert_eq!((index.pins(slot), index.get(slot).is_pinned()), (0, false));
    assert!(index.unread(slot).is_none() && !index.is_lent(slot));
    index.remove(slot);
    assert!(index.at(slot.number()).is_none());
}

#[test]
fn a_block_is_lent_until_the_last_who_has_it_gives_it_back() {
    let mut index = Index::default();
    let slot = index.insert(&block(1, vec![extent(0, 1)]));
    assert!(!index.is_lent(slot));
    index.pin(slot, false);
    assert!(!index.is_lent(slot));
    index.pin(slot, true);
    index.pin(slot, true);
    index.unpin(slot, true);
    assert!(index.is_lent(slot));
    index.unpin(slot, true);
    assert!(!index.is_lent(slot) && index.pins(slot) == 1);
    index.unpin(slot, false);
    assert!(!index.get(slot).is_pinned());
}

#[test]
#[should_panic(expected = "a read ends as what it began")]
fn a_read_does_not_end_as_another_kind() {
    let mut index = Index::default();
    let slot = index.insert(&block(1, vec![extent(0, 1)]));
    index.pin(slot, false);
    index.pin(slot, true);
    index.unpin(slot, false);
    index.unpin(slot, false);
}

#[test]
#[should_panic(expected = "a read ends once")]
fn a_read_does_not_end_twice() {
    let mut index = Index::default();
    let slot = index.insert(&block(1, vec![extent(0, 1)]));
    index.pin(slot, false);
    index.unpin(slot, false);
    index.unpin(slot, false);
}

#[test]
#[should_panic(expected = "units are freed when nobody reads them")]
fn a_block_that_is_read_is_not_removed() {
    let mut index = Index::default();
    let slot = index.insert(&block(1, vec![extent(0, 1)]));
    index.pin(slot, false);
    index.unpublish(slot);
    index.remove(slot);
}

#[test]
#[should_panic(expected = "the older block of the key was taken out first")]
fn a_key_has_one_block() {
    let mut index = Index::default();
    index.insert(&block(1, vec![extent(0, 1)]));
    index.insert(&block(1, vec![extent(1, 1)]));
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u8),
    Unpublish(u64),
    Remove(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        (0..40u64, 1..4u8).prop_map(|(n, extents)| Step::Insert(n, extents)),
        (0..40u64).prop_map(Step::Unpublish),
        (0..40u64).prop_map(Step::Remove),
    ];
    proptest::collection::vec(one, 1..400)
}

proptest! {
    /// Blocks that come, leave the index and go, against a model of what is where.
    #[test]
    fn the_index_is_a_map(steps in steps()) {
        let mut index = Index::default();
        let mut published: HashMap<u64, (Slot, Block)> = HashMap::new();
        let mut leaving: BTreeMap<u64, (Slot, Block)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Insert(n, extents) if !published.contains_key(&n) => {
                    let block = block(n, (0..u32::from(extents)).map(|i| extent(i, 7)).collect());
                    published.insert(n, (index.insert(&block), block));
                }
                Step::Unpublish(n) if !leaving.contains_key(&n) => {
                    if let Some((slot, block)) = published.remove(&n) {
                        index.unpublish(slot);
                        leaving.insert(n, (slot, block));
                    }
                }
                Step::Remove(n) => if let Some((slot, _)) = leaving.remove(&n) {
                    index.remove(slot);
                },
                _ => {}
            }
            prop_assert_eq!(index.len(), published.len());
        }
        for n in 0..40 {
            let slot = published.get(&n).map(|(slot, _)| *slot);
            prop_assert_eq!(index.lookup(key(n)), slot);
        }
        let all = published.values().chain(leaving.values());
        let held: BTreeMap<Slot, &Block> = all.map(|(slot, block)| (*slot, block)).collect();
        let there: Vec<Slot> = index.iter(1..=index.last()).map(|(slot, _)| slot).collect();
        prop_assert_eq!(there, held.keys().copied().collect::<Vec<_>>());
        for (slot, block) in held {
            assert_same(&index, slot, block);
        }
    }
}

/// A table of numbers under the hashes of [`key`].
#[derive(Default)]
struct Model {
    table: Table,
    numbers: Vec<u32>,
    at: HashMap<u32, usize>,
}

impl Model {
    fn hash(number: u32) -> KeyHash {
        key(u64::from(number))
    }

    fn insert(&mut self, number: u32) {
        if !self.at.contains_key(&number) {
            self.table.insert(Self::hash(number), number, Self::hash);
            self.at.insert(number, self.numbers.len());
            self.numbers.push(number);
        }
    }

    fn remove(&mut self, at: usize) {
        let number = self.numbers.swap_remove(at);
        self.at.remove(&number);
        if let Some(moved) = self.numbers.get(at) {
            self.at.insert(*moved, at);
        }
        assert!(self.table.remove(Self::hash(number), number));
        assert!(!self.table.remove(Self::hash(number), number), "it is there once");
    }

    fn get(&self, number: u32) -> Option<u32> {
        self.table.get(Self::hash(number), |found| found == number)
    }

    fn check(&self, numbers: std::ops::Range<u32>) {
        assert_eq!(self.table.len(), self.numbers.len());
        for number in numbers {
            let there = self.at.contains_key(&number).then_some(number);
            assert_eq!(self.get(number), there);
        }
    }
}

/// It grows and shrinks by turns, each time to another size, and comes back from nothing.
#[test]
fn the_table_is_a_map_while_it_grows_and_shrinks() {
    let mut model = Model::default();
    let mut next = 1;
    for (up, down) in [(70, 70), (3000, 1500), (9000, 10_400), (20_000, 19_990), (40_000, 30_000)] {
        for _ in 0..up {
            model.insert(next);
            next += 1;
        }
        model.check(1..next);
        for step in 0..down {
            let at = Model::hash(step).0 as usize % model.numbers.len();
            model.remove(at);
        }
        model.check(1..next);
    }
}

/// Numbers that come and go for ever leave no trace in what a lookup takes or the table holds.
#[test]
fn a_table_of_one_size_stays_small_however_long_it_is_used() {
    const LEN: usize = 100_000;
    let mut model = Model::default();
    let mut next = 1;
    while model.numbers.len() < LEN {
        model.insert(next);
        next += 1;
    }
    let before = model.table.bytes();
    for step in 0..10 * LEN as u32 {
        let at = Model::hash(step).0 as usize % LEN;
        model.remove(at);
        model.insert(next);
        next += 1;
    }
    model.check(next - 2 * LEN as u32..next);
    let after = model.table.bytes();
    assert!(after < before + before / 10, "{before} bytes became {after}");
}

/// At any size, not only at favourable ones, and in steps that are as small in a large table as in
/// a small one: what an insert costs is that it asks for hashes of others.
#[test]
fn a_number_takes_six_bytes_at_any_size_and_no_insert_sorts_more_than_a_segment() {
    let mut model = Model::default();
    let mut sum = (0, 0.0);
    for number in 1..=600_000 {
        let asked = std::cell::Cell::new(0);
        model.table.insert(Model::hash(number), number, |other| {
            asked.set(asked.get() + 1);
            Model::hash(other)
        });
        assert!(asked.get() < 1400, "one insert asked for {} hashes", asked.get());
        if number >= 200_000 && number % 1000 == 0 {
            let each = model.table.bytes() as f64 / f64::from(number);
            assert!(each < 6.0, "{each} bytes for each of {number}");
            sum = (sum.0 + 1, sum.1 + each);
        }
    }
    let mean = sum.1 / f64::from(sum.0);
    assert!(mean < 5.8, "{mean} bytes on average over all sizes");
}

/// In a table that is too large for a cache a split asks for few hashes, since those before did, and
/// there are few exceptions: a segment changed meanwhile.
#[test]
fn a_split_of_a_large_table_has_asked_for_most_hashes_before() {
    let mut model = Model::default();
    let mut inserts_by_hashes = [0; 2];
    for number in 1..=400_000 {
        let asked = std::cell::Cell::new(0);
        model.table.insert(Model::hash(number), number, |other| {
            asked.set(asked.get() + 1);
            Model::hash(other)
        });
        if number > 100_000 && asked.get() > 0 {
            inserts_by_hashes[usize::from(asked.get() > 80)] += 1;
        }
    }
    let [few, many] = inserts_by_hashes;
    assert!(few > 300_000 / 512 * 9, "{few} asked for up to 80");
    assert!(many < 300_000 / 512 / 10, "{many} asked for more");
}

/// Whatever comes and goes while a split is prepared, of the segment that is split and of others, and
/// under a number that was another's before.
#[test]
fn a_segment_that_changes_before_its_split_loses_and_keeps_nothing() {
    const LEN: u32 = 64 * 512;
    let name = |number: u32, value: u32| key(u64::from(number) << 32 | u64::from(value));
    let mut values = vec![0u32; LEN as usize + 40_000];
    let (mut table, _) = Table::of(LEN - 20, |number| name(number, 0), |_, _| false);
    let mut last = LEN - 20;
    for step in 0..40_000u32 {
        let draw = key(u64::from(step)).0 as u32;
        // Around a size at which a split comes next, and then past it.
        if draw.is_multiple_of(3) {
            let number = draw / 3 % last + 1;
            let value = &mut values[number as usize];
            assert!(table.remove(name(number, *value), number));
            *value += 1;
            table.insert(name(number, *value), number, |n| name(n, values[n as usize]));
        } else if draw.is_multiple_of(8) {
            last += 1;
            table.insert(name(last, 0), last, |n| name(n, values[n as usize]));
        }
    }
    assert_eq!(table.len(), last as usize);
    for number in 1..=last {
        let hash = name(number, values[number as usize]);
        assert_eq!(table.get(hash, |found| found == number), Some(number));
    }
    assert!((1..=last).all(|n| table.remove(name(n, values[n as usize]), n)));
}

/// Built at once it takes no more bytes.
#[test]
fn a_table_of_many_is_the_same_as_one_that_grew() {
    for len in [0, 1, 511, 513, 5_000, 33_000, 50_000, 131_072, 131_073] {
        let (mut table, again) = Table::of(len, Model::hash, |_, _| false);
        assert_eq!((table.len(), again), (len as usize, vec![]));
        let mut model = Model::default();
        (1..=len).for_each(|number| model.insert(number));
        for number in 1..=len {
            let found = table.get(Model::hash(number), |found| found == number);
            assert_eq!(found, Some(number));
        }
        let (bytes, grown) = (table.bytes(), model.table.bytes());
        assert!(bytes <= grown + grown / 20 + 65_536, "{bytes} {grown}");
        // It goes on like the other.
        for number in len + 1..=2 * len {
            table.insert(Model::hash(number), number, Model::hash);
        }
        assert!((1..=2 * len).all(|number| table.remove(Model::hash(number), number)));
        assert_eq!(table.len(), 0);
    }
}

/// Also where hashes differ in their last bits alone, and where one is there very often.
#[test]
fn of_those_of_one_hash_a_table_has_the_first() {
    for (len, apart) in [(30_000, 10_000), (30_000, 29_000), (20_000, 1)] {
        let hash = |number| Model::hash((number - 1) % apart + 1);
        let (table, again) = Table::of(len, hash, |_, _| false);
        assert_eq!(again, (apart + 1..=len).collect::<Vec<_>>());
        assert_eq!(table.len(), apart as usize);
        for number in 1..=len {
            let found = table.get(hash(number), |found| hash(found) == hash(number));
            assert_eq!(found, Some((number - 1) % apart + 1));
        }
        let near =
            |number: u32| KeyHash(Model::hash(number.div_ceil(2)).0 ^ u128::from(number) << 64);
        let (table, again) = Table::of(2 * apart, near, |_, _| false);
        assert_eq!((table.len(), again), (2 * apart as usize, vec![]));
    }
}

/// Whichever it is among those of its hash, and however many there are.
#[test]
fn of_those_of_one_hash_a_table_has_the_newest() {
    for (len, apart) in [(30_000, 10_000), (30_000, 29_000), (2_000, 1)] {
        let key = |number: u32| (number - 1) % apart + 1;
        let age = |number: u32| number.wrapping_mul(0x9E37_79B9) % 1000;
        let is_newer = |number, there| age(number) > age(there);
        let (table, again) = Table::of(len, |number| Model::hash(key(number)), is_newer);
        assert_eq!((table.len(), again.len()), (apart as usize, (len - apart) as usize));
        assert!(again.is_sorted_by(|a, b| a < b));
        let mut newest = vec![0; apart as usize + 1];
        for number in 1..=len {
            let there = &mut newest[key(number) as usize];
            if *there == 0 || is_newer(number, *there) {
                *there = number;
            }
        }
        for &number in &newest[1..] {
            assert!(again.binary_search(&number).is_err());
            let found = table.get(Model::hash(key(number)), |found| key(found) == key(number));
            assert_eq!(found, Some(number));
        }
    }
}

/// Who asks is shown few numbers that are not the one.
#[test]
fn most_lookups_look_at_one_block_or_none() {
    let mut model = Model::default();
    for number in 1..=50_000 {
        model.table.insert(Model::hash(number), number, Model::hash);
    }
    let mut shown = (0, 0);
    for number in 1..=50_000 {
        model.table.get(Model::hash(number), |found| {
            shown.0 += 1;
            found == number
        });
        model.table.get(Model::hash(number + 1_000_000), |_| {
            shown.1 += 1;
            false
        });
    }
    assert!(shown.0 < 50_000 * 115 / 100, "{} looks for 50000 that are there", shown.0);
    assert!(shown.1 < 50_000 * 25 / 100, "{} looks for 50000 that are not", shown.1);
}
