//! What a run of the tier has met: races, faults, crash points. Those that must not stay rare are named
//! with a least count; the tier fails when one stays below it, for a race that never happens proves
//! nothing.

/// A counted thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Requests,
    Operations,
    Replies,
    Hits,
    Misses,
    Connections,
    Handshakes,
    RacePutPut,
    RacePutDelete,
    RaceGetPut,
    RaceGetDelete,
    KeyWaits,
    EvictionsWhileSending,
    Evictions,
    ReadersStopped,
    ReadersShutOut,
    CreditExhausted,
    Disconnects,
    DisconnectsWithPutOpen,
    LostAfterReserve,
    LostAfterAppend,
    Retries,
    RetriesRemembered,
    UnknownOutcomes,
    Multipart,
    Offers,
    OffersWithPayload,
    PayloadForgotten,
    OffersExpired,
    Conflicts,
    Present,
    Mismatches,
    Busy,
    Full,
    DeadlinesMissed,
    LeasesGranted,
    Hints,
    Presences,
    PutsPinned,
    PutsWithParent,
    NamespaceTtls,
    Suspects,
    SuspectsConfirmed,
    BadCrcSeen,
    CorruptDropped,
    Expired,
    Kills,
    PowerCuts,
    PowerCutsUnderPower,
    CleanStops,
    CrashWithValueWrite,
    CrashWithFrameWrite,
    CrashWithCheckpointWrite,
    CrashWithSuperblockWrite,
    CrashWithFlush,
    CrashWithTrim,
    CrashInRecovery,
    CrashBeforeReply,
    Starts,
    StartsWithoutADisk,
    MembersGivenUp,
    LostDrivesLeftOut,
    DrivesJoined,
    DrivesReadmitted,
    CrashWhileJoining,
    EpochsRaised,
    StartsRefused,
    Checkpoints,
    PagesLostInPowerCuts,
    WritesCutInCrashes,
    FaultReadError,
    FaultWriteError,
    FaultBitFlip,
    FaultMisdirected,
    FaultLost,
    FaultSlow,
    FaultStall,
    FaultDead,
    FaultTorn,
    PlacedAgain,
    DrivesFailed,
    StallsNoticed,
    KeysHeldThroughPowerCuts,
    KeysHeldUnderPower,
    DurablePutsHeld,
    FlushesShared,
    Sweeps,
    RangesTrimmed,
    UnitsTakenBeforeTrim,
    ExtentsScrubbed,
    CorruptByScrub,
    RowsMerged,
    RowsFromLog,
    RecordsLost,
    BytesLent,
    BytesLentForGood,
}

use Count::*;

/// What must happen at least so often in a run of the default length.
pub const LEAST: &[(Count, u64)] = &[
    (RacePutPut, 100),
    (RacePutDelete, 100),
    (RaceGetPut, 100),
    (RaceGetDelete, 100),
    (KeyWaits, 100),
    (EvictionsWhileSending, 100),
    (Evictions, 100),
    (ReadersStopped, 10_000),
    (ReadersShutOut, 100),
    (CreditExhausted, 10_000),
    (DisconnectsWithPutOpen, 100),
    (LostAfterReserve, 100),
    (LostAfterAppend, 100),
    (RetriesRemembered, 100),
    (UnknownOutcomes, 100),
    (Multipart, 100),
    (OffersWithPayload, 10_000),
    (PayloadForgotten, 100),
    (Conflicts, 100),
    (Mismatches, 100),
    (Busy, 100),
    (LeasesGranted, 100),
    (Hints, 100),
    (Presences, 10_000),
    (PutsPinned, 100),
    (PutsWithParent, 100),
    (NamespaceTtls, 100),
    (SuspectsConfirmed, 100),
    (CorruptDropped, 100),
    (Expired, 100),
    (Kills, 100),
    (PowerCuts, 100),
    (PowerCutsUnderPower, 100),
    (CleanStops, 100),
    (CrashWithValueWrite, 100),
    (CrashWithFrameWrite, 100),
    (CrashWithCheckpointWrite, 100),
    (CrashWithSuperblockWrite, 100),
    (CrashWithFlush, 100),
    (CrashWithTrim, 100),
    (CrashInRecovery, 100),
    (CrashBeforeReply, 100),
    (Checkpoints, 100),
    (FaultReadError, 100),
    (FaultWriteError, 100),
    (FaultBitFlip, 100),
    (FaultMisdirected, 100),
    (FaultLost, 100),
    (FaultSlow, 100),
    (FaultStall, 100),
    (FaultDead, 100),
    (FaultTorn, 100),
    (PlacedAgain, 100),
    (MembersGivenUp, 20),
    (LostDrivesLeftOut, 100),
    (DrivesJoined, 100),
    (DrivesReadmitted, 100),
    (CrashWhileJoining, 20),
    (EpochsRaised, 100),
    (StallsNoticed, 20),
    (KeysHeldThroughPowerCuts, 100),
    (KeysHeldUnderPower, 100),
    (DurablePutsHeld, 100),
    (FlushesShared, 100),
    (Sweeps, 100),
    (RangesTrimmed, 10_000),
    (UnitsTakenBeforeTrim, 1_000),
    (ExtentsScrubbed, 10_000),
    (CorruptByScrub, 100),
    (RowsMerged, 10_000),
    (RowsFromLog, 10_000),
    (RecordsLost, 20),
    (BytesLent, 10_000_000),
    (BytesLentForGood, 10_000),
];

/// Counts of one seed, or of many: at the place of each its count, once it happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(Vec<Option<(Count, u64)>>);

impl Counters {
    /// Adds one.
    pub fn bump(&mut self, count: Count) {
        self.add(count, 1);
    }

    /// Adds `more`.
    pub fn add(&mut self, count: Count, more: u64) {
        if more == 0 {
            return;
        }
        let at = count as usize;
        if at >= self.0.len() {
            self.0.resize(at + 1, None);
        }
        self.0[at].get_or_insert((count, 0)).1 += more;
    }

    /// The count so far.
    pub fn get(&self, count: Count) -> u64 {
        self.0.get(count as usize).copied().flatten().map_or(0, |(_, value)| value)
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Counters) {
        other.iter().for_each(|(count, more)| self.add(count, more));
    }

    /// What has happened too rarely, and how often it did.
    pub fn too_low(&self) -> Vec<(Count, u64, u64)> {
        let low = LEAST.iter().filter(|(count, least)| self.get(*count) <= *least);
        low.map(|&(count, least)| (count, self.get(count), least)).collect()
    }

    /// All counts in their order.
    pub fn iter(&self) -> impl Iterator<Item = (Count, u64)> + '_ {
        self.0.iter().copied().flatten()
    }
}

/// A name for people: the variant's words.
pub fn name(count: Count) -> String {
    let mut words = String::new();
    for letter in format!("{count:?}").chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_low_ones_are_named() {
        let mut one = Counters::default();
        one.add(RacePutPut, 70);
        let mut both = one.clone();
        both.merge(&one);
        assert_eq!(both.get(RacePutPut), 140);
        let low: Vec<Count> = both.too_low().into_iter().map(|(count, ..)| count).collect();
        assert!(!low.contains(&RacePutPut) && low.contains(&Evictions));
        assert_eq!(name(CrashWithFrameWrite), "crash with frame write");
    }
}
