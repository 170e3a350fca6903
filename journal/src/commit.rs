//! The group commit: a task that writes frames one after the other while calls wait.
//!
//! One write is in flight at a time, so that what a killed process leaves of the log is whole
//! frames and at most one torn one, the last. Calls that come meanwhile wait together and ride in
//! the next.

use std::rc::Rc;

use memkv_block::{Done, Io, IoBuf, IoError, Op};
use memkv_poller::spare::Row;

use crate::append::Ticket;
use crate::flush;
use crate::frame::{FRAME_HEADER, FrameHeader, span_of};
use crate::journal::{JournalError, Shared, answer};
use crate::log::{Mark, Next, Waiting};

/// Writes until no call waits.
pub(crate) async fn run(shared: Rc<Shared>) {
    loop {
        // Each in a statement of its own: no borrow may live across the write.
        let next = shared.log.borrow_mut().next();
        match next {
            Next::Nothing => break,
            Next::Filler { sequence, position, span } => {
                let header = header(&shared, sequence, position, span, 0, 0);
                if let Err(error) = write(&shared, header, &[], Op::Write).await {
                    shared.fail(error);
                    give_up(&shared);
                    break;
                }
            }
            Next::Frame { sequence, position, body, calls } => {
                let records = calls.iter().map(|call| call.records.len()).sum();
                let span = span_of(body);
                let header = header(&shared, sequence, position, span, body, records);
                if !commit(&shared, header, calls).await {
                    give_up(&shared);
                    break;
                }
            }
        }
    }
    shared.committing.set(false);
}

/// Writes a frame, and answers its calls when it is as durable as each has asked; false when the
/// drive has failed.
async fn commit(shared: &Rc<Shared>, header: FrameHeader, calls: Row<Waiting<Ticket>>) -> bool {
    let sequence = header.sequence;
    let is_durable = |call: &Waiting<Ticket>| call.ticket.durable;
    let durable = calls.iter().filter(|call| is_durable(call)).count() as u64;
    let flush = if durable > 0 { flush::begin(shared) } else { None };
    let op = if flush.is_some() { Op::WriteFlush } else { Op::Write };
    let outcome = write(shared, header, &calls, op).await;
    let written = outcome.is_ok();
    if flush.is_some() || durable == 0 || !written {
        finish(shared, sequence, calls, outcome);
        if let Some(number) = flush {
            shared.count(|stats| stats.flush_calls += durable);
            flush::end(shared, number, written);
        }
        return written;
    }
    let (durable, others): (Row<_>, Row<_>) = calls.into_iter().partition(is_durable);
    finish(shared, sequence, others, Ok(()));
    let flushed = flush::ask(shared);
    shared.local.spawn(finish_flushed(Rc::clone(shared), sequence, durable, flushed));
    true
}

/// Answers calls of a frame that is written, once it is flushed.
async fn finish_flushed(
    shared: Rc<Shared>,
    sequence: u64,
    calls: Row<Waiting<Ticket>>,
    flushed: impl Future<Output = Result<(), JournalError>>,
) {
    match flushed.await {
        Ok(()) => finish(&shared, sequence, calls, Ok(())),
        Err(error) => {
            calls.iter().for_each(|call| answer(&shared, &call.ticket, Err(error.clone())))
        }
    }
}

fn header(
    shared: &Shared,
    sequence: u64,
    position: u64,
    span: usize,
    body: usize,
    records: usize,
) -> FrameHeader {
    FrameHeader {
        drive: shared.drive,
        incarnation: shared.incarnation,
        sequence,
        position,
        span: span as u32,
        body_len: body as u32,
        records: records as u32,
        body_crc: 0,
        generation_high: shared.log.borrow().generation_high(),
        clock_high: shared.clock(),
        epoch: shared.epoch.get(),
    }
}

/// Builds the frame in the buffer and writes it at its place, by this command.
async fn write(
    shared: &Shared,
    mut header: FrameHeader,
    calls: &[Waiting<Ticket>],
    op: Op,
) -> Result<(), IoError> {
    let mut buf = shared.frame.take().expect("one frame is written at a time");
    let mut at = FRAME_HEADER;
    for record in calls.iter().flat_map(|call| &call.records) {
        at += record.encode(&mut buf.as_mut_slice()[at..]);
    }
    assert_eq!(at, FRAME_HEADER + header.body_len as usize);
    header.seal(buf.as_mut_slice());
    // Of a filler only the page of its header is written.
    let len = span_of(header.body_len as usize);
    let layout = &shared.layout;
    let offset = layout.ring_offset + header.position % layout.ring_bytes;
    let Done { result, buf: back } =
        shared.queue.submit(Io { op, ..Io::write(offset, len, buf) }).await;
    // A drive that stalled keeps it; no other frame is written there.
    *shared.frame.borrow_mut() = back.and_then(IoBuf::into_exclusive);
    if result.is_ok() {
        let position = header.position + u64::from(header.span);
        shared.written.set(Mark { sequence: header.sequence + 1, position });
        shared.count(|stats| {
            stats.frames += 1;
            stats.bytes += len as u64;
        });
    }
    result
}

/// Answers the calls of a frame, in the order in which they were made.
fn finish(
    shared: &Shared,
    sequence: u64,
    calls: Row<Waiting<Ticket>>,
    outcome: Result<(), IoError>,
) {
    match outcome {
        Ok(()) => {
            shared.count(|stats| {
                stats.appends += calls.len() as u64;
                stats.records += calls.iter().map(|call| call.records.len() as u64).sum::<u64>();
            });
            calls.iter().for_each(|call| answer(shared, &call.ticket, Ok(sequence)));
        }
        Err(error) => {
            let error = shared.fail(error);
            calls.iter().for_each(|call| answer(shared, &call.ticket, Err(error.clone())));
        }
    }
}

/// The drive failed: so do all who wait.
fn give_up(shared: &Shared) {
    let waiting = shared.log.borrow_mut().drain();
    let Err(error) = shared.check_failed() else { unreachable!("a failure was noted before") };
    waiting.iter().for_each(|call| answer(shared, &call.ticket, Err(error.clone())));
}
