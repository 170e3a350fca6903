//! Reading blocks.

use std::rc::Rc;
use std::time::Duration;

use memkv_dma::DmaRef;
use memkv_poller::Instant;
use memkv_poller::local::LocalPermit;
use memkv_poller::spare::{self, Row};
use memkv_store::{Extent, KeyHash, Miss, MissReason, ReadLease};
use memkv_wire::{
    Crc32c, CrcList, GetItem, GetItems, GetReply, Header, ItemReply, MetaError, Status,
};

use crate::backlog::Promise;
use crate::outbox::Reply;
use crate::reads::{ReadError, Reading, TooMuch, start_reads};
use crate::replies;
use crate::session::Session;

/// The bytes of one get: the first of them are there.
struct Found {
    pieces: Row<Reading>,
    /// Ends after the pieces.
    lease: ReadLease,
    crcs: CrcList,
    offset: u64,
    bytes: u64,
    budget: (LocalPermit, Promise),
    ready: Instant,
}

/// What of one extent is sent.
struct Cut {
    index: usize,
    extent: Extent,
    from: usize,
    to: usize,
}

impl Session {
    /// Get of one whole block that lies where it can be sent from, and for which nothing has to be waited:
    /// the usual one of a small block in memory. False of any other, of which nothing is done.
    pub fn get_at_once(&self, header: &Header, meta: &[u8], began: Instant) -> bool {
        let context = &self.context;
        if !context.has_views() {
            return false;
        }
        let Some(item) = GetItems::lone(meta) else { return false };
        let Some(key) = self.hash(item.key) else { return false };
        if item.offset > 0 || self.share.admits().is_err() {
            return false;
        }
        let lend = self.outbox.lent.is_allowed(context);
        let place = |extent: &Extent| self.view(extent, item.length);
        let leased = context.store.lease_at_once(key, lend, place);
        let Some((lease, (view, permit))) = leased else { return false };
        let bytes = lease.block().length;
        let ready = context.local.now();
        let waited = ready.saturating_duration_since(began);
        context.counters.wait_lease.record(waited);
        context.counters.wait_read.record(Duration::ZERO);
        context.counters.get_total.record(waited);
        context.counters.requests.bump();
        let found = Found {
            crcs: replies::crc_list(&[lease.block().extents[0].crc]),
            pieces: [Reading::Ready(view)].into(),
            lease,
            offset: 0,
            bytes,
            budget: (permit, self.share.promise(bytes)),
            ready,
        };
        self.outbox.push(context, self.hit(header, 0, found));
        true
    }

    /// A whole extent of at most so many bytes where it lies, and the connection's leave to send it.
    fn view(&self, extent: &Extent, most: u64) -> Option<(DmaRef, LocalPermit)> {
        let bytes = u64::from(extent.length);
        if bytes > most {
            return None;
        }
        // Who reads slowly has none left: that is told by less than a view costs.
        let permit = self.sending.try_acquire(bytes.min(self.sending_most) as usize)?;
        let view = self.context.drive(extent.drive).device.view(extent.offset, bytes as usize)?;
        Some((view, permit))
    }

    /// Get: one reply per item, in order; a lease holds each block until its reply is sent.
    pub async fn get(
        self: &Rc<Self>,
        header: &Header,
        meta: &[u8],
        began: Instant,
    ) -> Result<(), MetaError> {
        let GetItems { items } = GetItems::parse_into(meta, spare::vec::<GetItem<'static>>())?;
        self.named(items.iter().map(|item| item.key));
        let last = items.len().saturating_sub(1);
        let until = self.deadline(header);
        let mut since = self.context.local.turn_began();
        for (index, item) in items.iter().enumerate() {
            // Nobody is there to read what would be read for them.
            if self.closed.get() {
                break;
            }
            if self.outbox.is_full() {
                self.outbox.has_few().await;
                since = self.context.local.now();
            }
            let mut reply = self.get_one(header, index as u32, item, since, until).await;
            if index != last {
                reply.header = reply.header.with_more();
            }
            since = reply.ready;
            self.context.counters.get_total.record(since.saturating_duration_since(began));
            self.context.counters.requests.bump();
            self.outbox.push(&self.context, reply);
        }
        spare::keep_vec(spare::renamed::<_, GetItem<'static>>(items));
        Ok(())
    }

    /// The reply to one item, which is looked for `since` then; `until` when it waits for memory.
    async fn get_one(
        self: &Rc<Self>,
        header: &Header,
        item: u32,
        get: &GetItem<'_>,
        since: Instant,
        until: Instant,
    ) -> Reply {
        let wanted = match self.hash(get.key) {
            Some(key) => self.find_bytes(key, (get.offset, get.length), since, until).await,
            None => Err(replies::item(Status::BadRequest)),
        };
        match wanted {
            Ok(found) => self.hit(header, item, found),
            Err(reply) => {
                let mut meta = Row::new();
                GetReply { item, offset: 0, reply }.encode(&mut meta);
                let header = Header::reply(header, Status::Ok);
                Reply::bare(header, meta, self.context.local.now())
            }
        }
    }

    /// The reply to an item whose bytes are there, or come.
    fn hit(&self, header: &Header, item: u32, found: Found) -> Reply {
        let Found { lease, pieces, crcs, offset, bytes, budget, ready } = found;
        let block = lease.block();
        let (length, generation) = (block.length, block.generation);
        let reply = ItemReply { length, generation, crcs, ..replies::item(Status::Ok) };
        let mut meta = Row::new();
        GetReply { item, offset, reply }.encode(&mut meta);
        let by_name = header.is_named();
        let header = Header::reply(header, Status::Ok).with_payload_length(bytes);
        self.context.counters.reads.bump();
        self.context.counters.read_bytes.add(bytes);
        let (lease, budget) = (Some(lease), Some(budget));
        Reply { header, meta, payload: pieces, by_name, lease, budget, ready }
    }

    /// Pins the block and reads what is wanted of it, checked where it must be.
    async fn find_bytes(
        &self,
        key: KeyHash,
        (offset, length): (u64, u64),
        since: Instant,
        until: Instant,
    ) -> Result<Found, ItemReply> {
        let context = &self.context;
        if let Err(retry_ms) = self.share.admits() {
            context.counters.busy.bump();
            return Err(ItemReply::busy(retry_ms));
        }
        let leased = match self.outbox.lent.is_allowed(context) {
            true => context.store.lease_to_lend(key).await,
            false => context.store.lease(key).await,
        };
        context.counters.wait_lease.record(context.local.now().saturating_duration_since(since));
        let lease = leased.map_err(replies::miss)?;
        let block = lease.block();
        if offset >= block.length && length > 0 {
            let length = block.length;
            return Err(ItemReply { length, ..replies::item(Status::BadRequest) });
        }
        let end = offset.saturating_add(length).min(block.length);
        let cuts = cuts(&block.extents, offset, end);
        // The budget is the connection's: a peer that reads slowly holds its own share of chunks.
        let bytes: u64 = cuts.iter().map(|cut| u64::from(cut.extent.length)).sum();
        let promise = self.share.promise(bytes);
        let budget = self.sending.acquire(bytes.min(self.sending_most) as usize).await;
        let since = context.local.now();
        match self.read_cuts(&lease, &cuts, until).await {
            Ok((pieces, crcs)) => {
                let ready = context.local.now();
                context.counters.wait_read.record(ready.saturating_duration_since(since));
                let bytes = cuts.iter().map(|cut| (cut.to - cut.from) as u64).sum();
                let crcs = replies::crc_list(&crcs);
                Ok(Found { lease, pieces, crcs, offset, bytes, budget: (budget, promise), ready })
            }
            Err(Bad::Drive(error)) => {
                error.report(context).await;
                Err(replies::miss(Miss(MissReason::DriveLost)))
            }
            Err(Bad::TooMuch(memory)) => Err(memory.reply(context)),
            Err(Bad::Bytes) => {
                context.counters.crc_bad.bump();
                let generation = lease.block().generation;
                drop(lease);
                context.store.drop_corrupt(key, generation).await;
                Err(replies::miss(Miss(MissReason::Corrupt)))
            }
        }
    }

    /// Reads extents, all at once, and cuts from them what is sent. An extent that was not checked
    /// since the last unclean start is checked now; so is one of which only a part is sent, since
    /// the getter can check only what it gets. The others need not be here yet, but for the first
    /// piece: a drive that is gone is mostly noticed by it, while the reply can still say so.
    async fn read_cuts(
        &self,
        lease: &ReadLease,
        cuts: &[Cut],
        until: Instant,
    ) -> Result<(Row<Reading>, Row<u32>), Bad> {
        let context = &self.context;
        let verified = lease.block().verified;
        let reads = start_reads(context, cuts.iter().map(|cut| &cut.extent), until).await;
        let mut reads = reads.map_err(Bad::TooMuch)?.into_iter();
        let mut pieces = Row::new();
        let mut crcs = Row::new();
        let mut checked = 0;
        let mut bad = None;
        for (cut, read) in cuts.iter().zip(reads.by_ref()) {
            let bit = 1 << cut.index;
            let ready = if !cut.is_whole() || verified & bit == 0 {
                checked |= bit;
                check(cut, read).await
            } else if pieces.is_empty() {
                begin(read).await.map(|ready| (ready, cut.extent.crc))
            } else {
                Ok((read, cut.extent.crc))
            };
            match ready {
                Ok((ready, crc)) => {
                    pieces.extend(ready);
                    crcs.push(crc);
                }
                Err(error) => {
                    bad = Some(error);
                    break;
                }
            }
        }
        if let Some(bad) = bad {
            settle(pieces.into_iter().chain(reads.flatten())).await;
            return Err(bad);
        }
        if checked & !verified != 0 {
            lease.mark_verified(&context.store, checked);
        }
        Ok((pieces, crcs))
    }

    /// A getter saw a bad CRC: the whole block is read again and dropped if it is bad.
    pub async fn check_block(&self, key: KeyHash, generation: u64, until: Instant) -> ItemReply {
        let context = &self.context;
        context.counters.suspects.bump();
        let lease = match context.store.lease(key).await {
            Ok(lease) => lease,
            Err(miss) => return replies::miss(miss),
        };
        if generation != 0 && lease.block().generation != generation {
            let generation = lease.block().generation;
            return ItemReply { generation, ..replies::item(Status::GenerationMismatch) };
        }
        let generation = lease.block().generation;
        for (index, extent) in lease.block().extents.clone().into_iter().enumerate() {
            let mut reads = match start_reads(context, [&extent].into_iter(), until).await {
                Ok(reads) => reads,
                Err(memory) => return memory.reply(context),
            };
            let cut = Cut { index, extent, from: 0, to: extent.length as usize };
            match check(&cut, reads.pop().expect("one extent was read")).await {
                Ok(_) => {}
                Err(Bad::Drive(error)) => {
                    error.report(context).await;
                    return replies::miss(Miss(MissReason::DriveLost));
                }
                Err(_) => {
                    context.counters.crc_bad.bump();
                    drop(lease);
                    context.store.drop_corrupt(key, generation).await;
                    return replies::miss(Miss(MissReason::Corrupt));
                }
            }
        }
        ItemReply { generation, ..replies::item(Status::Ok) }
    }
}

/// Waits for the first piece of an extent.
async fn begin(reads: Row<Reading>) -> Result<Row<Reading>, Bad> {
    let mut reads = reads.into_iter();
    let first = reads.next().expect("an extent has a piece");
    match first.finish().await {
        Ok(first) => Ok(std::iter::once(Reading::Ready(first)).chain(reads).collect()),
        Err(error) => {
            settle(reads).await;
            Err(Bad::Drive(error))
        }
    }
}

/// Waits for the whole extent of a cut, checks it, and cuts from it what is sent; with its CRC.
async fn check(cut: &Cut, reads: Row<Reading>) -> Result<(Row<Reading>, u32), Bad> {
    let mut pieces: Row<DmaRef> = Row::new();
    let mut reads = reads.into_iter();
    while let Some(read) = reads.next() {
        match read.finish().await {
            Ok(piece) => pieces.push(piece),
            Err(error) => {
                settle(reads).await;
                return Err(Bad::Drive(error));
            }
        }
    }
    let mut crc = Crc32c::new();
    pieces.iter().for_each(|piece| crc.update(piece.as_slice()));
    if crc.value() != cut.extent.crc {
        return Err(Bad::Bytes);
    }
    if cut.is_whole() {
        return Ok((pieces.into_iter().map(Reading::Ready).collect(), crc.value()));
    }
    let (mut at, mut sent, mut crc) = (0, Row::new(), Crc32c::new());
    for piece in pieces {
        let end = at + piece.len();
        if cut.from < end && at < cut.to {
            let piece = piece.slice(cut.from.saturating_sub(at)..cut.to.min(end) - at);
            crc.update(piece.as_slice());
            sent.push(Reading::Ready(piece));
        }
        at = end;
    }
    Ok((sent, crc.value()))
}

/// Waits for reads whose bytes nobody wants any more: no unit is used again while a command names
/// it.
async fn settle(reads: impl Iterator<Item = Reading>) {
    for read in reads {
        let _ = read.finish().await;
    }
}

enum Bad {
    Drive(ReadError),
    Bytes,
    TooMuch(TooMuch),
}

impl Cut {
    /// Whether the whole extent is sent.
    fn is_whole(&self) -> bool {
        self.from == 0 && self.to == self.extent.length as usize
    }
}

/// The extents that hold bytes `offset..end` of a block, and which bytes of each; none for no
/// bytes.
fn cuts(extents: &[Extent], offset: u64, end: u64) -> Row<Cut> {
    let mut at = 0;
    let mut cuts = Row::new();
    if offset >= end {
        return cuts;
    }
    for (index, extent) in extents.iter().enumerate() {
        let next = at + u64::from(extent.length);
        if next > offset && at < end {
            let from = offset.saturating_sub(at) as usize;
            let to = (end.min(next) - at) as usize;
            cuts.push(Cut { index, extent: *extent, from, to });
        }
        at = next;
    }
    cuts
}

#[cfg(test)]
mod tests {
    use memkv_store::DriveId;

    use super::*;

    /// Extents of these lengths.
    fn extents(lengths: &[u32]) -> Vec<Extent> {
        let extent = |(n, &length): (usize, &u32)| Extent {
            drive: DriveId(0),
            range: memkv_journal::UnitRange { start: n as u32, count: 1 },
            offset: n as u64 * 16384,
            length,
            crc: 0,
        };
        lengths.iter().enumerate().map(extent).collect()
    }

    #[test]
    fn cuts_are_the_bytes_asked_for_and_no_others() {
        let lengths = [10, 10, 10, 3];
        let extents = extents(&lengths);
        let bytes: Vec<usize> = (0..33).collect();
        for from in 0..=33u64 {
            for to in from..=33 {
                let mut got = Vec::new();
                for cut in cuts(&extents, from, to) {
                    assert!(cut.from < cut.to && cut.to <= lengths[cut.index] as usize);
                    assert_eq!(cut.extent, extents[cut.index]);
                    got.extend((cut.from..cut.to).map(|at| cut.index * 10 + at));
                }
                assert_eq!(got, bytes[from as usize..to as usize], "{from}..{to}");
            }
        }
    }

    #[test]
    fn nothing_is_cut_from_nowhere() {
        assert!(cuts(&extents(&[10]), 10, 10).is_empty());
        assert!(cuts(&extents(&[10]), u64::MAX, 10).is_empty());
        assert!(cuts(&[], 0, 0).is_empty());
    }
}
