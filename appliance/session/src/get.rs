//! Reading blocks.

use std::rc::Rc;

use memkv_dma::DmaRef;
use memkv_poller::Instant;
use memkv_poller::local::LocalPermit;
use memkv_store::{Extent, KeyHash, Miss, MissReason, ReadLease};
use memkv_wire::{GetItem, GetItems, GetReply, Header, ItemReply, MetaError, Status, crc32c};

use crate::extents::{ReadError, start_reads};
use crate::outbox::Reply;
use crate::replies;
use crate::session::Session;

/// The bytes of one get, ready to be sent.
struct Found {
    lease: ReadLease,
    pieces: Vec<DmaRef>,
    crcs: Vec<u32>,
    offset: u64,
    budget: LocalPermit,
}

/// What of one extent is sent.
struct Cut {
    index: usize,
    extent: Extent,
    from: usize,
    to: usize,
}

impl Session {
    /// Get: one reply per item, in order; a lease holds each block until its reply is sent.
    pub async fn get(
        self: &Rc<Self>,
        header: &Header,
        meta: &[u8],
        began: Instant,
    ) -> Result<(), MetaError> {
        let GetItems { items } = GetItems::parse(meta)?;
        let last = items.len().saturating_sub(1);
        for (index, item) in items.iter().enumerate() {
            let mut reply = self.get_one(header, index as u32, item).await;
            if index != last {
                reply.header = reply.header.with_more();
            }
            let now = self.context.local.now();
            self.context.counters.get_total.record(now.saturating_duration_since(began));
            self.context.counters.requests.bump();
            self.outbox.push(reply);
        }
        Ok(())
    }

    async fn get_one(self: &Rc<Self>, header: &Header, item: u32, get: &GetItem<'_>) -> Reply {
        let wanted = match self.hash(get.key) {
            Some(key) => self.find_bytes(key, get.offset, get.length).await,
            None => Err(replies::item(Status::BadRequest)),
        };
        let (reply, offset, found) = match wanted {
            Err(reply) => (reply, 0, None),
            Ok(found) => {
                let block = found.lease.block();
                let crcs = replies::crc_list(&found.crcs);
                let (length, generation) = (block.length, block.generation);
                let reply = ItemReply { length, generation, crcs, ..replies::item(Status::Ok) };
                (reply, found.offset, Some(found))
            }
        };
        let mut meta = Vec::new();
        GetReply { item, offset, reply }.encode(&mut meta);
        let header = Header::reply(header, Status::Ok);
        let ready = self.context.local.now();
        let Some(Found { lease, pieces, budget, .. }) = found else {
            return Reply { header, meta, payload: Vec::new(), lease: None, budget: None, ready };
        };
        let bytes: usize = pieces.iter().map(DmaRef::len).sum();
        let header = header.with_payload_length(bytes as u64);
        self.context.counters.reads.bump();
        self.context.counters.read_bytes.add(bytes as u64);
        let (lease, budget) = (Some(lease), Some(budget));
        Reply { header, meta, payload: pieces, lease, budget, ready }
    }

    /// Pins the block and reads what is wanted of it, checked where it must be.
    async fn find_bytes(&self, key: KeyHash, offset: u64, length: u64) -> Result<Found, ItemReply> {
        let context = &self.context;
        let since = context.local.now();
        let leased = context.store.lease(key).await;
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
        let budget = self.sending.acquire(bytes.min(context.limits.sending) as usize).await;
        let since = context.local.now();
        match self.read_cuts(&lease, &cuts).await {
            Ok((pieces, crcs)) => {
                let now = context.local.now();
                context.counters.wait_read.record(now.saturating_duration_since(since));
                Ok(Found { lease, pieces, crcs, offset, budget })
            }
            Err(Bad::Drive(ReadError { drive, error })) => {
                context.store.drive_failed(drive, &error).await;
                Err(replies::miss(Miss(MissReason::DriveLost)))
            }
            Err(Bad::TooMuch) => Err(replies::item(Status::LimitExceeded)),
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
    /// the getter can check only what it gets.
    async fn read_cuts(
        &self,
        lease: &ReadLease,
        cuts: &[Cut],
    ) -> Result<(Vec<DmaRef>, Vec<u32>), Bad> {
        let context = &self.context;
        let verified = lease.block().verified;
        let reads = start_reads(context, cuts.iter().map(|cut| &cut.extent)).await;
        let reads = reads.map_err(|_| Bad::TooMuch)?;
        let mut pieces = Vec::with_capacity(cuts.len());
        let mut crcs = Vec::with_capacity(cuts.len());
        let mut bad = None;
        let mut checked = 0;
        // Every read is waited for, also after a bad one: its chunk comes back with it.
        for (cut, read) in cuts.iter().zip(reads) {
            let bytes = match read.finish().await {
                Ok(bytes) => bytes,
                Err(error) => {
                    bad = Some(Bad::Drive(error));
                    continue;
                }
            };
            let whole = cut.from == 0 && cut.to == bytes.len();
            let bit = 1 << cut.index;
            if !whole || verified & bit == 0 {
                if crc32c(bytes.as_slice()) != cut.extent.crc {
                    bad = bad.or(Some(Bad::Bytes));
                    continue;
                }
                checked |= bit;
            }
            let piece = if whole { bytes } else { bytes.slice(cut.from..cut.to) };
            crcs.push(if whole { cut.extent.crc } else { crc32c(piece.as_slice()) });
            pieces.push(piece);
        }
        if let Some(bad) = bad {
            return Err(bad);
        }
        if checked & !verified != 0 {
            lease.mark_verified(&context.store, checked);
        }
        Ok((pieces, crcs))
    }

    /// A getter saw a bad CRC: the whole block is read again and dropped if it is bad.
    pub async fn check_block(&self, key: KeyHash, generation: u64) -> ItemReply {
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
        for extent in lease.block().extents.clone() {
            let reads = start_reads(context, [&extent].into_iter()).await;
            let Ok(Some(read)) = reads.map(|mut reads| reads.pop()) else {
                return replies::item(Status::LimitExceeded);
            };
            match read.finish().await {
                Ok(bytes) if crc32c(bytes.as_slice()) == extent.crc => {}
                Ok(_) => {
                    context.counters.crc_bad.bump();
                    drop(lease);
                    context.store.drop_corrupt(key, generation).await;
                    return replies::miss(Miss(MissReason::Corrupt));
                }
                Err(ReadError { drive, error }) => {
                    context.store.drive_failed(drive, &error).await;
                    return replies::miss(Miss(MissReason::DriveLost));
                }
            }
        }
        ItemReply { generation, ..replies::item(Status::Ok) }
    }
}

enum Bad {
    Drive(ReadError),
    Bytes,
    TooMuch,
}

/// The extents that hold bytes `offset..end` of a block, and which bytes of each; none for no
/// bytes.
fn cuts(extents: &[Extent], offset: u64, end: u64) -> Vec<Cut> {
    let mut at = 0;
    let mut cuts = Vec::new();
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
