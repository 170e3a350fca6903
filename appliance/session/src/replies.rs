//! The store's answers in the words of the wire.

use memkv_store::{Deleted, Existing, Miss, Outcome, Refusal};
use memkv_wire::{CrcList, ItemReply, MissReason, Status};

/// An item's reply with nothing but a status.
pub fn item(status: Status) -> ItemReply {
    ItemReply::new(status)
}

/// A miss and its reason.
pub fn miss(miss: Miss) -> ItemReply {
    ItemReply::miss(reason(miss))
}

/// Why there is none.
pub fn reason(miss: Miss) -> MissReason {
    match miss.0 {
        memkv_store::MissReason::Never => MissReason::Never,
        memkv_store::MissReason::Evicted => MissReason::Evicted,
        memkv_store::MissReason::Deleted => MissReason::Deleted,
        memkv_store::MissReason::Expired => MissReason::Expired,
        memkv_store::MissReason::DriveLost => MissReason::DriveLost,
        memkv_store::MissReason::Corrupt => MissReason::Corrupt,
    }
}

/// What is stored, under a status.
pub fn existing(status: Status, existing: &Existing) -> ItemReply {
    ItemReply {
        length: existing.length,
        generation: existing.generation,
        crcs: crc_list(&existing.crcs),
        ..item(status)
    }
}

/// One CRC per extent; blocks have at most 16.
pub fn crc_list(crcs: &[u32]) -> CrcList {
    CrcList::from_slice(crcs).expect("a block has at most 16 extents")
}

/// A put that is stored.
pub fn stored(length: u64, generation: u64) -> ItemReply {
    ItemReply { length, generation, ..item(Status::Ok) }
}

/// Why a put got no place.
pub fn refusal(refusal: &Refusal, length: u64) -> ItemReply {
    match refusal {
        Refusal::Present(found) => existing(Status::Present, found),
        Refusal::Conflict(found) => existing(Status::Conflict, found),
        Refusal::GenerationMismatch(Some(found)) => existing(Status::GenerationMismatch, found),
        Refusal::GenerationMismatch(None) => item(Status::GenerationMismatch),
        Refusal::Busy { retry_ms } => ItemReply::busy(*retry_ms),
        Refusal::Full => item(Status::Full),
        Refusal::TooLarge { max } => ItemReply { length: *max, ..item(Status::TooLarge) },
        Refusal::NoDrive => item(Status::IoError),
        Refusal::Done(Outcome::Stored { generation } | Outcome::Deleted { generation }) => {
            stored(length, *generation)
        }
    }
}

/// What a delete came to.
pub fn deleted(deleted: Deleted) -> ItemReply {
    match deleted {
        Deleted::Gone { generation } => ItemReply { generation, ..item(Status::Ok) },
        Deleted::Missing(reason) => miss(Miss(reason)),
        Deleted::OtherGeneration { generation } => {
            ItemReply { generation, ..item(Status::GenerationMismatch) }
        }
        Deleted::Busy { retry_ms } => ItemReply::busy(retry_ms),
        Deleted::DriveFailed => item(Status::IoError),
    }
}
