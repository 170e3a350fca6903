//! What a client makes of the server's replies: each is held against the model.

use memkv_wire::meta::{DataReply, GetReply, ItemReplies, ItemReply, MatchReply, PresenceReply};
use memkv_wire::{Header, MetaError, MissReason, Opcode, Status, crc32c};

use crate::counters::Count;
use crate::model::{Broken, Delete, Mode, Put, Sight, What};
use crate::options::FaultMode;
use crate::requests::{GetWork, PutWork, Request, Work};
use crate::stage::Stage;
use crate::values;

/// What a reply leaves to be done.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    /// More replies will come.
    Wait,
    /// The request is answered.
    Done,
    /// The server wants bytes of the items whose bit is set.
    SendData(u64),
    /// Bytes of this generation had a wrong CRC: report it. More replies come unless `last`.
    Report { sight: Sight, generation: u64, last: bool },
}

fn unexplained(key: u32, detail: impl Into<String>) -> Broken {
    Broken { what: What::Unexplained, key, detail: detail.into() }
}

fn garbled(error: MetaError) -> Broken {
    unexplained(u32::MAX, format!("a meta of the server: {error}"))
}

impl Stage {
    /// Takes one reply to `request`.
    pub fn take_reply(
        &mut self,
        request: &mut Request,
        header: &Header,
        meta: &[u8],
        payload: &[u8],
    ) -> Result<Then, Broken> {
        self.bump(Count::Replies);
        if let Work::Release(keys) = &request.work {
            let now = self.now().nanos;
            keys.iter().for_each(|&key| self.model.release_ends(key, now));
        }
        if header.status() != Status::Ok {
            return self.take_refusal(request, header.status());
        }
        match &mut request.work {
            Work::Put { items, poisoned } => self.take_put(items, *poisoned, meta),
            Work::Offer { .. } => self.take_offer(&mut request.work, header, meta),
            Work::Get(items) => self.take_get(items, header.has_more(), meta, payload),
            Work::Exists(sights) => self.take_exists(sights, meta),
            Work::Presence(sights) => self.take_presence(sights, meta),
            Work::Hint { sights, .. } => {
                self.bump(Count::Hints);
                self.take_exists(sights, meta)
            }
            Work::Match(sights, first) => self.take_match(sights, *first, meta),
            Work::Lease { sights, ms, since } => self.take_lease(sights, *ms, *since, meta),
            Work::Release(_) => Ok(Then::Done),
            Work::Delete(deletes) => self.take_delete(deletes, meta),
            Work::Suspect { sight, generation } => self.take_suspect(sight, *generation, meta),
        }
    }

    fn items(meta: &[u8], count: usize) -> Result<Vec<ItemReply>, Broken> {
        let items = ItemReplies::parse(meta).map_err(garbled)?.items;
        if items.len() != count {
            let detail = format!("{} replies to {count} items", items.len());
            return Err(unexplained(u32::MAX, detail));
        }
        Ok(items)
    }

    /// A request that was refused as a whole.
    fn take_refusal(&mut self, request: &mut Request, status: Status) -> Result<Then, Broken> {
        let excused = match status {
            // The server is going: what a changing request came to is not known.
            Status::ShuttingDown => return Ok(Then::Done),
            Status::Busy | Status::LimitExceeded => true,
            Status::DeadlineExceeded => request.deadline_ms > 0,
            _ => false,
        };
        if !excused {
            return Err(unexplained(u32::MAX, format!("request {} refused: {status}", request.id)));
        }
        match &request.work {
            Work::Put { items, .. } | Work::Offer { items, .. } => {
                items.iter().for_each(|item| self.model.put_refused(&item.put));
            }
            Work::Delete(deletes) => {
                deletes.iter().for_each(|delete| self.model.delete_refused(delete));
            }
            _ => {}
        }
        Ok(Then::Done)
    }

    fn take_put(
        &mut self,
        items: &mut [PutWork],
        poisoned: bool,
        meta: &[u8],
    ) -> Result<Then, Broken> {
        let replies = Self::items(meta, items.len())?;
        for (at, (item, reply)) in items.iter_mut().zip(&replies).enumerate() {
            if poisoned && at == 0 && reply.status == Status::Ok && !item.put.was_repeated() {
                return Err(unexplained(item.put.sight.key, "a put with a wrong CRC was accepted"));
            }
            if reply.status == Status::CrcMismatch && !(poisoned && at == 0) {
                return Err(unexplained(item.put.sight.key, "a right CRC was called wrong"));
            }
            self.settle_put(&item.put, item.mode, reply)?;
            item.settled = true;
        }
        Ok(Then::Done)
    }

    /// Takes the answer to one value.
    fn settle_put(&mut self, put: &Put, mode: Mode, reply: &ItemReply) -> Result<(), Broken> {
        let now = self.now();
        let key = put.sight.key;
        if self.verbose {
            eprintln!("  put {put:?} -> {reply:?}");
        }
        match reply.status {
            Status::Ok => {
                self.model.put_stored(put, reply.generation, now)?;
                self.note_durable(put, reply.generation);
                Ok(())
            }
            Status::Present | Status::Conflict => {
                if mode != Mode::Absent {
                    return Err(unexplained(key, format!("{mode:?} answered {}", reply.status)));
                }
                let present = reply.status == Status::Present;
                self.bump(if present { Count::Present } else { Count::Conflicts });
                if present != (reply.length == self.model.length(put.version)) {
                    let detail = format!("{} with {} bytes", reply.status, reply.length);
                    return Err(unexplained(key, detail));
                }
                self.model.put_present(put, reply.generation, reply.length, &reply.crcs)?;
                if present {
                    self.note_durable(put, reply.generation);
                }
                Ok(())
            }
            Status::GenerationMismatch => {
                self.bump(Count::Mismatches);
                if reply.generation != 0 {
                    self.model.saw_block(
                        &put.sight,
                        reply.generation,
                        reply.length,
                        &reply.crcs,
                    )?;
                }
                self.model.put_mismatch(put)
            }
            Status::Busy => {
                self.bump(Count::Busy);
                self.model.put_refused(put);
                Ok(())
            }
            Status::Full => {
                self.bump(Count::Full);
                self.model.put_refused(put);
                Ok(())
            }
            Status::DeadlineExceeded => {
                self.bump(Count::DeadlinesMissed);
                self.model.put_refused(put);
                Ok(())
            }
            Status::CrcMismatch | Status::LimitExceeded => {
                self.model.put_refused(put);
                Ok(())
            }
            // Its record may be on the drive or not: known after the next start.
            Status::IoError if self.errors_happen() => Ok(()),
            Status::ShuttingDown => Ok(()),
            status => Err(unexplained(key, format!("a put answered {status}"))),
        }
    }

    fn note_durable(&mut self, put: &Put, generation: u64) {
        if self.options.is_durable(put.version) {
            self.model.survives_power(put.sight.key, generation);
        }
    }

    fn errors_happen(&self) -> bool {
        self.options.faults == FaultMode::Errors
    }

    fn take_offer(
        &mut self,
        work: &mut Work,
        header: &Header,
        meta: &[u8],
    ) -> Result<Then, Broken> {
        let Work::Offer { items, waiting, answered, along } = work else {
            unreachable!("called for offers")
        };
        if header.opcode() == Opcode::Data {
            let reply = DataReply::parse(meta).map_err(garbled)?;
            let item = items.get_mut(reply.item as usize).filter(|item| !item.settled);
            let Some(item) = item else {
                return Err(unexplained(u32::MAX, "an answer to data that was not sent"));
            };
            item.settled = true;
            if reply.reply.status == Status::CrcMismatch {
                return Err(unexplained(item.put.sight.key, "a right CRC was called wrong"));
            }
            self.settle_put(&item.put, item.mode, &reply.reply)?;
            *waiting -= 1;
            return Ok(if *waiting == 0 { Then::Done } else { Then::Wait });
        }
        if *answered {
            return Err(unexplained(u32::MAX, "an offer was answered twice"));
        }
        *answered = true;
        let replies = Self::items(meta, items.len())?;
        let mut wanted = 0;
        for (at, (item, reply)) in items.iter_mut().zip(&replies).enumerate() {
            if reply.status == Status::Want && !*along {
                wanted |= 1 << at;
                continue;
            }
            if *along && reply.status != Status::Ok {
                self.bump(Count::PayloadForgotten);
            }
            if reply.status == Status::CrcMismatch {
                return Err(unexplained(item.put.sight.key, "a right CRC was called wrong"));
            }
            self.settle_put(&item.put, item.mode, reply)?;
            item.settled = true;
        }
        Ok(if wanted == 0 { Then::Done } else { Then::SendData(wanted) })
    }

    /// The answer to one item of a get.
    fn take_get(
        &mut self,
        items: &mut [GetWork],
        more: bool,
        meta: &[u8],
        payload: &[u8],
    ) -> Result<Then, Broken> {
        let reply = GetReply::parse(meta).map_err(garbled)?;
        let count = items.len();
        let item = items.get_mut(reply.item as usize).filter(|item| !item.answered);
        let Some(item) = item else {
            return Err(unexplained(u32::MAX, format!("a get answered its item {}", reply.item)));
        };
        item.answered = true;
        if more == (reply.item as usize + 1 == count) {
            return Err(unexplained(item.sight.key, "MORE is set on all items but the last"));
        }
        let suspect = self.judge_get(item, &reply, payload)?;
        let last = items.iter().all(|item| item.answered);
        Ok(match suspect {
            Some((sight, generation)) => Then::Report { sight, generation, last },
            None if last => Then::Done,
            None => Then::Wait,
        })
    }

    /// A block's bytes, or a miss. `Some` when the bytes had a wrong CRC: whom to report.
    fn judge_get(
        &mut self,
        get: &GetWork,
        reply: &GetReply,
        payload: &[u8],
    ) -> Result<Option<(Sight, u64)>, Broken> {
        let GetReply { offset, reply, .. } = reply;
        let sight = get.sight;
        if self.verbose {
            eprintln!("  get {sight:?} -> {reply:?}");
        }
        match reply.status {
            Status::Ok => self.check_bytes(get, *offset, reply, payload),
            Status::NotFound => {
                self.take_miss(&sight, reply.reason)?;
                Ok(None)
            }
            // The range lies behind the end of the value.
            Status::BadRequest if reply.length > 0 && get.offset >= reply.length => {
                self.model.saw_something(&sight)?;
                Ok(None)
            }
            Status::Busy | Status::ShuttingDown => Ok(None),
            Status::DeadlineExceeded => {
                self.bump(Count::DeadlinesMissed);
                Ok(None)
            }
            Status::IoError if self.errors_happen() => Ok(None),
            status => Err(unexplained(sight.key, format!("a get answered {status}"))),
        }
    }

    fn take_miss(&mut self, sight: &Sight, reason: MissReason) -> Result<(), Broken> {
        let now = self.now();
        self.bump(Count::Misses);
        match reason {
            MissReason::Expired => self.bump(Count::Expired),
            MissReason::Corrupt => self.bump(Count::CorruptDropped),
            _ => {}
        }
        self.model.saw_miss(sight, reason, now)
    }

    fn check_bytes(
        &mut self,
        get: &GetWork,
        offset: u64,
        reply: &ItemReply,
        payload: &[u8],
    ) -> Result<Option<(Sight, u64)>, Broken> {
        let key = get.sight.key;
        let wanted = get.length.min(reply.length.saturating_sub(get.offset));
        if offset != get.offset || payload.len() as u64 != wanted {
            let detail = format!(
                "{} bytes at {offset}; asked for {} at {} of {}",
                payload.len(),
                get.length,
                get.offset,
                reply.length
            );
            return Err(Broken { what: What::WrongBytes, key, detail });
        }
        if !self.crcs_fit(offset, payload, &reply.crcs) {
            self.bump(Count::BadCrcSeen);
            self.model.saw_bad_crc(&get.sight, reply.generation)?;
            return Ok(Some((get.sight, reply.generation)));
        }
        self.bump(Count::Hits);
        let version = self.model.candidates(key, reply.generation).find(|&version| {
            self.model.length(version) == reply.length
                && values::matches(key, version, offset, payload)
        });
        let Some(version) = version else {
            let stamp = values::Stamp::read(payload);
            let detail = format!("generation {}, {stamp:?} at {offset}", reply.generation);
            return Err(Broken { what: What::WrongBytes, key, detail });
        };
        let whole = payload.len() as u64 == reply.length;
        if !whole && !self.model.knows(reply.generation) && self.is_ambiguous(get, reply, payload) {
            self.model.saw_block(&get.sight, reply.generation, reply.length, &[])?;
            return Ok(None);
        }
        self.model.saw_value(&get.sight, reply.generation, version, reply.length, whole)?;
        Ok(None)
    }

    /// A few bytes of a value may be those of several.
    fn is_ambiguous(&self, get: &GetWork, reply: &ItemReply, payload: &[u8]) -> bool {
        let key = get.sight.key;
        let fits = |version: &u32| {
            self.model.length(*version) == reply.length
                && values::matches(key, *version, get.offset, payload)
        };
        self.model.candidates(key, reply.generation).filter(fits).nth(1).is_some()
    }

    /// One CRC for each extent that the bytes touch, over the bytes that are sent of it.
    fn crcs_fit(&self, offset: u64, payload: &[u8], crcs: &[u32]) -> bool {
        let extent = u64::from(self.options.extent);
        let (mut at, mut rest) = (offset, payload);
        for &crc in crcs {
            let take = (extent - at % extent).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at(take);
            if crc32c(now) != crc {
                return false;
            }
            (at, rest) = (at + take as u64, later);
        }
        rest.is_empty()
    }

    fn take_exists(&mut self, sights: &[Sight], meta: &[u8]) -> Result<Then, Broken> {
        for (sight, reply) in sights.iter().zip(Self::items(meta, sights.len())?) {
            self.take_existence(sight, &reply)?;
        }
        Ok(Then::Done)
    }

    fn take_presence(&mut self, sights: &[Sight], meta: &[u8]) -> Result<Then, Broken> {
        self.bump(Count::Presences);
        let missing = PresenceReply::parse(meta).map_err(garbled)?.missing;
        if missing.len() != sights.len() {
            let detail = format!("{} answers about {} keys", missing.len(), sights.len());
            return Err(unexplained(u32::MAX, detail));
        }
        for (sight, missing) in sights.iter().zip(missing) {
            match missing {
                None => self.model.saw_something(sight)?,
                Some(reason) => self.take_miss(sight, reason)?,
            }
        }
        Ok(Then::Done)
    }

    fn take_existence(&mut self, sight: &Sight, reply: &ItemReply) -> Result<(), Broken> {
        match reply.status {
            Status::Ok => self.model.saw_block(sight, reply.generation, reply.length, &reply.crcs),
            Status::NotFound => self.take_miss(sight, reply.reason),
            status => Err(unexplained(sight.key, format!("existence answered {status}"))),
        }
    }

    fn take_match(&mut self, sights: &[Sight], first: u32, meta: &[u8]) -> Result<Then, Broken> {
        let now = self.now();
        let reply = MatchReply::parse(meta).map_err(garbled)?;
        let run = match reply.first_missing {
            MatchReply::NONE => sights.len(),
            position => (position.wrapping_sub(first) / 2) as usize,
        };
        if run > sights.len() {
            return Err(unexplained(u32::MAX, format!("first missing: {}", reply.first_missing)));
        }
        for sight in &sights[..run] {
            self.model.saw_something(sight)?;
        }
        if let Some(sight) = sights.get(run) {
            // The reply gives no reason; a lost drive or a damaged block is one of the possible ones.
            self.model.saw_unreasoned_miss(sight, now)?;
        }
        Ok(Then::Done)
    }

    fn take_lease(
        &mut self,
        sights: &[Sight],
        ms: u32,
        since: u64,
        meta: &[u8],
    ) -> Result<Then, Broken> {
        for (sight, reply) in sights.iter().zip(Self::items(meta, sights.len())?) {
            self.take_existence(sight, &reply)?;
            if reply.status == Status::Ok {
                self.bump(Count::LeasesGranted);
                let until = since + u64::from(ms) * 1_000_000;
                self.model.leased(sight.key, reply.generation, since, until);
            }
        }
        Ok(Then::Done)
    }

    fn take_delete(&mut self, deletes: &[Delete], meta: &[u8]) -> Result<Then, Broken> {
        let now = self.now();
        for (delete, reply) in deletes.iter().zip(Self::items(meta, deletes.len())?) {
            if self.verbose {
                eprintln!("  delete {delete:?} -> {reply:?}");
            }
            match reply.status {
                Status::Ok => self.model.delete_gone(delete, reply.generation)?,
                Status::NotFound => self.model.delete_missing(delete, reply.reason, now)?,
                Status::GenerationMismatch => self.model.delete_other(delete, reply.generation)?,
                Status::Busy | Status::DeadlineExceeded => {
                    self.bump(Count::Busy);
                    self.model.delete_refused(delete);
                }
                Status::IoError if self.errors_happen() => {}
                Status::ShuttingDown => {}
                status => {
                    let detail = format!("a delete answered {status}");
                    return Err(unexplained(delete.sight.key, detail));
                }
            }
        }
        Ok(Then::Done)
    }

    fn take_suspect(
        &mut self,
        sight: &Sight,
        generation: u64,
        meta: &[u8],
    ) -> Result<Then, Broken> {
        self.bump(Count::Suspects);
        let reply = Self::items(meta, 1)?[0];
        match reply.status {
            Status::Ok if generation == 0 || reply.generation == generation => {
                self.model.saw_something(sight)?;
            }
            Status::NotFound => {
                if reply.reason == MissReason::Corrupt {
                    self.bump(Count::SuspectsConfirmed);
                }
                self.take_miss(sight, reply.reason)?;
            }
            Status::GenerationMismatch => self.model.saw_something(sight)?,
            Status::Busy | Status::ShuttingDown => {}
            Status::IoError if self.errors_happen() => {}
            status => return Err(unexplained(sight.key, format!("a suspect answered {status}"))),
        }
        Ok(Then::Done)
    }
}
