//! Drives past the kernel: NVMe controllers that this process drives itself, by their PCI addresses.
//!
//! ```text
//!   storage.bypass   require: vfio-pci has it ─► memkv-nvme, else an error that says what to do
//!                    prefer:  vfio-pci has it ─► memkv-nvme, else its block device, with the reason
//!                    never:   its block device
//! ```
//!
//! All drives share one container: they see the same memory, which is pinned once. It is here, so that
//! drives that join later see it too; and so is the list of drives for whoever looks after them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use memkv_block::{BlockDevice, OpenError, OpenOptions};
use memkv_dma::{Hugepages, Pool};
use memkv_nvme::{Health, Nvme, NvmeError, Options, PciAddress, PciDevice, Sysfs, Transport};
use memkv_poller::SystemClock;

use crate::attend::Rounds;
use crate::config::{BypassUse, Config, IdlePolicy};
use crate::seats::{self, Seat};

/// Queues beside those of the reactors: the journals', and that of a drive which joins.
const MORE_QUEUES: u16 = 2;

/// The longest that a command may go unanswered before the driver does something about it.
const COMMAND_LIMIT: Duration = Duration::from_secs(4);

/// How long a drive that is in use is asked for again: a process that was killed has it until the kernel
/// has cleaned up behind it.
const PATIENCE: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Why a drive that is named by its PCI address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BypassError {
    /// Nothing has this address.
    #[error("there is no PCI device {0}; memkv drive list shows which drives there are")]
    NoDevice(PciAddress),
    /// It is something else than a drive.
    #[error("{address} is no NVMe controller: its PCI class is {class:#08x}")]
    NotNvme {
        /// Its address.
        address: PciAddress,
        /// Its class.
        class: u32,
    },
    /// The kernel's driver has it, or none.
    #[error("{}", not_bound(*address, driver.as_deref(), block_devices))]
    NotBound {
        /// Its address.
        address: PciAddress,
        /// The driver that has it.
        driver: Option<String>,
        /// Its block devices.
        block_devices: Vec<String>,
    },
    /// There is no IOMMU.
    #[error("{}", no_iommu(*address, block_devices))]
    NoIommu {
        /// Its address.
        address: PciAddress,
        /// Its block devices.
        block_devices: Vec<String>,
    },
    /// Its block device is wanted, and there is none.
    #[error(
        "{address} has no block device, for {} has it; give it back to the kernel: memkv drive unbind {address}",
        driver.as_deref().unwrap_or("no driver")
    )]
    NoBlockDevice {
        /// Its address.
        address: PciAddress,
        /// The driver that has it.
        driver: Option<String>,
    },
    /// Another process drives it.
    #[error("{address} is in use by another process")]
    InUse {
        /// Its address.
        address: PciAddress,
    },
    /// Its block device cannot be opened.
    #[error(transparent)]
    Block(#[from] OpenError),
    /// The kernel does not hand it out.
    #[cfg(target_os = "linux")]
    #[error("{address} cannot be reached through VFIO")]
    Vfio {
        /// Its address.
        address: PciAddress,
        /// Why.
        #[source]
        source: memkv_nvme::VfioError,
    },
    /// There is no VFIO here.
    #[error("this system has no VFIO, by which {address} could be reached")]
    NoVfio {
        /// Its address.
        address: PciAddress,
    },
    /// It does not grant a queue to each reactor, and one to the journal.
    #[error("{address} grants {granted} queues, which is enough for {} reactors; set node.reactors", granted.saturating_sub(1))]
    Queues {
        /// Its address.
        address: PciAddress,
        /// Queues that it grants.
        granted: u16,
    },
    /// The controller does not come up.
    #[error("{address} does not come up")]
    Nvme {
        /// Its address.
        address: PciAddress,
        /// Why.
        #[source]
        source: NvmeError,
    },
}

fn not_bound(address: PciAddress, driver: Option<&str>, block_devices: &[String]) -> String {
    let driver = driver.unwrap_or("no driver");
    let mut text = format!(
        "{address} is bound to {driver}, not to vfio-pci; give it to vfio-pci: memkv drive bind \
         {address}"
    );
    or_by_block_device(&mut text, block_devices);
    text
}

fn no_iommu(address: PciAddress, block_devices: &[String]) -> String {
    let mut text = format!(
        "{address} has no IOMMU group, and without an IOMMU a drive could write anywhere in memory; \
         switch the IOMMU on in the firmware (VT-d, AMD-Vi) and on the kernel's command line \
         (intel_iommu=on)"
    );
    or_by_block_device(&mut text, block_devices);
    text
}

/// What else can be done with a drive that the kernel has.
fn or_by_block_device(text: &mut String, block_devices: &[String]) {
    if let Some(name) = block_devices.first() {
        let or =
            format!("; or leave it to the kernel: storage.bypass: prefer, or media: /dev/{name}");
        write!(text, "{or}").expect("writing to a string");
    }
}

impl BypassError {
    /// Whether the drive is there and the kernel has it, so that its block device may serve.
    fn is_for_the_kernel(&self) -> bool {
        matches!(self, Self::NotBound { .. } | Self::NoIommu { .. } | Self::NoVfio { .. })
    }
}

/// How a drive is to be reached.
#[derive(Debug)]
pub(crate) enum Way {
    /// From here.
    Vfio,
    /// Through the kernel, by this block device; and why.
    Kernel { path: PathBuf, why: String },
}

/// How drives are opened.
pub(crate) struct Terms {
    /// Queues for reactors.
    pub queues: u16,
    /// How long a drive may leave its oldest command unanswered.
    pub timeout: Duration,
    /// Whether reactors sleep.
    pub interrupts: bool,
    /// What the queues' memory is made of.
    pub hugepages: Hugepages,
    /// How long a drive in use is asked for again.
    pub patience: Duration,
}

impl Terms {
    /// For a node's reactors.
    pub fn of(config: &Config) -> Terms {
        Terms {
            queues: config.reactors.max(1) as u16 + MORE_QUEUES,
            timeout: config.storage.drive_timeout,
            interrupts: config.idle == IdlePolicy::Adaptive,
            hugepages: config.memory.hugepages.into(),
            patience: PATIENCE,
        }
    }
}

/// The drives that this process drives itself.
pub struct Bypass {
    sysfs: Sysfs,
    #[cfg(target_os = "linux")]
    iommu: Arc<memkv_nvme::Iommu>,
    open: Arc<Mutex<Vec<Arc<Attended>>>>,
    /// Cuts off those that have failed, once there are any.
    rounds: OnceLock<Option<Rounds>>,
}

/// A drive that is looked after.
pub(crate) struct Attended {
    drive: Weak<Nvme>,
    seen: Mutex<Seen>,
}

/// What was seen of it.
#[derive(Default)]
pub(crate) struct Seen {
    /// It is out of service, and that was told.
    pub lost: bool,
    /// What it said of its health, and when it was asked.
    pub health: Option<Health>,
    pub asked: Option<Instant>,
}

impl Attended {
    /// The drive, as long as somebody uses it.
    pub fn drive(&self) -> Option<Arc<Nvme>> {
        self.drive.upgrade()
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listed(drives: &Mutex<Vec<Arc<Attended>>>) -> MutexGuard<'_, Vec<Arc<Attended>>> {
    drives.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bypass {
    /// None yet; `sysfs` is where the kernel shows what there is.
    pub fn new(sysfs: Sysfs) -> Arc<Bypass> {
        Arc::new(Bypass {
            sysfs,
            #[cfg(target_os = "linux")]
            iommu: memkv_nvme::Iommu::new(),
            open: Arc::default(),
            rounds: OnceLock::new(),
        })
    }

    /// Notes a drive, for those who look after drives. From now on it is cut off when it fails.
    pub fn note(&self, drive: &Arc<Nvme>) {
        let mut open = self.open();
        open.retain(|attended| attended.drive.strong_count() > 0);
        let seen = Mutex::default();
        open.push(Arc::new(Attended { drive: Arc::downgrade(drive), seen }));
        drop(open);
        self.rounds.get_or_init(|| {
            let drives = Arc::clone(&self.open);
            let round = move || {
                let drives = listed(&drives).clone();
                drives.iter().filter_map(|attended| attended.drive()).for_each(|drive| {
                    drive.attend();
                });
            };
            Rounds::start("cut-off", round)
                .inspect_err(|error| {
                    tracing::error!(%error, "drives that fail are not cut off: no thread");
                })
                .ok()
        });
    }

    /// The drives that are open.
    pub(crate) fn attended(&self) -> Vec<Arc<Attended>> {
        self.open().clone()
    }

    /// The drive of this name: of several, of which all but one have failed, the one that came last.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Attended>> {
        let is_it = |attended: &&Arc<Attended>| attended.drive().is_some_and(|d| d.name() == name);
        self.open().iter().rev().find(is_it).cloned()
    }

    fn open(&self) -> MutexGuard<'_, Vec<Arc<Attended>>> {
        listed(&self.open)
    }

    /// The NUMA node of the device behind a drive's name, a PCI address or the path of a block device.
    pub(crate) fn numa_node(&self, name: &str) -> Option<u32> {
        self.sysfs.numa_node(Path::new(name))
    }

    /// Where reactors run.
    pub(crate) fn seats(
        &self,
        config: &Config,
        devices: &[Arc<dyn BlockDevice>],
    ) -> Vec<Option<Seat>> {
        let drives: Vec<_> = devices.iter().map(|device| self.numa_node(device.name())).collect();
        let (reactors, busy) = (config.reactors.max(1), config.idle == IdlePolicy::Busy);
        seats::assign(reactors, busy, &drives, &seats::nodes(&self.sysfs))
    }

    fn device(&self, address: PciAddress) -> Result<PciDevice, BypassError> {
        let device = self.sysfs.device(address).ok_or(BypassError::NoDevice(address))?;
        match device.class() {
            _ if device.is_nvme() => Ok(device),
            class => Err(BypassError::NotNvme { address, class }),
        }
    }

    /// How a drive is to be reached, as the kernel has it now.
    pub(crate) fn way(&self, address: PciAddress, wanted: BypassUse) -> Result<Way, BypassError> {
        let device = self.device(address)?;
        let (driver, block_devices) = (device.driver(), device.block_devices());
        let by_vfio = match () {
            () if !device.is_vfio() => {
                Err(BypassError::NotBound { address, driver, block_devices })
            }
            () if device.iommu_group().is_none() => {
                Err(BypassError::NoIommu { address, block_devices })
            }
            () if cfg!(not(target_os = "linux")) => Err(BypassError::NoVfio { address }),
            () => Ok(()),
        };
        let by_block_device = |why: &str| match device.block_devices().first() {
            Some(name) => {
                let path = PathBuf::from("/dev").join(name);
                let why = format!("/dev/{name} of {address}, {why}");
                Ok(Way::Kernel { path, why })
            }
            None => Err(BypassError::NoBlockDevice { address, driver: device.driver() }),
        };
        match (wanted, by_vfio) {
            (BypassUse::Never, _) => by_block_device("as storage.bypass says"),
            (_, Ok(())) => Ok(Way::Vfio),
            (BypassUse::Prefer, Err(error)) if error.is_for_the_kernel() => {
                let driver = device.driver().unwrap_or_else(|| "no driver".to_owned());
                // Without a block device the first error says more.
                by_block_device(&format!("which {driver} has and not vfio-pci")).map_err(|_| error)
            }
            (_, Err(error)) => Err(error),
        }
    }

    /// Opens a drive as a node does.
    pub(crate) fn open_drive(
        &self,
        address: PciAddress,
        config: &Config,
        pool: &Pool,
    ) -> Result<Arc<dyn BlockDevice>, BypassError> {
        match self.way(address, config.storage.bypass)? {
            Way::Vfio => {
                let drive = self.open_vfio(address, pool, &Terms::of(config))?;
                let granted = drive.info().queues;
                match usize::from(granted) > config.reactors {
                    true => Ok(drive),
                    false => Err(BypassError::Queues { address, granted }),
                }
            }
            Way::Kernel { path, why } => {
                tracing::warn!(drive = %address, %why, "the kernel drives it");
                let mut options = OpenOptions::new(path, pool.clone());
                options.name = Some(address.to_string());
                options.note = Some(why);
                Ok(memkv_block::open(options)?)
            }
        }
    }

    /// Brings a controller up that `vfio-pci` has. Blocks while another process lets go of it.
    pub(crate) fn open_vfio(
        &self,
        address: PciAddress,
        pool: &Pool,
        terms: &Terms,
    ) -> Result<Arc<Nvme>, BypassError> {
        let asked = Instant::now();
        let transport = loop {
            match self.reach(address, terms.queues) {
                Err(BypassError::InUse { .. }) if asked.elapsed() < terms.patience => {
                    std::thread::sleep(ASK_AGAIN);
                }
                reached => break reached?,
            }
        };
        // It has to have tried what it can before the drive is given up for stalling.
        let command_limit = COMMAND_LIMIT.min(terms.timeout * 2 / 5);
        let options = Options {
            command_limit,
            interrupts: terms.interrupts,
            hugepages: terms.hugepages,
            ..Options::new(terms.queues)
        };
        let drive = memkv_nvme::open(transport, pool, Arc::new(SystemClock), options)
            .map_err(|source| BypassError::Nvme { address, source })?;
        self.note(&drive);
        Ok(drive)
    }

    #[cfg(target_os = "linux")]
    fn reach(&self, address: PciAddress, queues: u16) -> Result<Arc<dyn Transport>, BypassError> {
        use memkv_nvme::{Vfio, VfioError};
        let device = self.device(address)?;
        match Vfio::open_shared(&self.sysfs, &self.iommu, address, queues) {
            Ok(vfio) => Ok(Arc::new(vfio)),
            Err(VfioError::InUse { .. }) => Err(BypassError::InUse { address }),
            Err(VfioError::NotBound { driver, .. }) => {
                let block_devices = device.block_devices();
                Err(BypassError::NotBound { address, driver, block_devices })
            }
            Err(VfioError::NoIommu { .. }) => {
                Err(BypassError::NoIommu { address, block_devices: device.block_devices() })
            }
            Err(source) => Err(BypassError::Vfio { address, source }),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn reach(&self, address: PciAddress, _queues: u16) -> Result<Arc<dyn Transport>, BypassError> {
        Err(BypassError::NoVfio { address })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const ADDRESS: &str = "0000:01:00.0";

    /// A tree with one drive, which `driver` has.
    fn tree(driver: Option<&str>, block_device: bool, group: bool) -> tempfile::TempDir {
        let tree = tempfile::tempdir().expect("a temporary directory");
        let device = tree.path().join("bus/pci/devices").join(ADDRESS);
        fs::create_dir_all(&device).expect("a folder");
        fs::write(device.join("class"), "0x010802\n").expect("a file");
        if let Some(driver) = driver {
            symlink(Path::new("drivers").join(driver), device.join("driver")).expect("a link");
        }
        if block_device {
            fs::create_dir_all(device.join("nvme/nvme4/nvme4n1")).expect("a folder");
        }
        if group {
            symlink("iommu_groups/17", device.join("iommu_group")).expect("a link");
        }
        tree
    }

    fn way(tree: &tempfile::TempDir, wanted: BypassUse) -> Result<Way, BypassError> {
        Bypass::new(Sysfs::at(tree.path())).way(ADDRESS.parse().expect("an address"), wanted)
    }

    fn told(tree: &tempfile::TempDir, wanted: BypassUse) -> String {
        way(tree, wanted).expect_err("it cannot be had").to_string()
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_drive_that_vfio_has_is_driven_from_here_unless_that_is_not_wanted() {
        let tree = tree(Some("vfio-pci"), false, true);
        for wanted in [BypassUse::Require, BypassUse::Prefer] {
            assert!(matches!(way(&tree, wanted), Ok(Way::Vfio)));
        }
        let told = told(&tree, BypassUse::Never);
        assert!(told.contains("vfio-pci has it") && told.contains("memkv drive unbind"), "{told}");
    }

    #[test]
    fn a_drive_that_the_kernel_has_is_bound_first_or_used_by_its_block_device() {
        let tree = tree(Some("nvme"), true, true);
        let required = told(&tree, BypassUse::Require);
        for what in [ADDRESS, "bound to nvme", "memkv drive bind 0000:01:00.0", "/dev/nvme4n1"] {
            assert!(required.contains(what), "{required}");
        }
        for (wanted, reason) in [(BypassUse::Prefer, "nvme has"), (BypassUse::Never, "bypass says")]
        {
            let Ok(Way::Kernel { path, why }) = way(&tree, wanted) else { panic!("by the kernel") };
            assert_eq!(path, Path::new("/dev/nvme4n1"));
            assert!(why.contains(ADDRESS) && why.contains(reason), "{why}");
        }
    }

    #[test]
    fn what_nobody_has_and_what_no_iommu_guards_is_explained() {
        let unbound = tree(None, false, true);
        for wanted in [BypassUse::Require, BypassUse::Prefer] {
            let told = told(&unbound, wanted);
            assert!(told.contains("bound to no driver"), "a reason to bind it: {told}");
        }
        let unguarded = tree(Some("vfio-pci"), false, false);
        assert!(told(&unguarded, BypassUse::Prefer).contains("intel_iommu=on"));
        let nothing = tempfile::tempdir().expect("a temporary directory");
        assert!(told(&nothing, BypassUse::Require).contains("memkv drive list"));
        let device = unbound.path().join("bus/pci/devices").join(ADDRESS);
        fs::write(device.join("class"), "0x020000\n").expect("a file");
        assert!(told(&unbound, BypassUse::Prefer).contains("no NVMe controller"));
    }
}
