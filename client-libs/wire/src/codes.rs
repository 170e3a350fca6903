//! The small numbers of the protocol: operations, results, reasons of a miss, statistics.
//!
//! Every number here is for ever: a released number keeps its meaning, a new meaning takes a new
//! number. The macro below writes an enum together with its parser and its list of all values, so
//! that no table can forget one.

/// Declares a C-like enum, its `ALL` list and its checked conversions from and to the raw number.
macro_rules! codes {
    ($(#[$outer:meta])* $name:ident: $raw:ty {
        $($(#[$inner:meta])* $variant:ident = $value:literal => $text:literal,)+
    }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name { $($(#[$inner])* $variant = $value,)+ }

        impl $name {
            /// Every value, in numeric order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            /// The value of a number from outside; `None` when this version does not know it.
            pub const fn from_raw(raw: $raw) -> Option<$name> {
                match raw { $($value => Some($name::$variant),)+ _ => None }
            }

            /// The number on the wire.
            pub const fn raw(self) -> $raw { self as $raw }

            /// The name in logs, metrics and documents.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

codes! {
    /// What a frame asks for or answers (header byte 5).
    ///
    /// `0x40..=0x43` are reserved for one-sided access (Allocate, Commit, Read, Write): see
    /// [`is_reserved`](Opcode::is_reserved).
    #[repr(u8)]
    Opcode: u8 {
        /// The first frame of a connection: who is there, which namespace, which limits.
        Connect = 0x06 => "connect",
        /// Which of these keys are stored; never pins anything.
        Exists = 0x10 => "exists",
        /// The first missing key of a run of keys.
        MatchPrefix = 0x11 => "match_prefix",
        /// Keep these blocks readable for a bounded time.
        Lease = 0x12 => "lease",
        /// Give leases back before their time.
        Release = 0x13 => "release",
        /// What will become of a chain of blocks: kept, or given up.
        Hint = 0x14 => "hint",
        /// As Exists, with an answer of one byte for each key.
        Presence = 0x15 => "presence",
        /// Store values whose bytes ride in this frame, on one credit.
        Put = 0x20 => "put",
        /// Read values or ranges of them; one reply frame per item.
        Get = 0x21 => "get",
        /// Remove blocks.
        Delete = 0x22 => "delete",
        /// Ask which of these values the server wants to have.
        Offer = 0x23 => "offer",
        /// The bytes of one value that the server wanted.
        Data = 0x24 => "data",
        /// A getter saw wrong bytes: the server verifies and drops.
        Suspect = 0x25 => "suspect",
        /// Counters of the server.
        Stats = 0x30 => "stats",
        /// The last frame of a connection, from either side, with the reason.
        Goodbye = 0x3f => "goodbye",
    }
}

codes! {
    /// The result of a request (header bytes 6–7) or of one item of it.
    #[repr(u16)]
    Status: u16 {
        /// Done. The only status in the header of a request, Goodbye excepted.
        Ok = 0 => "ok",
        /// Offer: send the bytes of this item in a Data frame.
        Want = 1 => "want",
        /// No such block; the item's [`MissReason`] says why.
        NotFound = 2 => "not_found",
        /// The block is stored; generation, length and CRCs are those of the stored bytes.
        Present = 3 => "present",
        /// A block of another length is stored under this key.
        Conflict = 4 => "conflict",
        /// The key has another generation than the one named.
        GenerationMismatch = 5 => "generation_mismatch",
        /// Not now; nothing was reserved. Try again after `retry_ms`.
        Busy = 6 => "busy",
        /// No room that eviction could make.
        Full = 7 => "full",
        /// Longer than the server's limit.
        TooLarge = 8 => "too_large",
        /// The meta or the item makes no sense.
        BadRequest = 9 => "bad_request",
        /// The key id may not do this.
        Unauthorized = 10 => "unauthorized",
        /// No protocol version in common.
        UnsupportedVersion = 11 => "unsupported_version",
        /// A known operation or a must-understand extension that this server does not serve.
        Unsupported = 12 => "unsupported",
        /// The bytes that arrived do not have the CRC that was sent; nothing was stored.
        CrcMismatch = 13 => "crc_mismatch",
        /// A drive failed under this request.
        IoError = 14 => "io_error",
        /// The request's deadline passed before anything was decided.
        DeadlineExceeded = 15 => "deadline_exceeded",
        /// The server is going down and takes no new work.
        ShuttingDown = 16 => "shutting_down",
        /// Payload was sent without a credit for it.
        CreditExceeded = 17 => "credit_exceeded",
        /// A limit of the connection or the tenant.
        LimitExceeded = 18 => "limit_exceeded",
    }
}

codes! {
    /// Why a block is not there: a miss always has a cause.
    #[repr(u8)]
    MissReason: u8 {
        /// Never stored, or so long ago that nothing is remembered of it.
        Never = 0 => "never",
        /// Room was needed.
        Evicted = 1 => "evicted",
        /// Somebody deleted it.
        Deleted = 2 => "deleted",
        /// Its time to live ran out.
        Expired = 3 => "expired",
        /// The drive that held it is gone.
        DriveLost = 4 => "drive_lost",
        /// Its bytes were found damaged and were dropped.
        Corrupt = 5 => "corrupt",
    }
}

codes! {
    /// What a client says about blocks (first byte of a [`HintList`](crate::meta::HintList)).
    #[repr(u8)]
    Advice: u8 {
        /// Nobody will want them again: they are evicted before all others.
        Release = 0 => "release",
        /// They will be wanted: they are evicted after all others, for as long as the server says.
        Retain = 1 => "retain",
        /// As retain, for a time that the client says.
        Pin = 2 => "pin",
    }
}

codes! {
    /// The counters a [`StatsReply`](crate::meta::StatsReply) may hold.
    #[repr(u16)]
    StatId: u16 {
        /// Seconds since the server process started.
        UptimeSeconds = 1 => "uptime_seconds",
        /// Blocks that are stored now.
        Blocks = 2 => "blocks",
        /// Bytes of values that are stored now.
        BytesStored = 3 => "bytes_stored",
        /// Bytes of drive space in use (whole units).
        BytesUsed = 4 => "bytes_used",
        /// Bytes of drive space in all.
        BytesTotal = 5 => "bytes_total",
        /// Puts that stored a new generation.
        Puts = 6 => "puts",
        /// Puts and offers answered Present.
        PutsPresent = 7 => "puts_present",
        /// Puts and offers answered Busy or Full.
        PutsRefused = 8 => "puts_refused",
        /// Gets of a block that was there.
        Hits = 9 => "hits",
        /// Gets of a block that was not.
        Misses = 10 => "misses",
        /// Blocks deleted by clients.
        Deletes = 11 => "deletes",
        /// Blocks evicted to make room.
        Evictions = 12 => "evictions",
        /// Blocks whose time to live ran out.
        Expirations = 13 => "expirations",
        /// Blocks found damaged and dropped.
        Corruptions = 14 => "corruptions",
        /// Bytes of values received.
        BytesIn = 15 => "bytes_in",
        /// Bytes of values sent.
        BytesOut = 16 => "bytes_out",
        /// Connections open now.
        Connections = 17 => "connections",
        /// Requests answered.
        Requests = 18 => "requests",
        /// Leases held now.
        Leases = 19 => "leases",
        /// Drives that serve.
        DrivesOnline = 20 => "drives_online",
        /// Drives that belong to the node but do not serve.
        DrivesOffline = 21 => "drives_offline",
        /// Bytes of the DMA pool in use.
        PoolUsed = 22 => "pool_used",
        /// Bytes of the DMA pool in all.
        PoolTotal = 23 => "pool_total",
        /// Microseconds of processor time (user and system) that the server process has used.
        CpuMicros = 24 => "cpu_micros",
        /// Calls to the drives' journals since the server started.
        Appends = 25 => "appends",
    }
}

impl Opcode {
    /// Whether the number is set aside for one-sided access over RDMA (Allocate 0x40, Commit 0x41,
    /// Read 0x42, Write 0x43), which this version knows by name only.
    pub const fn is_reserved(raw: u8) -> bool {
        matches!(raw, 0x40..=0x43)
    }

    /// The most bytes of meta a frame of this operation may declare. Connect and Goodbye stay
    /// small: they are read before anything is known of the peer.
    pub const fn meta_limit(self) -> u32 {
        match self {
            Opcode::Connect | Opcode::Goodbye => crate::MAX_CONTROL_META,
            _ => crate::MAX_META,
        }
    }

    /// The most bytes of payload a frame of this operation may declare; zero for all but Put, Offer,
    /// Data (requests) and Get (reply).
    pub const fn payload_limit(self, reply: bool) -> u64 {
        match (self, reply) {
            (Opcode::Put, false) => crate::MAX_INLINE as u64,
            (Opcode::Offer | Opcode::Data, false) | (Opcode::Get, true) => crate::MAX_VALUE,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_parse_back_and_nothing_else_does() {
        for raw in 0..=u8::MAX {
            let known = Opcode::ALL.iter().find(|op| op.raw() == raw).copied();
            assert_eq!(Opcode::from_raw(raw), known);
            assert!(known.is_none() || !Opcode::is_reserved(raw));
            let known = MissReason::ALL.iter().find(|reason| reason.raw() == raw).copied();
            assert_eq!(MissReason::from_raw(raw), known);
        }
        for raw in 0..=u16::MAX {
            let known = Status::ALL.iter().find(|status| status.raw() == raw).copied();
            assert_eq!(Status::from_raw(raw), known);
            let known = StatId::ALL.iter().find(|id| id.raw() == raw).copied();
            assert_eq!(StatId::from_raw(raw), known);
        }
    }

    #[test]
    fn names_are_distinct() {
        let mut names: Vec<_> = Status::ALL.iter().map(|s| s.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Status::ALL.len());
        assert_eq!(Status::CrcMismatch.to_string(), "crc_mismatch");
    }

    #[test]
    fn only_four_kinds_of_frame_carry_payload() {
        let carriers: Vec<_> = Opcode::ALL
            .iter()
            .flat_map(|&op| [(op, false), (op, true)])
            .filter(|&(op, reply)| op.payload_limit(reply) > 0)
            .collect();
        let requests = [Opcode::Put, Opcode::Offer, Opcode::Data].map(|op| (op, false));
        assert_eq!(carriers, [requests[0], (Opcode::Get, true), requests[1], requests[2]]);
    }
}
