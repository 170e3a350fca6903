//! A controller behind VFIO: a device bound to `vfio-pci`, with an IOMMU that lets it reach the memory that
//! was mapped for it and nothing else (`Documentation/driver-api/vfio.rst` of the kernel).
//!
//! ```text
//!   /dev/vfio/vfio   container: the IOMMU's mappings      ◄─ MAP_DMA(pool), MAP_DMA(queues)
//!   /dev/vfio/GROUP  group: what the IOMMU cannot keep apart
//!   device           BAR 0: registers, mapped · configuration space · MSI-X: an eventfd a vector
//! ```
//!
//! Each drive has a container of its own. Addresses that a controller is given are not those of this
//! process: an IOMMU may know fewer bits of them.

mod ioctl;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memkv_dma::Memory;

use crate::transport::{Bar, Transport, Window};
use ioctl::{DmaMap, DmaUnmap, GroupStatus, IrqInfo, RegionInfo, size_of};

/// Where memory begins for a controller: above the 4 GiB in which messages of interrupts have their
/// place.
const FIRST_IOVA: u64 = 1 << 32;

/// Mappings lie apart, so that who runs over the end of one hits a fault.
const GAP: u64 = 1 << 30;

/// The command register of PCI configuration space, and its bits: memory space, bus master.
const PCI_COMMAND: u64 = 4;
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;

/// How long a driver that waits leaves the core.
const PAUSE: Duration = Duration::from_micros(20);

/// Why a device cannot be driven through VFIO.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// No PCI device has this address.
    #[error("there is no PCI device {address}")]
    NoDevice {
        /// The address.
        address: String,
    },
    /// The device is bound to another driver, or to none.
    #[error("{address} is bound to {}, not to vfio-pci", .driver.as_deref().unwrap_or("no driver"))]
    NotBound {
        /// The address.
        address: String,
        /// The driver that it is bound to.
        driver: Option<String>,
    },
    /// There is no IOMMU for the device, or it is switched off.
    #[error("{address} has no IOMMU group; is the IOMMU switched on?")]
    NoIommu {
        /// The address.
        address: String,
    },
    /// Another device of its group is bound to a driver of the kernel.
    #[error("IOMMU group {group} has other devices, which are in use")]
    NotViable {
        /// The group.
        group: u32,
    },
    /// The kernel speaks another version of VFIO, or knows no IOMMU of type 1.
    #[error("the kernel's VFIO has no type 1 IOMMU")]
    Unsupported,
    /// The registers cannot be mapped.
    #[error("the registers of {address} cannot be mapped")]
    Registers {
        /// The address.
        address: String,
    },
    /// The system refused.
    #[error("cannot {what}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> VfioError {
    move |source| VfioError::Os { what, source }
}

/// The registers, mapped.
struct Registers {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the registers belong to no thread; they are only touched by volatile accesses.
unsafe impl Send for Registers {}
// SAFETY: as above.
unsafe impl Sync for Registers {}

impl Registers {
    fn map(device: &File, region: &RegionInfo) -> io::Result<Registers> {
        let len = usize::try_from(region.size).map_err(|_| io::ErrorKind::InvalidData)?;
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, device.as_raw_fd());
        // SAFETY: a new mapping at a place that the kernel chooses replaces nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                access,
                libc::MAP_SHARED,
                fd,
                region.offset as i64,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Registers { base, len })
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` has mapped; whoever has pointers into it holds the transport that
        // holds this.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// What the controller sees.
struct Mapped {
    next_iova: u64,
    windows: Vec<Window>,
    /// Kept until the container is closed, with which every mapping ends.
    memory: Vec<Memory>,
}

/// A device behind VFIO. What is closed first stands first: the registers, the device (which the kernel
/// resets then), its group, the container with its mappings, and at last the memory.
pub struct Vfio {
    address: String,
    group_number: u32,
    registers: Registers,
    interrupts: Vec<File>,
    device: File,
    /// Where the configuration space begins in the device's descriptor.
    configuration: u64,
    _group: OwnedFd,
    container: OwnedFd,
    mapped: Mutex<Mapped>,
}

impl Vfio {
    /// Opens the device at a PCI address (`0000:01:00.0`) that is bound to `vfio-pci`, with interrupts
    /// for so many queues. It is reset by the kernel, and reaches no memory yet.
    pub fn open(address: &str, queues: u16) -> Result<Vfio, VfioError> {
        let group_number = group_of(Path::new("/sys/bus/pci/devices"), address)?;
        let container = container()?;
        let group = group(group_number, &container)?;
        let name = CString::new(address).map_err(|_| no_device(address))?;
        let device = ioctl::device(&group, &name).map_err(failed("open the device"))?;
        let device = File::from(device);
        let configuration = region(&device, ioctl::CONFIG)?.offset;
        set_command(&device, configuration, MEMORY_SPACE | BUS_MASTER, 0)
            .map_err(failed("let the device use the bus"))?;
        let bar = region(&device, ioctl::BAR0)?;
        if bar.flags & 1 << 2 == 0 || bar.size == 0 {
            return Err(VfioError::Registers { address: address.to_owned() });
        }
        let registers = Registers::map(&device, &bar).map_err(failed("map the registers"))?;
        let interrupts = interrupts(&device, queues)?;
        let mapped = Mapped { next_iova: FIRST_IOVA, windows: Vec::new(), memory: Vec::new() };
        Ok(Vfio {
            address: address.to_owned(),
            group_number,
            registers,
            interrupts,
            device,
            configuration,
            _group: group,
            container,
            mapped: Mutex::new(mapped),
        })
    }

    fn mapped(&self) -> MutexGuard<'_, Mapped> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_device(address: &str) -> VfioError {
    VfioError::NoDevice { address: address.to_owned() }
}

/// The IOMMU group of a device that is bound to `vfio-pci`.
fn group_of(devices: &Path, address: &str) -> Result<u32, VfioError> {
    // It becomes a part of a path.
    let known = |c: char| c.is_ascii_hexdigit() || c == ':' || c == '.';
    let device = devices.join(address);
    if address.is_empty()
        || address.starts_with('.')
        || !address.chars().all(known)
        || !device.is_dir()
    {
        return Err(no_device(address));
    }
    let last = |link: PathBuf| link.file_name().map(|name| name.to_string_lossy().into_owned());
    let driver = fs::read_link(device.join("driver")).ok().and_then(last);
    if driver.as_deref() != Some("vfio-pci") {
        return Err(VfioError::NotBound { address: address.to_owned(), driver });
    }
    let group = fs::read_link(device.join("iommu_group")).ok().and_then(last);
    let group = group.and_then(|group| group.parse().ok());
    group.ok_or_else(|| VfioError::NoIommu { address: address.to_owned() })
}

fn container() -> Result<OwnedFd, VfioError> {
    let open = File::options().read(true).write(true).open("/dev/vfio/vfio");
    let container = OwnedFd::from(open.map_err(failed("open /dev/vfio/vfio"))?);
    let version = ioctl::GET_API_VERSION.ask(&container, 0).map_err(failed("ask for VFIO"))?;
    let known = ioctl::CHECK_EXTENSION.ask(&container, ioctl::TYPE1V2);
    if version != ioctl::API_VERSION || known.map_err(failed("ask for the IOMMU"))? == 0 {
        return Err(VfioError::Unsupported);
    }
    Ok(container)
}

/// Opens a group and puts it into a container, which gets its IOMMU by that.
fn group(number: u32, container: &OwnedFd) -> Result<OwnedFd, VfioError> {
    let open = File::options().read(true).write(true).open(format!("/dev/vfio/{number}"));
    let group = OwnedFd::from(open.map_err(failed("open the IOMMU group"))?);
    let mut status = GroupStatus { argsz: size_of::<GroupStatus>(), flags: 0 };
    ioctl::GROUP_GET_STATUS
        .ask(&group, &mut status)
        .map_err(failed("ask for the state of the IOMMU group"))?;
    if status.flags & 1 == 0 {
        return Err(VfioError::NotViable { group: number });
    }
    ioctl::GROUP_SET_CONTAINER
        .ask(&group, &mut container.as_raw_fd())
        .map_err(failed("put the IOMMU group into a container"))?;
    ioctl::SET_IOMMU.ask(container, ioctl::TYPE1V2).map_err(failed("switch the IOMMU on"))?;
    Ok(group)
}

fn region(device: &File, index: u32) -> Result<RegionInfo, VfioError> {
    let argsz = size_of::<RegionInfo>();
    let mut info = RegionInfo { argsz, flags: 0, index, cap_offset: 0, size: 0, offset: 0 };
    ioctl::GET_REGION_INFO.ask(device, &mut info).map_err(failed("ask for a region"))?;
    Ok(info)
}

/// Sets and clears bits of the command register.
fn set_command(device: &File, configuration: u64, set: u16, clear: u16) -> io::Result<()> {
    let mut command = [0; 2];
    device.read_exact_at(&mut command, configuration + PCI_COMMAND)?;
    let command = (u16::from_le_bytes(command) | set) & !clear;
    device.write_all_at(&command.to_le_bytes(), configuration + PCI_COMMAND)
}

/// An eventfd for each queue, as far as the device has vectors; the first is the admin queue's.
fn interrupts(device: &File, queues: u16) -> Result<Vec<File>, VfioError> {
    let argsz = size_of::<IrqInfo>();
    let mut info = IrqInfo { argsz, flags: 0, index: ioctl::MSIX, count: 0 };
    let asked = ioctl::GET_IRQ_INFO.ask(device, &mut info);
    let count = (info.count as usize).min(usize::from(queues) + 1).min(ioctl::IRQS);
    if asked.is_err() || info.flags & 1 == 0 || count == 0 {
        return Ok(Vec::new());
    }
    let eventfds: io::Result<Vec<File>> =
        (0..count).map(|_| ioctl::eventfd().map(File::from)).collect();
    let eventfds = eventfds.map_err(failed("make eventfds"))?;
    let raw: Vec<RawFd> = eventfds.iter().map(AsRawFd::as_raw_fd).collect();
    ioctl::set_irqs(device, ioctl::MSIX, &raw).map_err(failed("switch interrupts on"))?;
    Ok(eventfds)
}

// SAFETY: the registers stay mapped as long as this value lives. The IOMMU lets the device reach what `map`
// has mapped, at the addresses told, and nothing else; that memory is kept until the container is closed,
// and with it every mapping.
unsafe impl Transport for Vfio {
    fn name(&self) -> &str {
        &self.address
    }

    fn reason(&self) -> String {
        let (group, vectors) = (self.group_number, self.interrupts.len());
        format!("bound to vfio-pci, IOMMU group {group}, {vectors} interrupts")
    }

    fn bar(&self) -> Bar {
        Bar { base: self.registers.base, len: self.registers.len }
    }

    fn map(&self, memory: Memory) -> io::Result<Window> {
        let regions = memory.regions();
        let (base, _) = *regions.first().ok_or(io::ErrorKind::InvalidInput)?;
        let len: usize = regions.iter().map(|region| region.1).sum();
        let mut mapped = self.mapped();
        let window = Window { base: base.as_ptr() as usize, len, iova: mapped.next_iova };
        let mut map = DmaMap {
            argsz: size_of::<DmaMap>(),
            flags: 0b11,
            vaddr: window.base as u64,
            iova: window.iova,
            size: len as u64,
        };
        // The device may write this memory from now on. It is a pool's or an arena's, of which there
        // are references only to buffers that no command names; and it is kept below, before anybody
        // learns the address.
        ioctl::MAP_DMA.ask(&self.container, &mut map)?;
        mapped.next_iova = (window.iova + len as u64).next_multiple_of(GAP) + GAP;
        mapped.windows.push(window);
        mapped.memory.push(memory);
        Ok(window)
    }

    /// What is not mapped is not reached, whatever the device does: only that is certain.
    fn cut_off(&self) -> bool {
        if let Err(error) = set_command(&self.device, self.configuration, 0, BUS_MASTER) {
            tracing::warn!(drive = self.address, %error, "cannot take the bus from the device");
        }
        if let Err(error) = ioctl::DEVICE_RESET.ask(&self.device, 0) {
            tracing::info!(drive = self.address, %error, "the device cannot be reset");
        }
        let mut cut = true;
        self.mapped().windows.retain(|window| {
            let (argsz, size) = (size_of::<DmaUnmap>(), window.len as u64);
            let mut unmap = DmaUnmap { argsz, flags: 0, iova: window.iova, size };
            let done = ioctl::UNMAP_DMA.ask(&self.container, &mut unmap);
            let gone = done.is_ok() && unmap.size == size;
            cut &= gone;
            !gone
        });
        cut
    }

    fn interrupt(&self, vector: u16) -> Option<RawFd> {
        self.interrupts.get(usize::from(vector)).map(AsRawFd::as_raw_fd)
    }

    fn quiet(&self, vector: u16) {
        if let Some(mut eventfd) = self.interrupts.get(usize::from(vector)) {
            // It does not block: without an interrupt there is nothing to read.
            let _ = eventfd.read(&mut [0; 8]);
        }
    }

    fn pause(&self) {
        std::thread::sleep(PAUSE);
    }
}

impl Drop for Vfio {
    fn drop(&mut self) {
        if self.interrupts.is_empty() {
            return;
        }
        if let Err(error) = ioctl::set_irqs(&self.device, ioctl::MSIX, &[]) {
            tracing::debug!(drive = self.address, %error, "interrupts stay on until it is closed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory that looks like sysfs.
    struct Sys(PathBuf);

    impl Sys {
        fn new(name: &str, driver: Option<&str>, group: Option<&str>) -> Sys {
            let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
            let device = path.join("0000:01:00.0");
            fs::create_dir_all(&device).unwrap();
            if let Some(driver) = driver {
                symlink(Path::new("drivers").join(driver), device.join("driver")).unwrap();
            }
            if let Some(group) = group {
                symlink(Path::new("iommu_groups").join(group), device.join("iommu_group")).unwrap();
            }
            Sys(path)
        }

        fn group(&self, address: &str) -> Result<u32, VfioError> {
            group_of(&self.0, address)
        }
    }

    impl Drop for Sys {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_group_of_a_device_is_found_or_its_lack_explained() {
        let good = Sys::new("memkv-nvme-good", Some("vfio-pci"), Some("17"));
        assert_eq!(good.group("0000:01:00.0").unwrap(), 17);
        let outside = ["", "..", "0000:02:00.0", "0000:01:00.0/../0000:01:00.0", "0000:01:00.0\0"];
        for address in outside {
            assert!(matches!(good.group(address), Err(VfioError::NoDevice { .. })), "{address:?}");
        }
        let other = Sys::new("memkv-nvme-other", Some("nvme"), Some("17"));
        let error = other.group("0000:01:00.0").unwrap_err();
        assert_eq!(error.to_string(), "0000:01:00.0 is bound to nvme, not to vfio-pci");
        let none = Sys::new("memkv-nvme-none", None, Some("17"));
        let error = none.group("0000:01:00.0").unwrap_err();
        assert_eq!(error.to_string(), "0000:01:00.0 is bound to no driver, not to vfio-pci");
        let bare = Sys::new("memkv-nvme-bare", Some("vfio-pci"), None);
        assert!(matches!(bare.group("0000:01:00.0"), Err(VfioError::NoIommu { .. })));
    }

    #[test]
    fn a_device_that_is_not_there_is_said_to_be_so() {
        let error = Vfio::open("ffff:ff:1f.7", 1).map(|_| ()).unwrap_err();
        assert!(matches!(error, VfioError::NoDevice { .. }), "{error}");
    }
}
