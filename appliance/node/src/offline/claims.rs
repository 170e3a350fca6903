//! Who else has a drive: mounts, partitions, what is built on a device, swap.
//!
//! The kernel itself refuses a device that is claimed (`O_EXCL`); what it does not say is by whom,
//! and what to do about it. That is read here, from `/sys` and `/proc`. A claim is never overridden,
//! not by `--force` either.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Which drive is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A block device by its number.
    Device {
        /// Major number.
        major: u64,
        /// Minor number.
        minor: u64,
    },
    /// A file by its real path.
    File(PathBuf),
}

/// Why a drive is not to be had, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A file system on it, or on a partition of it, is mounted.
    Mounted {
        /// The device.
        device: String,
        /// Where.
        at: String,
    },
    /// The kernel sees partitions on it.
    Partitions {
        /// Their names.
        names: Vec<String>,
    },
    /// Something is built on it or on a partition of it: device mapper, md, bcache.
    Holder {
        /// The device.
        device: String,
        /// What is built on it, by name.
        by: String,
    },
    /// The system swaps to it.
    Swap {
        /// The device or file.
        what: String,
    },
    /// A loop device is made of the file.
    Loop {
        /// The loop device.
        device: String,
    },
    /// It cannot be written.
    ReadOnly,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { device, at } => {
                write!(f, "{device} is mounted at {at}; unmount it first: umount {at}")
            }
            Self::Partitions { names } => write!(
                f,
                "it has partitions ({}); name one of them instead, or remove them with all that is \
                 on them: wipefs --all",
                names.join(", ")
            ),
            Self::Holder { device, by } => write!(
                f,
                "{by} is built on {device}; take that apart first (dmsetup remove, vgchange -an, \
                 mdadm --stop)"
            ),
            Self::Swap { what } => {
                write!(f, "the system swaps to {what}; end that first: swapoff {what}")
            }
            Self::Loop { device } => write!(
                f,
                "the loop device {device} is made of it; name that instead, or detach it: losetup \
                 -d {device}"
            ),
            Self::ReadOnly => f.write_str("it is read-only; nothing can be stored there"),
        }
    }
}

/// The system's answers, under a root that is `/` but in tests.
pub struct System {
    root: PathBuf,
}

impl System {
    /// The system this runs on.
    pub fn this() -> Self {
        Self::at(Path::new("/"))
    }

    /// One with its own root.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Who has the block device of this name.
    pub fn claims_of(&self, name: &str) -> Vec<Claim> {
        let number = word(&self.root.join("sys/block").join(name).join("dev"));
        number.map(|number| self.device_claims(&number)).unwrap_or_default()
    }

    /// Whether something below `/dev` cannot be had for oneself, because somebody has it.
    #[cfg(target_os = "linux")]
    pub fn is_taken(&self, name: &str) -> bool {
        use std::os::unix::fs::OpenOptionsExt;
        let exclusive = nix::fcntl::OFlag::O_EXCL.bits();
        let path = self.root.join("dev").join(name);
        let opened = fs::File::options().read(true).write(true).custom_flags(exclusive).open(path);
        opened.is_err_and(|error| error.raw_os_error() == Some(nix::libc::EBUSY))
    }

    /// Elsewhere nobody is kept from what another one has.
    #[cfg(not(target_os = "linux"))]
    pub fn is_taken(&self, _name: &str) -> bool {
        false
    }

    /// Has the kernel load a driver of PCI devices, if it has not. Whether it has it then.
    pub fn load(&self, driver: &str) -> bool {
        let has = || self.root.join("sys/bus/pci/drivers").join(driver).exists();
        if has() || self.root != Path::new("/") {
            return has();
        }
        match std::process::Command::new("modprobe").arg(driver).status() {
            Ok(status) if status.success() => tracing::info!(driver, "driver loaded"),
            Ok(status) => tracing::warn!(driver, %status, "modprobe has failed"),
            Err(error) => tracing::warn!(driver, %error, "cannot run modprobe"),
        }
        has()
    }

    /// Who has the drive. What the system does not tell is no claim: opening the drive for oneself
    /// has the last word.
    pub fn claims(&self, subject: &Subject) -> Vec<Claim> {
        match subject {
            Subject::Device { major, minor } => self.device_claims(&format!("{major}:{minor}")),
            Subject::File(path) => self.file_claims(path),
        }
    }

    fn device_claims(&self, number: &str) -> Vec<Claim> {
        let device = self.device(number);
        let mut claims = Vec::new();
        let mut all = vec![(number.to_owned(), device.clone())];
        let partitions = partitions(&device);
        for partition in &partitions {
            all.extend(word(&partition.join("dev")).map(|number| (number, partition.clone())));
        }
        let swaps = self.swap_numbers();
        for (number, folder) in &all {
            let name = name_of(folder);
            claims.extend(self.mounts(number, &name));
            claims
                .extend(self.holders(folder).map(|by| Claim::Holder { device: name.clone(), by }));
            if swaps.contains(&name) {
                claims.push(Claim::Swap { what: format!("/dev/{name}") });
            }
        }
        if !partitions.is_empty() {
            let names = partitions.iter().map(|folder| name_of(folder)).collect();
            claims.push(Claim::Partitions { names });
        }
        if word(&device.join("ro")).as_deref() == Some("1") {
            claims.push(Claim::ReadOnly);
        }
        claims
    }

    /// The folder of a device, which `/sys/dev/block` names by its number.
    fn device(&self, number: &str) -> PathBuf {
        let link = self.root.join("sys/dev/block").join(number);
        fs::canonicalize(&link).unwrap_or(link)
    }

    /// Where a device is mounted in this mount namespace (proc_pid_mountinfo(5)).
    fn mounts(&self, number: &str, name: &str) -> Vec<Claim> {
        let text = self.read("proc/self/mountinfo");
        let mounted = text.lines().filter(|line| {
            let mut fields = line.split(' ');
            let by_number = fields.nth(2) == Some(number);
            // Btrfs mounts under a number of its own; the source still names the device.
            let source = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1));
            by_number || source == Some(&format!("/dev/{name}"))
        });
        let place = |line: &str| line.split(' ').nth(4).map(unescape).unwrap_or_default();
        mounted.map(|line| Claim::Mounted { device: name.to_owned(), at: place(line) }).collect()
    }

    /// What is built on a device, by its friendliest name.
    fn holders(&self, folder: &Path) -> impl Iterator<Item = String> {
        let root = self.root.clone();
        entries(&folder.join("holders")).into_iter().map(move |holder| {
            let name = name_of(&holder);
            match word(&root.join("sys/block").join(&name).join("dm/name")) {
                Some(friendly) => format!("{name} ({friendly})"),
                None => name,
            }
        })
    }

    /// Names of devices that are swapped to, without their `/dev/`.
    fn swap_numbers(&self) -> Vec<String> {
        let text = self.read("proc/swaps");
        let paths = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        paths
            .map(|path| {
                let path = self.root.join(unescape(path).trim_start_matches('/'));
                name_of(&fs::canonicalize(&path).unwrap_or(path))
            })
            .collect()
    }

    fn file_claims(&self, path: &Path) -> Vec<Claim> {
        let shown = path.display().to_string();
        let mut claims = Vec::new();
        let swaps = self.read("proc/swaps");
        let swapped = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        if { swapped }.any(|swap| unescape(swap) == shown) {
            claims.push(Claim::Swap { what: shown.clone() });
        }
        for device in entries(&self.root.join("sys/block")) {
            let backing = word(&device.join("loop/backing_file"));
            if backing.as_deref() == Some(&*shown) {
                let device = format!("/dev/{}", name_of(&device));
                claims.push(Claim::Loop { device });
            }
        }
        claims
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }
}

/// Folders of the partitions of a device.
fn partitions(device: &Path) -> Vec<PathBuf> {
    let mut partitions = entries(device);
    partitions.retain(|folder| folder.join("partition").exists());
    partitions
}

/// What is in a folder, by name; nothing when it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The one line of a small file.
fn word(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim_end().to_owned()).filter(|word| !word.is_empty())
}

/// Puts back the space, tab, newline and backslash that `/proc` writes as `\040` and the like.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Made(tempfile::TempDir);

    impl Made {
        /// A system with the disk sda (8:0) and its partition sda1 (8:1), both free.
        fn with_disk() -> Made {
            let made = Made(tempfile::tempdir().expect("a temporary directory"));
            made.write("sys/devices/sda/dev", "8:0\n");
            made.write("sys/devices/sda/ro", "0\n");
            fs::create_dir_all(made.0.path().join("sys/dev/block")).expect("a folder");
            symlink("../../devices/sda", made.0.path().join("sys/dev/block/8:0")).expect("a link");
            made
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }

        fn claims(&self) -> Vec<Claim> {
            let system = System { root: self.0.path().to_owned() };
            system.claims(&Subject::Device { major: 8, minor: 0 })
        }

        fn claims_of(&self, file: &str) -> Vec<Claim> {
            let system = System { root: self.0.path().to_owned() };
            system.claims(&Subject::File(PathBuf::from(file)))
        }
    }

    #[test]
    fn a_free_device_is_nobodys() {
        let made = Made::with_disk();
        assert_eq!(made.claims(), []);
        made.write("proc/self/mountinfo", "22 1 9:1 / / rw - ext4 /dev/md1 rw\n");
        made.write("proc/swaps", "Filename Type\n/dev/sdb partition 1 0 -2\n");
        assert_eq!(made.claims(), []);
        assert_eq!(made.claims_of("/srv/a"), []);
    }

    #[test]
    fn mounts_of_the_device_and_its_partitions_are_found() {
        let made = Made::with_disk();
        let lines = "22 1 8:0 / /a\\040b rw - ext4 /dev/sda rw\n\
                     23 1 0:40 /sub /btrfs rw shared:1 - btrfs /dev/sda rw\n\
                     24 1 8:1 / /one rw - xfs /dev/sda1 rw\n";
        made.write("proc/self/mountinfo", lines);
        let at = |place: &str| Claim::Mounted { device: "sda".into(), at: place.into() };
        assert_eq!(made.claims(), [at("/a b"), at("/btrfs")]);

        made.write("sys/devices/sda/sda1/partition", "1\n");
        made.write("sys/devices/sda/sda1/dev", "8:1\n");
        let claims = made.claims();
        assert!(claims.contains(&Claim::Mounted { device: "sda1".into(), at: "/one".into() }));
        assert!(claims.contains(&Claim::Partitions { names: vec!["sda1".into()] }), "{claims:?}");
    }

    #[test]
    fn what_is_built_on_a_device_is_named() {
        let made = Made::with_disk();
        made.write("sys/devices/sda/holders/dm-0", "");
        made.write("sys/block/dm-0/dm/name", "vg0-data\n");
        made.write("sys/devices/sda/sda1/partition", "1\n");
        made.write("sys/devices/sda/sda1/dev", "8:1\n");
        made.write("sys/devices/sda/sda1/holders/md127", "");
        let claims = made.claims();
        let holder =
            |device: &str, by: &str| Claim::Holder { device: device.into(), by: by.into() };
        assert!(claims.contains(&holder("sda", "dm-0 (vg0-data)")), "{claims:?}");
        assert!(claims.contains(&holder("sda1", "md127")), "{claims:?}");
    }

    #[test]
    fn swap_read_only_and_loop_devices_are_claims() {
        let made = Made::with_disk();
        made.write("proc/swaps", "Filename Type\n/dev/sda partition 1 0 -2\n/srv/a\\040b file 1\n");
        made.write("sys/devices/sda/ro", "1\n");
        assert_eq!(made.claims(), [Claim::Swap { what: "/dev/sda".into() }, Claim::ReadOnly]);
        assert_eq!(made.claims_of("/srv/a b"), [Claim::Swap { what: "/srv/a b".into() }]);
        made.write("sys/block/loop3/loop/backing_file", "/srv/disk\n");
        assert_eq!(made.claims_of("/srv/disk"), [Claim::Loop { device: "/dev/loop3".into() }]);
    }

    #[test]
    fn escapes_of_proc_are_undone() {
        let table =
            [("a\\040b\\011c", "a b\tc"), ("\\134", "\\"), ("\\9", "\\9"), ("plain", "plain")];
        for (text, plain) in table {
            assert_eq!(unescape(text), plain);
        }
    }

    #[test]
    fn every_claim_says_what_to_do() {
        let claims = [
            (Claim::Mounted { device: "sda".into(), at: "/m".into() }, "umount /m"),
            (Claim::Partitions { names: vec!["sda1".into()] }, "wipefs"),
            (Claim::Holder { device: "sda".into(), by: "md0".into() }, "mdadm --stop"),
            (Claim::Swap { what: "/dev/sda".into() }, "swapoff /dev/sda"),
            (Claim::Loop { device: "/dev/loop1".into() }, "losetup -d /dev/loop1"),
        ];
        for (claim, what) in claims {
            assert!(claim.to_string().contains(what), "{claim}");
        }
    }
}
