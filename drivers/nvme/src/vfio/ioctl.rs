//! The calls of VFIO that are used: `linux/vfio.h`, and `Documentation/driver-api/vfio.rst` of the kernel.
//!
//! A call is a number and the structure that it takes; both are one value here, so that they cannot be
//! confused.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `_IO(';', 100 + n)`.
const fn number(n: u64) -> u64 {
    (b';' as u64) << 8 | (100 + n)
}

/// A call that takes a plain number.
#[derive(Copy, Clone)]
pub(super) struct Plain(u64);

/// A call that takes a structure, which the kernel may fill.
pub(super) struct Call<T>(u64, PhantomData<T>);

pub(super) const GET_API_VERSION: Plain = Plain(number(0));
pub(super) const CHECK_EXTENSION: Plain = Plain(number(1));
pub(super) const SET_IOMMU: Plain = Plain(number(2));
pub(super) const DEVICE_RESET: Plain = Plain(number(11));
pub(super) const GROUP_GET_STATUS: Call<GroupStatus> = Call(number(3), PhantomData);
pub(super) const GROUP_SET_CONTAINER: Call<RawFd> = Call(number(4), PhantomData);
/// Takes no argument.
pub(super) const GROUP_UNSET_CONTAINER: Plain = Plain(number(5));
pub(super) const GET_REGION_INFO: Call<RegionInfo> = Call(number(8), PhantomData);
pub(super) const GET_IRQ_INFO: Call<IrqInfo> = Call(number(9), PhantomData);
pub(super) const MAP_DMA: Call<DmaMap> = Call(number(13), PhantomData);
pub(super) const UNMAP_DMA: Call<DmaUnmap> = Call(number(14), PhantomData);

const GROUP_GET_DEVICE_FD: u64 = number(6);
const SET_IRQS: u64 = number(10);

/// The version of the interface, and its IOMMU: type 1, version 2, which unmaps what was mapped.
pub(super) const API_VERSION: i32 = 0;
pub(super) const TYPE1V2: u64 = 3;

/// Regions and interrupts of a PCI device.
pub(super) const BAR0: u32 = 0;
pub(super) const CONFIG: u32 = 7;
pub(super) const MSIX: u32 = 2;
/// What the kernel asks with for the device.
pub(super) const REQUEST: u32 = 4;

#[repr(C)]
pub(super) struct GroupStatus {
    pub argsz: u32,
    /// The bits below.
    pub flags: u32,
}

/// All devices of the group are bound to VFIO or to nobody.
pub(super) const GROUP_VIABLE: u32 = 1 << 0;
/// It is in a container.
pub(super) const GROUP_IN_CONTAINER: u32 = 1 << 1;

#[repr(C)]
pub(super) struct RegionInfo {
    pub argsz: u32,
    /// Bit 2: it can be mapped.
    pub flags: u32,
    pub index: u32,
    pub cap_offset: u32,
    pub size: u64,
    pub offset: u64,
}

#[repr(C)]
pub(super) struct IrqInfo {
    pub argsz: u32,
    /// Bit 0: it can be told by eventfds.
    pub flags: u32,
    pub index: u32,
    pub count: u32,
}

#[repr(C)]
pub(super) struct DmaMap {
    pub argsz: u32,
    /// Bits 0 and 1: the device may read and write.
    pub flags: u32,
    pub vaddr: u64,
    pub iova: u64,
    pub size: u64,
}

#[repr(C)]
pub(super) struct DmaUnmap {
    pub argsz: u32,
    pub flags: u32,
    pub iova: u64,
    pub size: u64,
}

/// As many interrupts as are told at once: those of all queues.
pub(super) const IRQS: usize = 64;

/// `struct vfio_irq_set` with its array of descriptors.
#[repr(C)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    eventfds: [RawFd; IRQS],
}

fn answer(result: libc::c_int) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Plain {
    pub fn ask(self, fd: impl AsFd, value: u64) -> io::Result<i32> {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: one of the calls above, which take a number or nothing: no memory of ours is touched.
        answer(unsafe { libc::ioctl(fd, self.0 as libc::Ioctl, value) })
    }
}

impl<T> Call<T> {
    pub fn ask(&self, fd: impl AsFd, argument: &mut T) -> io::Result<i32> {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: the call takes a pointer to a `T`, as the constants above say, and reads and writes
        // no more than `argsz` bytes of it, which those who call set to its size. It keeps no pointer
        // to it. What memory a mapping call makes visible is argued where it is called.
        answer(unsafe { libc::ioctl(fd, self.0 as libc::Ioctl, &raw mut *argument) })
    }
}

/// The bytes of `T`, as `argsz` wants them.
pub(super) const fn size_of<T>() -> u32 {
    std::mem::size_of::<T>() as u32
}

/// Opens the device of a group by its PCI address.
pub(super) fn device(group: impl AsFd, address: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let fd = group.as_fd().as_raw_fd();
    // SAFETY: the call reads a string that ends with 0, and answers with a new descriptor.
    let device =
        answer(unsafe { libc::ioctl(fd, GROUP_GET_DEVICE_FD as libc::Ioctl, address.as_ptr()) })?;
    // SAFETY: a descriptor that the kernel has just made for us, and that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(device) })
}

/// Lets the first interrupts of `index` ring `eventfds`, or with none of them none.
pub(super) fn set_irqs(device: impl AsFd, index: u32, eventfds: &[RawFd]) -> io::Result<()> {
    /// The data are eventfds, or none; and the action is what a device raises.
    const EVENTFDS: u32 = 1 << 2 | 1 << 5;
    const NONE: u32 = 1 | 1 << 5;
    assert!(eventfds.len() <= IRQS, "at most {IRQS} interrupts");
    let mut set = IrqSet {
        argsz: size_of::<IrqSet>(),
        flags: if eventfds.is_empty() { NONE } else { EVENTFDS },
        index,
        start: 0,
        count: eventfds.len() as u32,
        eventfds: [-1; IRQS],
    };
    set.eventfds[..eventfds.len()].copy_from_slice(eventfds);
    let fd = device.as_fd().as_raw_fd();
    // SAFETY: the call reads `argsz` bytes of the structure, and of its array `count` descriptors, which
    // it takes references of; it keeps no pointer.
    answer(unsafe { libc::ioctl(fd, SET_IRQS as libc::Ioctl, &raw const set) }).map(drop)
}

/// A new eventfd that does not block.
pub(super) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes no memory.
    let fd = answer(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
    // SAFETY: a descriptor that the kernel has just made for us, and that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_those_of_the_kernel() {
        // Written down from what `linux/vfio.h` comes to.
        assert_eq!((GET_API_VERSION.0, SET_IOMMU.0, DEVICE_RESET.0), (0x3b64, 0x3b66, 0x3b6f));
        assert_eq!((GET_REGION_INFO.0, MAP_DMA.0, UNMAP_DMA.0), (0x3b6c, 0x3b71, 0x3b72));
        assert_eq!((size_of::<RegionInfo>(), size_of::<IrqInfo>()), (32, 16));
        assert_eq!((size_of::<DmaMap>(), size_of::<DmaUnmap>()), (32, 24));
        assert_eq!(std::mem::offset_of!(IrqSet, eventfds), 20);
    }
}
