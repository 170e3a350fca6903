//! The queues of the model: fetching commands, posting entries.

use std::collections::BTreeMap;

use super::host::Host;
use super::{Fault, Model};
use crate::status::Status;

/// Commands fetched from one queue in one look.
const PER_LOOK: usize = 64;

/// One ring as the controller keeps it.
#[derive(Copy, Clone, Debug)]
pub(super) struct Submission {
    pub iova: u64,
    pub entries: u16,
    head: u16,
    tail: u16,
    pub completion: u16,
}

#[derive(Copy, Clone, Debug)]
pub(super) struct Completions {
    pub iova: u64,
    pub entries: u16,
    tail: u16,
    phase: bool,
    pub vector: Option<u16>,
}

impl Completions {
    fn advance(&mut self) {
        self.tail = (self.tail + 1) % self.entries;
        if self.tail == 0 {
            self.phase = !self.phase;
        }
    }
}

/// An answer that is to be posted.
#[derive(Copy, Clone, Debug)]
pub(super) struct Answer {
    pub queue: u16,
    pub id: u16,
    pub status: Status,
    pub result: u32,
    named_queue: u16,
    bad_phase: bool,
}

impl Answer {
    pub fn new(queue: u16, id: u16, status: Status, result: u32) -> Answer {
        Answer { queue, id, status, result, named_queue: queue, bad_phase: false }
    }
}

#[derive(Default)]
pub(super) struct Queues {
    pub submissions: BTreeMap<u16, Submission>,
    pub completions: BTreeMap<u16, Completions>,
    /// What is done and not posted.
    answers: Vec<Answer>,
    /// Commands whose answer is lost, or that are swallowed: they may be aborted, or not.
    pub hanging: Vec<(u16, u16, bool)>,
    /// Vectors to be raised.
    pub raised: Vec<u16>,
}

impl Queues {
    pub fn count(&self) -> u64 {
        self.submissions.keys().filter(|&&queue| queue > 0).count() as u64
    }

    /// The controller was enabled: it has its admin queues.
    pub fn start(&mut self, host: &Host) {
        let ((submissions, at), (completions, completions_at)) = host.admin_queues();
        self.add_completions(0, completions_at, completions, None);
        self.add_submission(0, at, submissions, 0);
    }

    pub fn add_submission(&mut self, queue: u16, iova: u64, entries: u16, completion: u16) {
        let ring = Submission { iova, entries, head: 0, tail: 0, completion };
        self.submissions.insert(queue, ring);
    }

    pub fn add_completions(&mut self, queue: u16, iova: u64, entries: u16, vector: Option<u16>) {
        let ring = Completions { iova, entries, tail: 0, phase: true, vector };
        self.completions.insert(queue, ring);
    }

    /// Where the next entry of a completion queue goes, and its phase, which is used up by that.
    pub fn next_place(&mut self, queue: u16) -> Option<(u64, bool)> {
        let ring = self.completions.get_mut(&queue)?;
        let place = (ring.iova + 16 * u64::from(ring.tail), ring.phase);
        ring.advance();
        Some(place)
    }

    /// Where a ring lies, and its bytes.
    pub fn place(&self, queue: u16, completions: bool) -> Option<(u64, usize)> {
        if completions {
            let ring = self.completions.get(&queue)?;
            Some((ring.iova, 16 * usize::from(ring.entries)))
        } else {
            let ring = self.submissions.get(&queue)?;
            Some((ring.iova, 64 * usize::from(ring.entries)))
        }
    }

    /// Commands of a queue that have no answer yet.
    fn holds(&self, queue: u16, id: u16) -> bool {
        let hangs = |&(q, i, _): &(u16, u16, bool)| (q, i) == (queue, id);
        self.hanging.iter().any(hangs)
            || self.answers.iter().any(|answer| (answer.queue, answer.id) == (queue, id))
    }
}

impl Model {
    /// One look at all queues: fetches, does, answers.
    pub(super) fn serve(&mut self) -> bool {
        let mut done = false;
        let ids: Vec<u16> = self.queues.submissions.keys().copied().collect();
        for queue in ids {
            for _ in 0..PER_LOOK {
                let Some(command) = self.fetch_command(queue) else { break };
                done = true;
                self.accept(queue, &command);
                if self.gone {
                    return true;
                }
            }
        }
        self.post_answers() || done
    }

    /// The next command of a queue.
    fn fetch_command(&mut self, queue: u16) -> Option<[u64; 8]> {
        let told = self.host.doorbell(queue, false);
        // The queue may have been deleted by the command before.
        let ring = self.queues.submissions.get_mut(&queue)?;
        if told >= u32::from(ring.entries) {
            self.offence();
            return None;
        }
        if ring.tail != told as u16 {
            ring.tail = told as u16;
            self.stats.doorbells += 1;
        }
        if ring.head == ring.tail {
            return None;
        }
        let iova = ring.iova + 64 * u64::from(ring.head);
        ring.head = (ring.head + 1) % ring.entries;
        let mut bytes = [0; 64];
        if !self.host.fetch(iova, &mut bytes) {
            self.offence();
            return None;
        }
        let mut command = [0; 8];
        for (word, bytes) in command.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Some(command)
    }

    /// Does a command, or what the next fault wants instead.
    fn accept(&mut self, queue: u16, command: &[u64; 8]) {
        let id = (command[0] >> 16) as u16;
        if self.queues.holds(queue, id) {
            self.offence();
        }
        if queue == 0 {
            self.stats.admin_commands += 1;
            if let Some((status, result)) = self.do_admin(command) {
                self.queues.answers.push(Answer::new(0, id, status, result));
            }
            return;
        }
        self.stats.commands += 1;
        let fault = self.next_fault();
        match fault {
            Some(Fault::Remove) => return self.remove(),
            Some(Fault::Fatal) => {
                self.queues.hanging.push((queue, id, false));
                return self.host.set_status(1 | 2);
            }
            Some(Fault::Swallow) => return self.queues.hanging.push((queue, id, false)),
            Some(Fault::Status(status)) => {
                return self.queues.answers.push(Answer::new(queue, id, status, 0));
            }
            _ => {}
        }
        let status = self.do_data(command);
        let answer = Answer::new(queue, id, status, 0);
        let answers = &mut self.queues.answers;
        match fault {
            Some(Fault::LoseAnswer) => self.queues.hanging.push((queue, id, true)),
            Some(Fault::BadPhase) => answers.push(Answer { bad_phase: true, ..answer }),
            Some(Fault::AnswerTwice) => answers.extend([answer, answer]),
            Some(Fault::Spurious(id)) => answers.extend([Answer { id, ..answer }, answer]),
            Some(Fault::WrongQueue(named_queue)) => answers.push(Answer { named_queue, ..answer }),
            _ => answers.push(answer),
        }
    }

    /// Posts answers whose queue has room: all, or with a seed some of them in any order.
    fn post_answers(&mut self) -> bool {
        let mut waiting = std::mem::take(&mut self.queues.answers);
        let mut posted = false;
        let mut left = Vec::new();
        let some = self.config.scramble.is_some();
        let count =
            if some { self.rng.below(waiting.len() as u64 + 1) as usize } else { waiting.len() };
        for _ in 0..count {
            let next = if some { self.rng.below(waiting.len() as u64) as usize } else { 0 };
            let answer = waiting.remove(next);
            if self.post(&answer) {
                posted = true;
            } else {
                left.push(answer);
            }
        }
        left.append(&mut waiting);
        self.queues.answers = left;
        posted
    }

    fn post(&mut self, answer: &Answer) -> bool {
        let Some(&submission) = self.queues.submissions.get(&answer.queue) else { return true };
        let number = submission.completion;
        let told = self.host.doorbell(number, true);
        let Some(ring) = self.queues.completions.get_mut(&number) else { return true };
        if told >= u32::from(ring.entries) {
            self.offence();
            return true;
        }
        let next = (ring.tail + 1) % ring.entries;
        if u32::from(next) == told {
            return false;
        }
        let iova = ring.iova + 16 * u64::from(ring.tail);
        let phase = ring.phase != answer.bad_phase;
        let last =
            u32::from(answer.id) | u32::from(phase) << 16 | u32::from(answer.status.field()) << 17;
        let third = u32::from(submission.head) | u32::from(answer.named_queue) << 16;
        ring.advance();
        self.queues.raised.extend(ring.vector);
        if !self.host.post(iova, [answer.result, 0, third, last]) {
            self.offence();
        }
        true
    }

    /// Ends a command that was given and not answered, if it can be.
    pub(super) fn abort(&mut self, queue: u16, id: u16) -> bool {
        let found =
            self.queues.hanging.iter().position(|&(q, i, may)| may && (q, i) == (queue, id));
        let Some(at) = found else { return false };
        self.queues.hanging.remove(at);
        self.queues.answers.push(Answer::new(queue, id, Status::ABORTED, 0));
        true
    }
}
