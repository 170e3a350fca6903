//! The drives of the guest: which PCI device is which, and which driver has it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const DEVICES: &str = "/sys/bus/pci/devices";

/// How long the kernel may take to bring a drive up or to let go of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A driver of the kernel.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Driver {
    /// It drives the drive itself.
    Nvme,
    /// It hands it to a process.
    Vfio,
}

impl Driver {
    fn name(self) -> &'static str {
        match self {
            Driver::Nvme => "nvme",
            Driver::Vfio => "vfio-pci",
        }
    }
}

/// The PCI address of the drive with this serial number, as long as the kernel drives it.
fn find(serial: &str) -> Option<String> {
    fs::read_dir("/sys/class/nvme").ok()?.flatten().find_map(|controller| {
        let read = |name: &str| fs::read_to_string(controller.path().join(name)).ok();
        let is_it = read("serial")?.trim() == serial && read("state")?.trim() == "live";
        is_it.then(|| read("address")).flatten().map(|address| address.trim().to_owned())
    })
}

/// Waits until something is there.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The PCI address of a drive, by its serial number; the kernel drives it, or soon will.
pub fn address(serial: &str) -> String {
    wait_for(serial, || find(serial))
}

fn device(address: &str) -> PathBuf {
    Path::new(DEVICES).join(address)
}

/// Whether the device is there.
pub fn is_there(address: &str) -> bool {
    device(address).exists()
}

/// Whether a driver has a device.
pub fn is_bound(address: &str, driver: Driver) -> bool {
    let now = fs::read_link(device(address).join("driver"));
    now.is_ok_and(|path| path.ends_with(driver.name()))
}

/// Gives a device to a driver, and waits until that has it.
pub fn bind(address: &str, driver: Driver) {
    let device = device(address);
    let write = |name: &str, text: &str| fs::write(device.join(name), text);
    let bound = || -> io::Result<()> {
        write("driver_override", driver.name())?;
        if device.join("driver").exists() {
            write("driver/unbind", address)?;
        }
        fs::write("/sys/bus/pci/drivers_probe", address)
    };
    bound().unwrap_or_else(|error| panic!("{address} cannot be given to {driver:?}: {error}"));
    wait_for(driver.name(), || is_bound(address, driver).then_some(()));
}

/// Resets a device's function behind the back of whoever drives it.
pub fn reset(address: &str) -> io::Result<()> {
    fs::write(device(address).join("reset"), "1")
}

/// The block device of the namespace of a drive that the kernel drives.
pub fn block_device(address: &str) -> PathBuf {
    wait_for("a block device", || {
        let controller = fs::read_dir(device(address).join("nvme")).ok()?.next()?.ok()?;
        let names = fs::read_dir(controller.path()).ok()?.flatten();
        let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let namespace = names.find(|name| name.starts_with("nvme") && name.ends_with("n1"))?;
        let path = Path::new("/dev").join(namespace);
        path.exists().then_some(path)
    })
}
