//! The commands that are used, as they stand in a submission queue: Base Specification 2.0, section 3.3.3.1,
//! and NVM Command Set Specification 1.0, section 3.2.
//!
//! ```text
//!   64 bytes, as eight words of 64 bits
//!   0  opcode 7:0 · command identifier 31:16 · namespace 63:32
//!   1  reserved          2  metadata pointer (unused)
//!   3  PRP entry 1       4  PRP entry 2
//!   5  CDW10 · CDW11     6  CDW12 · CDW13     7  CDW14 · CDW15
//! ```

/// Opcodes of the admin command set.
pub(crate) mod admin {
    pub const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    pub const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    pub const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
}

/// Opcodes of the NVM command set.
pub(crate) mod nvm {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// What IDENTIFY is asked for (CNS).
pub(crate) mod cns {
    pub const NAMESPACE: u8 = 0x00;
    pub const CONTROLLER: u8 = 0x01;
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    pub const COMMAND_SET_LIMITS: u8 = 0x06;
}

/// The feature that says how many queues there may be.
pub(crate) const FEATURE_QUEUES: u8 = 0x07;
/// The log page of the drive's health, and its bytes.
pub(crate) const LOG_HEALTH: u8 = 0x02;
pub(crate) const LOG_HEALTH_BYTES: usize = 512;
/// The namespace that stands for the controller, or for all of them.
const ALL_NAMESPACES: u32 = u32::MAX;

/// Bits of the upper half of CDW12: force unit access, and deallocate what is zeroed.
const FORCE_UNIT_ACCESS: u64 = 1 << 30;
const DEALLOCATE_ZEROED: u64 = 1 << 25;
/// Of CDW11 of a dataset management command: the ranges hold nothing any more.
const ATTRIBUTE_DEALLOCATE: u64 = 1 << 2;

/// One command; its identifier is set when it goes into a queue.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Command(pub [u64; 8]);

/// Where the bytes of a command lie for the controller: the two PRP entries.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pointers(pub u64, pub u64);

fn words(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

impl Command {
    /// Words that are 0 in all of them.
    pub const BLANK: [usize; 3] = [1, 2, 7];

    const fn new(opcode: u8, namespace: u32) -> Command {
        Command([opcode as u64 | (namespace as u64) << 32, 0, 0, 0, 0, 0, 0, 0])
    }

    #[inline(always)]
    pub fn with_id(mut self, id: u16) -> Command {
        self.0[0] |= u64::from(id) << 16;
        self
    }

    #[inline(always)]
    fn with_pointers(mut self, pointers: Pointers) -> Command {
        (self.0[3], self.0[4]) = (pointers.0, pointers.1);
        self
    }

    fn with_words(mut self, cdw10: u32, cdw11: u32, cdw12: u32) -> Command {
        (self.0[5], self.0[6]) = (words(cdw10, cdw11), u64::from(cdw12));
        self
    }

    /// Fills a page of 4096 bytes with what is known about `namespace`, or the controller.
    pub fn identify(what: u8, namespace: u32, page: u64) -> Command {
        let command = Command::new(admin::IDENTIFY, namespace).with_pointers(Pointers(page, 0));
        command.with_words(u32::from(what), 0, 0)
    }

    /// Asks for `count` queues of either kind.
    pub fn set_queues(count: u16) -> Command {
        let count = u32::from(count - 1);
        let command = Command::new(admin::SET_FEATURES, 0);
        command.with_words(u32::from(FEATURE_QUEUES), count << 16 | count, 0)
    }

    /// A completion queue of one physically contiguous stretch, with interrupt `vector` if there is one.
    pub fn create_completion_queue(
        queue: u16,
        entries: u16,
        at: u64,
        vector: Option<u16>,
    ) -> Command {
        let interrupts = vector.map_or(0, |vector| u32::from(vector) << 16 | 2);
        Command::new(admin::CREATE_COMPLETION_QUEUE, 0).with_pointers(Pointers(at, 0)).with_words(
            u32::from(entries - 1) << 16 | u32::from(queue),
            interrupts | 1,
            0,
        )
    }

    /// A submission queue whose completions go to the queue of the same number.
    pub fn create_submission_queue(queue: u16, entries: u16, at: u64) -> Command {
        Command::new(admin::CREATE_SUBMISSION_QUEUE, 0).with_pointers(Pointers(at, 0)).with_words(
            u32::from(entries - 1) << 16 | u32::from(queue),
            u32::from(queue) << 16 | 1,
            0,
        )
    }

    pub fn delete_submission_queue(queue: u16) -> Command {
        let command = Command::new(admin::DELETE_SUBMISSION_QUEUE, 0);
        command.with_words(u32::from(queue), 0, 0)
    }

    pub fn delete_completion_queue(queue: u16) -> Command {
        let command = Command::new(admin::DELETE_COMPLETION_QUEUE, 0);
        command.with_words(u32::from(queue), 0, 0)
    }

    /// Asks for the end of a command that has been submitted to `queue`.
    pub fn abort(queue: u16, id: u16) -> Command {
        let command = Command::new(admin::ABORT, 0);
        command.with_words(u32::from(id) << 16 | u32::from(queue), 0, 0)
    }

    /// Fills [`LOG_HEALTH_BYTES`] with the drive's health.
    pub fn health(page: u64) -> Command {
        let dwords = (LOG_HEALTH_BYTES / 4 - 1) as u32;
        Command::new(admin::GET_LOG_PAGE, ALL_NAMESPACES)
            .with_pointers(Pointers(page, 0))
            .with_words(dwords << 16 | u32::from(LOG_HEALTH), 0, 0)
    }

    #[inline(always)]
    fn blocks(opcode: u8, namespace: u32, lba: u64, blocks: u32, flags: u64) -> Command {
        let mut command = Command::new(opcode, namespace);
        (command.0[5], command.0[6]) = (lba, u64::from(blocks - 1) | flags);
        command
    }

    /// The first word of every read, and of every write, but for the identifier.
    pub fn first_of_reads(namespace: u32) -> u64 {
        Command::new(nvm::READ, namespace).0[0]
    }

    pub fn first_of_writes(namespace: u32) -> u64 {
        Command::new(nvm::WRITE, namespace).0[0]
    }

    /// Reads or writes 1 to 65536 blocks, by its first word.
    #[inline(always)]
    pub fn plain(first: u64, lba: u64, blocks: u32, pointers: Pointers) -> Command {
        let Pointers(one, two) = pointers;
        Command([first, 0, 0, one, two, lba, u64::from(blocks - 1), 0])
    }

    /// Reads 1 to 65536 blocks.
    #[inline(always)]
    pub fn read(namespace: u32, lba: u64, blocks: u32, pointers: Pointers) -> Command {
        Command::blocks(nvm::READ, namespace, lba, blocks, 0).with_pointers(pointers)
    }

    /// Writes 1 to 65536 blocks, if `through` to the medium before it completes.
    #[inline(always)]
    pub fn write(
        namespace: u32,
        lba: u64,
        blocks: u32,
        pointers: Pointers,
        through: bool,
    ) -> Command {
        let flags = if through { FORCE_UNIT_ACCESS } else { 0 };
        Command::blocks(nvm::WRITE, namespace, lba, blocks, flags).with_pointers(pointers)
    }

    /// Zeroes 1 to 65536 blocks and gives back what they took.
    pub fn zero_and_deallocate(namespace: u32, lba: u64, blocks: u32) -> Command {
        Command::blocks(nvm::WRITE_ZEROES, namespace, lba, blocks, DEALLOCATE_ZEROED)
    }

    /// Makes what has been written to the namespace durable.
    pub fn flush(namespace: u32) -> Command {
        Command::new(nvm::FLUSH, namespace)
    }

    /// Gives back the one range that lies at `ranges`.
    pub fn deallocate(namespace: u32, ranges: u64) -> Command {
        let mut command =
            Command::new(nvm::DATASET_MANAGEMENT, namespace).with_pointers(Pointers(ranges, 0));
        command.0[5] = ATTRIBUTE_DEALLOCATE << 32;
        command
    }
}

/// One range of a dataset management command: attributes, blocks, first block (NVM Command Set
/// Specification, figure 43).
pub(crate) fn range(lba: u64, blocks: u32) -> [u64; 2] {
    [u64::from(blocks) << 32, lba]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that the specification asks for, written down by hand.
    #[test]
    fn commands_are_laid_out_as_specified() {
        let dwords = |command: Command| {
            let mut all = [0u32; 16];
            for (i, word) in command.0.iter().enumerate() {
                (all[2 * i], all[2 * i + 1]) = (*word as u32, (*word >> 32) as u32);
            }
            all
        };
        let read = Command::read(7, 0x1_0000_0002, 8, Pointers(0xa000, 0xb000)).with_id(0x1234);
        let want = [0x1234_0002, 7, 0, 0, 0, 0, 0xa000, 0, 0xb000, 0, 2, 1, 7, 0, 0, 0];
        assert_eq!(dwords(read), want);
        let write = dwords(Command::write(1, 0, 65536, Pointers(0, 0), true));
        assert_eq!((write[0], write[12]), (1, 0x4000_ffff));
        assert_eq!(dwords(Command::write(1, 0, 1, Pointers(0, 0), false))[12], 0);
        assert_eq!(dwords(Command::zero_and_deallocate(1, 5, 2))[12], 0x0200_0001);
        let trim = dwords(Command::deallocate(1, 0xc000));
        assert_eq!((trim[0], trim[6], trim[10], trim[11]), (9, 0xc000, 0, 4));
        assert_eq!(range(9, 3), [3 << 32, 9]);
        let queue = dwords(Command::create_completion_queue(2, 128, 0x1000, Some(2)));
        assert_eq!(
            (queue[0], queue[6], queue[10], queue[11]),
            (5, 0x1000, 127 << 16 | 2, 0x2_0003)
        );
        assert_eq!(dwords(Command::create_completion_queue(2, 128, 0, None))[11], 1);
        let queue = dwords(Command::create_submission_queue(2, 128, 0x1000));
        assert_eq!((queue[0], queue[10], queue[11]), (1, 127 << 16 | 2, 2 << 16 | 1));
        assert_eq!(dwords(Command::abort(3, 0x105))[10], 0x105_0003);
        let health = dwords(Command::health(0x2000));
        assert_eq!((health[0], health[1], health[10]), (2, u32::MAX, 127 << 16 | 2));
        assert_eq!(dwords(Command::set_queues(4))[10..12], [7, 3 << 16 | 3]);
        assert_eq!(dwords(Command::flush(6))[..2], [0, 6]);
        let all = [
            Command::read(7, u64::MAX, 65536, Pointers(u64::MAX, u64::MAX)),
            Command::write(7, u64::MAX, 65536, Pointers(u64::MAX, u64::MAX), true),
            Command::zero_and_deallocate(1, u64::MAX, 65536),
            Command::deallocate(1, u64::MAX),
            Command::flush(u32::MAX),
            Command::identify(2, 1, u64::MAX),
            Command::set_queues(u16::MAX),
            Command::create_completion_queue(u16::MAX, u16::MAX, u64::MAX, Some(u16::MAX)),
            Command::create_submission_queue(u16::MAX, u16::MAX, u64::MAX),
            Command::delete_submission_queue(u16::MAX),
            Command::delete_completion_queue(u16::MAX),
            Command::abort(u16::MAX, u16::MAX),
            Command::health(u64::MAX),
        ];
        for command in all {
            assert_eq!(Command::BLANK.map(|word| command.0[word]), [0; 3], "{command:?}");
        }
    }
}
