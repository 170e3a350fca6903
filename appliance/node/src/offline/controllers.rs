//! What `memkv drive list` tells of NVMe controllers: who has them, where they are attached, and which
//! devices the IOMMU cannot keep apart from them.

use std::path::{Path, PathBuf};

use comfy_table::{ContentArrangement, Table, presets};
use memkv_nvme::{PciAddress, PciDevice, Sysfs};
use serde::Serialize;

use super::claims::System;

/// Who has a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// The kernel, which has made a block device of it.
    Kernel,
    /// `vfio-pci`, and through it nobody yet.
    Vfio,
    /// A process, through `vfio-pci`.
    InUse,
    /// No driver, or one that makes no drive of it.
    Unbound,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Vfio => "vfio",
            Self::InUse => "in use",
            Self::Unbound => "unbound",
        }
    }
}

/// Another device of its IOMMU group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Beside {
    address: String,
    driver: Option<String>,
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Controller {
    pub address: String,
    pub state: State,
    /// The driver of the kernel that has it.
    pub driver: Option<String>,
    /// What the kernel has made of it.
    pub block_devices: Vec<String>,
    /// Where it is attached, on a machine with several such nodes.
    pub numa_node: Option<u32>,
    pub iommu_group: Option<u32>,
    /// The other devices of that group, bridges included.
    pub beside: Vec<Beside>,
    pub model: Option<String>,
    pub serial: Option<String>,
}

impl Controller {
    fn of(device: &PciDevice, system: &System) -> Controller {
        let (group, block_devices) = (device.iommu_group(), device.block_devices());
        let taken = || group.is_some_and(|group| system.is_taken(&format!("vfio/{group}")));
        let state = match () {
            () if device.is_vfio() && taken() => State::InUse,
            () if device.is_vfio() => State::Vfio,
            () if block_devices.is_empty() => State::Unbound,
            () => State::Kernel,
        };
        let (model, serial) = device.names().unzip();
        let beside = device.group_members().into_iter();
        let beside = beside.map(|member| Beside { address: member.name, driver: member.driver });
        Controller {
            address: device.address().to_string(),
            state,
            driver: device.driver(),
            block_devices,
            numa_node: device.numa_node(),
            iommu_group: group,
            beside: beside.collect(),
            model,
            serial,
        }
    }

    /// All of a machine whose root is `/` but in tests.
    pub fn all(root: &Path) -> Vec<Controller> {
        let system = System::at(root);
        let devices = Sysfs::at(root.join("sys")).controllers();
        devices.iter().map(|device| Controller::of(device, &system)).collect()
    }

    /// Whether this is the drive of a path: its address, or a block device of it.
    pub fn is(&self, path: &Path) -> bool {
        match PciAddress::of(path) {
            Some(address) => address.to_string() == self.address,
            None => self.block_devices.iter().any(|name| path == Path::new("/dev").join(name)),
        }
    }

    /// How its content is read: by its block device, or from here.
    pub fn path(&self) -> PathBuf {
        match self.block_devices.first() {
            Some(name) => Path::new("/dev").join(name),
            None => PathBuf::from(&self.address),
        }
    }
}

/// A line for each.
pub(super) fn table<'a>(controllers: impl Iterator<Item = &'a Controller>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "controller",
        "state",
        "drive",
        "numa",
        "group",
        "beside",
        "model",
        "serial",
    ]);
    let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    for controller in controllers {
        let beside = controller.beside.iter().map(|member| {
            format!("{} ({})", member.address, member.driver.as_deref().unwrap_or("no driver"))
        });
        let state = match (&controller.driver, controller.state) {
            (Some(driver), State::Unbound) => driver.clone(),
            (_, state) => state.word().to_owned(),
        };
        table.add_row([
            controller.address.clone(),
            state,
            controller.block_devices.join(", "),
            number(controller.numa_node),
            number(controller.iommu_group),
            beside.collect::<Vec<_>>().join(", "),
            controller.model.clone().unwrap_or_default(),
            controller.serial.clone().unwrap_or_default(),
        ]);
    }
    table.trim_fmt()
}
