//! `memkv drive bind` and `memkv drive unbind`: which driver of the kernel has an NVMe controller, `nvme`,
//! which makes a block device of it, or `vfio-pci`, which hands it to a node.
//!
//! 1. Everything that stands against it is said at once, for all drives that were named; then nothing was
//!    changed. A drive with a file system that is mounted is not taken, nor is one that anything else uses:
//!    the kernel would take it all the same, and everything on it would be gone from the system.
//! 2. `vfio-pci` is loaded, if it is not; where it cannot be, nothing was changed either.
//! 3. One drive after the other is given over. Those that are where they should be stay as they are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use memkv_nvme::{PciAddress, PciDevice, Sysfs, VFIO};
use serde::Serialize;

use super::claims::System;
use super::{BindArgs, OfflineError, say, say_json};
use crate::cli::Exit;
use crate::config::{Config, Drive, Overrides};
use crate::paths::ThisMachine;

/// The kernel's own driver.
const NVME: &str = "nvme";

/// What became of one drive.
#[derive(Debug, Serialize)]
struct Bound {
    address: String,
    /// Who has it now.
    driver: &'static str,
    /// Who had it.
    was: Option<String>,
    iommu_group: Option<u32>,
}

impl Bound {
    fn text(&self) -> String {
        let Bound { address, driver, was, iommu_group } = self;
        let group = iommu_group.map(|group| format!(", IOMMU group {group}")).unwrap_or_default();
        match was.as_deref() {
            Some(was) if was == *driver => format!("{address} is bound to {driver} already{group}"),
            was => {
                format!("{address} bound to {driver}{group} (was: {})", was.unwrap_or("no driver"))
            }
        }
    }
}

/// Where drives are bound: the system's answers about them.
struct Desk {
    system: System,
    sysfs: Sysfs,
}

impl Desk {
    /// At a root that is `/` but in tests.
    fn at(root: &Path) -> Desk {
        Desk { system: System::at(root), sysfs: Sysfs::at(root.join("sys")) }
    }

    /// The drives at these addresses, or what stands against it.
    fn devices(&self, addresses: &BTreeSet<PciAddress>) -> Result<Vec<PciDevice>, Vec<String>> {
        let (mut devices, mut refused) = (Vec::new(), Vec::new());
        for &address in addresses {
            match self.sysfs.device(address) {
                None => refused.push(format!(
                    "{address}: there is no such PCI device; memkv drive list shows which there are"
                )),
                Some(device) if !device.is_nvme() => refused.push(format!(
                    "{address}: it is no NVMe controller: its PCI class is {:#08x}",
                    device.class()
                )),
                Some(device) => devices.push(device),
            }
        }
        if refused.is_empty() { Ok(devices) } else { Err(refused) }
    }

    /// What stands against giving drives to VFIO. `together` are all that are given.
    fn against_binding(&self, device: &PciDevice, together: &BTreeSet<PciAddress>) -> Vec<String> {
        let address = device.address();
        let mut reasons = Vec::new();
        let group = device.iommu_group();
        if group.is_none() {
            reasons.push(format!(
                "{address}: it has no IOMMU group; switch the IOMMU on, in the firmware (VT-d, \
                 AMD-Vi) and on the kernel's command line (intel_iommu=on)"
            ));
        }
        for member in device.group_members() {
            let named = member.name.parse().is_ok_and(|other| together.contains(&other));
            if member.is_foreign() && !named {
                let (group, driver) =
                    (group.unwrap_or_default(), member.driver.unwrap_or_default());
                reasons.push(format!(
                    "{address}: it shares IOMMU group {group} with {}, which {driver} has; the \
                     IOMMU cannot keep the two apart. Name it too, if it is a drive, or move the \
                     drive to another slot",
                    member.name
                ));
            }
        }
        if device.is_vfio() {
            return reasons;
        }
        for name in device.block_devices() {
            let claims = self.system.claims_of(&name);
            if claims.is_empty() && self.system.is_taken(&name) {
                reasons.push(format!("{address}: /dev/{name} is in use by another process"));
            }
            reasons.extend(claims.iter().map(|claim| format!("{address}: /dev/{name}: {claim}")));
        }
        reasons
    }

    /// What stands against giving a drive back to the kernel.
    fn against_unbinding(&self, device: &PciDevice) -> Vec<String> {
        let group = device.iommu_group().filter(|_| device.is_vfio());
        let taken = group.is_some_and(|group| self.system.is_taken(&format!("vfio/{group}")));
        let why = format!("{}: a server has it; stop that first", device.address());
        taken.then_some(why).into_iter().collect()
    }

    /// A drive would be nobody's that its driver has let go of and that no other one takes.
    fn load(&self, driver: &str) -> Result<(), OfflineError> {
        refuse(if self.system.load(driver) { Vec::new() } else { vec![not_loaded(driver)] })
    }

    fn bind(&self, addresses: &BTreeSet<PciAddress>) -> Result<Vec<Bound>, OfflineError> {
        // 1.
        let devices = self.devices(addresses).map_err(OfflineError::Refused)?;
        let against = devices.iter().flat_map(|device| self.against_binding(device, addresses));
        refuse(against.collect())?;
        // 2.
        if devices.iter().any(|device| !device.is_vfio()) {
            self.load(VFIO)?;
        }
        // 3.
        pass_all(&devices, VFIO, |device| device.give_to(VFIO))
    }

    fn unbind(&self, addresses: &BTreeSet<PciAddress>) -> Result<Vec<Bound>, OfflineError> {
        let devices = self.devices(addresses).map_err(OfflineError::Refused)?;
        let against = devices.iter().flat_map(|device| self.against_unbinding(device));
        refuse(against.collect())?;
        if devices.iter().any(|device| device.driver().as_deref() != Some(NVME)) {
            self.load(NVME)?;
        }
        pass_all(&devices, NVME, |device| device.give_back(NVME))
    }
}

/// What to do about a driver that is not there.
fn not_loaded(driver: &str) -> String {
    format!(
        "the kernel has no driver {driver}, and it cannot be loaded; see why: modprobe {driver}"
    )
}

fn refuse(reasons: Vec<String>) -> Result<(), OfflineError> {
    if reasons.is_empty() { Ok(()) } else { Err(OfflineError::Refused(reasons)) }
}

fn pass_all(
    devices: &[PciDevice],
    driver: &'static str,
    pass: impl Fn(&PciDevice) -> Result<(), memkv_nvme::BindError>,
) -> Result<Vec<Bound>, OfflineError> {
    let mut bound = Vec::with_capacity(devices.len());
    for device in devices {
        let was = device.driver();
        pass(device)?;
        bound.push(Bound {
            address: device.address().to_string(),
            driver,
            was,
            iommu_group: device.iommu_group(),
        });
    }
    Ok(bound)
}

/// The drives that were named, or those of the configuration that have PCI addresses there.
fn addresses(args: &BindArgs) -> Result<BTreeSet<PciAddress>, OfflineError> {
    let Some(file) = &args.config else {
        let addresses: BTreeSet<PciAddress> = args.drives.iter().copied().collect();
        if addresses.is_empty() {
            let how = "name drives by their PCI addresses, or give --config FILE";
            return Err(OfflineError::Usage(how.to_owned()));
        }
        return Ok(addresses);
    };
    let overrides = Overrides { file: Some(PathBuf::from(file)), ..Overrides::default() };
    let config = Config::load(&overrides, &ThisMachine)?;
    let drives = config.storage.drives.iter();
    Ok(drives
        .filter_map(|drive| match drive {
            Drive::Pci { address } => Some(*address),
            _ => None,
        })
        .collect())
}

fn tell(args: &BindArgs, bound: &[Bound]) -> Result<Exit, OfflineError> {
    if args.json {
        say_json(&bound)?;
    } else if bound.is_empty() {
        say("the configuration names no drive by its PCI address")?;
    } else {
        say(&bound.iter().map(Bound::text).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(Exit::Done)
}

pub(super) fn bind(args: &BindArgs) -> Result<Exit, OfflineError> {
    tell(args, &Desk::at(Path::new("/")).bind(&addresses(args)?)?)
}

pub(super) fn unbind(args: &BindArgs) -> Result<Exit, OfflineError> {
    tell(args, &Desk::at(Path::new("/")).unbind(&addresses(args)?)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::offline::controllers::{Controller, State};

    const ONE: &str = "0000:01:00.0";
    const TWO: &str = "0000:02:00.0";

    /// A machine with the drives [`ONE`] (group 17, `nvme0n1`) and [`TWO`] (group 18, `nvme1n1`), which
    /// the kernel has.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Machine {
            let machine = Machine(tempfile::tempdir().expect("a temporary directory"));
            machine.add(ONE, "0x010802", Some("nvme"), Some(17));
            machine.add(TWO, "0x010802", Some("nvme"), Some(18));
            for (address, name) in [(ONE, "nvme0"), (TWO, "nvme1")] {
                machine.write(&format!("sys/bus/pci/devices/{address}/nvme/{name}/model"), "M\n");
                machine.write(&format!("sys/bus/pci/devices/{address}/nvme/{name}/serial"), "S\n");
                machine.block_device(address, name);
            }
            machine.write("sys/bus/pci/drivers_probe", "");
            machine
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.path(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }

        fn add(&self, address: &str, class: &str, driver: Option<&str>, group: Option<u32>) {
            let folder = format!("sys/bus/pci/devices/{address}");
            self.write(&format!("{folder}/class"), class);
            for driver in [NVME, VFIO, "ixgbe"] {
                self.write(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
            }
            if let Some(driver) = driver {
                self.give(address, driver);
            }
            if let Some(group) = group {
                let group = self.path(&format!("sys/kernel/iommu_groups/{group}"));
                fs::create_dir_all(group.join("devices")).expect("a folder");
                symlink(&group, self.path(&folder).join("iommu_group")).expect("a link");
                let device = group.join("devices").join(address);
                symlink(self.path(&folder), device).expect("a link");
            }
        }

        /// The namespace 1 of a controller, with the number 259:N.
        fn block_device(&self, address: &str, controller: &str) {
            let number = format!("259:{}", &controller["nvme".len()..]);
            let folder = format!("sys/bus/pci/devices/{address}/nvme/{controller}/{controller}n1");
            self.write(&format!("{folder}/dev"), &number);
            for place in [format!("sys/block/{controller}n1"), format!("sys/dev/block/{number}")] {
                let place = self.path(&place);
                fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
                symlink(self.path(&folder), place).expect("a link");
            }
        }

        fn give(&self, address: &str, driver: &str) {
            let link = self.path(&format!("sys/bus/pci/devices/{address}/driver"));
            let _ = fs::remove_file(&link);
            symlink(self.path(&format!("sys/bus/pci/drivers/{driver}")), link).expect("a link");
        }

        fn driver(&self, address: &str) -> String {
            let link = self.path(&format!("sys/bus/pci/devices/{address}/driver"));
            let target = fs::read_link(link).expect("it is bound");
            target.file_name().expect("a name").to_string_lossy().into_owned()
        }

        /// The kernel: whoever is probed goes to the driver of its override, or to `nvme`.
        fn serve(&self, stop: &AtomicBool) {
            let probe = self.path("sys/bus/pci/drivers_probe");
            while !stop.load(Ordering::SeqCst) {
                let address = fs::read_to_string(&probe).expect("it is there");
                if !address.is_empty() {
                    let told = format!("sys/bus/pci/devices/{address}/driver_override");
                    let told = fs::read_to_string(self.path(&told)).expect("it was written first");
                    let driver = if told.trim().is_empty() { NVME } else { told.trim() };
                    // First: who sees it bound may write the next one at once.
                    fs::write(&probe, "").expect("it is there");
                    self.give(&address, driver);
                }
                std::thread::yield_now();
            }
        }

        /// Runs `act` while the kernel does its part.
        fn with_kernel<T>(&self, act: impl FnOnce(&Desk) -> T) -> T {
            struct Stop<'a>(&'a AtomicBool);
            impl Drop for Stop<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::SeqCst);
                }
            }
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| self.serve(&stop));
                let _stop = Stop(&stop);
                act(&Desk::at(self.0.path()))
            })
        }

        /// What is said against binding; nothing was changed then.
        fn refusal(&self, addresses: &[&str]) -> String {
            let before: Vec<String> = [ONE, TWO].map(|address| self.driver(address)).into();
            let desk = Desk::at(self.0.path());
            let error = desk.bind(&set(addresses)).expect_err("it is refused");
            let OfflineError::Refused(reasons) = error else { panic!("not refused: {error}") };
            let after: Vec<String> = [ONE, TWO].map(|address| self.driver(address)).into();
            assert_eq!(before, after, "nothing was changed");
            reasons.join("\n")
        }
    }

    fn set(addresses: &[&str]) -> BTreeSet<PciAddress> {
        addresses.iter().map(|address| address.parse().expect("an address")).collect()
    }

    #[test]
    fn drives_go_to_vfio_and_back_however_often_it_is_asked() {
        let machine = Machine::new();
        for was in [Some(NVME), Some(VFIO)] {
            let bound = machine.with_kernel(|desk| desk.bind(&set(&[ONE, TWO]))).expect("free");
            let told: Vec<_> = bound.iter().map(|b| (b.driver, b.was.as_deref())).collect();
            assert_eq!(told, [(VFIO, was), (VFIO, was)]);
            assert_eq!(bound[1].iommu_group, Some(18));
            assert_eq!([machine.driver(ONE), machine.driver(TWO)], [VFIO, VFIO]);
        }
        for was in [Some(VFIO), Some(NVME)] {
            let bound = machine.with_kernel(|desk| desk.unbind(&set(&[ONE]))).expect("free");
            assert_eq!((bound[0].driver, bound[0].was.as_deref()), (NVME, was));
            assert_eq!([machine.driver(ONE), machine.driver(TWO)], [NVME, VFIO]);
        }
    }

    #[test]
    fn a_drive_that_somebody_uses_is_not_taken_nor_the_others_with_it() {
        let machine = Machine::new();
        machine.write("proc/self/mountinfo", "22 1 259:1 / /data rw - ext4 /dev/nvme1n1 rw\n");
        let told = machine.refusal(&[ONE, TWO]);
        assert!(told.starts_with(TWO) && told.contains("mounted at /data"), "{told}");

        machine.write("proc/self/mountinfo", "");
        machine.write("proc/swaps", "Filename Type\n/dev/nvme1n1 partition 1 0 -2\n");
        assert!(machine.refusal(&[TWO]).contains("swapoff /dev/nvme1n1"));

        machine.write("proc/swaps", "");
        let one = format!("sys/bus/pci/devices/{ONE}/nvme/nvme0/nvme0n1");
        machine.write(&format!("{one}/holders/md0/x"), "");
        assert!(machine.refusal(&[ONE]).contains("mdadm --stop"));

        fs::remove_dir_all(machine.path(&one).join("holders")).expect("it is there");
        machine.write(&format!("{one}/nvme0n1p1/partition"), "1\n");
        machine.write(&format!("{one}/nvme0n1p1/dev"), "259:7\n");
        assert!(machine.refusal(&[ONE]).contains("nvme0n1p1"), "its partitions go with it");
    }

    #[test]
    fn what_shares_its_group_is_named_unless_it_comes_along() {
        let machine = Machine::new();
        machine.add("0000:00:1c.0", "0x060400", Some("ixgbe"), Some(17));
        machine.add("0000:01:00.1", "0x010802", Some("nvme"), Some(17));
        let told = machine.refusal(&[ONE]);
        assert!(told.contains("IOMMU group 17 with 0000:01:00.1, which nvme has"), "{told}");
        assert!(!told.contains("1c.0"), "a bridge is no obstacle: {told}");
        let both = set(&[ONE, "0000:01:00.1"]);
        machine.with_kernel(|desk| desk.bind(&both)).expect("they go together");

        machine.add("0000:02:00.1", "0x020000", Some("ixgbe"), Some(18));
        let told = machine.refusal(&[TWO]);
        assert!(told.contains("0000:02:00.1, which ixgbe has"), "{told}");
    }

    #[test]
    fn what_is_no_drive_or_has_no_iommu_is_refused() {
        let machine = Machine::new();
        machine.add("0000:03:00.0", "0x020000", Some("ixgbe"), Some(19));
        machine.add("0000:04:00.0", "0x010802", None, None);
        let told = machine.refusal(&["0000:03:00.0", "0000:09:00.0"]);
        assert!(told.contains("0000:03:00.0: it is no NVMe controller"), "{told}");
        assert!(told.contains("0000:09:00.0: there is no such PCI device"), "{told}");
        let told = machine.refusal(&["0000:04:00.0"]);
        assert!(told.contains("no IOMMU group") && told.contains("intel_iommu=on"), "{told}");
    }

    #[test]
    fn a_drive_stays_with_its_driver_where_there_is_no_other() {
        let machine = Machine::new();
        fs::remove_dir_all(machine.path("sys/bus/pci/drivers/vfio-pci")).expect("it is there");
        let told = machine.refusal(&[ONE, TWO]);
        assert_eq!(told, not_loaded(VFIO));
        let of_nvme = ["drivers/nvme/unbind", "drivers_probe"];
        let written = of_nvme.map(|path| fs::read(machine.path("sys/bus/pci").join(path)));
        assert!(written.iter().all(|bytes| matches!(bytes, Ok(bytes) if bytes.is_empty())));
    }

    #[test]
    fn controllers_are_listed_with_who_has_them_and_what_lies_beside() {
        let machine = Machine::new();
        machine.add("0000:01:00.1", "0x020000", Some("ixgbe"), Some(17));
        machine.add("0000:04:00.0", "0x010802", None, None);
        machine.write(&format!("sys/bus/pci/devices/{TWO}/numa_node"), "1\n");
        machine.give(TWO, VFIO);
        fs::remove_dir_all(machine.path(&format!("sys/bus/pci/devices/{TWO}/nvme")))
            .expect("there");
        let listed = Controller::all(machine.0.path());
        let states: Vec<_> = listed.iter().map(|c| (&*c.address, c.state, c.numa_node)).collect();
        let expected = [
            (ONE, State::Kernel, None),
            (TWO, State::Vfio, Some(1)),
            ("0000:04:00.0", State::Unbound, None),
        ];
        assert_eq!(states, expected);
        assert_eq!((listed[0].model.as_deref(), listed[0].iommu_group), (Some("M"), Some(17)));
        assert!(listed[0].is(Path::new("/dev/nvme0n1")) && listed[0].is(Path::new(ONE)));
        assert!(
            !listed[0].is(Path::new("/dev/nvme1n1")) && !listed[1].is(Path::new("/dev/nvme1n1"))
        );
        let shown = crate::offline::controllers::table(listed.iter());
        assert!(shown.contains("0000:01:00.1 (ixgbe)"), "{shown}");
        assert!(shown.contains("kernel") && shown.contains("vfio"), "{shown}");
    }
}
