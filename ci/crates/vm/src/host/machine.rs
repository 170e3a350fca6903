//! One QEMU: its command line, its sockets, its end.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thiserror::Error;

use super::console;
use super::monitor::{Monitor, MonitorError};
use crate::plan::{BAD_DEALLOCATE, BAD_READ, BAD_WRITE, Drive, Kind, Plan, Processors};

const BINARY: &str = "qemu-system-x86_64";

/// How long QEMU may take to call back, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the kernel is told: nothing that costs time, the IOMMU on, the clock as it is.
const KERNEL_WORDS: &str = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off nokaslr \
                            no5lvl tsc=reliable intel_iommu=on iommu=pt hugepages=128";

/// What it is told besides where processors are emulated and a lost interrupt of a timer would stop one of
/// them for ever: a timer that is set once for each interrupt is lost with it, one that ticks is not.
const TICKING: &str = "nohz=off highres=off";

/// Why there is no machine.
#[derive(Debug, Error)]
pub enum MachineError {
    /// A file, a socket or the process.
    #[error("QEMU: {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It ended by itself.
    #[error("QEMU ended with {status}: {said}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The end of what it said.
        said: String,
    },
    /// It does nothing.
    #[error("QEMU does not {0} within {PATIENCE:?}")]
    Silent(&'static str),
    /// Its monitor.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Io { what, source }
}

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Places {
    /// Kernel and first file system of guests.
    pub guest: PathBuf,
    /// What guests see of the host.
    pub share: PathBuf,
    /// Images of drives.
    pub images: PathBuf,
    /// Sockets and logs of one boot.
    pub folder: PathBuf,
}

impl Places {
    /// The image of a drive.
    pub fn image(&self, name: &str) -> PathBuf {
        self.images.join(format!("{name}.image"))
    }

    /// What the kernel of the guest said.
    pub fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    fn messages(&self) -> PathBuf {
        self.folder.join("qemu.log")
    }
}

/// A running QEMU; killed when dropped.
pub struct Machine {
    child: Child,
    places: Places,
    monitor: Monitor,
}

impl Machine {
    /// Boots a plan; the other end of the guest's serial port for talking.
    ///
    /// # Errors
    /// When QEMU cannot be started, or ends at once.
    pub fn boot(plan: &Plan, places: &Places) -> Result<(Machine, UnixStream), MachineError> {
        for drive in plan.drives {
            let image = places.image(drive.name);
            if !image.exists() {
                let file = File::create(image).map_err(io_error("an image"))?;
                file.set_len(drive.bytes).map_err(io_error("an image"))?;
            }
        }
        let listen = |name: &str| {
            let path = places.folder.join(name);
            let _ = fs::remove_file(&path);
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let monitor = listen("monitor").map_err(io_error("a socket"))?;
        let talk = listen("talk").map_err(io_error("a socket"))?;
        let messages = File::create(places.messages()).map_err(io_error("its messages"))?;
        let mut child = Command::new(BINARY)
            .args(arguments(plan, places))
            // Sockets have short names: they are named from here.
            .current_dir(&places.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(messages)
            .spawn()
            .map_err(io_error("cannot be started"))?;
        let sockets = accept(&mut child, places, &talk)
            .and_then(|talk| Ok((accept(&mut child, places, &monitor)?, talk)))
            .and_then(|(monitor, talk)| Ok((Monitor::new(monitor)?, talk)));
        match sockets {
            Ok((monitor, talk)) => Ok((Machine { child, places: places.clone(), monitor }, talk)),
            Err(error) => {
                // It may have ended already.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, MachineError> {
        self.child.try_wait().map_err(io_error("cannot be waited for"))
    }

    /// Whether a processor of the guest has had no more interrupts of its timer, as its kernel says.
    pub fn lost_a_timer(&self) -> bool {
        console::tells_of_a_lost_timer(&self.places)
    }

    /// Pulls a drive.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn pull(&mut self, drive: &str) -> Result<(), MachineError> {
        self.monitor.command("device_del", &json!({ "id": drive }))?;
        Ok(())
    }

    /// Puts a drive back where it was pulled from.
    ///
    /// # Errors
    /// When QEMU refuses.
    ///
    /// # Panics
    /// When the plan has no such drive.
    pub fn plug(&mut self, plan: &Plan, name: &str) -> Result<(), MachineError> {
        let number = plan.drives.iter().position(|drive| drive.name == name);
        let number = number.unwrap_or_else(|| panic!("there is no drive {name}"));
        let controller = controller_again(number, &plan.drives[number]);
        self.monitor.command("device_add", &controller)?;
        Ok(())
    }

    /// Waits until the guest has switched itself off.
    ///
    /// # Errors
    /// When it does not, or QEMU ends otherwise.
    pub fn wait(&mut self) -> Result<(), MachineError> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.ended_by_itself(status)),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
        Err(MachineError::Silent("end"))
    }

    /// What is to be said of an end that nobody asked for.
    pub fn ended_by_itself(&self, status: ExitStatus) -> MachineError {
        ended(&self.places, status)
    }

    /// How many bytes of the host's disk a drive takes.
    ///
    /// # Errors
    /// When its image is not there.
    pub fn allocated(&self, drive: &str) -> Result<u64, MachineError> {
        let image = fs::metadata(self.places.image(drive)).map_err(io_error("an image"))?;
        Ok(image.blocks() * 512)
    }

    /// Lets drives of [`Kind::Slow`] answer so many commands a second, 0 for as many as they can.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn throttle(&mut self, commands: u32) -> Result<(), MachineError> {
        let limits = json!({ "iops-total": commands });
        let set = json!({ "path": "/objects/throttle", "property": "limits", "value": limits });
        self.monitor.command("qom-set", &set)?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // After its own end there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ended(places: &Places, status: ExitStatus) -> MachineError {
    let said = fs::read_to_string(places.messages()).unwrap_or_default();
    let said = said.lines().last().unwrap_or("it does not say why").to_owned();
    MachineError::Ended { status, said }
}

fn accept(
    child: &mut Child,
    places: &Places,
    listener: &UnixListener,
) -> Result<UnixStream, MachineError> {
    let begun = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(io_error("a socket"))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(io_error("a socket")(error)),
        }
        if let Some(status) = child.try_wait().map_err(io_error("cannot be waited for"))? {
            return Err(ended(places, status));
        }
        if begun.elapsed() > PATIENCE {
            return Err(MachineError::Silent("call back"));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Whether this machine's own processors can run a stock kernel. `/dev/kvm` alone is no promise: the
/// modules of the vendors tell.
fn has_kvm() -> bool {
    let module = |name: &str| Path::new("/sys/module").join(name).exists();
    let device = File::options().read(true).write(true).open("/dev/kvm");
    device.is_ok() && (module("kvm_intel") || module("kvm_amd"))
}

fn arguments(plan: &Plan, places: &Places) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |line: &[&str]| words.extend(line.iter().map(|word| (*word).to_owned()));
    let mut told = KERNEL_WORDS.to_owned();
    add(&["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    match plan.processors {
        // One at a time: what runs at the same time cannot be counted.
        Processors::Counting => {
            add(&["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
            add(&["-M", "q35,smm=off", "-cpu", "max", "-smp", "1"]);
        }
        Processors::Fast if has_kvm() => {
            add(&["-accel", "kvm", "-M", "q35,smm=off,kernel-irqchip=split"]);
            add(&["-cpu", "host", "-smp", "2"]);
        }
        // Without system management mode the map of memory changes less often while the guest runs.
        Processors::Fast => {
            add(&["-accel", "tcg,thread=multi", "-M", "q35,smm=off", "-cpu", "max", "-smp", "2"]);
            told = format!("{told} {TICKING}");
        }
    }
    let guest = |name: &str| places.guest.join(name).display().to_string();
    add(&["-m", "1536M", "-device", "intel-iommu,intremap=on"]);
    add(&["-kernel", &guest("vmlinuz"), "-initrd", &guest("initrd.img")]);
    add(&["-append", &told, "-serial", "file:console.log"]);
    add(&["-qmp", "unix:monitor", "-device", "virtio-serial-pci"]);
    add(&["-chardev", "socket,id=talk,path=talk"]);
    add(&["-device", "virtserialport,chardev=talk,name=memkv"]);
    // It takes no JSON, and a comma in a path is doubled.
    let path = places.share.display().to_string().replace(',', ",,");
    add(&["-fsdev", &format!("local,id=share,path={path},security_model=none,multidevs=remap")]);
    add(&["-device", "virtio-9p-pci,fsdev=share,mount_tag=share"]);
    add(&["-object", "throttle-group,id=throttle"]);
    for (number, drive) in plan.drives.iter().enumerate() {
        for block in block_devices(drive, &places.image(drive.name)) {
            add(&["-blockdev", &block.to_string()]);
        }
        for device in devices(number, drive) {
            add(&["-device", &device.to_string()]);
        }
    }
    words
}

/// The image, and what stands before it; the uppermost has the name of the drive.
fn block_devices(drive: &Drive, image: &Path) -> Vec<Value> {
    let name = drive.name;
    let below = format!("{name}-image");
    let file = |node: &str| {
        json!({
            "driver": "file", "node-name": node, "discard": "unmap",
            "filename": image.display().to_string(), "cache": { "no-flush": true },
        })
    };
    let refusal = |command: &str, at: u64| json!({ "event": "none", "iotype": command, "sector": at / 512, "errno": 5 });
    match drive.kind {
        Kind::Plain | Kind::Metadata(_) | Kind::Narrow | Kind::Returning => vec![file(name)],
        Kind::Slow => vec![
            file(&below),
            json!({
                "driver": "throttle", "node-name": name, "throttle-group": "throttle",
                "file": below, "discard": "unmap",
            }),
        ],
        Kind::Faulty => vec![
            file(&below),
            json!({
                "driver": "blkdebug", "node-name": name, "image": below, "discard": "unmap",
                "inject-error": [
                    refusal("read", BAD_READ),
                    refusal("write", BAD_WRITE),
                    refusal("discard", BAD_DEALLOCATE),
                ],
            }),
        ],
    }
}

/// A controller, behind a port from which it can be pulled, and its namespace.
fn devices(number: usize, drive: &Drive) -> Vec<Value> {
    let (name, port) = (drive.name, format!("port{number}"));
    let root = json!({
        "driver": "pcie-root-port", "id": port, "chassis": number + 1, "slot": number + 1,
    });
    let mut controller = json!({ "driver": "nvme", "id": name, "bus": port, "serial": name });
    let mut namespace = json!({
        "driver": "nvme-ns", "bus": name, "drive": name,
        "logical_block_size": drive.block, "physical_block_size": drive.block.max(4096),
    });
    let mut subsystem = None;
    match drive.kind {
        Kind::Metadata(bytes) => namespace["ms"] = bytes.into(),
        // Queues of eight entries, commands of 16 KiB.
        Kind::Narrow => {
            controller["mqes"] = 7.into();
            controller["mdts"] = 2.into();
        }
        Kind::Returning => {
            controller["subsys"] = format!("{name}-subsystem").into();
            subsystem = Some(json!({ "driver": "nvme-subsys", "id": controller["subsys"] }));
        }
        Kind::Plain | Kind::Faulty | Kind::Slow => {}
    }
    subsystem.into_iter().chain([root, controller, namespace]).collect()
}

/// The controller of a drive that was pulled, again: its namespace has stayed.
fn controller_again(number: usize, drive: &Drive) -> Value {
    assert_eq!(drive.kind, Kind::Returning, "{} does not come back", drive.name);
    let is_controller = |device: &Value| device["id"] == drive.name;
    devices(number, drive).into_iter().find(is_controller).expect("every drive has one")
}
