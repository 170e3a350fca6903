//! Stopping the server: when, how, and what of it is counted; and the end of a run.

use std::time::Duration;

use memkv_block::Op;
use memkv_sim::CrashKind;
use memkv_store::Durability;
use memkv_wire::meta::TO_THE_END;

use crate::counters::Count;
use crate::model::{KeyId, Presence};
use crate::options::{FaultMode, Interruption, Stop, Trigger};
use crate::oracle::{Zone, zone_of};
use crate::requests::{GetWork, Work};
use crate::run::{Failure, Power, Run};

/// Turns that an interruption waits for its trigger before it happens anyway.
const PATIENCE: u32 = 4_000;

impl Run {
    /// Stops the server if its time has come.
    pub(crate) fn interrupt(&mut self) -> Result<(), Failure> {
        if let Some((submitted, interruption)) = self.trap
            && matches!(self.power, Power::Starting(_))
            && self.oracle.submitted() >= submitted
        {
            self.trap = None;
            self.stage.bump(Count::CrashInRecovery);
            let Stop::Crash(kind) = interruption.stop else { return Ok(()) };
            return self.crash_now(kind);
        }
        if self.armed.is_none() {
            let due = self.plan.front().is_some_and(|next| next.at <= self.stage.requests);
            if !due || !matches!(self.power, Power::On(_)) {
                return Ok(());
            }
            self.armed = self.plan.pop_front().map(|next| (next, 0));
        }
        let Some((interruption, waited)) = self.armed else { return Ok(()) };
        if !matches!(self.power, Power::On(_)) {
            self.armed = None;
            return Ok(());
        }
        if waited < PATIENCE && self.busy && !self.is_triggered(interruption.trigger) {
            self.armed = Some((interruption, waited + 1));
            return Ok(());
        }
        self.armed = None;
        self.carry_out(interruption)
    }

    fn carry_out(&mut self, interruption: Interruption) -> Result<(), Failure> {
        match interruption.stop {
            Stop::Clean => {
                let power = std::mem::replace(&mut self.power, Power::Off);
                let Power::On(server) = power else { unreachable!("checked by the caller") };
                let done = server.stop();
                self.world.kick();
                self.power = Power::Stopping(server, done);
                Ok(())
            }
            Stop::Crash(kind) => {
                if let Trigger::Recovery(commands) = interruption.trigger {
                    let at = self.oracle.submitted() + u64::from(commands);
                    self.trap = Some((at, interruption));
                }
                self.crash_now(kind)
            }
        }
    }

    fn is_triggered(&self, trigger: Trigger) -> bool {
        let wanted = match trigger {
            Trigger::Now | Trigger::Recovery(_) => return true,
            Trigger::Flush => None,
            Trigger::Value => Some(Zone::Data),
            Trigger::Frame => Some(Zone::Ring),
            Trigger::Checkpoint => Some(Zone::Checkpoint),
            Trigger::Superblock => Some(Zone::Superblock),
        };
        let mut found = false;
        for disk in &self.disks {
            disk.for_each_outstanding(|op, offset, _| {
                found |= match wanted {
                    None => op == Op::Flush,
                    Some(zone) => op == Op::Write && zone_of(&self.layout, offset) == zone,
                };
            });
        }
        found
    }

    fn count_crash_point(&mut self) {
        let mut met = [false; 6];
        for disk in &self.disks {
            disk.for_each_outstanding(|op, offset, _| match (op, zone_of(&self.layout, offset)) {
                (Op::Flush, _) => met[0] = true,
                (Op::Deallocate, _) => met[5] = true,
                (Op::Write, Zone::Data) => met[1] = true,
                (Op::Write, Zone::Ring) => met[2] = true,
                (Op::Write, Zone::Checkpoint) => met[3] = true,
                (Op::Write, Zone::Superblock) => met[4] = true,
                _ => {}
            });
        }
        let counts = [
            Count::CrashWithFlush,
            Count::CrashWithValueWrite,
            Count::CrashWithFrameWrite,
            Count::CrashWithCheckpointWrite,
            Count::CrashWithSuperblockWrite,
            Count::CrashWithTrim,
        ];
        for (met, count) in met.into_iter().zip(counts) {
            if met {
                self.stage.bump(count);
            }
        }
    }

    /// The machine stops at once.
    pub(crate) fn crash_now(&mut self, kind: CrashKind) -> Result<(), Failure> {
        if self.stage.verbose {
            eprintln!("CRASH {kind:?} at {:?}", self.stage.now());
        }
        self.check_disks()?;
        // What has arrived at the clients was answered before the crash.
        for client in &mut self.clients {
            client.read(&mut self.stage)?;
        }
        self.hear_news();
        self.count_crash_point();
        self.stage.bump(match kind {
            CrashKind::Kill => Count::Kills,
            CrashKind::PowerCut => Count::PowerCuts,
        });
        if kind == CrashKind::PowerCut && self.options.durability == Durability::Power {
            self.stage.bump(Count::PowerCutsUnderPower);
        }
        let (writes, pages) = self.power_off(kind)?;
        self.stage.counters.add(Count::WritesCutInCrashes, writes);
        self.stage.counters.add(Count::PagesLostInPowerCuts, pages);
        let safe = self.oracle.safe();
        self.oracle.crashed();
        self.stage.model.crashed(kind, safe);
        self.world.start();
        self.schedule_boot();
        Ok(())
    }

    /// The server has stopped in peace.
    pub(crate) fn stopped(&mut self) -> Result<(), Failure> {
        if self.stage.verbose {
            eprintln!("STOPPED at {:?}", self.stage.now());
        }
        self.check_disks()?;
        self.stage.bump(Count::CleanStops);
        for client in &mut self.clients {
            client.read(&mut self.stage)?;
        }
        self.hear_news();
        let (writes, _) = self.power_off(CrashKind::Kill)?;
        if writes > 0 && self.options.faults != FaultMode::Errors {
            return Err(Failure::WriteAfterStop);
        }
        self.oracle.crashed();
        self.stage.model.stopped();
        self.world.start();
        self.schedule_boot();
        Ok(())
    }

    fn power_off(&mut self, kind: CrashKind) -> Result<(u64, u64), Failure> {
        self.count_server();
        self.disks.iter().for_each(memkv_sim::SimDisk::power_off);
        self.power = Power::Off;
        self.lose_spare();
        self.world.stop();
        self.net.cut_all();
        let (mut writes, mut pages) = (0, 0);
        for disk in &self.disks {
            let (cut, lost) = disk.crash(kind);
            writes += cut;
            pages += lost;
        }
        let used: u64 = self.pool.stats().used.iter().sum();
        if used > 0 {
            return Err(Failure::PoolLeak(used));
        }
        Ok((writes, pages))
    }

    /// Adds up what the server counted in this life.
    fn count_server(&mut self) {
        let (Power::On(server) | Power::Stopping(server, _)) = &self.power else { return };
        let (store, counted) = (server.store.clone(), server.store.counters());
        let (reserve, append, offers) = server.losses();
        let (lent, for_good) = server.lent();
        let counters = &mut self.stage.counters;
        counters.add(Count::Evictions, counted.evictions.get());
        counters.add(Count::EvictionsWhileSending, counted.evictions_while_read.get());
        counters.add(Count::KeyWaits, counted.put_put.get());
        counters.add(Count::RetriesRemembered, counted.retries_remembered.get());
        counters.add(Count::PlacedAgain, counted.placed_again.get());
        counters.add(Count::DrivesFailed, counted.drives_failed.get());
        let stalled = store.drives().into_iter().filter_map(|drive| drive.why_offline);
        let stalled = stalled.filter(|why| why.contains("has not answered"));
        counters.add(Count::StallsNoticed, stalled.count() as u64);
        counters.add(Count::EpochsRaised, counted.epochs_raised.get());
        counters.add(Count::Checkpoints, counted.checkpoints.get());
        for drive in store.drives() {
            let shared = drive.journal.flush_calls.saturating_sub(drive.journal.flushes);
            counters.add(Count::FlushesShared, shared);
        }
        counters.add(Count::LostAfterReserve, reserve);
        counters.add(Count::LostAfterAppend, append);
        counters.add(Count::OffersExpired, offers);
        counters.add(Count::BytesLent, lent);
        counters.add(Count::BytesLentForGood, for_good);
        counters.add(Count::ExtentsScrubbed, counted.scrub.extents.get());
        counters.add(Count::CorruptByScrub, counted.scrub.corrupt.get());
        counters.add(Count::RowsMerged, counted.checkpoint_rows.get());
        counters.add(Count::RowsFromLog, counted.checkpoint_log_rows.get());
        counters.add(Count::RecordsLost, counted.records_lost.get());
        for drive in server.store.drives() {
            counters.add(Count::RangesTrimmed, drive.trim.ranges);
            counters.add(Count::UnitsTakenBeforeTrim, drive.trim.units_reused);
        }
        self.evictions += counted.evictions.get();
        self.note_members(&store);
    }

    /// The last requests are answered: one more crash, then every key is read, then perhaps deleted.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.check_disks()?;
        let last = self.options.interruptions.last().map(|last| last.stop);
        self.carry_out(Interruption {
            at: 0,
            stop: last.unwrap_or(Stop::Crash(CrashKind::Kill)),
            trigger: Trigger::Now,
        })?;
        self.settle()?;
        self.read_everything()?;
        if self.options.sweep {
            self.sweep()?;
        }
        self.check_disks()?;
        self.power_off(CrashKind::Kill)?;
        let seen = self.stage.model.evicted;
        if seen > self.evictions {
            return Err(Failure::Evictions { seen, done: self.evictions });
        }
        Ok(())
    }

    /// Lets clients do work of the harness's own, one request at a time for each.
    fn order_all(&mut self, mut work: impl FnMut(&mut Run, KeyId) -> Work) -> Result<(), Failure> {
        for key in 0..self.stage.model.keys() {
            let space = (key / self.options.keys) as usize;
            // Few seeds have a client in every space.
            let Some(at) = self.clients.iter().position(|client| client.space() == space) else {
                continue;
            };
            while !self.clients[at].is_open() || self.clients[at].under_way() >= 8 {
                if self.over {
                    return Ok(());
                }
                if self.clients[at].is_idle() {
                    // Without anything to do it would not connect by itself.
                    self.busy = true;
                    let turn = self.client_turn(at as u64);
                    self.busy = false;
                    turn?;
                }
                self.turn()?;
            }
            let work = work(self, key);
            self.clients[at].order(&mut self.stage, work);
        }
        self.settle()
    }

    fn read_everything(&mut self) -> Result<(), Failure> {
        self.order_all(|run, key| {
            let sight = run.stage.model.look(key, run.stage.now());
            Work::Get(vec![GetWork { sight, offset: 0, length: TO_THE_END, answered: false }])
        })
    }

    /// Deletes everything; then every unit of every drive must be free.
    fn sweep(&mut self) -> Result<(), Failure> {
        self.stage.bump(Count::Sweeps);
        for _ in 0..20 {
            self.order_all(|run, key| {
                let now = run.stage.now();
                Work::Delete(vec![run.stage.model.delete_begins(key, 0, now)])
            })?;
            let spaces = self.clients.len().min(self.options.spaces()) as u32;
            let reached = self.options.keys * spaces;
            if (0..reached).all(|key| self.stage.model.presence(key) == Presence::Absent) {
                break;
            }
        }
        if self.clients.len() < self.options.spaces() {
            return Ok(());
        }
        // What was evicted at the same time may still be on its way out, and an offer whose bytes never
        // came has its deadline.
        for _ in 0..20 {
            if self.leak().is_none() {
                return Ok(());
            }
            self.rest(Duration::from_secs(1))?;
        }
        self.leak().map_or(Ok(()), Err)
    }

    /// A drive of the empty store with units that are not free.
    fn leak(&self) -> Option<Failure> {
        let Power::On(server) = &self.power else { return None };
        let drives = server.store.drives();
        let leaking = drives.iter().position(|drive| drive.units_free != drive.units_total)?;
        let drive = &drives[leaking];
        Some(Failure::Leak(leaking, drive.units_free, drive.units_total))
    }
}
