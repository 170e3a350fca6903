//! The table of which meta goes with which operation, as two enums.
//!
//! A session that knows its operation uses the metas themselves; this is for whoever must read any
//! frame: dispatchers, fuzzers, dumps.

use super::{
    DataMeta, DataReply, DeleteItems, Empty, GetItems, GetReply, GoodbyeMeta, HintList,
    ItemReplies, KeyList, LeaseList, MatchItems, MatchReply, MetaError, NamedReply, PresenceReply,
    PutItems, Refusal, Staged, StatsReply, SuspectItems,
};
use crate::handshake::{ClientHello, ServerHello};
use crate::{Opcode, Status};

/// The meta of a request of any operation.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each variant is the operation of the same name")]
pub enum Request<'a> {
    Connect(ClientHello<'a>),
    Exists(KeyList<'a>),
    MatchPrefix(MatchItems<'a>),
    Lease(LeaseList<'a>),
    Release(KeyList<'a>),
    Hint(HintList<'a>),
    Presence(KeyList<'a>),
    Put(PutItems<'a>),
    /// Put, with its payload named.
    PutStaged(PutItems<'a>, Staged),
    Get(GetItems<'a>),
    Delete(DeleteItems<'a>),
    Offer(PutItems<'a>),
    Data(DataMeta),
    Suspect(SuspectItems<'a>),
    Stats(Empty),
    Goodbye(GoodbyeMeta<'a>),
}

impl<'a> Request<'a> {
    /// Reads the meta of a request of operation `opcode`.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(opcode: Opcode, meta: &'a [u8]) -> Result<Request<'a>, MetaError> {
        Ok(match opcode {
            Opcode::Connect => Request::Connect(ClientHello::parse(meta)?),
            Opcode::Exists => Request::Exists(KeyList::parse(meta)?),
            Opcode::MatchPrefix => Request::MatchPrefix(MatchItems::parse(meta)?),
            Opcode::Lease => Request::Lease(LeaseList::parse(meta)?),
            Opcode::Release => Request::Release(KeyList::parse(meta)?),
            Opcode::Hint => Request::Hint(HintList::parse(meta)?),
            Opcode::Presence => Request::Presence(KeyList::parse(meta)?),
            Opcode::Put => match PutItems::parse_staged(meta, Vec::new()) {
                Ok((items, staged)) => Request::PutStaged(items, staged),
                Err(_) => Request::Put(PutItems::parse(meta)?),
            },
            Opcode::Get => Request::Get(GetItems::parse(meta)?),
            Opcode::Delete => Request::Delete(DeleteItems::parse(meta)?),
            Opcode::Offer => Request::Offer(PutItems::parse(meta)?),
            Opcode::Data => Request::Data(DataMeta::parse(meta)?),
            Opcode::Suspect => Request::Suspect(SuspectItems::parse(meta)?),
            Opcode::Stats => Request::Stats(Empty::parse(meta)?),
            Opcode::Goodbye => Request::Goodbye(GoodbyeMeta::parse(meta)?),
        })
    }

    /// Appends the meta to `out`.
    ///
    /// # Panics
    /// As the meta's own `encode` does, on what the protocol does not allow.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Request::Connect(meta) => meta.encode(out),
            Request::Exists(meta) | Request::Presence(meta) | Request::Release(meta) => {
                meta.encode(out);
            }
            Request::MatchPrefix(meta) => meta.encode(out),
            Request::Lease(meta) => meta.encode(out),
            Request::Hint(meta) => meta.encode(out),
            Request::Put(meta) | Request::Offer(meta) => meta.encode(out),
            Request::PutStaged(meta, staged) => {
                meta.encode(out);
                staged.encode(out);
            }
            Request::Get(meta) => meta.encode(out),
            Request::Delete(meta) => meta.encode(out),
            Request::Data(meta) => meta.encode(out),
            Request::Suspect(meta) => meta.encode(out),
            Request::Stats(meta) => meta.encode(out),
            Request::Goodbye(meta) => meta.encode(out),
        }
    }

    /// The operation.
    pub const fn opcode(&self) -> Opcode {
        match self {
            Request::Connect(_) => Opcode::Connect,
            Request::Exists(_) => Opcode::Exists,
            Request::MatchPrefix(_) => Opcode::MatchPrefix,
            Request::Lease(_) => Opcode::Lease,
            Request::Release(_) => Opcode::Release,
            Request::Hint(_) => Opcode::Hint,
            Request::Presence(_) => Opcode::Presence,
            Request::Put(_) | Request::PutStaged(..) => Opcode::Put,
            Request::Get(_) => Opcode::Get,
            Request::Delete(_) => Opcode::Delete,
            Request::Offer(_) => Opcode::Offer,
            Request::Data(_) => Opcode::Data,
            Request::Suspect(_) => Opcode::Suspect,
            Request::Stats(_) => Opcode::Stats,
            Request::Goodbye(_) => Opcode::Goodbye,
        }
    }
}

/// The meta of a reply of any operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply<'a> {
    /// Any operation, with a status that is not Ok: the request as a whole was not done.
    Refused(Refusal<'a>),
    /// Connect.
    Connect(ServerHello),
    /// Exists, Lease, Hint, Put, Offer, Delete, Suspect.
    Items(ItemReplies),
    /// Presence.
    Presence(PresenceReply),
    /// MatchPrefix.
    Match(MatchReply),
    /// Get, one frame per item.
    Get(GetReply),
    /// Get, with its payload named.
    Named(NamedReply),
    /// Data.
    Data(DataReply),
    /// Stats.
    Stats(StatsReply),
    /// Release; and Goodbye, whose reply nobody waits for.
    Empty(Empty),
}

impl<'a> Reply<'a> {
    /// Reads the meta of a reply to operation `opcode` whose header has `status`.
    ///
    /// # Errors
    /// [`MetaError`] says what is wrong with it.
    pub fn parse(opcode: Opcode, status: Status, meta: &'a [u8]) -> Result<Reply<'a>, MetaError> {
        if status != Status::Ok {
            return Ok(Reply::Refused(Refusal::parse(meta)?));
        }
        Ok(match opcode {
            Opcode::Connect => Reply::Connect(ServerHello::parse(meta)?),
            Opcode::Exists
            | Opcode::Lease
            | Opcode::Hint
            | Opcode::Put
            | Opcode::Offer
            | Opcode::Delete
            | Opcode::Suspect => Reply::Items(ItemReplies::parse(meta)?),
            Opcode::Presence => Reply::Presence(PresenceReply::parse(meta)?),
            Opcode::MatchPrefix => Reply::Match(MatchReply::parse(meta)?),
            Opcode::Get if NamedReply::is_one(meta) => Reply::Named(NamedReply::parse(meta)?),
            Opcode::Get => Reply::Get(GetReply::parse(meta)?),
            Opcode::Data => Reply::Data(DataReply::parse(meta)?),
            Opcode::Stats => Reply::Stats(StatsReply::parse(meta)?),
            Opcode::Release | Opcode::Goodbye => Reply::Empty(Empty::parse(meta)?),
        })
    }

    /// Appends the meta to `out`.
    ///
    /// # Panics
    /// As the meta's own `encode` does, on what the protocol does not allow.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Reply::Refused(meta) => meta.encode(out),
            Reply::Connect(meta) => meta.encode(out),
            Reply::Items(meta) => meta.encode(out),
            Reply::Presence(meta) => meta.encode(out),
            Reply::Match(meta) => meta.encode(out),
            Reply::Get(meta) => meta.encode(out),
            Reply::Named(meta) => meta.encode(out),
            Reply::Data(meta) => meta.encode(out),
            Reply::Stats(meta) => meta.encode(out),
            Reply::Empty(meta) => meta.encode(out),
        }
    }
}
