//! Blocks in and out: upstream's `ObjectBlockOps`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::future::{BoxFuture, join_all};
use kvbm_common::{BlockId, LogicalLayoutHandle, SequenceHash};
use kvbm_engine::object::ObjectBlockOps;
use kvbm_physical::layout::PhysicalLayout;
use memkv_client::{
    Client, ClientError, GatherItem, GetOutcome, PutOptions, ScatterItem, one_line,
};

use crate::binding::BindError;
use crate::memory::{HostBlock, HostLayout, MemoryRefusal};
use crate::tier::{Tier, rank_name};

/// Bytes of a batch from which on it is cut into pieces of at least this size.
const PIECE: u64 = 8 << 20;

/// The blocks of one rank.
#[derive(Clone, Debug)]
pub struct Blocks {
    tier: Tier,
    rank: Arc<str>,
    layouts: Arc<HashMap<LogicalLayoutHandle, PhysicalLayout>>,
}

/// One for each key, in their order.
type Outcome = Vec<Result<SequenceHash, SequenceHash>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Put,
    Get,
}

/// Why a block did not move.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("its memory cannot be used")]
    Memory(#[source] Arc<MemoryRefusal>),
    #[error("its namespace cannot be used")]
    Bind(#[source] Arc<BindError>),
    #[error("the client failed")]
    Client(#[source] ClientError),
    #[error("it is not stored: {0:?}")]
    Miss(memkv_client::MissReason),
    #[error("its value has {stored} bytes, and the block {wanted}")]
    Length { stored: u64, wanted: u64 },
    #[error("{keys} keys and {blocks} blocks are no pairs")]
    Unpaired { keys: usize, blocks: usize },
    #[error("no memory is known for the layout {0:?}: name it with Blocks::with_layout")]
    NoLayout(LogicalLayoutHandle),
    #[error("the thread that moved it panicked, or its runtime ended")]
    Thread(#[source] Arc<tokio::task::JoinError>),
}

/// One block that is to be moved.
struct Move {
    /// Its place in the call.
    place: usize,
    hash: SequenceHash,
    /// That of the block before it, where that is in the same call.
    parent: Option<SequenceHash>,
    memory: HostBlock,
}

impl Blocks {
    pub(crate) fn new(tier: Tier, rank: Option<usize>) -> Blocks {
        Blocks { tier, rank: rank_name(rank).into(), layouts: Arc::default() }
    }

    /// The same, which knows what memory a logical layout means here. Workers of KVBM resolve that themselves
    /// and need it not.
    #[must_use]
    pub fn with_layout(mut self, handle: LogicalLayoutHandle, layout: PhysicalLayout) -> Blocks {
        Arc::make_mut(&mut self.layouts).insert(handle, layout);
        self
    }

    /// Moves blocks between memory and the servers.
    async fn transfer(
        self,
        direction: Direction,
        keys: Vec<SequenceHash>,
        layout: PhysicalLayout,
        blocks: Vec<BlockId>,
    ) -> Outcome {
        let client = self.tier.client_in_time();
        let mut failures: Vec<Option<Failure>> = Vec::new();
        failures.resize_with(keys.len(), || None);
        let moves = if keys.len() == blocks.len() {
            self.moves(direction, &keys, &layout, &blocks, &mut failures)
        } else {
            let unpaired = || Some(Failure::Unpaired { keys: keys.len(), blocks: blocks.len() });
            failures.fill_with(unpaired);
            Vec::new()
        };
        let calls = cut(moves, self.tier.inner.lanes).into_iter();
        let calls = calls.map(|piece| self.carry(direction, &layout, piece, client.clone()));
        for (place, failure) in join_all(calls).await.into_iter().flatten() {
            failures[place] = failure;
        }
        report(direction, &failures);
        let answer = |(key, failure): (SequenceHash, Option<Failure>)| match failure {
            None => Ok(key),
            Some(_) => Err(key),
        };
        keys.into_iter().zip(failures).map(answer).collect()
    }

    /// What is to be moved; what cannot be is a failure at once.
    fn moves(
        &self,
        direction: Direction,
        keys: &[SequenceHash],
        layout: &PhysicalLayout,
        blocks: &[BlockId],
        failures: &mut [Option<Failure>],
    ) -> Vec<Move> {
        let host = match HostLayout::new(layout.layout()) {
            Ok(host) => host,
            Err(refusal) => {
                let refusal = Arc::new(refusal);
                failures.fill_with(|| Some(Failure::Memory(refusal.clone())));
                return Vec::new();
            }
        };
        let mut filled = HashSet::new();
        let mut moves = Vec::with_capacity(keys.len());
        for (place, (hash, &block)) in keys.iter().zip(blocks).enumerate() {
            let memory = match direction {
                // Two answers would be written over each other.
                Direction::Get if !filled.insert(block) => Err(MemoryRefusal::Twice { block }),
                _ => host.block(block),
            };
            let before = place.checked_sub(1).map(|before| &keys[before]);
            let parent = before.filter(|before| is_parent(before, hash));
            match memory {
                Ok(memory) => {
                    moves.push(Move { place, hash: *hash, parent: parent.copied(), memory })
                }
                Err(refusal) => failures[place] = Some(Failure::Memory(Arc::new(refusal))),
            }
        }
        moves
    }

    /// One call of the client, on a thread that may block. It owns the memory, and goes on where nobody waits
    /// for it any more.
    async fn carry(
        &self,
        direction: Direction,
        layout: &PhysicalLayout,
        mut moves: Vec<Move>,
        client: Client,
    ) -> Vec<(usize, Option<Failure>)> {
        let places: Vec<usize> = moves.iter().map(|block| block.place).collect();
        let (tier, rank, layout) = (self.tier.clone(), self.rank.clone(), layout.layout().clone());
        let turn = tier.inner.bulk.clone().acquire_owned().await.expect("it is never closed");
        let work = move || {
            let _turn = turn;
            let layout = match tier.bind(&client, &rank, &*layout) {
                Ok(layout) => layout,
                Err(error) => {
                    return moves.iter().map(|_| Some(Failure::Bind(error.clone()))).collect();
                }
            };
            let key = |hash: &SequenceHash| tier.block_key(&rank, &layout, hash);
            match direction {
                Direction::Put => put(&client, &moves, key),
                Direction::Get => get(&client, &mut moves, key),
            }
        };
        let failures: Vec<Option<Failure>> = match tokio::task::spawn_blocking(work).await {
            Ok(failures) => failures,
            Err(error) => {
                let error = Arc::new(error);
                places.iter().map(|_| Some(Failure::Thread(error.clone()))).collect()
            }
        };
        places.into_iter().zip(failures).collect()
    }

    /// The memory that a logical layout means here.
    fn resolved(
        &self,
        direction: Direction,
        keys: Vec<SequenceHash>,
        handle: LogicalLayoutHandle,
        blocks: Vec<BlockId>,
    ) -> BoxFuture<'static, Outcome> {
        if let Some(layout) = self.layouts.get(&handle) {
            return Box::pin(self.clone().transfer(direction, keys, layout.clone(), blocks));
        }
        report(direction, &[Some(Failure::NoLayout(handle))]);
        Box::pin(async move { keys.into_iter().map(Err).collect() })
    }
}

impl ObjectBlockOps for Blocks {
    fn has_blocks(
        &self,
        keys: Vec<SequenceHash>,
    ) -> BoxFuture<'static, Vec<(SequenceHash, Option<usize>)>> {
        let (tier, rank) = (self.tier.clone(), self.rank.clone());
        Box::pin(async move {
            let client = tier.client_in_time();
            let asked = keys.clone();
            let work = move || {
                let Some(layout) = tier.layout_of(&client, &rank)? else {
                    return Ok(asked.iter().map(|_| Ok(None)).collect());
                };
                let name = |hash| tier.block_key(&rank, &layout, hash);
                let names: Vec<Vec<u8>> = asked.iter().map(name).collect();
                let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
                Ok::<Vec<_>, ClientError>(client.lengths(&names))
            };
            let nothing = |reason: String| {
                tracing::warn!(reason, "memkv could not be asked for blocks");
                keys.iter().map(|key| (*key, None)).collect()
            };
            let lengths = match tokio::task::spawn_blocking(work).await {
                Ok(Ok(lengths)) => lengths,
                Ok(Err(error)) => return nothing(one_line(&error)),
                Err(error) => return nothing(one_line(&error)),
            };
            if let Some(error) = lengths.iter().find_map(|length| length.as_ref().err()) {
                tracing::warn!(%error, "memkv could not be asked for all blocks");
            }
            let bytes = |length: Option<u64>| length.and_then(|bytes| usize::try_from(bytes).ok());
            let lengths = lengths.into_iter().map(|length| length.ok().flatten());
            keys.into_iter().zip(lengths.map(bytes)).collect()
        })
    }

    fn put_blocks(
        &self,
        keys: Vec<SequenceHash>,
        src_layout: LogicalLayoutHandle,
        block_ids: Vec<BlockId>,
    ) -> BoxFuture<'static, Outcome> {
        self.resolved(Direction::Put, keys, src_layout, block_ids)
    }

    fn get_blocks(
        &self,
        keys: Vec<SequenceHash>,
        dst_layout: LogicalLayoutHandle,
        block_ids: Vec<BlockId>,
    ) -> BoxFuture<'static, Outcome> {
        self.resolved(Direction::Get, keys, dst_layout, block_ids)
    }

    fn put_blocks_with_layout(
        &self,
        keys: Vec<SequenceHash>,
        layout: PhysicalLayout,
        block_ids: Vec<BlockId>,
    ) -> BoxFuture<'static, Outcome> {
        Box::pin(self.clone().transfer(Direction::Put, keys, layout, block_ids))
    }

    fn get_blocks_with_layout(
        &self,
        keys: Vec<SequenceHash>,
        layout: PhysicalLayout,
        block_ids: Vec<BlockId>,
    ) -> BoxFuture<'static, Outcome> {
        Box::pin(self.clone().transfer(Direction::Get, keys, layout, block_ids))
    }
}

/// Stores blocks that are not there yet.
fn put(
    client: &Client,
    moves: &[Move],
    key: impl Fn(&SequenceHash) -> Vec<u8>,
) -> Vec<Option<Failure>> {
    let keys: Vec<(Vec<u8>, Option<Vec<u8>>)> =
        moves.iter().map(|block| (key(&block.hash), block.parent.as_ref().map(&key))).collect();
    let pieces: Vec<Vec<&[u8]>> = moves.iter().map(|block| block.memory.pieces()).collect();
    let options = PutOptions::default();
    let mut items = Vec::with_capacity(moves.len());
    for ((key, parent), pieces) in keys.iter().zip(&pieces) {
        items.push(GatherItem { key, pieces, options, parent: parent.as_deref() });
    }
    let results = client.put_gathered(&items);
    results.into_iter().map(|result| result.err().map(Failure::Client)).collect()
}

/// Fills blocks with what is stored.
fn get(
    client: &Client,
    moves: &mut [Move],
    key: impl Fn(&SequenceHash) -> Vec<u8>,
) -> Vec<Option<Failure>> {
    let keys: Vec<Vec<u8>> = moves.iter().map(|block| key(&block.hash)).collect();
    let lengths: Vec<u64> = moves.iter().map(|block| block.memory.len()).collect();
    let mut items = Vec::with_capacity(moves.len());
    for (key, Move { memory, .. }) in keys.iter().zip(moves) {
        items.push(ScatterItem { key, offset: 0, pieces: memory.pieces_mut() });
    }
    let failure = |(result, wanted)| match result {
        Ok(GetOutcome::Hit { length, .. }) if length == wanted => None,
        Ok(GetOutcome::Hit { length, .. }) => Some(Failure::Length { stored: length, wanted }),
        Ok(GetOutcome::Miss(reason)) => Some(Failure::Miss(reason)),
        Err(error) => Some(Failure::Client(error)),
    };
    client.get_scattered(&mut items).into_iter().zip(lengths).map(failure).collect()
}

/// Whether `next` continues what `before` ends, as far as their hashes tell.
fn is_parent(before: &SequenceHash, next: &SequenceHash) -> bool {
    next.position() == before.position() + 1
        && next.parent_hash_fragment() == before.parent_fragment_for_child_position(next.position())
}

/// Pieces that travel side by side, at most `lanes`.
fn cut(moves: Vec<Move>, lanes: usize) -> Vec<Vec<Move>> {
    let bytes: u64 = moves.iter().map(|block| block.memory.len()).sum();
    let pieces = usize::try_from(bytes / PIECE).unwrap_or(lanes).clamp(1, lanes);
    let each = moves.len().div_ceil(pieces).max(1);
    let mut moves = moves.into_iter().peekable();
    let mut cut = Vec::with_capacity(pieces);
    while moves.peek().is_some() {
        cut.push(moves.by_ref().take(each).collect());
    }
    cut
}

/// The trait has no room for reasons: they go to the log, the first of each call. A miss is none.
fn report(direction: Direction, failures: &[Option<Failure>]) {
    let real = failures.iter().flatten().filter(|failure| !matches!(failure, Failure::Miss(_)));
    let count = real.clone().count();
    if let Some(first) = real.into_iter().next() {
        let reason = one_line(first);
        let what = if direction == Direction::Put { "stored" } else { "read" };
        tracing::warn!(count, of = failures.len(), reason, "blocks could not be {what}");
    }
}
