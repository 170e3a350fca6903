//! A client's requests: what each one is about, and how it goes on the wire.

use memkv_wire::meta::{
    DataMeta, DeleteItem, DeleteItems, GetItem, GetItems, HintList, KeyList, LeaseList, MatchItem,
    MatchItems, PutAdvice, PutItem, PutItems, PutMode, SuspectItem, SuspectItems, TO_THE_END,
};
use memkv_wire::{Advice, CrcList, Header, Opcode};

use crate::counters::Count;
use crate::link::Link;
use crate::model::{Delete, KeyId, Mode, Put, Sight};
use crate::stage::Stage;

/// One value of a put.
pub struct PutWork {
    pub put: Put,
    pub mode: Mode,
    pub ttl: u32,
    pub settled: bool,
}

/// One range of a get.
pub struct GetWork {
    pub sight: Sight,
    pub offset: u64,
    pub length: u64,
    pub answered: bool,
}

/// What a request is about.
pub enum Work {
    /// Values in the frame. `poisoned`: one CRC is wrong on purpose.
    Put { items: Vec<PutWork>, poisoned: bool },
    /// Values offered first. `waiting` counts those whose bytes were sent. `along`: there is one, and its
    /// bytes went with it.
    Offer { items: Vec<PutWork>, waiting: u32, answered: bool, along: bool },
    /// Values or ranges, answered one by one in any order.
    Get(Vec<GetWork>),
    /// What is there?
    Exists(Vec<Sight>),
    /// Is it there? In a byte each.
    Presence(Vec<Sight>),
    /// How many from the first on are there? Positions begin at the number.
    Match(Vec<Sight>, u32),
    /// Keep them for a while: milliseconds, and the moment of asking.
    Lease { sights: Vec<Sight>, ms: u32, since: u64 },
    /// What becomes of a chain: which advice, and for how many seconds.
    Hint { sights: Vec<Sight>, advice: Advice, seconds: u32 },
    /// Let them go.
    Release(Vec<KeyId>),
    /// Remove them.
    Delete(Vec<Delete>),
    /// This generation looked wrong.
    Suspect { sight: Sight, generation: u64 },
}

/// A request under way.
pub struct Request {
    pub id: u64,
    pub work: Work,
    pub attempts: u32,
    pub deadline_ms: u32,
    /// When it was sent last, in nanoseconds.
    pub sent: u64,
}

impl Work {
    /// Whether the outcome of the request may change what is stored.
    pub fn changes(&self) -> bool {
        matches!(self, Work::Put { .. } | Work::Offer { .. } | Work::Delete(_))
    }

    /// Whether values are offered.
    pub fn is_offer(&self) -> bool {
        matches!(self, Work::Offer { .. })
    }

    /// How many operations it is: one of the store's for every key.
    pub fn operations(&self) -> usize {
        match self {
            Work::Put { items, .. } | Work::Offer { items, .. } => items.len(),
            Work::Get(items) => items.len(),
            Work::Exists(sights)
            | Work::Presence(sights)
            | Work::Match(sights, _)
            | Work::Lease { sights, .. }
            | Work::Hint { sights, .. } => sights.len(),
            Work::Release(keys) => keys.len(),
            Work::Delete(deletes) => deletes.len(),
            Work::Suspect { .. } => 1,
        }
    }

    /// Whether it needs a credit.
    pub fn needs_credit(&self) -> bool {
        matches!(self, Work::Put { .. })
    }
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys = |sights: &[Sight]| sights.iter().map(|s| s.key).collect::<Vec<_>>();
        match self {
            Work::Put { items, .. } | Work::Offer { items, .. } => {
                let kind = if matches!(self, Work::Put { .. }) { "put" } else { "offer" };
                write!(f, "{kind}")?;
                for item in items {
                    let (key, version) = (item.put.sight.key, item.put.version);
                    write!(f, " {key}/v{version} {:?}", item.mode)?;
                }
                Ok(())
            }
            Work::Get(items) => {
                write!(f, "get")?;
                items.iter().try_for_each(|get| write!(f, " {}@{}", get.sight.key, get.offset))
            }
            Work::Exists(sights) => write!(f, "exists {:?}", keys(sights)),
            Work::Presence(sights) => write!(f, "presence {:?}", keys(sights)),
            Work::Match(sights, _) => write!(f, "match {:?}", keys(sights)),
            Work::Hint { sights, advice, .. } => write!(f, "hint {advice} {:?}", keys(sights)),
            Work::Lease { sights, ms, .. } => write!(f, "lease {:?} for {ms} ms", keys(sights)),
            Work::Release(keys) => write!(f, "release {keys:?}"),
            Work::Delete(deletes) => {
                write!(f, "delete")?;
                let mut all = deletes.iter();
                all.try_for_each(|d| write!(f, " {}/g{}", d.sight.key, d.generation))
            }
            Work::Suspect { sight, generation } => {
                write!(f, "suspect {}/g{generation}", sight.key)
            }
        }
    }
}

impl Stage {
    /// Draws a request for a client of `space`.
    pub fn draw_work(&mut self, space: usize) -> Work {
        let shares = self.options.mix.shares();
        let mut draw = self.rng.below(shares.iter().sum::<u32>().into()) as u32;
        let kind = shares.iter().position(|&share| {
            let hit = draw < share;
            draw = draw.wrapping_sub(share);
            hit
        });
        match kind.expect("the draw is below the sum") {
            0 => self.draw_put(space),
            1 => self.draw_offer(space),
            2 => self.draw_get(space, false),
            3 => self.draw_get(space, true),
            4 => self.draw_exists(space),
            5 => {
                let sights = self.draw_sights(space, 8);
                let first = self.below(100) as u32;
                Work::Match(sights, first)
            }
            6 => self.draw_lease(space),
            7 => self.draw_delete(space),
            _ => self.draw_suspect(space),
        }
    }

    /// A question whether keys are there; half of them say what becomes of them, too, a quarter are
    /// answered in a byte each. That is drawn from the keys and the time, and not from the seed's
    /// randomness, of which every other draw would change.
    fn draw_exists(&mut self, space: usize) -> Work {
        let mut sights = self.draw_sights(space, 8);
        let sum: u64 = sights.iter().map(|sight| u64::from(sight.key)).sum();
        let draw = (self.now().nanos ^ sum.wrapping_mul(0x9e37_79b9)) % 8;
        let (advice, seconds) = match draw {
            0 => (Advice::Retain, 0),
            1 => (Advice::Pin, 1 + sum as u32 % 5),
            2 | 3 => (Advice::Release, 0),
            4 | 5 => return Work::Presence(sights),
            _ => return Work::Exists(sights),
        };
        sights.sort_by_key(|sight| sight.key);
        Work::Hint { sights, advice, seconds }
    }

    fn draw_sights(&mut self, space: usize, most: u64) -> Vec<Sight> {
        let now = self.now();
        let count = 1 + self.below(most);
        (0..count)
            .map(|_| {
                let key = self.pick_key(space);
                self.model.look(key, now)
            })
            .collect()
    }

    fn draw_put_item(&mut self, key: KeyId, length: u64) -> PutWork {
        let mode = match self.below(10) {
            0..=4 => Mode::Absent,
            5..=7 => Mode::Replace,
            _ if self.chance(3) => Mode::Generation(1 + self.below(self.model.newest(key) + 2)),
            _ => Mode::Generation(self.model.newest(key).max(1)),
        };
        let ttl = if self.is_mortal(key) { self.below(6) as u32 } else { 0 };
        self.count_put_race(key);
        let now = self.now();
        let version = self.model.offer(key, length);
        // The namespace may know better than the putter.
        let lives = self.options.namespace_ttl((key / self.options.keys) as usize, ttl);
        if lives != ttl {
            self.bump(Count::NamespaceTtls);
        }
        let put = self.model.put_begins(version, mode, lives, now);
        PutWork { put, mode, ttl, settled: false }
    }

    fn count_put_race(&mut self, key: KeyId) {
        let (puts, deletes) = self.model.is_contended(key);
        if puts {
            self.bump(Count::RacePutPut);
        }
        if deletes {
            self.bump(Count::RacePutDelete);
        }
    }

    fn draw_put(&mut self, space: usize) -> Work {
        let count = if self.chance(4) { 1 + self.below(4) } else { 1 };
        let mut items = Vec::with_capacity(count as usize);
        let mut left = u64::from(memkv_wire::MAX_INLINE);
        for _ in 0..count {
            let key = self.pick_key(space);
            let length = self.pick_length(key);
            if length > left {
                break;
            }
            left -= length;
            if length > u64::from(self.options.extent) {
                self.bump(Count::Multipart);
            }
            items.push(self.draw_put_item(key, length));
        }
        let poisoned = self.chance(400);
        Work::Put { items, poisoned }
    }

    fn draw_offer(&mut self, space: usize) -> Work {
        let long = u64::from(self.options.extent) > 64 << 10 && self.chance(8);
        let count = if long { 1 } else { 1 + self.below(3) };
        let mut items = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let (key, length) = if long {
                (space as u32 * self.options.keys, self.long_length())
            } else {
                let key = self.pick_key(space);
                (key, self.pick_length(key))
            };
            if length > u64::from(self.options.extent) {
                self.bump(Count::Multipart);
            }
            items.push(self.draw_put_item(key, length));
        }
        self.bump(Count::Offers);
        Work::Offer { items, waiting: 0, answered: false, along: false }
    }

    fn draw_get(&mut self, space: usize, range: bool) -> Work {
        let count = if self.chance(6) { 1 + self.below(4) } else { 1 };
        let now = self.now();
        let items = (0..count).map(|_| {
            let key = self.pick_key(space);
            let (puts, deletes) = self.model.is_contended(key);
            if puts {
                self.bump(Count::RaceGetPut);
            }
            if deletes {
                self.bump(Count::RaceGetDelete);
            }
            let (offset, length) = if range {
                let offset = if self.chance(3) { 0 } else { self.below(40_000) };
                (offset, if self.chance(4) { TO_THE_END } else { 1 + self.below(20_000) })
            } else {
                (0, TO_THE_END)
            };
            GetWork { sight: self.model.look(key, now), offset, length, answered: false }
        });
        Work::Get(items.collect())
    }

    fn draw_lease(&mut self, space: usize) -> Work {
        let sights = self.draw_sights(space, 4);
        if self.chance(3) {
            let keys = sights.iter().map(|sight| sight.key).collect();
            return Work::Release(keys);
        }
        let ms = 1 + self.below(2_000) as u32;
        Work::Lease { sights, ms, since: self.now().nanos }
    }

    fn draw_delete(&mut self, space: usize) -> Work {
        let now = self.now();
        let count = if self.chance(4) { 1 + self.below(3) } else { 1 };
        let deletes = (0..count).map(|_| {
            let key = self.pick_key(space);
            let (puts, deletes) = self.model.is_contended(key);
            if puts || deletes {
                self.bump(Count::RacePutDelete);
            }
            let generation = match self.below(8) {
                0 => 1 + self.below(self.model.newest(key) + 2),
                1 | 2 => self.model.newest(key),
                _ => 0,
            };
            self.model.delete_begins(key, generation, now)
        });
        Work::Delete(deletes.collect())
    }

    fn draw_suspect(&mut self, space: usize) -> Work {
        let key = self.pick_key(space);
        let now = self.now();
        Work::Suspect { sight: self.model.look(key, now), generation: self.model.newest(key) }
    }

    /// Puts a request on the wire.
    pub fn send(&mut self, link: &mut Link, request: &mut Request) {
        let id = request.id;
        let ms = request.deadline_ms;
        let header = |opcode| Header::request(opcode, id).with_deadline_ms(ms);
        let mut meta = std::mem::take(&mut self.meta);
        meta.clear();
        let opcode = match &request.work {
            Work::Put { items, poisoned } => {
                self.count_advice(items);
                return self.send_put(link, header(Opcode::Put), items, *poisoned, meta);
            }
            Work::Offer { items, along, .. } => {
                self.count_advice(items);
                self.encode_puts(items, None, &mut meta);
                if *along {
                    return self.send_along(link, header(Opcode::Offer), &items[0], meta);
                }
                Opcode::Offer
            }
            Work::Get(items) => {
                let item = |get: &GetWork| (get.sight.key, get.offset, get.length);
                self.encode_gets(items.iter().map(item), &mut meta);
                Opcode::Get
            }
            Work::Exists(sights) | Work::Presence(sights) => {
                KeyList { keys: self.names_of(sights) }.encode(&mut meta);
                let long = matches!(request.work, Work::Exists(_));
                if long { Opcode::Exists } else { Opcode::Presence }
            }
            Work::Match(sights, first) => {
                let item = |(at, sight): (usize, &Sight)| MatchItem {
                    position: first + 2 * at as u32,
                    key: self.name(sight.key),
                };
                MatchItems { items: sights.iter().enumerate().map(item).collect() }
                    .encode(&mut meta);
                Opcode::MatchPrefix
            }
            Work::Hint { sights, advice, seconds } => {
                let (advice, seconds) = (*advice, *seconds);
                HintList { advice, seconds, keys: self.names_of(sights) }.encode(&mut meta);
                Opcode::Hint
            }
            Work::Lease { sights, ms, .. } => {
                LeaseList { lease_ms: *ms, keys: self.names_of(sights) }.encode(&mut meta);
                Opcode::Lease
            }
            Work::Release(keys) => {
                let keys = keys.iter().map(|&key| self.name(key)).collect();
                KeyList { keys }.encode(&mut meta);
                Opcode::Release
            }
            Work::Delete(deletes) => {
                let item = |delete: &Delete| DeleteItem {
                    key: self.name(delete.sight.key),
                    generation: delete.generation,
                };
                DeleteItems { items: deletes.iter().map(item).collect() }.encode(&mut meta);
                Opcode::Delete
            }
            Work::Suspect { sight, generation } => {
                let key = self.name(sight.key);
                let items = vec![SuspectItem { key, generation: *generation }];
                SuspectItems { items }.encode(&mut meta);
                Opcode::Suspect
            }
        };
        link.send(header(opcode), &meta, &[]);
        self.meta = meta;
    }

    fn names_of(&self, sights: &[Sight]) -> Vec<&[u8]> {
        sights.iter().map(|sight| self.name(sight.key)).collect()
    }

    fn encode_gets(&self, items: impl Iterator<Item = (KeyId, u64, u64)>, meta: &mut Vec<u8>) {
        let items =
            items.map(|(key, offset, length)| GetItem { key: self.name(key), offset, length });
        GetItems { items: items.collect() }.encode(meta);
    }

    /// What is said of a value besides: the key before it is its parent, some are pinned.
    fn advice(&self, work: &PutWork) -> PutAdvice<'_> {
        let (key, version) = (work.put.sight.key, work.put.version);
        let parent = (key % self.options.keys > 0 && version % 3 == 0).then(|| self.name(key - 1));
        let pin_seconds = if version % 7 == 0 { 1 + key % 4 } else { 0 };
        PutAdvice { parent, pin_seconds }
    }

    fn count_advice(&mut self, items: &[PutWork]) {
        for work in items {
            let PutAdvice { parent, pin_seconds } = self.advice(work);
            let (parent, pinned) = (parent.is_some(), pin_seconds > 0);
            if parent {
                self.bump(Count::PutsWithParent);
            }
            if pinned {
                self.bump(Count::PutsPinned);
            }
        }
    }

    fn encode_puts(&self, items: &[PutWork], crcs: Option<&[CrcList]>, meta: &mut Vec<u8>) {
        let item = |(at, work): (usize, &PutWork)| PutItem {
            key: self.name(work.put.sight.key),
            length: self.model.length(work.put.version),
            mode: match work.mode {
                Mode::Absent => PutMode::Absent,
                Mode::Replace => PutMode::Replace,
                Mode::Generation(generation) => PutMode::Generation(generation),
            },
            durable: self.options.is_durable(work.put.version),
            ttl_seconds: work.ttl,
            crcs: crcs.map_or(CrcList::EMPTY, |crcs| crcs[at]),
            advice: self.advice(work),
        };
        PutItems { items: items.iter().enumerate().map(item).collect() }.encode(meta);
    }

    fn send_put(
        &mut self,
        link: &mut Link,
        header: Header,
        items: &[PutWork],
        poisoned: bool,
        mut meta: Vec<u8>,
    ) {
        let mut payload = Vec::new();
        let mut crcs = Vec::with_capacity(items.len());
        for (at, work) in items.iter().enumerate() {
            let mut list = self.make_value(work.put.sight.key, work.put.version);
            if poisoned && at == 0 {
                list = CrcList::from_slice(&vec![!list[0]; list.len()]).expect("as many as before");
            }
            crcs.push(list);
            if items.len() > 1 {
                payload.extend_from_slice(&self.scratch);
            }
        }
        self.encode_puts(items, Some(&crcs), &mut meta);
        let payload = if items.len() > 1 { &payload } else { &self.scratch };
        link.send(header.with_payload_length(payload.len() as u64), &meta, payload);
        self.meta = meta;
    }

    /// Sends an offer of one value with its bytes.
    fn send_along(&mut self, link: &mut Link, header: Header, work: &PutWork, meta: Vec<u8>) {
        let crcs = self.make_value(work.put.sight.key, work.put.version);
        let header = header.with_payload_length(self.scratch.len() as u64);
        link.send_with_trailer(header, &meta, &self.scratch, crcs.as_slice());
        self.bump(Count::OffersWithPayload);
        self.meta = meta;
    }

    /// Sends the bytes of one offered value.
    pub fn send_data(&mut self, link: &mut Link, request: u64, item: u32, work: &PutWork) {
        let crcs = self.make_value(work.put.sight.key, work.put.version);
        let mut meta = Vec::new();
        DataMeta { item }.encode(&mut meta);
        let header =
            Header::request(Opcode::Data, request).with_payload_length(self.scratch.len() as u64);
        link.send_with_trailer(header, &meta, &self.scratch, crcs.as_slice());
    }
}
