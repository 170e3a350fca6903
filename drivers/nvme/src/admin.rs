//! The admin queue: few commands, by any thread, under the lock of the controller.
//!
//! Whoever submits gets a [`Ticket`] and comes back for the outcome. A reset ends all tickets.

use std::time::Duration;

use memkv_poller::Instant;

use crate::area::Area;
use crate::command::Command;
use crate::registers::Registers;
use crate::ring::{Pair, pair_bytes};
use crate::status::Status;

/// Entries of the admin rings.
pub(crate) const ENTRIES: u16 = 32;

/// Commands outstanding at most: a ring that is full would look empty.
const SLOTS: usize = ENTRIES as usize - 1;

/// Where in the area of the admin queue the controller's pages lie: one for identify, one for logs.
pub(crate) const IDENTIFY_AT: usize = pair_bytes(ENTRIES);
pub(crate) const LOG_AT: usize = IDENTIFY_AT + crate::identify::PAGE;

/// Bytes of the area of the admin queue.
pub(crate) const AREA: usize =
    (LOG_AT + crate::identify::PAGE).next_multiple_of(crate::area::ALIGNMENT);

/// Why an admin command has no answer.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum AdminError {
    /// The controller refused it.
    Status(Status),
    /// The controller was reset meanwhile.
    Reset,
}

/// The right to the outcome of one command.
#[derive(Debug)]
pub(crate) struct Ticket {
    index: u8,
    sequence: u8,
    /// The life of the controller in which it was submitted.
    life: u32,
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Slot {
    Free,
    Waiting {
        until: Instant,
    },
    /// The same, and nobody will take the outcome.
    Forgotten {
        until: Instant,
    },
    Done(Result<u32, Status>),
}

impl Slot {
    /// By when it is to be answered, if the controller has it.
    fn until(&self) -> Option<Instant> {
        match self {
            Slot::Waiting { until } | Slot::Forgotten { until } => Some(*until),
            Slot::Free | Slot::Done(_) => None,
        }
    }

    fn is_outstanding(&self) -> bool {
        self.until().is_some()
    }
}

/// What the queue found when it looked.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Look {
    /// All is well; so many commands have ended.
    Fine(u32),
    /// The controller answers what was not asked.
    Spurious,
    /// A command has not been answered in time.
    Overdue,
}

pub(crate) struct Admin {
    area: Area,
    pair: Pair,
    slots: [Slot; SLOTS],
    /// Distinguishes the commands that a slot has had.
    sequences: [u8; SLOTS],
    life: u32,
    /// How long a command may take.
    limit: Duration,
}

impl Admin {
    /// None when the doorbells are not mapped.
    pub fn new(
        mut area: Area,
        registers: &Registers,
        stride: usize,
        limit: Duration,
    ) -> Option<Admin> {
        let pair = Pair::new(&mut area, ENTRIES, registers.doorbells(0, stride)?);
        let (slots, sequences) = ([Slot::Free; SLOTS], [0; SLOTS]);
        Some(Admin { area, pair, slots, sequences, life: 0, limit })
    }

    /// Begins anew: every ticket ends. Only while the controller is disabled.
    pub fn reset(&mut self) {
        self.pair.reset(&mut self.area);
        self.slots = [Slot::Free; SLOTS];
        self.life += 1;
    }

    /// Where the controller finds the submission and the completion ring.
    pub fn rings(&self) -> (u64, u64) {
        (self.area.iova(0), self.area.iova(crate::ring::completion_at(ENTRIES)))
    }

    /// The memory of the queue.
    pub fn area(&mut self) -> &mut Area {
        &mut self.area
    }

    /// Leaks its memory.
    pub fn leak(self) {
        self.area.leak();
    }

    /// Starts a command. None when too many are outstanding: ask again.
    pub fn submit(&mut self, command: Command, now: Instant) -> Option<Ticket> {
        let index = self.slots.iter().position(|slot| *slot == Slot::Free)?;
        self.sequences[index] = self.sequences[index].wrapping_add(1);
        let (sequence, id) = (self.sequences[index], index as u8);
        self.slots[index] = Slot::Waiting { until: now + self.limit };
        self.pair.push(&command.with_id(u16::from(sequence) << 8 | u16::from(id)));
        self.pair.ring();
        Some(Ticket { index: id, sequence, life: self.life })
    }

    /// Takes what has ended, and sees whether something should have.
    pub fn poll(&mut self, now: Instant) -> Look {
        let mut ended = 0;
        // A controller that never stops answers at most once per entry.
        while ended < u32::from(ENTRIES)
            && let Some((entry, result)) = self.pair.next_with_result()
        {
            ended += 1;
            let index = usize::from(entry.id() & 0xff);
            let known = self.slots.get(index).is_some_and(Slot::is_outstanding)
                && self.sequences[index] == (entry.id() >> 8) as u8;
            if !known || entry.queue != 0 {
                return Look::Spurious;
            }
            let outcome = match entry.status() {
                status if status.is_success() => Ok(result),
                status => Err(status),
            };
            let forgotten = matches!(self.slots[index], Slot::Forgotten { .. });
            self.slots[index] = if forgotten { Slot::Free } else { Slot::Done(outcome) };
        }
        self.pair.acknowledge();
        let late = |slot: &Slot| slot.until().is_some_and(|until| until < now);
        if ended == 0 && self.slots.iter().any(late) { Look::Overdue } else { Look::Fine(ended) }
    }

    /// Nobody wants the outcome of a command any more: its place is free once it is there.
    pub fn forget(&mut self, ticket: Ticket) {
        let index = usize::from(ticket.index);
        if ticket.life != self.life || self.sequences[index] != ticket.sequence {
            return;
        }
        self.slots[index] = match self.slots[index] {
            Slot::Waiting { until } => Slot::Forgotten { until },
            _ => Slot::Free,
        };
    }

    /// The outcome of a command, once: the first word of its answer.
    pub fn take(&mut self, ticket: &Ticket) -> Option<Result<u32, AdminError>> {
        if ticket.life != self.life {
            return Some(Err(AdminError::Reset));
        }
        let index = usize::from(ticket.index);
        assert!(self.sequences[index] == ticket.sequence, "an outcome is taken once");
        let Slot::Done(outcome) = self.slots[index] else { return None };
        self.slots[index] = Slot::Free;
        Some(outcome.map_err(AdminError::Status))
    }
}
