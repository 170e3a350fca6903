//! From a key's hash to a number, at about five and a half bytes each, at any size.
//!
//! ```text
//!   hash ─ low bits ─► segment ─ 13 high bits, x ─► one of two buckets of 8 ─ tag ─► number
//!
//!   segment   250 to 1000 numbers in 4 to 20 pages of 8 buckets; it grows and shrinks by a page
//!   bucket    8 tags of a byte, 8 numbers; number 0 is nobody
//! ```
//!
//! The table does not hold hashes: who asks compares the hash of a number that was found, which is
//! needed at a wrong one in about ten. A number lies in the bucket of x or in that of x *turned*
//! (its bits from the other end). The tag is what x has besides the number of its bucket: both together give
//! x back, so a number can move to its other bucket, and a segment to more pages, without a look at
//! any hash. Two choices of eight places fill a segment to 97 %.
//!
//! No insert takes longer because the table is large. A segment that is full gets one page more and
//! is sorted anew: 3 to 15 µs. For each 512 numbers more, one segment is split in two, in the order
//! of their numbers (Litwin, "Linear hashing", VLDB 1980), for which the hashes of the thousand in it
//! are needed. They lie all over memory, so the last inserts before ask for a few of them each, and
//! what they have learnt is thrown away if the segment changes meanwhile; few do in a large table.
//! There are no tombstones: a place that was left is free.

use super::pieces::{Idle, Pieces, Pool};
use crate::KeyHash;

/// Places of a bucket.
const PLACES: usize = 8;
/// Buckets of a page.
const BUCKETS: usize = 8;
/// Bits of x: with the fewest buckets, what is left of x is a byte.
const X_BITS: u32 = 13;
/// Pages of a segment at least.
const PAGES_MIN: usize = 4;
/// And at most. Segments hold at most twice their [`SEGMENT`], and how far chance takes them beyond
/// that, for keyed hashes, is a few hundred.
const PAGES_MAX: usize = 20;
/// Numbers per segment, on average.
const SEGMENT: usize = 512;
/// Numbers per page above which a segment gets one more: 97 % of its places.
const FULL: usize = 62;
/// Numbers per page up to which a segment does with one less. Far enough from [`FULL`] that chance
/// alone does not move a segment to and fro.
const SPARSE: usize = 57;
/// How many numbers may be moved for the sake of one.
const MOVES: usize = 256;
/// Inserts before a split that ask for hashes of those in the segment.
const AHEAD: usize = 16;
/// How many each of them asks for.
const ASKED: usize = 80;
/// Segments of a table too large for a cache. In a smaller one there is no need to ask ahead, and
/// the segment would change all the time.
const AHEAD_FROM: usize = 64;

const _: () = {
    assert!((1usize << X_BITS).div_ceil(PAGES_MIN * BUCKETS) <= 256, "a tag is a byte");
    let most = PAGES_MAX * BUCKETS;
    assert!((most << X_BITS) * most < 1 << 32, "the inverse is exact");
    assert!(AHEAD * ASKED >= PAGES_MAX * FULL, "all were asked for before the split");
};

#[derive(Clone, Copy, Default)]
struct Bucket {
    tags: [u8; PLACES],
    numbers: [u32; PLACES],
}

impl Bucket {
    /// The places under a tag, and hardly ever one of another: all eight are compared at once, so
    /// that the processor need not guess which one it is. Some of them may be free.
    fn places_with(&self, tag: u8) -> impl Iterator<Item = usize> + use<> {
        const ONES: u64 = 0x0101_0101_0101_0101;
        let differ = u64::from_le_bytes(self.tags) ^ (ONES * u64::from(tag));
        // The high bit of each byte that is zero; a borrow may set that of the next.
        let mut same = differ.wrapping_sub(ONES) & !differ & (ONES << 7);
        std::iter::from_fn(move || {
            let place = same.trailing_zeros() as usize / 8;
            same &= same.wrapping_sub(1);
            (place < PLACES).then_some(place)
        })
    }
}

#[derive(Default)]
struct Page([Bucket; BUCKETS]);

impl Idle for Page {
    fn next(&self) -> u32 {
        self.0[0].numbers[0]
    }

    fn idle(next: u32) -> Self {
        let mut page = Self::default();
        page.0[0].numbers[0] = next;
        page
    }
}

/// The pages of a segment that is filled from the first bucket's place on: all that lies together.
#[derive(Default)]
struct Sheet {
    pages: [Page; PAGES_MAX],
    /// Numbers of each bucket.
    lens: [[u8; BUCKETS]; PAGES_MAX],
}

impl Sheet {
    /// Puts an item into one of its buckets, unless both are full.
    fn put(&mut self, segment: &Segment, (x, number): Item) -> bool {
        [x, turned(x)].into_iter().any(|x| {
            let (at, tag) = segment.locate(x);
            let (page, at) = (at as usize / BUCKETS, at as usize % BUCKETS);
            let len = &mut self.lens[page][at];
            let place = usize::from(*len);
            if place == PLACES {
                return false;
            }
            let bucket = &mut self.pages[page].0[at];
            (bucket.tags[place], bucket.numbers[place]) = (tag, number);
            *len += 1;
            true
        })
    }
}

/// In this order, because the beginning is what most lookups need.
#[derive(Clone, Copy)]
#[repr(C)]
struct Segment {
    /// One above 2^32 divided by its buckets: multiplying is faster than to divide by them.
    inverse: u32,
    count: u16,
    /// Numbers in it.
    len: u16,
    pages: [u32; PAGES_MAX],
}

impl Default for Segment {
    fn default() -> Self {
        Self { inverse: 0, count: 0, len: 0, pages: [0; PAGES_MAX] }
    }
}

impl Segment {
    fn new(pages: usize, len: usize) -> Self {
        let inverse = u32::MAX / (pages * BUCKETS) as u32 + 1;
        Self { inverse, count: pages as u16, len: len as u16, ..Self::default() }
    }

    fn buckets(&self) -> u32 {
        u32::from(self.count) * BUCKETS as u32
    }

    /// Divided by the number of buckets. The error of the inverse is below one part in 2^32 for
    /// each bucket, too little to matter for what is below 2^32 with the buckets once more.
    fn divide(&self, by_buckets: u32) -> u32 {
        ((u64::from(by_buckets) * u64::from(self.inverse)) >> 32) as u32
    }

    /// The bucket of x, and what else there is to x.
    fn locate(&self, x: u16) -> (u32, u8) {
        let at = u32::from(x) * self.buckets();
        (at >> X_BITS, self.divide(at & ((1 << X_BITS) - 1)) as u8)
    }

    /// The x that lies in a bucket under a tag.
    fn x_at(&self, bucket: u32, tag: u8) -> u16 {
        (self.divide((bucket << X_BITS) + self.buckets() - 1) + u32::from(tag)) as u16
    }
}

/// A number and its x, or that turned.
type Item = (u16, u32);

/// What is known of the segment that is split next, which has not changed since.
struct Ahead {
    segment: usize,
    items: Vec<Item>,
    /// Of the first of them, those that stay and those that go.
    stay: Vec<Item>,
    go: Vec<Item>,
}

/// See the module.
pub struct Table {
    pages: Pool<Page>,
    segments: Pieces<Segment>,
    ahead: Option<Box<Ahead>>,
    len: usize,
    /// Which place is cleared next for the sake of another number.
    turn: u8,
}

impl Default for Table {
    fn default() -> Self {
        Self::of(0, |_| unreachable!("there is no number"), |_, _| false).0
    }
}

/// A number on its way into a segment.
#[derive(Clone, Copy, Default)]
struct Sorted {
    name: u32,
    number: u32,
}

/// x, above as many more bits as there is room for: who has the same ones is looked at.
fn name_of(hash: KeyHash) -> u32 {
    (hash.0 >> (128 - u32::BITS)) as u32
}

/// The items of one segment, and beside it the numbers of whose hash another one is there: of two
/// the first, unless the other `is_newer`.
fn one_of_each(
    sorted: &mut [Sorted],
    hash_of: impl Fn(u32) -> KeyHash,
    is_newer: impl Fn(u32, u32) -> bool,
    items: &mut Vec<Item>,
    again: &mut Vec<u32>,
) {
    items.clear();
    // Which x there were: few are there twice.
    let mut seen = [0u64; (1 << X_BITS) / 64];
    for nth in 0..sorted.len() {
        let Sorted { name, number } = sorted[nth];
        let x = (name >> (u32::BITS - X_BITS)) as u16;
        let (word, bit) = (usize::from(x) / 64, 1 << (x % 64));
        let is_same =
            |other: &&mut Sorted| other.name == name && hash_of(other.number) == hash_of(number);
        if seen[word] & bit != 0
            && let Some(there) = sorted[..nth].iter_mut().find(is_same)
        {
            // Who is there stays the first of its hash in this list.
            let older = if is_newer(number, there.number) {
                let item = items.iter_mut().find(|item| item.1 == there.number);
                item.expect("it is there").1 = number;
                std::mem::replace(&mut there.number, number)
            } else {
                number
            };
            again.push(older);
            continue;
        }
        seen[word] |= bit;
        items.push((x, number));
    }
}

/// The low bits choose the segment, these the place in it.
fn x_of(hash: KeyHash) -> u16 {
    (hash.0 >> (128 - X_BITS)) as u16
}

/// The same bits from the other end; turned twice it is as it was.
fn turned(x: u16) -> u16 {
    x.reverse_bits() >> (u16::BITS - X_BITS)
}

fn pages_for(len: usize) -> usize {
    len.div_ceil(FULL).max(PAGES_MIN)
}

impl Table {
    /// A table of the numbers from 1 to `count`, and those that are not in it because another one
    /// has the same hash: the lowest, unless a higher one `is_newer`. Segment by segment, so that each is touched once and while it is near:
    /// tens of nanoseconds for each number, however many there are.
    pub fn of(
        count: u32,
        hash_of: impl Fn(u32) -> KeyHash,
        is_newer: impl Fn(u32, u32) -> bool,
    ) -> (Self, Vec<u32>) {
        let segments = (count as usize).div_ceil(SEGMENT).max(1);
        let mut ends = vec![0u32; segments + 1];
        for number in 1..=count {
            ends[segment_of(hash_of(number), segments) + 1] += 1;
        }
        let mut end = 0;
        for at in &mut ends {
            end += *at;
            *at = end;
        }
        // Sorted by segment, in order: afterwards each end is where the next segment's begin.
        let mut sorted = vec![Sorted::default(); count as usize];
        for number in 1..=count {
            let hash = hash_of(number);
            let end = &mut ends[segment_of(hash, segments)];
            sorted[*end as usize] = Sorted { name: name_of(hash), number };
            *end += 1;
        }
        let mut table = Self {
            pages: Pool::default(),
            segments: Pieces::default(),
            ahead: None,
            len: 0,
            turn: 0,
        };
        let (mut items, mut again, mut from) = (Vec::new(), Vec::new(), 0);
        for (at, &end) in ends[..segments].iter().enumerate() {
            let sorted = &mut sorted[from..end as usize];
            one_of_each(sorted, &hash_of, &is_newer, &mut items, &mut again);
            table.segments.push(Segment::default());
            table.fill(at, pages_for(items.len()), &items);
            table.len += items.len();
            from = end as usize;
        }
        again.sort_unstable();
        (table, again)
    }

    /// How many numbers are in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        self.pages.bytes() + self.segments.bytes()
    }

    /// The number of a hash that `is` the one.
    pub fn get(&self, hash: KeyHash, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let segment = &self.segments[self.segment_of(hash)];
        let x = x_of(hash);
        for x in [x, turned(x)] {
            let (at, tag) = segment.locate(x);
            let bucket = self.bucket(segment, at);
            for place in bucket.places_with(tag) {
                let number = bucket.numbers[place];
                if number != 0 && is(number) {
                    return Some(number);
                }
            }
        }
        None
    }

    /// Adds a number that is not in it, under its hash; `hash_of` tells those of others.
    pub fn insert(&mut self, hash: KeyHash, number: u32, hash_of: impl Fn(u32) -> KeyHash) {
        assert!(number != 0, "numbers count from one");
        let at = self.segment_of(hash);
        self.changes(at);
        let Segment { len, count, .. } = self.segments[at];
        if usize::from(len) + 1 > usize::from(count) * FULL {
            let items = self.take_items(at);
            self.fill(at, usize::from(count) + 1, &items);
        }
        if let Some(homeless) = self.place(at, (x_of(hash), number)) {
            let pages = usize::from(self.segments[at].count);
            let mut items = self.take_items(at);
            items.push(homeless);
            self.fill(at, pages + 1, &items);
        } else {
            self.segments[at].len += 1;
        }
        self.len += 1;
        let segments = self.segments.len();
        if self.len > segments * SEGMENT {
            self.split(hash_of);
        } else if self.len + AHEAD > segments * SEGMENT && segments >= AHEAD_FROM {
            self.look_ahead(ASKED, hash_of);
        }
    }

    /// Takes a number out that is under this hash; says whether it was.
    pub fn remove(&mut self, hash: KeyHash, number: u32) -> bool {
        let at = self.segment_of(hash);
        let x = x_of(hash);
        for x in [x, turned(x)] {
            let segment = &self.segments[at];
            let (bucket, tag) = segment.locate(x);
            let bucket = bucket_mut(&mut self.pages, segment, bucket);
            let found = bucket.places_with(tag).find(|&place| bucket.numbers[place] == number);
            if let Some(place) = found {
                bucket.numbers[place] = 0;
                self.changes(at);
                self.len -= 1;
                self.segments[at].len -= 1;
                self.shrink(at);
                return true;
            }
        }
        false
    }

    fn shrink(&mut self, at: usize) {
        let Segment { len, count, .. } = self.segments[at];
        let less = usize::from(count) - 1;
        if less >= PAGES_MIN && usize::from(len) <= less * SPARSE {
            let items = self.take_items(at);
            self.fill(at, less, &items);
        }
    }

    /// Segments are numbered by as many low bits as they need; those that are not split yet in this
    /// round by one less.
    fn segment_of(&self, hash: KeyHash) -> usize {
        segment_of(hash, self.segments.len())
    }

    fn bucket(&self, segment: &Segment, bucket: u32) -> &Bucket {
        let page = segment.pages[bucket as usize / BUCKETS];
        &self.pages[page].0[bucket as usize % BUCKETS]
    }

    /// Puts an item into one of its buckets. When both are full others are moved for it, in turn,
    /// to the other bucket that they have; the answer is who found no place after many moves.
    fn place(&mut self, at: usize, item: Item) -> Option<Item> {
        let segment = &self.segments[at];
        let (mut x, mut number) = item;
        if self.pages.put(segment, x, number) {
            return None;
        }
        x = turned(x);
        for _ in 0..MOVES {
            if self.pages.put(segment, x, number) {
                return None;
            }
            self.turn = self.turn.wrapping_mul(37).wrapping_add(11);
            let place = usize::from(self.turn >> 5);
            let (at, tag) = segment.locate(x);
            let bucket = bucket_mut(&mut self.pages, segment, at);
            let moved = segment.x_at(at, bucket.tags[place]);
            bucket.tags[place] = tag;
            number = std::mem::replace(&mut bucket.numbers[place], number);
            x = turned(moved);
        }
        Some((x, number))
    }

    /// All items of a segment.
    fn items(&self, at: usize) -> Vec<Item> {
        let segment = &self.segments[at];
        let mut items = Vec::with_capacity(usize::from(segment.len) + 1);
        for (nth, &page) in segment.pages.iter().take(usize::from(segment.count)).enumerate() {
            for (bucket, at) in self.pages[page].0.iter().zip(nth as u32 * BUCKETS as u32..) {
                for (&tag, &number) in bucket.tags.iter().zip(&bucket.numbers) {
                    if number != 0 {
                        items.push((segment.x_at(at, tag), number));
                    }
                }
            }
        }
        items
    }

    /// Takes all items out of a segment, and its pages away.
    fn take_items(&mut self, at: usize) -> Vec<Item> {
        let items = self.items(at);
        self.take_pages(at);
        items
    }

    fn take_pages(&mut self, at: usize) {
        let segment = std::mem::take(&mut self.segments[at]);
        for &page in segment.pages.iter().take(usize::from(segment.count)) {
            self.pages.remove(page);
        }
    }

    /// Fills a segment that has no page with these items: on so many pages, or as many more as it
    /// takes.
    fn fill(&mut self, at: usize, pages: usize, items: &[Item]) {
        for pages in pages..=PAGES_MAX {
            let mut segment = Segment::new(pages, items.len());
            let mut sheet = Sheet::default();
            let homeless: Vec<Item> =
                items.iter().filter(|&&item| !sheet.put(&segment, item)).copied().collect();
            for (page, filled) in segment.pages[..pages].iter_mut().zip(sheet.pages) {
                *page = self.pages.insert(filled);
            }
            self.segments[at] = segment;
            if homeless.into_iter().all(|item| self.place(at, item).is_none()) {
                return;
            }
            self.take_items(at);
        }
        panic!("{} numbers have hashes that are no hashes", items.len());
    }

    /// A segment will have other numbers: what was asked about it is not all any more.
    fn changes(&mut self, at: usize) {
        if self.ahead.as_ref().is_some_and(|ahead| ahead.segment == at) {
            self.ahead = None;
        }
    }

    /// Asks for the hashes of so many more in the segment that is split next.
    fn look_ahead(&mut self, asked: usize, hash_of: impl Fn(u32) -> KeyHash) {
        let new = self.segments.len();
        let segment = new - (1 << new.ilog2());
        let mut ahead = self.ahead.take().unwrap_or_else(|| {
            let items = self.items(segment);
            let [stay, go] = [(); 2].map(|()| Vec::with_capacity(items.len()));
            Box::new(Ahead { segment, items, stay, go })
        });
        assert_eq!(ahead.segment, segment, "what was known of another one is gone with the split");
        let Ahead { items, stay, go, .. } = &mut *ahead;
        let items = &items[stay.len() + go.len()..];
        let items = &items[..asked.min(items.len())];
        // First all hashes and then what follows from them: memory answers many questions at once.
        let hashes: Vec<KeyHash> = items.iter().map(|&(_, number)| hash_of(number)).collect();
        for (&item, hash) in items.iter().zip(hashes) {
            let to = if segment_of(hash, new + 1) == new { &mut *go } else { &mut *stay };
            to.push(item);
        }
        self.ahead = Some(ahead);
    }

    /// Splits the next segment in two.
    fn split(&mut self, hash_of: impl Fn(u32) -> KeyHash) {
        self.look_ahead(usize::MAX, hash_of);
        let ahead = self.ahead.take().expect("all was asked that was not before");
        let Ahead { segment: old, stay, go, .. } = *ahead;
        let len = usize::from(self.segments[old].len);
        assert_eq!(stay.len() + go.len(), len, "all that are in the segment were asked about");
        self.take_pages(old);
        let new = self.segments.push(Segment::default());
        self.fill(old, pages_for(stay.len()), &stay);
        self.fill(new, pages_for(go.len()), &go);
    }
}

fn segment_of(hash: KeyHash, segments: usize) -> usize {
    let low = hash.0 as u64 as usize;
    let half = 1 << segments.ilog2();
    let at = low & (2 * half - 1);
    if at < segments { at } else { at & (half - 1) }
}

fn bucket_mut<'a>(pages: &'a mut Pool<Page>, segment: &Segment, bucket: u32) -> &'a mut Bucket {
    let page = segment.pages[bucket as usize / BUCKETS];
    &mut pages[page].0[bucket as usize % BUCKETS]
}

impl Pool<Page> {
    /// Puts a number into the bucket of x, if a place is free there.
    fn put(&mut self, segment: &Segment, x: u16, number: u32) -> bool {
        let (at, tag) = segment.locate(x);
        let bucket = bucket_mut(self, segment, at);
        let Some(place) = bucket.numbers.iter().position(|&number| number == 0) else {
            return false;
        };
        bucket.tags[place] = tag;
        bucket.numbers[place] = number;
        true
    }
}
