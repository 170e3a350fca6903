//! The container: what all drives of this process see of its memory.
//!
//! ```text
//!   Iommu ─► container ◄─ group 17 ◄─ drive        the pool is mapped once, for all of them, and with it
//!                      ◄─ group 18 ◄─ drive        pinned and counted as locked memory once
//!                              mappings: the pool · queues of each drive
//! ```
//!
//! With a container for each drive the kernel would walk over the whole pool for each of them, keep tables
//! of its own, and count the pool as locked as often as there are drives. The price is that a drive could
//! reach the queues of another one; what is in the pool each of them can reach in any case.
//!
//! Nor can memory be taken from one drive alone by unmapping it. A group is taken out of the container
//! instead: the kernel does that only once it has closed the device, which stops and resets it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memkv_dma::Memory;

use super::ioctl::{self, DmaMap, DmaUnmap, GroupStatus, size_of};
use super::{VfioError, failed};
use crate::pci::PciAddress;
use crate::transport::Window;

/// Where memory begins for controllers: above the 4 GiB in which messages of interrupts have their
/// place.
const FIRST_IOVA: u64 = 1 << 32;

/// Mappings lie apart, so that who runs over the end of one hits a fault.
const GAP: u64 = 1 << 30;

/// The container of a process: one is enough for all drives. It costs nothing until there is a drive.
#[derive(Default)]
pub struct Iommu {
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    /// There is one as long as there are groups in it: with the last one the kernel forgets what it is.
    container: Option<OwnedFd>,
    groups: Vec<Group>,
    mappings: Vec<Mapping>,
}

struct Group {
    number: u32,
    group: Arc<OwnedFd>,
    /// Devices of it that are in use here.
    devices: Vec<PciAddress>,
}

struct Mapping {
    window: Window,
    /// Drives that were told of it.
    drives: usize,
    /// Kept for as long as it is mapped.
    _memory: Memory,
}

impl Iommu {
    /// A container without drives.
    pub fn new() -> Arc<Iommu> {
        Arc::default()
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a group and puts it into the container, for one device of it.
    pub(super) fn enter(&self, number: u32, device: PciAddress) -> Result<Arc<OwnedFd>, VfioError> {
        let mut inside = self.inside();
        if let Some(known) = inside.groups.iter_mut().find(|group| group.number == number) {
            // The kernel opens a device twice for one process, and resets it the first time only.
            if known.devices.contains(&device) {
                return Err(VfioError::InUse { group: number });
            }
            known.devices.push(device);
            return Ok(Arc::clone(&known.group));
        }
        let group = Arc::new(open_group(number)?);
        let first = inside.container.is_none();
        let container = match inside.container.take() {
            Some(container) => container,
            None => open_container()?,
        };
        let entered = put_into(&group, &container, first);
        if entered.is_ok() || !first {
            inside.container = Some(container);
        }
        entered?;
        inside.groups.push(Group { number, group: Arc::clone(&group), devices: vec![device] });
        Ok(group)
    }

    /// Takes a group out again, whose device was closed and was told of `windows`; true when the device
    /// reaches no memory here any more. All in one step: of the next container, which another drive may
    /// make at once, a window may be the same.
    pub(super) fn leave(&self, number: u32, device: PciAddress, windows: &[Window]) -> bool {
        let mut inside = self.inside();
        let at = inside.groups.iter().position(|group| group.number == number);
        let at = at.expect("a device leaves a group that it has entered");
        inside.groups[at].devices.retain(|other| *other != device);
        if !inside.groups[at].devices.is_empty() {
            // The IOMMU cannot keep them apart.
            return false;
        }
        let group = &*inside.groups[at].group;
        if let Err(error) = ioctl::GROUP_UNSET_CONTAINER.ask(group, 0)
            && !is_out(&error, || status_of(group))
        {
            tracing::error!(group = number, %error, "the group cannot be taken out of its container");
            return false;
        }
        inside.groups.swap_remove(at);
        if inside.groups.is_empty() {
            // The kernel has forgotten all mappings with the last group.
            inside.mappings.clear();
            inside.container = None;
        }
        windows.iter().for_each(|window| inside.unmap(*window));
        true
    }

    /// Shows memory to all drives, for one more of them.
    pub(super) fn map(&self, memory: Memory) -> io::Result<Window> {
        let regions = memory.regions();
        let (base, _) = *regions.first().ok_or(io::ErrorKind::InvalidInput)?;
        let (base, len) = (base.as_ptr() as usize, regions.iter().map(|region| region.1).sum());
        let mut inside = self.inside();
        let same =
            |mapping: &&mut Mapping| (mapping.window.base, mapping.window.len) == (base, len);
        if let Some(known) = inside.mappings.iter_mut().find(same) {
            known.drives += 1;
            return Ok(known.window);
        }
        let window = Window { base, len, iova: inside.free_iova(len) };
        let mut map = DmaMap {
            argsz: size_of::<DmaMap>(),
            flags: 0b11,
            vaddr: window.base as u64,
            iova: window.iova,
            size: len as u64,
        };
        // Devices may write this memory from now on. It is a pool's or an arena's, of which there
        // are references only to buffers that no command names; and it is kept below, before anybody
        // learns the address.
        let container = inside.container.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        ioctl::MAP_DMA.ask(container, &mut map)?;
        inside.mappings.push(Mapping { window, drives: 1, _memory: memory });
        Ok(window)
    }
}

impl Inside {
    /// A drive that was told of it has gone: with the last one the memory is taken from all. What cannot
    /// be unmapped is kept for good.
    fn unmap(&mut self, window: Window) {
        // With the last group everything has gone.
        let at = self.mappings.iter().position(|mapping| mapping.window == window);
        let Some(at) = at else { return };
        self.mappings[at].drives -= 1;
        if self.mappings[at].drives > 0 {
            return;
        }
        let (argsz, size) = (size_of::<DmaUnmap>(), window.len as u64);
        let mut unmap = DmaUnmap { argsz, flags: 0, iova: window.iova, size };
        let container = self.container.as_ref().expect("what is mapped is in a container");
        match ioctl::UNMAP_DMA.ask(container, &mut unmap) {
            Ok(_) if unmap.size == size => drop(self.mappings.swap_remove(at)),
            Ok(_) => tracing::error!("memory was unmapped in part and is kept"),
            Err(error) => tracing::error!(%error, "memory cannot be unmapped and is kept"),
        }
    }

    /// The first address at which so many bytes lie apart from all others.
    fn free_iova(&self, len: usize) -> u64 {
        let mut taken: Vec<Window> = self.mappings.iter().map(|mapping| mapping.window).collect();
        taken.sort_by_key(|window| window.iova);
        let mut at = FIRST_IOVA;
        for window in taken {
            if at + len as u64 + GAP <= window.iova {
                break;
            }
            at = (window.iova + window.len as u64).next_multiple_of(GAP) + GAP;
        }
        at
    }
}

fn open_container() -> Result<OwnedFd, VfioError> {
    let open = File::options().read(true).write(true).open("/dev/vfio/vfio");
    let container = OwnedFd::from(open.map_err(failed("open /dev/vfio/vfio"))?);
    let version = ioctl::GET_API_VERSION.ask(&container, 0).map_err(failed("ask for VFIO"))?;
    let known = ioctl::CHECK_EXTENSION.ask(&container, ioctl::TYPE1V2);
    if version != ioctl::API_VERSION || known.map_err(failed("ask for the IOMMU"))? == 0 {
        return Err(VfioError::Unsupported);
    }
    Ok(container)
}

fn open_group(number: u32) -> Result<OwnedFd, VfioError> {
    let open = File::options().read(true).write(true).open(format!("/dev/vfio/{number}"));
    let group = OwnedFd::from(open.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => VfioError::InUse { group: number },
        _ => failed("open the IOMMU group")(source),
    })?);
    let status = status_of(&group).map_err(failed("ask for the state of the IOMMU group"))?;
    if status & ioctl::GROUP_VIABLE == 0 {
        return Err(VfioError::NotViable { group: number });
    }
    Ok(group)
}

/// The flags of a group.
fn status_of(group: &OwnedFd) -> io::Result<u32> {
    let mut status = GroupStatus { argsz: size_of::<GroupStatus>(), flags: 0 };
    ioctl::GROUP_GET_STATUS.ask(group, &mut status)?;
    Ok(status.flags)
}

/// Whether a group that could not be taken out of its container is in none. The kernel takes it out itself
/// when its last device leaves the bus, which it may as soon as that was closed: before it is asked to.
/// Then it says that there is nothing to take out, and of the state of the group that it has no devices.
fn is_out(error: &io::Error, status: impl FnOnce() -> io::Result<u32>) -> bool {
    if error.raw_os_error() != Some(libc::EINVAL) {
        return false;
    }
    match status() {
        Ok(flags) => flags & ioctl::GROUP_IN_CONTAINER == 0,
        Err(error) => error.raw_os_error() == Some(libc::ENODEV),
    }
}

/// Puts a group into a container; by the first one it gets its IOMMU.
fn put_into(group: &OwnedFd, container: &OwnedFd, first: bool) -> Result<(), VfioError> {
    ioctl::GROUP_SET_CONTAINER
        .ask(group, &mut container.as_raw_fd())
        .map_err(failed("put the IOMMU group into a container"))?;
    if first {
        ioctl::SET_IOMMU.ask(container, ioctl::TYPE1V2).map_err(failed("switch the IOMMU on"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use memkv_dma::{Arena, Hugepages};

    use super::*;

    fn mapping(iova: u64, len: usize) -> Mapping {
        let arena = Arena::new(4096, Hugepages::Never).unwrap();
        let window = Window { base: 0x1000, len, iova };
        Mapping { window, drives: 1, _memory: Memory::Arena(arena) }
    }

    #[test]
    fn memory_lies_apart_for_devices_and_finds_the_places_of_what_has_gone() {
        let mut inside = Inside::default();
        let mut add = |len: usize| {
            let iova = inside.free_iova(len);
            inside.mappings.push(mapping(iova, len));
            iova
        };
        let (pool, queues, others) = (add(3 << 30), add(1 << 20), add(1 << 20));
        assert_eq!(pool, FIRST_IOVA);
        assert!(queues >= pool + (3 << 30) + GAP, "{queues:#x}");
        assert!(others >= queues + (1 << 20) + GAP, "{others:#x}");
        assert!([pool, queues, others].iter().all(|iova| iova.is_multiple_of(GAP)));
        // One goes and comes again, as drives do that fail and are readmitted.
        inside.mappings.remove(1);
        assert_eq!(inside.free_iova(1 << 20), queues);
        assert!(inside.free_iova(2 << 30) > others, "it does not fit between");
    }

    #[test]
    fn a_group_is_out_of_its_container_when_the_kernel_has_taken_it_out_first() {
        let error = io::Error::from_raw_os_error;
        let is_out = |why, status: Result<u32, i32>| is_out(&error(why), || status.map_err(error));
        assert!(is_out(libc::EINVAL, Err(libc::ENODEV)), "its device has left the bus");
        assert!(is_out(libc::EINVAL, Ok(ioctl::GROUP_VIABLE)));
        assert!(!is_out(libc::EINVAL, Ok(ioctl::GROUP_VIABLE | ioctl::GROUP_IN_CONTAINER)));
        assert!(!is_out(libc::EINVAL, Err(libc::EIO)), "nobody knows");
        assert!(!is_out(libc::EBUSY, Err(libc::ENODEV)), "a device of it is open");
    }

    #[test]
    fn without_a_drive_nothing_can_be_mapped() {
        let iommu = Iommu::new();
        let arena = Arena::new(4096, Hugepages::Never).unwrap();
        let refused = iommu.map(Memory::Arena(arena)).expect_err("there is no container");
        assert_eq!(refused.kind(), io::ErrorKind::NotConnected);
    }
}
