//! The states in which a crash can leave the drives of a history.
//!
//! *Kill*, at any place of the tape: all writes that were complete are there; of those in flight
//! none, all, each alone, and each alone in part (a metadata write cut after every sector, the
//! bytes of a value after every page).
//!
//! *Power cut*: what was complete when a flush was asked for that was answered is there. Of the
//! rest nothing, each write alone, all but one, and all with one of them in part. The latest few of
//! the rest take turns.

use super::disk::{Event, Image, PAGE, SECTOR};
use super::history::History;

/// How the machine stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Kill,
    PowerCut,
}

/// One crash state.
pub struct State {
    pub kind: Kind,
    /// Place on the tape.
    pub at: usize,
    pub images: Vec<Image>,
    /// Writes asked for before that are not wholly there.
    pub lost: Vec<usize>,
    /// What was done to the writes in question.
    pub how: String,
}

/// Writes that take turns in a power cut.
const TURNS: usize = 8;

struct Walk<'a> {
    history: &'a History,
    data_offset: u64,
    /// With everything that is complete, and with what is stable.
    complete: Vec<Image>,
    stable: Vec<Image>,
    /// Complete and not stable, in order of completion.
    volatile: Vec<usize>,
    flight: Vec<usize>,
    /// Flushes under way, and what they make stable.
    flushes: Vec<(usize, Vec<usize>)>,
}

/// Shows every state from the history's last operation on, until `each` says no.
pub fn states(history: &History, data_offset: u64, mut each: impl FnMut(State) -> bool) {
    let mut walk = Walk {
        history,
        data_offset,
        complete: history.base.clone(),
        stable: history.base.clone(),
        volatile: Vec::new(),
        flight: Vec::new(),
        flushes: Vec::new(),
    };
    for at in 0..=history.events.len() {
        if at >= history.last && !(walk.kills(at, &mut each) && walk.power_cuts(at, &mut each)) {
            return;
        }
        if let Some(event) = history.events.get(at) {
            walk.step(*event);
        }
    }
}

impl Walk<'_> {
    fn step(&mut self, event: Event) {
        match event {
            Event::Submit(write) => self.flight.push(write),
            Event::Complete(write) => {
                self.flight.retain(|other| *other != write);
                self.volatile.push(write);
                apply(&mut self.complete, self.history, write, usize::MAX);
            }
            Event::FlushBegin { drive, flush } => {
                let here = |write: &usize| self.history.writes[*write].drive == drive;
                let covers = self.volatile.iter().copied().filter(here).collect();
                self.flushes.push((flush, covers));
            }
            Event::FlushEnd { flush, .. } => {
                let place = self.flushes.iter().position(|(other, _)| *other == flush);
                let (_, covers) = self.flushes.remove(place.expect("a flush ends once"));
                for write in covers {
                    if let Some(place) = self.volatile.iter().position(|other| *other == write) {
                        self.volatile.remove(place);
                        apply(&mut self.stable, self.history, write, usize::MAX);
                    }
                }
            }
        }
    }

    /// Where a write may be cut: after these bytes.
    fn cuts(&self, write: usize) -> impl Iterator<Item = usize> + use<> {
        let write = &self.history.writes[write];
        let grain = if write.offset < self.data_offset { SECTOR } else { PAGE };
        (grain..write.data.len()).step_by(grain)
    }

    fn kills(&self, at: usize, each: &mut impl FnMut(State) -> bool) -> bool {
        let mut show = |kept: &[(usize, usize)], how: String| {
            let mut images = self.complete.clone();
            for (write, bytes) in kept {
                apply(&mut images, self.history, *write, *bytes);
            }
            let whole = |write: &usize| kept.contains(&(*write, usize::MAX));
            let lost = self.flight.iter().copied().filter(|write| !whole(write)).collect();
            each(State { kind: Kind::Kill, at, images, lost, how })
        };
        if !show(&[], "no write in flight".into()) {
            return false;
        }
        let all: Vec<_> = self.flight.iter().map(|write| (*write, usize::MAX)).collect();
        if all.len() > 1 && !show(&all, "every write in flight".into()) {
            return false;
        }
        for &write in &self.flight {
            if !show(&[(write, usize::MAX)], format!("of those in flight write {write}")) {
                return false;
            }
            for cut in self.cuts(write) {
                let how = format!("of those in flight {cut} bytes of write {write}");
                if !show(&[(write, cut)], how) {
                    return false;
                }
            }
        }
        true
    }

    fn power_cuts(&self, at: usize, each: &mut impl FnMut(State) -> bool) -> bool {
        let after_complete = at > 0 && matches!(self.history.events[at - 1], Event::Complete(_));
        let end = at == self.history.events.len();
        if self.volatile.is_empty() || !(after_complete || end) {
            return true;
        }
        let rest: Vec<usize> = self.volatile.iter().chain(&self.flight).copied().collect();
        let mut show = |part: &dyn Fn(usize) -> Part, how: String| {
            let mut images = self.stable.clone();
            let mut lost = Vec::new();
            for &write in &rest {
                match part(write) {
                    Part::All => {
                        apply(&mut images, self.history, write, usize::MAX);
                        continue;
                    }
                    Part::First(bytes) => apply(&mut images, self.history, write, bytes),
                    Part::After(bytes) => apply_after(&mut images, self.history, write, bytes),
                    Part::None => {}
                }
                lost.push(write);
            }
            each(State { kind: Kind::PowerCut, at, images, lost, how })
        };
        let only = |write, part: Part, others: Part| {
            move |other| if other == write { part } else { others }
        };
        if !show(&|_| Part::None, "nothing unflushed".into()) {
            return false;
        }
        for &write in &rest[rest.len().saturating_sub(TURNS)..] {
            let bytes = self.history.writes[write].data.len();
            let mut turns = vec![
                (only(write, Part::All, Part::None), format!("of unflushed writes only {write}")),
                (only(write, Part::None, Part::All), format!("every unflushed write but {write}")),
            ];
            if bytes > SECTOR && self.history.writes[write].offset < self.data_offset {
                let how = |what| format!("every unflushed write, of {write} {what}");
                let part = Part::First(SECTOR);
                turns.push((only(write, part, Part::All), how("the first sector")));
                let part = Part::After(SECTOR);
                turns.push((only(write, part, Part::All), how("all but the first sector")));
                let part = Part::First(bytes - SECTOR);
                turns.push((only(write, part, Part::All), how("all but the last sector")));
            }
            for (part, how) in turns {
                if !show(&part, how) {
                    return false;
                }
            }
        }
        true
    }
}

#[derive(Clone, Copy)]
enum Part {
    All,
    None,
    First(usize),
    After(usize),
}

/// Applies the first `bytes` of a write.
fn apply(images: &mut [Image], history: &History, write: usize, bytes: usize) {
    let write = &history.writes[write];
    images[write.drive].write(write.offset, &write.data[..bytes.min(write.data.len())]);
}

fn apply_after(images: &mut [Image], history: &History, write: usize, bytes: usize) {
    let write = &history.writes[write];
    images[write.drive].write(write.offset + bytes as u64, &write.data[bytes..]);
}
