//! PCI devices as the kernel shows them below `/sys`, and which driver has them.
//!
//! ```text
//!   /sys/bus/pci/devices/0000:01:00.0
//!       class  vendor  device  numa_node  driver_override
//!       driver       ─► …/drivers/nvme            who has it
//!       iommu_group  ─► …/iommu_groups/17         what the IOMMU cannot keep apart from it: devices/
//!       nvme/nvme0/  model  serial  nvme0n1/      what the kernel's driver made of it
//! ```
//!
//! To give a device to another driver its `driver_override` names that driver, the one that has it lets go
//! (`driver/unbind`), and the kernel looks anew (`drivers_probe`):
//! `Documentation/ABI/testing/sysfs-bus-pci` of the kernel. Who may be deprived of it is not decided here.
//!
//! The root of the tree is handed in, so that tests can have one of their own.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

/// The class of NVMe controllers: mass storage, non-volatile memory, NVM Express.
const NVME: u32 = 0x01_08_02;

/// Base class and subclass of bridges between buses. One of a group stays with its driver: VFIO does not
/// mind, for it takes no memory of its own.
const BRIDGE: u32 = 0x06_04;

/// The driver that hands devices to processes.
pub const VFIO: &str = "vfio-pci";

/// How long the kernel may take to give a device to a driver, and how often one looks.
const PATIENCE: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Where a device is on the bus: `0000:01:00.0`, domain, bus, device and function in hexadecimal.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is no address of a PCI device.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a PCI address looks like 0000:01:00.0")]
pub struct NotAnAddress;

impl FromStr for PciAddress {
    type Err = NotAnAddress;

    /// Reads `0000:01:00.0`, and `01:00.0` as lspci shows it: in domain 0.
    fn from_str(text: &str) -> Result<PciAddress, NotAnAddress> {
        let parse = || {
            let (rest, function) = text.split_once('.')?;
            let mut parts = rest.rsplit(':');
            let (device, bus) = (parts.next()?, parts.next()?);
            let domain = parts.next();
            let hex = |text: &str, digits: std::ops::RangeInclusive<usize>| {
                let all = text.bytes().all(|byte| byte.is_ascii_hexdigit());
                let good = all && digits.contains(&text.len());
                good.then(|| u32::from_str_radix(text, 16).ok()).flatten()
            };
            let address = PciAddress {
                domain: domain.map_or(Some(0), |domain| hex(domain, 4..=8))?,
                bus: hex(bus, 2..=2)? as u8,
                device: hex(device, 2..=2)? as u8,
                function: hex(function, 1..=1)? as u8,
            };
            let good = parts.next().is_none() && address.device < 32 && address.function < 8;
            good.then_some(address)
        };
        parse().ok_or(NotAnAddress)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PciAddress { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PciAddress {
    /// The address that a path is, when it is one and no path.
    pub fn of(path: &Path) -> Option<PciAddress> {
        path.to_str()?.parse().ok()
    }
}

/// Why a device was not given to a driver.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The kernel refused.
    #[error("the kernel refuses to give {address} to {driver}: cannot write {}", path.display())]
    Refused {
        /// The device.
        address: PciAddress,
        /// The driver.
        driver: String,
        /// What was written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The driver did not take it.
    #[error("{driver} did not take {address}, which {} has now; is it loaded (modprobe {driver})?", now.as_deref().unwrap_or("no driver"))]
    NotTaken {
        /// The device.
        address: PciAddress,
        /// The driver.
        driver: String,
        /// Who has it now.
        now: Option<String>,
    },
}

/// A tree that looks like `/sys`.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Sysfs {
        Sysfs::at("/sys")
    }
}

impl Sysfs {
    /// The tree below a folder.
    pub fn at(root: impl Into<PathBuf>) -> Sysfs {
        Sysfs { root: root.into() }
    }

    /// The device at an address, if there is one.
    pub fn device(&self, address: PciAddress) -> Option<PciDevice> {
        let path = self.devices().join(address.to_string());
        path.is_dir().then(|| PciDevice { bus: self.root.join("bus/pci"), path, address })
    }

    /// The NUMA node of the device that a drive is, or lies on: a PCI address, or the path of a block
    /// device. Nothing on a machine with one node, and for files.
    pub fn numa_node(&self, drive: &Path) -> Option<u32> {
        if let Some(address) = PciAddress::of(drive) {
            return self.device(address)?.numa_node();
        }
        let name = fs::canonicalize(drive).ok()?.file_name()?.to_owned();
        // A namespace lies below its controller, that below its PCI device; the node is the device's.
        let device = fs::canonicalize(self.root.join("class/block").join(name)).ok()?;
        let known = |folder: &&Path| folder.join("numa_node").is_file();
        word(&device.ancestors().find(known)?.join("numa_node"))?.parse().ok()
    }

    /// The cores of a NUMA node; none where the machine does not say.
    pub fn cores_of_node(&self, node: u32) -> Vec<usize> {
        let path = self.root.join(format!("devices/system/node/node{node}/cpulist"));
        word(&path).map(|list| cores(&list)).unwrap_or_default()
    }

    /// The NUMA nodes of the machine.
    pub fn nodes(&self) -> Vec<u32> {
        let names = entries(&self.root.join("devices/system/node"));
        names.iter().filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect()
    }

    /// All NVMe controllers, by address.
    pub fn controllers(&self) -> Vec<PciDevice> {
        let addresses = entries(&self.devices()).into_iter().filter_map(|name| name.parse().ok());
        let devices = addresses.filter_map(|address| self.device(address));
        devices.filter(PciDevice::is_nvme).collect()
    }

    fn devices(&self) -> PathBuf {
        self.root.join("bus/pci/devices")
    }
}

/// One device, as it is whenever it is asked.
#[derive(Clone, Debug)]
pub struct PciDevice {
    bus: PathBuf,
    path: PathBuf,
    address: PciAddress,
}

impl PciDevice {
    /// Where it is on the bus.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Its class: base class, subclass and interface, in 24 bits.
    pub fn class(&self) -> u32 {
        class_of(&self.path)
    }

    /// Whether it is an NVMe controller.
    pub fn is_nvme(&self) -> bool {
        self.class() == NVME
    }

    /// The driver that has it.
    pub fn driver(&self) -> Option<String> {
        last(&self.path.join("driver"))
    }

    /// Whether it is handed to processes.
    pub fn is_vfio(&self) -> bool {
        self.driver().as_deref() == Some(VFIO)
    }

    /// The NUMA node that it is attached to, where the machine has several and says so.
    pub fn numa_node(&self) -> Option<u32> {
        self.word("numa_node")?.parse().ok()
    }

    /// The number of its IOMMU group; none where there is no IOMMU, or it is switched off.
    pub fn iommu_group(&self) -> Option<u32> {
        last(&self.path.join("iommu_group"))?.parse().ok()
    }

    /// The other devices of its IOMMU group, with what has each of them.
    pub fn group_members(&self) -> Vec<GroupMember> {
        let names = entries(&self.path.join("iommu_group/devices"));
        let devices = self.path.join("iommu_group/devices");
        let others = names.into_iter().filter(|name| *name != self.address.to_string());
        let member = |name: String| {
            let path = devices.join(&name);
            let driver = last(&path.join("driver"));
            GroupMember { driver, class: class_of(&path), name }
        };
        others.map(member).collect()
    }

    /// Names of the block devices that the kernel's driver has made of it, the namespaces: `nvme0n1`,
    /// those that it shares with other controllers among them.
    pub fn block_devices(&self) -> Vec<String> {
        let mut names = Vec::new();
        for controller in entries(&self.path.join("nvme")) {
            let folder = self.path.join("nvme").join(controller);
            names.extend(entries(&folder).iter().filter_map(|name| namespace(name)));
        }
        names.sort();
        names.dedup();
        names
    }

    /// What the drive calls itself, as the kernel's driver has learned it: model and serial number.
    pub fn names(&self) -> Option<(String, String)> {
        let controller = entries(&self.path.join("nvme")).into_iter().next()?;
        let folder = self.path.join("nvme").join(controller);
        Some((word(&folder.join("model"))?, word(&folder.join("serial"))?))
    }

    /// Gives it to `driver`, for as long as it is there or until it is given to another; at once when it
    /// has it already. Waits until the driver has taken it.
    pub fn give_to(&self, driver: &str) -> Result<(), BindError> {
        self.pass(Some(driver), driver)
    }

    /// Gives it back to the driver that the kernel chooses for it, which is to be `expected`.
    pub fn give_back(&self, expected: &str) -> Result<(), BindError> {
        self.pass(None, expected)
    }

    fn pass(&self, to: Option<&str>, driver: &str) -> Result<(), BindError> {
        let write = |path: PathBuf, text: &str| {
            fs::write(&path, text).map_err(|source| BindError::Refused {
                address: self.address,
                driver: driver.to_owned(),
                path,
                source,
            })
        };
        // A line alone takes the name away again.
        write(self.path.join("driver_override"), to.unwrap_or("\n"))?;
        let now = self.driver();
        if now.as_deref() == Some(driver) {
            return Ok(());
        }
        let address = self.address.to_string();
        if now.is_some() {
            write(self.path.join("driver/unbind"), &address)?;
        }
        write(self.bus.join("drivers_probe"), &address)?;
        let asked = Instant::now();
        loop {
            let now = self.driver();
            if now.as_deref() == Some(driver) {
                return Ok(());
            }
            if asked.elapsed() > PATIENCE {
                // Or that driver would take it whenever it is loaded, and no other ever would.
                if to.is_some() {
                    write(self.path.join("driver_override"), "\n")?;
                }
                return Err(BindError::NotTaken {
                    address: self.address,
                    driver: driver.to_owned(),
                    now,
                });
            }
            thread::sleep(ASK_AGAIN);
        }
    }

    fn word(&self, name: &str) -> Option<String> {
        word(&self.path.join(name))
    }
}

/// Another device of an IOMMU group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupMember {
    /// Its address.
    pub name: String,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its class, as [`PciDevice::class`] tells it.
    pub class: u32,
}

impl GroupMember {
    /// Whether VFIO gives nobody the group because of it: a driver of the kernel has it.
    pub fn is_foreign(&self) -> bool {
        let harmless = [VFIO, "pci-stub"];
        let taken = self.driver.as_deref().is_some_and(|driver| !harmless.contains(&driver));
        taken && self.class >> 8 != BRIDGE
    }
}

/// The numbers of a list like `0-3,8,10-11`; what is no number is left out.
fn cores(list: &str) -> Vec<usize> {
    let ranges = list.split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    });
    ranges.flatten().collect()
}

/// The class of the device of a folder; 0 when it does not say.
fn class_of(device: &Path) -> u32 {
    let class = word(&device.join("class")).unwrap_or_default();
    u32::from_str_radix(class.trim_start_matches("0x"), 16).unwrap_or(0)
}

/// The block device of a namespace: `nvme0n1`, also for `nvme0c1n1`, which is one of several ways to it;
/// nothing for `ng0n1` and what else lies beside it.
fn namespace(name: &str) -> Option<String> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (before, namespace) = name.strip_prefix("nvme")?.split_once('n')?;
    let subsystem = before.split_once('c').map_or(before, |(subsystem, _)| subsystem);
    let good = digits(subsystem) && digits(namespace);
    good.then(|| format!("nvme{subsystem}n{namespace}"))
}

/// Names in a folder, in order; none when it cannot be read.
fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The last part of what a link leads to.
fn last(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// The one line of a small file.
fn word(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, shown) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("01:00.0", "0000:01:00.0"),
            ("0001:AF:1f.7", "0001:af:1f.7"),
            ("10000:01:00.0", "10000:01:00.0"),
        ] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), shown);
        }
        let not = [
            "",
            "0000:01:00",
            "1:00.0",
            "0000:01:20.0",
            "0000:01:00.8",
            "0:01:00.0",
            "../01:00.0",
            "0000:0000:01:00.0",
            "+000:01:00.0",
            "/dev/nvme0n1",
            "0000:01:00.0 ",
            "0000:01:00.00",
        ];
        for text in not {
            assert_eq!(text.parse::<PciAddress>(), Err(NotAnAddress), "{text:?}");
        }
        assert!(PciAddress::of(Path::new("./0000:01:00.0")).is_none(), "that is a path");
    }

    /// A tree with the drive 0000:01:00.0 in group 17, which the kernel's driver has.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Tree {
            let root =
                std::env::temp_dir().join(format!("memkv-pci-{name}-{}", std::process::id()));
            let tree = Tree(root);
            tree.add("0000:01:00.0", "0x010802", Some("nvme"));
            tree.write("bus/pci/devices/0000:01:00.0/nvme/nvme3/model", "Old Faithful \n");
            tree.write("bus/pci/devices/0000:01:00.0/nvme/nvme3/serial", "S1\n");
            for name in ["nvme3n1", "nvme3c0n1", "ng3n1", "hwmon2"] {
                tree.write(&format!("bus/pci/devices/0000:01:00.0/nvme/nvme3/{name}/x"), "");
            }
            tree.write("bus/pci/devices/0000:01:00.0/numa_node", "1\n");
            tree.write("bus/pci/drivers_probe", "");
            tree
        }

        /// A device of group 17.
        fn add(&self, address: &str, class: &str, driver: Option<&str>) {
            let folder = format!("bus/pci/devices/{address}");
            self.write(&format!("{folder}/class"), class);
            self.write(&format!("{folder}/driver_override"), "(null)\n");
            let group = self.0.join("kernel/iommu_groups/17/devices");
            fs::create_dir_all(&group).unwrap();
            let device = self.0.join(&folder);
            symlink(self.0.join("kernel/iommu_groups/17"), device.join("iommu_group")).unwrap();
            symlink(&device, group.join(address)).unwrap();
            for driver in ["nvme", VFIO] {
                self.write(&format!("bus/pci/drivers/{driver}/unbind"), "");
            }
            if let Some(driver) = driver {
                self.bind(address, driver);
            }
        }

        fn bind(&self, address: &str, driver: &str) {
            let device = self.0.join("bus/pci/devices").join(address);
            let _ = fs::remove_file(device.join("driver"));
            symlink(self.0.join("bus/pci/drivers").join(driver), device.join("driver")).unwrap();
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.join(path)).unwrap_or_default()
        }

        fn device(&self) -> PciDevice {
            let address = "0000:01:00.0".parse().unwrap();
            Sysfs::at(&self.0).device(address).expect("it is there")
        }

        /// Does what the kernel does, until it is stopped: a device that is probed goes to the driver
        /// that its override names, or to `nvme`.
        fn be_the_kernel(&self, stop: &AtomicBool) {
            while !stop.load(Ordering::SeqCst) {
                let address = self.read("bus/pci/drivers_probe");
                if !address.is_empty() {
                    let wanted = self.read(&format!("bus/pci/devices/{address}/driver_override"));
                    let wanted = if wanted.trim().is_empty() { "nvme" } else { wanted.trim() };
                    // First: who sees it bound may write the next one at once.
                    self.write("bus/pci/drivers_probe", "");
                    self.bind(&address, wanted);
                }
                thread::yield_now();
            }
        }
    }

    /// Stops the kernel, also when an assertion has failed.
    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_the_kernel_shows_of_a_device_is_read() {
        let tree = Tree::new("shown");
        tree.add("0000:00:1c.0", "0x060400", Some("pcieport"));
        tree.add("0000:02:00.0", "0x020000", Some("ixgbe"));
        tree.add("0000:03:00.0", "0x010802", None);
        let sys = Sysfs::at(&tree.0);
        let found = sys.controllers();
        let addresses: Vec<String> = found.iter().map(|d| d.address().to_string()).collect();
        assert_eq!(addresses, ["0000:01:00.0", "0000:03:00.0"]);
        let device = tree.device();
        assert_eq!((device.driver().as_deref(), device.is_vfio()), (Some("nvme"), false));
        assert_eq!((device.numa_node(), device.iommu_group()), (Some(1), Some(17)));
        assert_eq!(device.block_devices(), ["nvme3n1"]);
        tree.write("bus/pci/devices/0000:01:00.0/nvme/nvme3/nvme2c3n7/x", "");
        assert_eq!(device.block_devices(), ["nvme2n7", "nvme3n1"], "one has other ways to it");
        assert_eq!(device.names(), Some(("Old Faithful".into(), "S1".into())));
        assert_eq!(found[1].names(), None);
        tree.write("bus/pci/devices/0000:01:00.0/numa_node", "-1\n");
        assert_eq!(device.numa_node(), None, "the machine has one node");
        let members = device.group_members();
        let foreign = members.iter().map(|m| (&*m.name, m.is_foreign())).collect::<Vec<_>>();
        let expected = [("0000:00:1c.0", false), ("0000:02:00.0", true), ("0000:03:00.0", false)];
        assert_eq!(foreign, expected);
        assert!(sys.device("0000:09:00.0".parse().unwrap()).is_none());
    }

    #[test]
    fn numa_nodes_of_drives_and_their_cores_are_found() {
        let tree = Tree::new("numa");
        let sys = Sysfs::at(&tree.0);
        assert_eq!(sys.numa_node(Path::new("0000:01:00.0")), Some(1));
        assert_eq!(sys.numa_node(Path::new("0000:09:00.0")), None);
        // A block device's name leads to its controller's device; any file will do for its node.
        tree.write("nvme3n1", "");
        fs::create_dir_all(tree.0.join("class/block")).unwrap();
        let namespace = tree.0.join("bus/pci/devices/0000:01:00.0/nvme/nvme3/nvme3n1");
        symlink(namespace, tree.0.join("class/block/nvme3n1")).unwrap();
        assert_eq!(sys.numa_node(&tree.0.join("nvme3n1")), Some(1));
        assert_eq!(sys.numa_node(&tree.0), None, "that is no block device");
        for (node, list) in [(0, "0-1,4\n"), (1, "2-3\n"), (2, "\n")] {
            tree.write(&format!("devices/system/node/node{node}/cpulist"), list);
        }
        tree.write("devices/system/node/possible", "0-2\n");
        assert_eq!(sys.nodes(), [0, 1, 2]);
        let cores = [0, 1, 2, 3].map(|node| sys.cores_of_node(node));
        assert_eq!(cores, [vec![0, 1, 4], vec![2, 3], vec![], vec![]]);
    }

    #[test]
    fn a_device_goes_to_vfio_and_back_and_stays_where_it_is_when_it_is_there() {
        let tree = Tree::new("passed");
        let (device, stop) = (tree.device(), AtomicBool::new(false));
        let overridden = || tree.read("bus/pci/devices/0000:01:00.0/driver_override");
        thread::scope(|scope| {
            scope.spawn(|| tree.be_the_kernel(&stop));
            let _stop = Stop(&stop);
            for _ in 0..2 {
                device.give_to(VFIO).expect("the kernel gives it");
                assert!(device.is_vfio());
                assert_eq!(overridden(), VFIO);
                assert_eq!(tree.read("bus/pci/drivers/nvme/unbind"), "0000:01:00.0");
            }
            tree.write("bus/pci/drivers/nvme/unbind", "");
            for _ in 0..2 {
                device.give_back("nvme").expect("the kernel takes it back");
                assert_eq!(device.driver().as_deref(), Some("nvme"));
                assert_eq!(overridden(), "\n");
                assert_eq!(tree.read("bus/pci/drivers/vfio-pci/unbind"), "0000:01:00.0");
            }
            assert_eq!(tree.read("bus/pci/drivers/nvme/unbind"), "", "it was there already");
        });
    }

    #[test]
    fn a_device_that_no_driver_takes_is_kept_for_none() {
        let tree = Tree::new("untaken");
        tree.write("bus/pci/drivers/nvme/unbind", "");
        let error = tree.device().give_to(VFIO).expect_err("there is no such driver");
        assert!(matches!(error, BindError::NotTaken { .. }), "{error}");
        assert_eq!(tree.read("bus/pci/devices/0000:01:00.0/driver_override"), "\n");
    }

    #[test]
    fn a_kernel_that_refuses_is_quoted() {
        let tree = Tree::new("refused");
        fs::remove_dir_all(tree.0.join("bus/pci/drivers/nvme")).unwrap();
        let error = tree.device().give_to(VFIO).expect_err("nothing can be written");
        let told = error.to_string();
        assert!(told.contains("0000:01:00.0") && told.contains("driver/unbind"), "{told}");
        assert!(std::error::Error::source(&error).is_some());
    }
}
