//! A controller behind VFIO: a device bound to `vfio-pci`, with an IOMMU that lets it reach the memory that
//! was mapped for it and nothing else (`Documentation/driver-api/vfio.rst` of the kernel).
//!
//! ```text
//!   /dev/vfio/vfio   container: the IOMMU's mappings      iommu.rs: one for all drives
//!   /dev/vfio/GROUP  group: what the IOMMU cannot keep apart
//!   device           BAR 0: registers, mapped · configuration space · MSI-X: an eventfd a vector
//! ```
//!
//! Addresses that a controller is given are not those of this process: an IOMMU may know fewer bits of
//! them.
//!
//! The kernel does not remove a device from the bus before this process has let go of it, and asks for that
//! by an interrupt of its own ([`Transport::is_recalled`]).

mod ioctl;
mod iommu;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memkv_dma::Memory;

use crate::pci::{PciAddress, Sysfs};
use crate::transport::{Bar, Transport, Window};
use ioctl::{IrqInfo, RegionInfo, size_of};
pub use iommu::Iommu;

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
    /// It is something else than a drive.
    #[error("{address} is no NVMe controller: its class is {class:#08x}")]
    NotNvme {
        /// The address.
        address: PciAddress,
        /// Its class.
        class: u32,
    },
    /// Somebody has its group, or a device of that.
    #[error("IOMMU group {group} is in use")]
    InUse {
        /// The group.
        group: u32,
    },
    /// The device is bound to another driver, or to none.
    #[error("{address} is bound to {}, not to vfio-pci", .driver.as_deref().unwrap_or("no driver"))]
    NotBound {
        /// The address.
        address: PciAddress,
        /// The driver that it is bound to.
        driver: Option<String>,
    },
    /// There is no IOMMU for the device, or it is switched off.
    #[error("{address} has no IOMMU group; is the IOMMU switched on?")]
    NoIommu {
        /// The address.
        address: PciAddress,
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
        address: PciAddress,
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

impl Registers {
    /// Puts memory in place of the registers, in which reads find what they find of a device that is
    /// gone.
    fn replace(&self) -> io::Result<()> {
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place that the kernel chooses replaces nothing.
        let filled = unsafe { libc::mmap(std::ptr::null_mut(), self.len, access, kind, -1, 0) };
        if filled == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping that was just made, all of it, which nobody else knows.
        unsafe { std::ptr::write_bytes(filled.cast::<u8>(), 0xff, self.len) };
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let at = self.base.as_ptr().cast::<libc::c_void>();
        // SAFETY: moves it over the registers, which are ours and as long, in one step: a volatile access
        // of another thread finds the registers or this memory. Nobody has a reference to either.
        let moved = unsafe { libc::mremap(filled, self.len, self.len, flags, at) };
        if moved == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // SAFETY: it was not moved, and nobody knows it.
            unsafe { libc::munmap(filled, self.len) };
            return Err(error);
        }
        Ok(())
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` has mapped; whoever has pointers into it holds the transport that
        // holds this.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// What is opened of a device, until it is let go.
struct Held {
    device: File,
    /// Where the configuration space begins in the device's descriptor.
    configuration: u64,
    /// What it sees.
    windows: Vec<Window>,
}

/// A device behind VFIO.
pub struct Vfio {
    address: PciAddress,
    name: String,
    group: u32,
    registers: Registers,
    interrupts: Vec<File>,
    /// Rung when the kernel wants the device back.
    recall: Option<File>,
    held: Mutex<Option<Held>>,
    iommu: Arc<Iommu>,
}

impl Vfio {
    /// Opens the device at a PCI address (`0000:01:00.0`) that is bound to `vfio-pci`, in a container of
    /// its own; see [`Vfio::open_shared`].
    pub fn open(address: &str, queues: u16) -> Result<Vfio, VfioError> {
        let parsed = address.parse();
        let address = parsed.map_err(|_| VfioError::NoDevice { address: address.to_owned() })?;
        Vfio::open_shared(&Sysfs::default(), &Iommu::new(), address, queues)
    }

    /// Opens the device at a PCI address that is bound to `vfio-pci`, with interrupts for so many
    /// queues. It is reset by the kernel, and reaches no memory yet.
    pub fn open_shared(
        sysfs: &Sysfs,
        iommu: &Arc<Iommu>,
        address: PciAddress,
        queues: u16,
    ) -> Result<Vfio, VfioError> {
        let number = group_of(sysfs, address)?;
        let group = iommu.enter(number, address)?;
        let opened = Vfio::open_in(&group, number, iommu, address, queues);
        drop(group);
        if opened.is_err() {
            // Its device, if there was one, is closed again.
            iommu.leave(number, address, &[]);
        }
        opened
    }

    fn open_in(
        group: &OwnedFd,
        number: u32,
        iommu: &Arc<Iommu>,
        address: PciAddress,
        queues: u16,
    ) -> Result<Vfio, VfioError> {
        let name = address.to_string();
        let c_name = CString::new(name.as_str()).expect("an address has no zero bytes");
        let device =
            ioctl::device(group, &c_name).map_err(|source| match source.raw_os_error() {
                Some(libc::EBUSY) => VfioError::InUse { group: number },
                _ => failed("open the device")(source),
            })?;
        let device = File::from(device);
        let configuration = region(&device, ioctl::CONFIG)?.offset;
        set_command(&device, configuration, MEMORY_SPACE | BUS_MASTER, 0)
            .map_err(failed("let the device use the bus"))?;
        let bar = region(&device, ioctl::BAR0)?;
        if bar.flags & 1 << 2 == 0 || bar.size == 0 {
            return Err(VfioError::Registers { address });
        }
        let registers = Registers::map(&device, &bar).map_err(failed("map the registers"))?;
        let interrupts = interrupts(&device, queues)?;
        let recall = recall(&device);
        let held = Held { device, configuration, windows: Vec::new() };
        let (held, iommu) = (Mutex::new(Some(held)), Arc::clone(iommu));
        Ok(Vfio { address, name, group: number, registers, interrupts, recall, held, iommu })
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the device, whose registers nobody reaches any more, and takes it out of the container;
    /// true when it is certain that it reaches no memory. If it is not, its memory is kept.
    fn let_go(&self, held: Held) -> bool {
        let Held { device, windows, .. } = held;
        drop(device);
        self.iommu.leave(self.group, self.address, &windows)
    }
}

/// The IOMMU group of a drive that is bound to `vfio-pci`.
fn group_of(sysfs: &Sysfs, address: PciAddress) -> Result<u32, VfioError> {
    let device = sysfs.device(address);
    let device = device.ok_or_else(|| VfioError::NoDevice { address: address.to_string() })?;
    if !device.is_nvme() {
        return Err(VfioError::NotNvme { address, class: device.class() });
    }
    if !device.is_vfio() {
        return Err(VfioError::NotBound { address, driver: device.driver() });
    }
    device.iommu_group().ok_or(VfioError::NoIommu { address })
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

/// An eventfd that the kernel rings when it wants the device back; none where it does not tell.
fn recall(device: &File) -> Option<File> {
    let eventfd = File::from(ioctl::eventfd().ok()?);
    let asked = ioctl::set_irqs(device, ioctl::REQUEST, &[eventfd.as_raw_fd()]);
    asked.is_ok().then_some(eventfd)
}

// SAFETY: the registers, or what has taken their place, stay mapped as long as this value lives. The IOMMU
// lets the device reach what its container has mapped, at the addresses told, and nothing else; the
// container keeps that memory until it is unmapped, or the device is out of the container.
unsafe impl Transport for Vfio {
    fn name(&self) -> &str {
        &self.name
    }

    fn reason(&self) -> String {
        let (group, vectors) = (self.group, self.interrupts.len());
        format!("bound to vfio-pci, IOMMU group {group}, {vectors} interrupts")
    }

    fn bar(&self) -> Bar {
        Bar { base: self.registers.base, len: self.registers.len }
    }

    fn map(&self, memory: Memory) -> io::Result<Window> {
        let mut held = self.held();
        let held = held.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let window = self.iommu.map(memory)?;
        held.windows.push(window);
        Ok(window)
    }

    /// 1. The device is told to leave the bus alone, and reset: it stops what it was doing.
    /// 2. Its registers are taken from whoever would still write to them: reads find a device that is
    ///    gone. They keep the device open otherwise.
    /// 3. The device is closed. The kernel disables and resets it, and may give it to somebody else.
    /// 4. Its group is taken out of the container: the IOMMU lets it reach nothing of ours any more,
    ///    whatever it does. Only that is certain.
    fn cut_off(&self) -> bool {
        let mut place = self.held();
        let Some(held) = place.take() else { return false };
        if let Err(error) = set_command(&held.device, held.configuration, 0, BUS_MASTER) {
            tracing::warn!(drive = self.name, %error, "cannot take the bus from the device");
        }
        if let Err(error) = ioctl::DEVICE_RESET.ask(&held.device, 0) {
            tracing::info!(drive = self.name, %error, "the device cannot be reset");
        }
        if let Err(error) = self.registers.replace() {
            tracing::error!(drive = self.name, %error, "its registers cannot be unmapped");
            *place = Some(held);
            return false;
        }
        self.let_go(held)
    }

    fn is_recalled(&self) -> bool {
        // It does not block: as long as nobody asks there is nothing to read.
        self.recall.as_ref().is_some_and(|mut recall| recall.read(&mut [0; 8]).is_ok())
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
        let Some(held) = self.held().take() else { return };
        for (index, set) in [(ioctl::MSIX, &self.interrupts[..]), (ioctl::REQUEST, &[])] {
            let asked = index != ioctl::MSIX || !set.is_empty();
            if asked && let Err(error) = ioctl::set_irqs(&held.device, index, &[]) {
                tracing::debug!(drive = self.name, %error, "interrupts stay on until it is closed");
            }
        }
        // Or they would keep the device open.
        if let Err(error) = self.registers.replace() {
            tracing::error!(drive = self.name, %error, "its registers cannot be unmapped");
            return std::mem::forget(held);
        }
        self.let_go(held);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    use super::*;

    /// A directory that looks like sysfs.
    struct Sys(PathBuf);

    impl Sys {
        fn new(name: &str, class: &str, driver: Option<&str>, group: Option<&str>) -> Sys {
            let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
            let device = path.join("bus/pci/devices/0000:01:00.0");
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("class"), class).unwrap();
            if let Some(driver) = driver {
                symlink(Path::new("drivers").join(driver), device.join("driver")).unwrap();
            }
            if let Some(group) = group {
                symlink(Path::new("iommu_groups").join(group), device.join("iommu_group")).unwrap();
            }
            Sys(path)
        }

        fn group(&self, address: &str) -> Result<u32, VfioError> {
            group_of(&Sysfs::at(&self.0), address.parse().unwrap())
        }
    }

    impl Drop for Sys {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_group_of_a_device_is_found_or_its_lack_explained() {
        const NVME: &str = "0x010802\n";
        let good = Sys::new("memkv-nvme-good", NVME, Some("vfio-pci"), Some("17"));
        assert_eq!(good.group("0000:01:00.0").unwrap(), 17);
        assert!(matches!(good.group("0000:02:00.0"), Err(VfioError::NoDevice { .. })));
        let other = Sys::new("memkv-nvme-other", NVME, Some("nvme"), Some("17"));
        let error = other.group("0000:01:00.0").unwrap_err();
        assert_eq!(error.to_string(), "0000:01:00.0 is bound to nvme, not to vfio-pci");
        let none = Sys::new("memkv-nvme-none", NVME, None, Some("17"));
        let error = none.group("0000:01:00.0").unwrap_err();
        assert_eq!(error.to_string(), "0000:01:00.0 is bound to no driver, not to vfio-pci");
        let bare = Sys::new("memkv-nvme-bare", NVME, Some("vfio-pci"), None);
        assert!(matches!(bare.group("0000:01:00.0"), Err(VfioError::NoIommu { .. })));
        let card = Sys::new("memkv-nvme-card", "0x020000\n", Some("vfio-pci"), Some("17"));
        let error = card.group("0000:01:00.0").unwrap_err();
        assert!(matches!(error, VfioError::NotNvme { class: 0x02_00_00, .. }), "{error}");
    }

    #[test]
    fn a_device_that_is_not_there_is_said_to_be_so() {
        for address in ["ffff:ff:1f.7", "", "..", "0000:01:00.0/../0000:01:00.0", "0000:01:00.0\0"]
        {
            let error = Vfio::open(address, 1).map(|_| ()).unwrap_err();
            assert!(matches!(error, VfioError::NoDevice { .. }), "{address:?}: {error}");
        }
    }
}
