//! The registers of a controller, typed: NVM Express Base Specification 2.0, section 3.1.3.
//!
//! ```text
//!   0x00 CAP   capabilities            0x24 AQA   sizes of the admin queues
//!   0x08 VS    version                 0x28 ASQ   address of the admin submission queue
//!   0x14 CC    configuration           0x30 ACQ   address of the admin completion queue
//!   0x1c CSTS  status                  0x68 CRTO  how long until it is ready
//!   0x1000 + (2y) * (4 << CAP.DSTRD)      tail doorbell of submission queue y
//!   0x1000 + (2y + 1) * (4 << CAP.DSTRD)  head doorbell of completion queue y
//! ```

use std::ptr::NonNull;
use std::time::Duration;

use crate::barrier;
use crate::transport::Bar;

const CAP: usize = 0x00;
const VS: usize = 0x08;
const CC: usize = 0x14;
const CSTS: usize = 0x1c;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
const CRTO: usize = 0x68;
const DOORBELLS: usize = 0x1000;

/// The unit of CAP.TO and CRTO.
const TIMEOUT_UNIT: Duration = Duration::from_millis(500);

/// The longest that anybody waits for a controller, whatever CRTO says: it could say nine hours.
const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// What a register reads as when nobody answers on the bus any more.
const GONE: u32 = u32::MAX;

/// CC.EN: the controller is to work.
pub(crate) const ENABLE: u32 = 1;
/// CC.SHN: where the shutdown notification stands, and what says that all is over, in good order.
pub(crate) const SHUTDOWN_MASK: u32 = 3 << 14;
pub(crate) const SHUTDOWN_NORMAL: u32 = 1 << 14;

/// The capabilities (CAP, section 3.1.3.1).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Capabilities(pub u64);

impl Capabilities {
    fn field(self, at: u32, bits: u32) -> u64 {
        self.0 >> at & ((1 << bits) - 1)
    }

    /// Entries of the largest queue (MQES counts from 0).
    pub fn entries(self) -> u32 {
        self.field(0, 16) as u32 + 1
    }

    /// Bytes from one doorbell to the next.
    pub fn doorbell_stride(self) -> usize {
        4 << self.field(32, 4)
    }

    /// The smallest page, as its logarithm.
    pub fn page_bits(self) -> u32 {
        12 + self.field(48, 4) as u32
    }

    /// How CC.CSS has to be set for the NVM command set; none when it is not known to the controller.
    pub fn command_set(self) -> Option<u32> {
        match self.field(37, 8) {
            sets if sets & 1 << 6 != 0 => Some(0b110),
            sets if sets & 1 != 0 => Some(0b000),
            _ => None,
        }
    }

    /// How long it may take to become ready or to stop.
    fn timeout(self) -> Duration {
        TIMEOUT_UNIT * self.field(24, 8).max(1) as u32
    }

    /// Whether CRTO says more about that.
    fn has_ready_timeouts(self) -> bool {
        self.field(59, 1) != 0
    }
}

/// The status (CSTS, section 3.1.3.6).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct ControllerStatus(pub u32);

impl ControllerStatus {
    /// It takes commands.
    pub fn is_ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// It has failed and only a reset may help.
    pub fn is_fatal(self) -> bool {
        self.0 & 2 != 0
    }

    /// A shutdown is complete.
    pub fn is_shut_down(self) -> bool {
        self.0 >> 2 & 3 == 2
    }
}

/// The controller does not answer on the bus any more.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Gone;

/// The registers of one controller.
#[derive(Copy, Clone)]
pub(crate) struct Registers {
    bar: Bar,
}

// SAFETY: the registers belong to the controller and to no thread. By the contract of `Transport` they
// stay mapped; who holds them keeps the transport. Each doorbell is written by the owner of its queue
// alone, everything else under the lock of the controller.
unsafe impl Send for Registers {}
// SAFETY: as above; reads of registers may be made by any number of threads.
unsafe impl Sync for Registers {}

impl Registers {
    /// None when not even the properties are mapped.
    pub fn new(bar: Bar) -> Option<Registers> {
        let aligned = (bar.base.as_ptr() as usize).is_multiple_of(8);
        (aligned && bar.len > DOORBELLS).then_some(Registers { bar })
    }

    fn at(&self, offset: usize) -> NonNull<u32> {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.bar.len, "a register is mapped");
        // SAFETY: just checked: inside of the mapping.
        unsafe { self.bar.base.add(offset) }.cast()
    }

    fn read(&self, offset: usize) -> u32 {
        // SAFETY: an aligned register of 32 bits in a mapping that `Transport` keeps; properties may
        // be read in 32 bits (Base Specification, section 3.1.3: "aligned 32-bit accesses").
        unsafe { self.at(offset).read_volatile() }
    }

    fn write(&self, offset: usize, value: u32) {
        // SAFETY: as in `read`; those who call write registers that a host may write.
        unsafe { self.at(offset).write_volatile(value) };
    }

    /// 64 bits in two halves, which the specification allows for every property, and which also
    /// controllers take that know no wider access.
    fn write_wide(&self, offset: usize, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }

    fn present(value: u32) -> Result<u32, Gone> {
        if value == GONE { Err(Gone) } else { Ok(value) }
    }

    pub fn capabilities(&self) -> Result<Capabilities, Gone> {
        let (low, high) = (self.read(CAP), self.read(CAP + 4));
        if low == GONE && high == GONE {
            return Err(Gone);
        }
        Ok(Capabilities(u64::from(high) << 32 | u64::from(low)))
    }

    /// Major and minor version.
    pub fn version(&self) -> Result<(u16, u8), Gone> {
        let version = Registers::present(self.read(VS))?;
        Ok(((version >> 16) as u16, (version >> 8) as u8))
    }

    /// How long the controller may take from CC.EN to CSTS.RDY, either way.
    pub fn ready_timeout(&self, capabilities: Capabilities) -> Duration {
        let said = capabilities.timeout();
        if !capabilities.has_ready_timeouts() {
            return said;
        }
        let crto = self.read(CRTO);
        let asked = if crto == GONE { said } else { TIMEOUT_UNIT * (crto & 0xffff) };
        said.max(asked).min(TIMEOUT_MAX)
    }

    pub fn configuration(&self) -> Result<u32, Gone> {
        Registers::present(self.read(CC))
    }

    pub fn configure(&self, value: u32) {
        barrier::before_doorbell();
        self.write(CC, value);
    }

    pub fn status(&self) -> Result<ControllerStatus, Gone> {
        Registers::present(self.read(CSTS)).map(ControllerStatus)
    }

    /// Tells where the admin queues of `entries` each lie. Only while the controller is disabled.
    pub fn set_admin_queues(&self, entries: u16, submission: u64, completion: u64) {
        let size = u32::from(entries - 1);
        self.write(AQA, size << 16 | size);
        self.write_wide(ASQ, submission);
        self.write_wide(ACQ, completion);
    }

    /// The doorbells of queue pair `queue`: submission tail and completion head. None when they lie
    /// outside of what is mapped.
    pub fn doorbells(&self, queue: u16, stride: usize) -> Option<(Doorbell, Doorbell)> {
        let at = |n: usize| {
            let offset = DOORBELLS + n * stride;
            (offset + 4 <= self.bar.len).then(|| Doorbell(self.at(offset)))
        };
        Some((at(2 * usize::from(queue))?, at(2 * usize::from(queue) + 1)?))
    }
}

/// One doorbell (section 3.1.3.24 and .25): write-only, for its owner alone.
pub(crate) struct Doorbell(NonNull<u32>);

// SAFETY: a doorbell is a register and belongs to no thread; there is one value of it, whose owner
// alone rings it, and that keeps the transport and so the mapping.
unsafe impl Send for Doorbell {}

impl Doorbell {
    /// Tells the controller; what was written into memory before is seen by it when it looks.
    #[inline]
    pub fn ring(&self, value: u16) {
        barrier::before_doorbell();
        // SAFETY: an aligned register of the mapping that `Transport` keeps, checked when this was
        // made; a doorbell is written in 32 bits (PCIe Transport Specification, section 3.1.2.1).
        unsafe { self.0.write_volatile(u32::from(value)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_taken_apart() {
        // What QEMU's controller says, and one with every field at its other end.
        let qemu = Capabilities(0x0040_0820_0f01_07ff);
        assert_eq!((qemu.entries(), qemu.doorbell_stride(), qemu.page_bits()), (2048, 4, 12));
        assert_eq!(qemu.command_set(), Some(0b110));
        assert_eq!(qemu.timeout(), Duration::from_millis(7500));
        assert!(!qemu.has_ready_timeouts());
        let other = Capabilities(0x080f_002f_0000_ffff);
        assert_eq!((other.entries(), other.doorbell_stride()), (65536, 4 << 15));
        assert_eq!((other.page_bits(), other.command_set()), (27, Some(0)));
        assert_eq!(other.timeout(), TIMEOUT_UNIT, "no time at all is not meant");
        assert!(other.has_ready_timeouts());
        assert_eq!(Capabilities(1 << 44).command_set(), None, "no command set for data");
    }

    #[test]
    fn the_status_is_taken_apart() {
        let status = ControllerStatus;
        assert!(status(1).is_ready() && !status(1).is_fatal() && !status(1).is_shut_down());
        assert!(status(2).is_fatal() && !status(2).is_ready());
        assert!(status(2 << 2).is_shut_down() && !status(1 << 2).is_shut_down());
    }
}
