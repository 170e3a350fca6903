//! What a controller answers to a command: Base Specification 2.0, section 3.3.3.2 and figure 94.

use std::fmt;

/// The status field of a completion entry: bits 31:17 of its last word.
///
/// ```text
///   14   13   12:11  10:8  7:0
///   DNR  More CRD    SCT   SC
/// ```
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
pub struct Status(u16);

impl Status {
    /// All went well.
    pub const SUCCESS: Status = Status::of(0, 0x00);
    /// The opcode is not known.
    pub const INVALID_OPCODE: Status = Status::of(0, 0x01);
    /// A field of the command is not as it should be.
    pub const INVALID_FIELD: Status = Status::of(0, 0x02);
    /// The data could not be moved to or from memory.
    pub const DATA_TRANSFER_ERROR: Status = Status::of(0, 0x04);
    /// An error inside of the drive.
    pub const INTERNAL_ERROR: Status = Status::of(0, 0x06);
    /// It was asked to abort the command, and did.
    pub const ABORTED: Status = Status::of(0, 0x07);
    /// The namespace does not exist.
    pub const INVALID_NAMESPACE: Status = Status::of(0, 0x0b);
    /// Blocks behind the end of the namespace.
    pub const LBA_OUT_OF_RANGE: Status = Status::of(0, 0x80);
    /// The queue named does not exist or exists already.
    pub const INVALID_QUEUE: Status = Status::of(1, 0x01);
    /// What was read is not what was written.
    pub const UNRECOVERED_READ_ERROR: Status = Status::of(2, 0x81);

    const fn of(kind: u16, code: u16) -> Status {
        Status(kind << 8 | code)
    }

    /// From the status field as it stands in the completion entry.
    pub const fn from_field(field: u16) -> Status {
        Status(field & 0x7fff)
    }

    /// The field as it stands in a completion entry.
    pub const fn field(self) -> u16 {
        self.0
    }

    /// Type and code, without what is only said about them.
    pub const fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    /// The same with the bit that forbids to try again.
    pub const fn do_not_retry(self) -> Status {
        Status(self.0 | 1 << 14)
    }

    /// Whether all went well.
    pub const fn is_success(self) -> bool {
        self.code() == 0
    }

    /// Whether the same command may succeed the next time.
    pub const fn may_retry(self) -> bool {
        self.0 & 1 << 14 == 0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match Status(self.code()) {
            Status::SUCCESS => "success",
            Status::INVALID_OPCODE => "invalid opcode",
            Status::INVALID_FIELD => "invalid field",
            Status::DATA_TRANSFER_ERROR => "data transfer error",
            Status::INTERNAL_ERROR => "internal error",
            Status::ABORTED => "aborted as asked",
            Status::INVALID_NAMESPACE => "invalid namespace",
            Status::LBA_OUT_OF_RANGE => "LBA out of range",
            Status::INVALID_QUEUE => "invalid queue identifier",
            Status::UNRECOVERED_READ_ERROR => "unrecovered read error",
            _ => return write!(f, "status {:#05x}", self.code()),
        };
        write!(f, "{words} ({:#05x})", self.code())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self}, field {:#06x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_taken_apart_and_named() {
        let status = Status::from_field(0x4281);
        assert!(!status.is_success() && !status.may_retry());
        assert_eq!((status.code(), status.field()), (0x281, 0x4281));
        assert_eq!(status.to_string(), "unrecovered read error (0x281)");
        assert!(Status::from_field(0x281).may_retry());
        assert_eq!(Status::from_field(0x1c5).to_string(), "status 0x1c5");
        // The phase bit is not of it; more and delay do not make it an error.
        assert!(Status::from_field(0x3800).is_success());
    }
}
