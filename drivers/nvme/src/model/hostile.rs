//! What a controller does that is out of its mind: it lies about itself, posts what it likes, and writes
//! into the memory of the queues.
//!
//! It stays behind its IOMMU: all that it writes is memory that the driver made visible to it.

use super::Model;
use crate::identify::PAGE;

/// What a controller tells about itself in memory of the driver.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// What it is.
    Controller,
    /// Limits of its commands.
    Limits,
    /// Its namespaces.
    Namespaces,
    /// One namespace, whichever.
    Namespace,
    /// Its health.
    Health,
}

/// Bytes of a page that are not what they should be.
pub(super) struct Lie {
    page: Told,
    at: usize,
    bytes: Vec<u8>,
}

impl Model {
    /// From now on these bytes stand at `at` of a page that it tells, as far as it goes.
    pub fn lie(&mut self, page: Told, at: usize, bytes: &[u8]) {
        self.lies.push(Lie { page, at: at % PAGE, bytes: bytes.to_vec() });
    }

    /// The lies in a page.
    pub(super) fn corrupt(&self, page: Told, told: &mut [u8]) {
        for lie in self.lies.iter().filter(|lie| lie.page == page) {
            for (place, &byte) in told.iter_mut().skip(lie.at).zip(&lie.bytes) {
                *place = byte;
            }
        }
    }

    /// From now on commands that manage it are answered so: the status field, and the first word.
    pub fn answer_admin(&mut self, answer: Option<(u16, u32)>) {
        self.admin_answer = answer;
    }

    /// Puts something into a register, or a doorbell.
    pub fn set_register(&mut self, at: usize, value: u32) {
        self.host.set_register(at, value);
    }

    /// Posts an entry of its own to a completion queue, with the phase that the driver waits for or with
    /// the other one. False when there is no such queue.
    pub fn post_raw(&mut self, queue: u16, words: [u32; 4], in_phase: bool) -> bool {
        let Some((iova, phase)) = self.queues.next_place(queue) else { return false };
        let [first, second, third, last] = words;
        let last = last & !(1 << 16) | u32::from(phase == in_phase) << 16;
        self.host.post(iova, [first, second, third, last])
    }

    /// Writes over the memory of a queue pair: its completion ring, or its submission ring, which the
    /// driver never reads. False when that is not there.
    pub fn scribble(&mut self, queue: u16, completions: bool, at: usize, bytes: &[u8]) -> bool {
        let Some((iova, len)) = self.queues.place(queue, completions) else { return false };
        let at = at % len;
        self.host.store(iova + at as u64, &bytes[..bytes.len().min(len - at)])
    }
}
