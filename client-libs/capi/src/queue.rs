//! Batches that run while their caller does something else.

#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, reason = "the header's first lines are the contract of all")]
#![allow(non_camel_case_types, reason = "they have the names that C knows them by")]

use std::ffi::CString;

use ::memkv_client::{Answers, Batch, ClientError, Completion, Keys, Queue, Sink, Source};

use crate::calls::{self, NOBODY, duration, found, memkv_client, put_options, told, yes};
use crate::memory::{self, Out, Region};
use crate::status::{Failure, MEMKV_OK, c_text, guard, of as status_of};
use crate::types::{
    MEMKV_OP_DELETE, MEMKV_OP_EXISTS, MEMKV_OP_GET, MEMKV_OP_MATCH_PREFIX, MEMKV_OP_PUT,
    memkv_buffer, memkv_bytes, memkv_completion, memkv_completions, memkv_info, memkv_put_options,
};

/// A queue of batches of one client.
pub struct memkv_queue {
    queue: Queue,
}

/// What completions point to.
struct Told {
    /// Those of the array, which the caller sees.
    items: Vec<memkv_completion>,
    /// The memory behind their pointers.
    _details: Vec<Details>,
}

/// The memory behind the pointers of one completion. Moved, it stays where it is.
struct Details {
    statuses: Vec<i32>,
    infos: Vec<memkv_info>,
    error: CString,
}

/// Makes a queue whose puts and gets are carried by up to `workers` threads, of which none exists before the
/// first batch. It works on when its client is closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_queue_open(
    client: *const memkv_client,
    workers: usize,
    queue: *mut *mut memkv_queue,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("queue", queue, 1)? };
        out.set(0, std::ptr::null_mut());
        // SAFETY: the contract of the header.
        let client = unsafe { memory::handle("client", client)? };
        let queue = Queue::new(&client.client, workers)?;
        out.set(0, memory::lend(memkv_queue { queue }));
        Ok(MEMKV_OK)
    })
}

/// Waits until no batch is under way, at most until their deadlines, and frees the queue with the completions
/// that were not drained; NULL is no queue. All memory is the caller's again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_queue_close(queue: *mut memkv_queue) {
    guard(|| {
        // SAFETY: the contract of the header.
        drop(unsafe { memory::take_back(queue) });
        Ok(MEMKV_OK)
    });
}

/// A file descriptor that is readable while there are completions: for poll(2) and its like, not to be read
/// from or closed. Less than 0: an error. In the child of a fork there is another.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_queue_fd(queue: *const memkv_queue) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let queue = unsafe { memory::handle("queue", queue)? };
        Ok(queue.queue.event_fd()?)
    })
}

/// Stores values; see memkv_put_batch. The values are the queue's until the completion is drained. Never waits.
/// `timeout_ms` counts from now on, 0 stands for the configured time; that of the options goes before it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_queue_put(
    queue: *const memkv_queue,
    keys: *const memkv_bytes,
    values: *const memkv_bytes,
    count: usize,
    options: *const memkv_put_options,
    timeout_ms: u64,
    ticket: *mut u64,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let (keys, given, options) = unsafe {
            (
                memory::keys(keys, count)?,
                memory::list("values", values, count)?,
                put_options(options)?,
            )
        };
        let mut values: Vec<Source> = Vec::with_capacity(count);
        for value in given {
            // SAFETY: the contract of the header: the value is the queue's until its completion.
            values.push(Box::new(unsafe { Region::of_bytes(*value)? }));
        }
        // SAFETY: the contract of the header.
        unsafe { submit(queue, Batch::Put { keys, values, options }, timeout_ms, ticket) }
    })
}

/// Reads values; see memkv_get_batch. The buffers are the queue's until the completion is drained. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_queue_get(
    queue: *const memkv_queue,
    keys: *const memkv_bytes,
    buffers: *const memkv_buffer,
    count: usize,
    timeout_ms: u64,
    ticket: *mut u64,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header: the buffers are the queue's until its completion.
        let (keys, buffers) =
            unsafe { (memory::keys(keys, count)?, Region::of_buffers(buffers, count)?) };
        let buffers = buffers.into_iter().map(|buffer| Box::new(buffer) as Sink).collect();
        // SAFETY: the contract of the header.
        unsafe { submit(queue, Batch::Get { keys, buffers }, timeout_ms, ticket) }
    })
}

/// Which keys are stored; see memkv_exists_batch. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_queue_exists(
    queue: *const memkv_queue,
    keys: *const memkv_bytes,
    count: usize,
    timeout_ms: u64,
    ticket: *mut u64,
) -> i32 {
    // SAFETY: the contract of the header.
    unsafe { ask(queue, keys, count, timeout_ms, ticket, Batch::Exists) }
}

/// How many keys at the front are stored; see memkv_match_prefix. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_queue_match_prefix(
    queue: *const memkv_queue,
    keys: *const memkv_bytes,
    count: usize,
    timeout_ms: u64,
    ticket: *mut u64,
) -> i32 {
    // SAFETY: the contract of the header.
    unsafe { ask(queue, keys, count, timeout_ms, ticket, Batch::MatchPrefix) }
}

/// Removes blocks; see memkv_delete_batch. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_queue_delete(
    queue: *const memkv_queue,
    keys: *const memkv_bytes,
    count: usize,
    timeout_ms: u64,
    ticket: *mut u64,
) -> i32 {
    // SAFETY: the contract of the header.
    unsafe { ask(queue, keys, count, timeout_ms, ticket, Batch::Delete) }
}

/// Waits until there is a completion, or nothing under way, or `timeout_ms` are over. 1 when there is a
/// completion, else 0; less than 0: an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_queue_wait(queue: *const memkv_queue, timeout_ms: u64) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let queue = unsafe { memory::handle("queue", queue)? };
        Ok(queue.queue.wait(duration(timeout_ms))?.into())
    })
}

/// Gives the completions so far, for memkv_completions_free. Never waits. The memory of their batches is the
/// caller's again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_queue_drain(
    queue: *const memkv_queue,
    completions: *mut memkv_completions,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("completions", completions, 1)? };
        // Whatever comes, it can be given to memkv_completions_free.
        out.set(0, NONE);
        // SAFETY: the contract of the header.
        let queue = unsafe { memory::handle("queue", queue)? };
        let drained = queue.queue.drain()?;
        if !drained.is_empty() {
            let (items, details) = drained.into_iter().map(tell).unzip();
            let told = Box::new(Told { items, _details: details });
            let (items, count) = (told.items.as_ptr(), told.items.len());
            out.set(0, memkv_completions { items, count, owner: Box::into_raw(told).cast() });
        }
        Ok(MEMKV_OK)
    })
}

const NONE: memkv_completions =
    memkv_completions { items: std::ptr::null(), count: 0, owner: std::ptr::null_mut() };

/// Frees completions with all that they point to, and empties the struct; an empty one, and NULL, are left as
/// they are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_completions_free(completions: *mut memkv_completions) {
    guard(|| {
        // SAFETY: the contract of the header: it is NULL, or was filled by memkv_queue_drain, or is empty.
        if let Some(completions) = unsafe { completions.as_mut() } {
            let owner = std::mem::replace(completions, NONE).owner.cast::<Told>();
            // SAFETY: memkv_queue_drain made it, and nobody freed it: the struct was not empty.
            drop(unsafe { memory::take_back(owner) });
        }
        Ok(MEMKV_OK)
    });
}

/// # Safety
/// The contract of the header.
unsafe fn ask(
    queue: *const memkv_queue,
    keys: *const memkv_bytes,
    count: usize,
    timeout_ms: u64,
    ticket: *mut u64,
    batch: fn(Keys) -> Batch,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { submit(queue, batch(memory::keys(keys, count)?), timeout_ms, ticket) }
    })
}

/// # Safety
/// The contract of the header.
unsafe fn submit(
    queue: *const memkv_queue,
    batch: Batch,
    timeout_ms: u64,
    ticket: *mut u64,
) -> Result<i32, Failure> {
    // SAFETY: the caller's promise.
    let (queue, out) =
        unsafe { (memory::handle("queue", queue)?, Out::optional("ticket", ticket, 1)?) };
    let timeout = (timeout_ms > 0).then(|| duration(timeout_ms));
    out.set(0, queue.queue.submit(batch, timeout)?);
    Ok(MEMKV_OK)
}

/// A completion as C sees it.
fn tell(completion: Completion) -> (memkv_completion, Details) {
    let (mut matched, mut statuses, mut infos) = (0, Vec::new(), Vec::new());
    let (operation, outcome) = match completion.answers {
        Answers::Put(answers) => {
            let settled = calls::settle(answers, |_, answer| {
                statuses.push(answer.map_or_else(status_of, |outcome| told(outcome, 0).0));
            });
            (MEMKV_OP_PUT, settled)
        }
        Answers::Get(answers) => {
            let settled = calls::settle(answers, |_, answer| {
                let (status, info) = answer.map_or_else(|error| (status_of(error), NOBODY), found);
                statuses.push(status);
                infos.push(info);
            });
            (MEMKV_OP_GET, settled)
        }
        Answers::Delete(answers) => {
            let settled = calls::settle(answers, |_, answer| {
                statuses.push(answer.map_or_else(status_of, |there| yes(*there)));
            });
            (MEMKV_OP_DELETE, settled)
        }
        Answers::Exists(answer) => {
            let exists = |there: Vec<bool>| statuses.extend(there.into_iter().map(yes));
            (MEMKV_OP_EXISTS, whole(answer.map(exists)))
        }
        Answers::MatchPrefix(answer) => {
            (MEMKV_OP_MATCH_PREFIX, whole(answer.map(|count| matched = count)))
        }
    };
    let (status, text) = match outcome {
        Ok(status) => (status, String::new()),
        Err(failure) => (failure.status, failure.text),
    };
    let details = Details { statuses, infos, error: c_text(&text) };
    let first =
        |list: &[memkv_info]| if list.is_empty() { std::ptr::null() } else { list.as_ptr() };
    let completion = memkv_completion {
        ticket: completion.ticket,
        operation,
        status,
        count: details.statuses.len(),
        statuses: details.statuses.as_ptr(),
        infos: first(&details.infos),
        matched,
        error: details.error.as_ptr(),
        waited_ns: completion.waited.as_nanos() as u64,
        took_ns: completion.took.as_nanos() as u64,
    };
    (completion, details)
}

/// The outcome of what is answered as a whole.
fn whole(answer: Result<(), ClientError>) -> Result<i32, Failure> {
    answer.map(|()| MEMKV_OK).map_err(Failure::from)
}
