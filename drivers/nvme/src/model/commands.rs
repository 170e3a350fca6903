//! What the model does when it is told to.

use super::{Model, Told};
use crate::command::{FEATURE_QUEUES, LOG_HEALTH, LOG_HEALTH_BYTES, admin, cns, nvm};
use crate::status::Status;

/// The temperature of every model: 40 degrees.
const KELVIN: u16 = 313;

type Words<'a> = &'a [u64; 8];

fn low(word: u64) -> u32 {
    word as u32
}

fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

impl Model {
    /// An admin command; none when it is not answered now.
    pub(super) fn do_admin(&mut self, command: Words) -> Option<(Status, u32)> {
        let answer = self.do_admin_well(command)?;
        let other = self.admin_answer.map(|(field, first)| (Status::from_field(field), first));
        Some(other.unwrap_or(answer))
    }

    fn do_admin_well(&mut self, command: Words) -> Option<(Status, u32)> {
        let status = match command[0] as u8 {
            admin::IDENTIFY => self.identify(command),
            admin::GET_LOG_PAGE => self.log_page(command),
            admin::CREATE_COMPLETION_QUEUE => self.create_completions(command),
            admin::CREATE_SUBMISSION_QUEUE => self.create_submissions(command),
            admin::DELETE_SUBMISSION_QUEUE => {
                let queue = low(command[5]) as u16;
                self.deleted(queue, |model| model.queues.submissions.remove(&queue).is_some())
            }
            admin::DELETE_COMPLETION_QUEUE => {
                let queue = low(command[5]) as u16;
                let used = self.queues.submissions.values().any(|it| it.completion == queue);
                self.deleted(queue, |model| {
                    !used && model.queues.completions.remove(&queue).is_some()
                })
            }
            admin::ABORT => {
                let (queue, id) = (low(command[5]) as u16, (low(command[5]) >> 16) as u16);
                let aborted = self.abort(queue, id);
                return Some((Status::SUCCESS, u32::from(!aborted)));
            }
            admin::SET_FEATURES if low(command[5]) as u8 == FEATURE_QUEUES => {
                let granted = u32::from(self.config.queues) - 1;
                return Some((Status::SUCCESS, granted << 16 | granted));
            }
            _ => Status::INVALID_OPCODE.do_not_retry(),
        };
        Some((status, 0))
    }

    fn deleted(&mut self, queue: u16, remove: impl FnOnce(&mut Model) -> bool) -> Status {
        if queue == 0 || !remove(self) {
            self.offence();
            return Status::INVALID_QUEUE.do_not_retry();
        }
        // What hangs in it is gone with it, and what it was told.
        self.queues.hanging.retain(|hanging| hanging.0 != queue);
        for completions in [false, true] {
            if self.queues.place(queue, completions).is_none() {
                self.host.clear_doorbell(queue, completions);
            }
        }
        Status::SUCCESS
    }

    /// A doorbell that was rung before there was its queue: what that does is not defined.
    fn begin_doorbell(&mut self, queue: u16, completions: bool) {
        if self.host.doorbell(queue, completions) != 0 {
            self.offence();
            self.host.clear_doorbell(queue, completions);
        }
    }

    fn create_completions(&mut self, command: Words) -> Status {
        let (queue, entries) = (low(command[5]) as u16, (low(command[5]) >> 16) as u16 + 1);
        let flags = high(command[5]);
        let good = queue > 0
            && queue <= self.config.queues
            && (2..=self.config.entries).contains(&entries)
            && !self.queues.completions.contains_key(&queue)
            && command[3].is_multiple_of(self.host.page)
            && flags & 1 == 1;
        if !good {
            self.offence();
            return Status::INVALID_QUEUE.do_not_retry();
        }
        self.begin_doorbell(queue, true);
        let vector = (flags & 2 != 0).then_some((flags >> 16) as u16);
        self.queues.add_completions(queue, command[3], entries, vector);
        Status::SUCCESS
    }

    fn create_submissions(&mut self, command: Words) -> Status {
        let (queue, entries) = (low(command[5]) as u16, (low(command[5]) >> 16) as u16 + 1);
        let completion = (high(command[5]) >> 16) as u16;
        let good = queue > 0
            && (2..=self.config.entries).contains(&entries)
            && !self.queues.submissions.contains_key(&queue)
            && self.queues.completions.contains_key(&completion)
            && command[3].is_multiple_of(self.host.page)
            && high(command[5]) & 1 == 1;
        if !good {
            self.offence();
            return Status::INVALID_QUEUE.do_not_retry();
        }
        self.begin_doorbell(queue, false);
        self.queues.add_submission(queue, command[3], entries, completion);
        Status::SUCCESS
    }

    fn identify(&mut self, command: Words) -> Status {
        let (what, namespace) = (low(command[5]) as u8, high(command[0]));
        let mut page = [0; 4096];
        let config = &self.config;
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        match what {
            cns::CONTROLLER => {
                put(4, format!("{:<20}", config.serial).as_bytes());
                put(24, format!("{:<40}", "memkv model").as_bytes());
                put(64, b"1.0     ");
                put(77, &[config.transfer_bits]);
                put(512, &[0x66, 0x44]);
                put(516, &64u32.to_le_bytes());
                let optional = u16::from(config.deallocates) << 2 | u16::from(config.zeroes) << 3;
                put(520, &optional.to_le_bytes());
                put(525, &[u8::from(config.caches)]);
            }
            cns::NAMESPACE if config.namespaces.contains(&namespace) => {
                let blocks = (config.capacity >> config.block_bits).to_le_bytes();
                put(0, &blocks);
                put(8, &blocks);
                put(33, &[1 << 3]);
                put(130, &[config.block_bits as u8]);
            }
            cns::NAMESPACE => {}
            cns::ACTIVE_NAMESPACES => {
                for (i, id) in config.namespaces.iter().enumerate() {
                    put(4 * i, &id.to_le_bytes());
                }
            }
            cns::COMMAND_SET_LIMITS if config.range_blocks > 0 => {
                put(4, &config.range_blocks.to_le_bytes());
            }
            _ => return Status::INVALID_FIELD.do_not_retry(),
        }
        let told = match what {
            cns::CONTROLLER => Told::Controller,
            cns::NAMESPACE => Told::Namespace,
            cns::ACTIVE_NAMESPACES => Told::Namespaces,
            _ => Told::Limits,
        };
        self.corrupt(told, &mut page);
        self.put_page(command, &page)
    }

    fn log_page(&mut self, command: Words) -> Status {
        let bytes = (low(command[5]) >> 16) as usize * 4 + 4;
        if low(command[5]) as u8 != LOG_HEALTH || bytes != LOG_HEALTH_BYTES {
            return Status::INVALID_FIELD.do_not_retry();
        }
        let mut page = [0; LOG_HEALTH_BYTES];
        page[1..3].copy_from_slice(&KELVIN.to_le_bytes());
        (page[3], page[4]) = (100, 10);
        self.corrupt(Told::Health, &mut page);
        self.put_page(command, &page)
    }

    fn put_page(&mut self, command: Words, page: &[u8]) -> Status {
        if self.host.store(command[3], page) {
            return Status::SUCCESS;
        }
        self.offence();
        Status::DATA_TRANSFER_ERROR
    }

    /// A command of the NVM command set.
    pub(super) fn do_data(&mut self, command: Words) -> Status {
        let opcode = command[0] as u8;
        if !self.config.namespaces.contains(&high(command[0])) {
            self.offence();
            return Status::INVALID_NAMESPACE.do_not_retry();
        }
        match opcode {
            nvm::FLUSH => {
                self.stats.flushes += 1;
                self.make_durable();
                return Status::SUCCESS;
            }
            nvm::DATASET_MANAGEMENT if self.config.deallocates => return self.deallocate(command),
            nvm::READ | nvm::WRITE => {}
            nvm::WRITE_ZEROES if self.config.zeroes => {}
            _ => return Status::INVALID_OPCODE.do_not_retry(),
        }
        let blocks = u64::from(low(command[6]) & 0xffff) + 1;
        let Some((at, len)) = self.bytes_of(command[5], blocks) else {
            self.offence();
            return Status::LBA_OUT_OF_RANGE.do_not_retry();
        };
        if opcode == nvm::WRITE_ZEROES {
            self.zero(at, len, low(command[6]) & 1 << 25 != 0);
            return Status::SUCCESS;
        }
        let longest = u64::from(self.config.transfer_bits) + u64::from(self.config.page_bits);
        if self.config.transfer_bits > 0 && len as u64 > 1 << longest {
            self.offence();
            return Status::INVALID_FIELD.do_not_retry();
        }
        let through = low(command[6]) & 1 << 30 != 0;
        let Some(stretches) = self.walk(command[3], command[4], len) else {
            self.offence();
            return Status::DATA_TRANSFER_ERROR;
        };
        self.transfer(opcode, at, &stretches, through)
    }

    fn transfer(
        &mut self,
        opcode: u8,
        mut at: usize,
        stretches: &[(u64, usize)],
        through: bool,
    ) -> Status {
        let (first, mut good) = (at, true);
        for &(iova, len) in stretches {
            let bytes = &mut self.medium[at..at + len];
            good &= if opcode == nvm::READ {
                self.host.store(iova, bytes)
            } else {
                self.host.fetch(iova, bytes)
            };
            at += len;
        }
        if opcode == nvm::WRITE {
            if through || !self.config.caches {
                self.stats.writes_through += u64::from(through);
                self.durable[first..at].copy_from_slice(&self.medium[first..at]);
            } else {
                self.dirty.push((first, at - first));
            }
        }
        if good {
            return Status::SUCCESS;
        }
        self.offence();
        Status::DATA_TRANSFER_ERROR
    }

    /// The stretches of memory that two pointers describe.
    fn walk(&self, first: u64, second: u64, len: usize) -> Option<Vec<(u64, usize)>> {
        let page = self.host.page;
        let mut left = len;
        let mut stretches = Vec::new();
        let mut take = |iova: u64, left: &mut usize| {
            let here = ((page - iova % page) as usize).min(*left);
            stretches.push((iova, here));
            *left -= here;
        };
        take(first, &mut left);
        if left == 0 {
            return Some(stretches);
        }
        if left as u64 <= page {
            take(second, &mut left);
            return (second.is_multiple_of(page)).then_some(stretches);
        }
        let mut entry = second;
        while left > 0 {
            let mut next = self.host.fetch_word(entry)?;
            // The last entry of a page of a list that goes on names its next page.
            if (entry + 8).is_multiple_of(page) && left as u64 > page {
                entry = next;
                next = self.host.fetch_word(entry)?;
            }
            if !next.is_multiple_of(page) {
                return None;
            }
            take(next, &mut left);
            entry += 8;
        }
        Some(stretches)
    }

    fn bytes_of(&self, lba: u64, blocks: u64) -> Option<(usize, usize)> {
        let all = self.config.capacity >> self.config.block_bits;
        let end = lba.checked_add(blocks)?;
        let bits = self.config.block_bits;
        (end <= all).then_some(((lba << bits) as usize, (blocks << bits) as usize))
    }

    fn zero(&mut self, at: usize, len: usize, deallocate: bool) {
        self.medium[at..at + len].fill(0);
        self.dirty.push((at, len));
        if deallocate {
            self.stats.deallocated_blocks += (len >> self.config.block_bits) as u64;
        }
    }

    fn deallocate(&mut self, command: Words) -> Status {
        let ranges = u64::from(low(command[5]) & 0xff) + 1;
        for n in 0..ranges {
            let at = command[3] + 16 * n;
            let words = self.host.fetch_word(at).zip(self.host.fetch_word(at + 8));
            let Some((head, lba)) = words else {
                self.offence();
                return Status::DATA_TRANSFER_ERROR;
            };
            let blocks = u64::from(high(head));
            let limit = u64::from(self.config.range_blocks);
            let Some((at, len)) =
                self.bytes_of(lba, blocks).filter(|_| limit == 0 || blocks <= limit)
            else {
                self.offence();
                return Status::LBA_OUT_OF_RANGE.do_not_retry();
            };
            self.zero(at, len, true);
        }
        Status::SUCCESS
    }
}
