//! Walking the log from a checkpoint's start to its end.
//!
//! The ring is read in windows of up to a MiB. A page the drive cannot read counts as empty, so
//! that one bad sector costs one frame; only when a whole window cannot be read does the walk give
//! up.

use std::cmp::Ordering;

use memkv_block::IoError;
use memkv_dma::Class;

use crate::checkpoint::desk::Desk;
use crate::frame::{self, FRAME_ALIGN, FRAME_HEADER, FRAME_MAX, FrameError, FrameHeader};
use crate::record::View;
use crate::recovery::decision::{Decision, Header, Order, Origin, Sight, decide};
use crate::recovery::{Means, RecoveryReport};
use crate::superblock::{CheckpointRef, Start};

/// How far beyond a damaged frame a later one is looked for.
pub(crate) const LOOK_AHEAD: u64 = 1 << 20;
const WINDOW: u64 = 1 << 20;
const PAGE: u64 = FRAME_ALIGN as u64;

/// Where the log ends: the next frame gets this sequence and this position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogEnd {
    pub(crate) sequence: u64,
    pub(crate) position: u64,
    pub(crate) generation_high: u64,
    pub(crate) clock_high: u64,
}

/// What the walk met.
pub(crate) struct Scan {
    pub(crate) end: LogEnd,
    pub(crate) report: RecoveryReport,
}

/// Reads the log that follows the checkpoint `from`; hands every record to `each`, in order.
pub(crate) async fn scan(
    means: &Means<'_>,
    from: CheckpointRef,
    mut each: impl FnMut(View<'_>),
) -> Result<Scan, IoError> {
    let size = WINDOW.min(means.superblock.layout.ring_bytes.next_power_of_two());
    let size = size.max(FRAME_MAX as u64);
    let mut desk = Desk::new(means.pool, Class::Checkpoint, 1, size as usize).await;
    let mut walk = Walk::new(means, from, size);
    while let Some(header) = walk.next(&mut desk).await? {
        frame::records_of(&header, walk.frame(&desk, &header), &mut each);
    }
    Ok(walk.finish())
}

/// What is at the position, and what was found beyond it.
struct Seen {
    sight: Sight,
    later: Option<FrameHeader>,
}

/// A walk from frame to frame.
pub(crate) struct Walk<'a> {
    means: &'a Means<'a>,
    /// The log cannot be longer than the ring.
    limit: u64,
    /// How far beyond a damaged frame a later one is looked for.
    look_ahead: u64,
    pub(crate) end: LogEnd,
    /// Incarnation of the last frame taken; rules for frames older than every start known.
    last_incarnation: u64,
    window: Window,
    report: RecoveryReport,
}

impl<'a> Walk<'a> {
    /// Begins at a frame. Its memory is the first piece of a desk, of `size` bytes, [`FRAME_MAX`] at least.
    pub(crate) fn new(means: &'a Means<'a>, from: CheckpointRef, size: u64) -> Walk<'a> {
        let ring = means.superblock.layout.ring_bytes;
        Walk {
            means,
            limit: from.start_position + ring,
            look_ahead: LOOK_AHEAD,
            end: LogEnd {
                sequence: from.start_sequence,
                position: from.start_position,
                generation_high: 0,
                clock_high: 0,
            },
            last_incarnation: 0,
            window: Window::new(means, size),
            report: RecoveryReport::default(),
        }
    }

    /// Known to go as far as this position: whatever is damaged on the way, a later frame is looked
    /// for up to there, and none beyond.
    pub(crate) fn within(mut self, limit: u64) -> Walk<'a> {
        self.window.limit = limit;
        Walk { limit: limit.min(self.limit), look_ahead: u64::MAX / 2, ..self }
    }

    /// Goes on at a frame further on, if there is one at this position; else at the first frame.
    pub(crate) async fn resume(&mut self, desk: &mut Desk, position: u64) -> Result<(), IoError> {
        if position > self.end.position
            && position < self.limit
            && let Ok(header) = self.header_at(desk, position).await?
            && header.position == position
        {
            (self.end.sequence, self.end.position) = (header.sequence, position);
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Scan {
        self.report.unreadable_pages = self.window.unreadable;
        Scan { end: self.end, report: self.report }
    }

    /// The next whole frame, or none at the end of the log.
    pub(crate) async fn next(&mut self, desk: &mut Desk) -> Result<Option<FrameHeader>, IoError> {
        loop {
            let (seen, header) = self.look(desk).await?;
            let case = decide(&seen.sight);
            self.report.visits.count(case);
            match case.decision {
                Decision::Accept => {
                    let header = header.expect("an accepted frame has a header");
                    self.accept(&header);
                    return Ok(Some(header));
                }
                Decision::Skip => {
                    let later = seen.later.expect("a log goes on only at a later frame");
                    self.report.damaged_frames += later.sequence - self.end.sequence;
                    self.end.sequence = later.sequence;
                    self.end.position = later.position;
                }
                Decision::End => return Ok(None),
                Decision::EndTorn => {
                    self.report.torn_tail = true;
                    return Ok(None);
                }
            }
        }
    }

    /// The bytes of the frame that came last.
    pub(crate) fn frame<'d>(&self, desk: &'d Desk, header: &FrameHeader) -> &'d [u8] {
        let at = (header.position - self.window.position) as usize;
        &desk.bytes(0)[at..at + FRAME_HEADER + header.body_len as usize]
    }

    fn accept(&mut self, header: &FrameHeader) {
        self.report.frames += 1;
        self.report.records += u64::from(header.records);
        self.end.sequence += 1;
        self.end.position += u64::from(header.span);
        self.end.generation_high = self.end.generation_high.max(header.generation_high);
        self.end.clock_high = self.end.clock_high.max(header.clock_high);
        self.last_incarnation = header.incarnation;
    }

    /// Looks at the page where the next frame should be and, when it is not there, beyond it.
    async fn look(&mut self, desk: &mut Desk) -> Result<(Seen, Option<FrameHeader>), IoError> {
        let mut sight = Sight {
            header: Header::None,
            here: false,
            order: Order::Lower,
            origin: Origin::Older,
            body: false,
            later: false,
        };
        let mut found = None;
        if self.end.position < self.limit {
            let at = self.end.position;
            match self.header_at(desk, at).await? {
                Ok(header) => {
                    sight.header = Header::Whole;
                    sight.here = header.position == at;
                    sight.order = match header.sequence.cmp(&self.end.sequence) {
                        Ordering::Less => Order::Lower,
                        Ordering::Equal => Order::Expected,
                        Ordering::Greater => Order::Higher,
                    };
                    sight.origin = self.origin(&header);
                    if sight.here && sight.order == Order::Expected && sight.origin == Origin::Own {
                        sight.body = self.body(desk, &header).await?;
                    }
                    found = Some(header);
                }
                Err(FrameError::Magic | FrameError::Short) => {}
                Err(_) => sight.header = Header::Broken,
            }
        }
        let later = if sight.body { None } else { self.later(desk).await? };
        sight.later = later.is_some();
        Ok((Seen { sight, later }, found))
    }

    /// The first whole frame that the log could go on with, up to `look_ahead` beyond the position.
    async fn later(&mut self, desk: &mut Desk) -> Result<Option<FrameHeader>, IoError> {
        let mut at = self.end.position + PAGE;
        let limit = self.limit.min(self.end.position + self.look_ahead);
        while at < limit {
            if let Ok(header) = self.header_at(desk, at).await?
                && self.goes_on(&header, at)
                && self.body(desk, &header).await?
            {
                return Ok(Some(header));
            }
            at += PAGE;
        }
        Ok(None)
    }

    /// Whether a frame found at `at` can be one of this log, beyond the expected one.
    fn goes_on(&self, header: &FrameHeader, at: u64) -> bool {
        let missing = header.sequence.saturating_sub(self.end.sequence);
        let distance = at - self.end.position;
        header.position == at
            && missing > 0
            && missing <= distance / PAGE
            && self.origin(header) == Origin::Own
            && header.incarnation >= self.last_incarnation
    }

    fn origin(&self, header: &FrameHeader) -> Origin {
        origin(
            &self.means.superblock.starts,
            self.last_incarnation,
            header.sequence,
            header.incarnation,
        )
    }

    /// The header on the page at `position`, once it is of this drive.
    async fn header_at(
        &mut self,
        desk: &mut Desk,
        position: u64,
    ) -> Result<Result<FrameHeader, FrameError>, IoError> {
        let drive = self.means.superblock.identity.drive;
        let room = self.window.room(position);
        let page = self.window.bytes(self.means, desk, position, FRAME_HEADER).await?;
        Ok(frame::parse_header(page).and_then(|header| {
            if header.drive != drive {
                // Left by an earlier format of the same drive.
                return Err(FrameError::Magic);
            }
            // A frame never crosses the end of the ring.
            if u64::from(header.span) > room { Err(FrameError::Header) } else { Ok(header) }
        }))
    }

    /// Whether the frame's body is whole.
    async fn body(&mut self, desk: &mut Desk, header: &FrameHeader) -> Result<bool, IoError> {
        let len = FRAME_HEADER + header.body_len as usize;
        let bytes = self.window.bytes(self.means, desk, header.position, len).await?;
        Ok(frame::parse_body(header, bytes, drop).is_ok())
    }
}

/// Who wrote a frame, beside who owns its sequence: the last incarnation that started at or before
/// it.
fn origin(starts: &[Start], last: u64, sequence: u64, incarnation: u64) -> Origin {
    let owner = starts.iter().rev().find(|start| start.first_sequence <= sequence);
    let (least, most) = match owner {
        Some(owner) => (owner.incarnation, owner.incarnation),
        // Older than every start the superblock still names: incarnations must not fall.
        None => (last, starts.first().map_or(u64::MAX, |first| first.incarnation - 1)),
    };
    if incarnation < least {
        Origin::Older
    } else if incarnation > most {
        Origin::Beyond
    } else {
        Origin::Own
    }
}

/// A stretch of the ring in memory.
struct Window {
    ring_offset: u64,
    ring_bytes: u64,
    size: u64,
    /// What lies at this position and beyond may be written at this moment.
    limit: u64,
    position: u64,
    len: u64,
    unreadable: u64,
}

impl Window {
    fn new(means: &Means<'_>, size: u64) -> Window {
        let layout = &means.superblock.layout;
        let (ring_offset, ring_bytes) = (layout.ring_offset, layout.ring_bytes);
        let (position, limit) = (0, u64::MAX);
        Window { ring_offset, ring_bytes, size, limit, position, len: 0, unreadable: 0 }
    }

    /// Bytes from `position` to the end of its lap.
    fn room(&self, position: u64) -> u64 {
        self.ring_bytes - position % self.ring_bytes
    }

    /// The `len` bytes of ring at `position`, which do not cross the end of the ring.
    async fn bytes<'d>(
        &mut self,
        means: &Means<'_>,
        desk: &'d mut Desk,
        position: u64,
        len: usize,
    ) -> Result<&'d [u8], IoError> {
        let end = position + len as u64;
        if position < self.position || end > self.position + self.len {
            self.load(means, desk, position).await?;
        }
        let at = (position - self.position) as usize;
        Ok(&desk.bytes(0)[at..at + len])
    }

    async fn load(
        &mut self,
        means: &Means<'_>,
        desk: &mut Desk,
        position: u64,
    ) -> Result<(), IoError> {
        let len = self.size.min(self.room(position)).min(self.limit - position) as usize;
        let offset = self.ring_offset + position % self.ring_bytes;
        self.len = 0;
        match desk.read(means.queue, offset, len, (0, 0)).await {
            Ok(()) => {}
            Err(error) if desk.is_lost() => return Err(error),
            Err(_) => self.unreadable += read_pages(means, desk, offset, len).await?,
        }
        (self.position, self.len) = (position, len as u64);
        means.local.yield_now().await;
        Ok(())
    }
}

/// Reads page by page what could not be read at once. Pages that cannot be read are zeros; returns
/// how many. Fails when no page can be read, or the drive stalls.
async fn read_pages(
    means: &Means<'_>,
    desk: &mut Desk,
    offset: u64,
    len: usize,
) -> Result<u64, IoError> {
    let mut unreadable = 0;
    for at in (0..len).step_by(FRAME_ALIGN) {
        match desk.read(means.queue, offset + at as u64, FRAME_ALIGN, (0, at)).await {
            Ok(()) => {}
            Err(error) if desk.is_lost() => return Err(error),
            Err(error) => {
                desk.bytes_mut(0)[at..at + FRAME_ALIGN].fill(0);
                unreadable += 1;
                if unreadable == (len / FRAME_ALIGN) as u64 {
                    return Err(error);
                }
            }
        }
    }
    Ok(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_belongs_to_the_last_incarnation_that_started_at_or_before_it() {
        let start = |incarnation, first_sequence| Start { incarnation, first_sequence };
        let starts = [start(5, 100), start(7, 140), start(8, 141)];
        for (sequence, incarnation, expected) in [
            (100, 5, Origin::Own),
            (139, 5, Origin::Own),
            (140, 5, Origin::Older),
            (140, 7, Origin::Own),
            (140, 8, Origin::Beyond),
            (500, 7, Origin::Older),
            (500, 8, Origin::Own),
            (500, 9, Origin::Beyond),
            // Before every start known: at least the last one met, and below the first known.
            (99, 3, Origin::Own),
            (99, 4, Origin::Own),
            (99, 2, Origin::Older),
            (99, 5, Origin::Beyond),
        ] {
            assert_eq!(
                origin(&starts, 3, sequence, incarnation),
                expected,
                "{sequence} {incarnation}"
            );
        }
    }
}
