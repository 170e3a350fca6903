//! From configured drives to an open store: choose a driver each, format what is new, recover what
//! is not, and refuse what does not belong together.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memkv_admin_api::size::exact_size;
use memkv_block::{BlockDevice, BlockQueue, Geometry, IoError, OpenError, OpenOptions};
use memkv_dma::{Class, Pool};
use memkv_journal::{
    FormatError, FormatOptions, Identity, Layout, MembershipError, NodeUuid,
    OpenError as JournalError, ReadError, Recovered, Superblock, TrimConfig, membership,
};
use memkv_poller::Local;
use memkv_store::{
    EvictionConfig, Found, Policy, RecoverError, RecoveredDrive, ScrubConfig, Store, StoreConfig,
};
use uuid::Uuid;

use crate::bypass::{Bypass, BypassError};
use crate::config::{Config, Drive, Durability, EvictionPolicy, StorageMode};
use crate::members::{LeftOut, keep_members};

/// Told how far the preallocation of a new file has come: name, bytes done, bytes in all.
pub type Progress = Rc<dyn Fn(&str, u64, u64)>;

/// Why the drives of a node cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DrivesError {
    /// The driver refused the path.
    #[error("cannot open drive {name}")]
    Open {
        /// Its path.
        name: String,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// A drive that is named by its PCI address cannot be had.
    #[error("cannot open drive {name}")]
    Bypass {
        /// Its address.
        name: String,
        /// Why.
        #[source]
        source: BypassError,
    },
    /// No memory for a memory drive.
    #[error("no memory for a drive of {size} bytes")]
    Memory {
        /// The size asked for.
        size: u64,
        /// Why.
        #[source]
        source: memkv_dma::ArenaError,
    },
    /// Its queue could not be opened, or a first read failed.
    #[error("drive {name} does not answer")]
    Io {
        /// Its path.
        name: String,
        /// Why.
        #[source]
        source: IoError,
    },
    /// Something else lives there.
    #[error(
        "{name} is neither empty nor a memkv drive; it is left as it is. Name another file, or empty this one first"
    )]
    Foreign {
        /// Its path.
        name: String,
    },
    /// A block device that nobody set up.
    #[error(
        "{name} is not set up for memkv; a block device is formatted only when asked to: memkv setup --drives {name}"
    )]
    NotSetUp {
        /// Its path.
        name: String,
    },
    /// The drives were formatted for extents of another size.
    #[error(
        "drive {name} was formatted with storage.block_size {}, and the configuration says {}; blocks are cut into extents of that size, so it stays what it was: set it back, or set the drives up anew",
        exact_size(*formatted), exact_size(*configured)
    )]
    BlockSize {
        /// Its path.
        name: String,
        /// Bytes of its largest extent.
        formatted: u64,
        /// Bytes configured.
        configured: u64,
    },
    /// Some drives are formatted, this one is new.
    #[error(
        "drive {new} is empty, and {old} belongs to a node already, some of whose drives are missing"
    )]
    Mixed {
        /// A new drive.
        new: String,
        /// A formatted one.
        old: String,
    },
    /// They are not the drives of one node, or not all of them.
    #[error("the drives under storage.drives do not form a node (memkv start --degraded)")]
    Members(#[from] MembershipError),
    /// The folder of the drive that nobody named cannot be made.
    #[error("cannot make the folder {}; give another one with --data-dir", path.display())]
    Folder {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Formatting failed.
    #[error("cannot format drive {name}")]
    Format {
        /// Its path.
        name: String,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// Its superblock cannot be used.
    #[error("cannot use drive {name}")]
    Superblock {
        /// Its path.
        name: String,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// What is on the drive cannot be used.
    #[error("cannot recover drive {name}")]
    Recover {
        /// Its path.
        name: String,
        /// Why.
        #[source]
        source: JournalError,
    },
    /// The drives do not form one node.
    #[error("the drives do not form a node")]
    Join(#[from] RecoverError),
}

/// What recovery found on one drive, for the status page.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// Every block is trusted: the last run ended in order.
    pub clean: bool,
    /// Blocks and parts that are live.
    pub records: u64,
    /// What the journal says of its own.
    pub report: memkv_journal::RecoveryReport,
    /// How long it took.
    pub took: Duration,
}

/// An open store and what is worth telling about its drives.
pub struct OpenStore {
    /// The store, on the calling reactor.
    pub store: Rc<Store>,
    /// The drives it uses, in its order.
    pub devices: Vec<Arc<dyn BlockDevice>>,
    /// Those that are configured, and are members of the node no more.
    pub left_out: Vec<LeftOut>,
    /// Per drive, in order.
    pub recoveries: Vec<Recovery>,
    /// The node's identity.
    pub node: Uuid,
    /// The highest incarnation of its drives.
    pub incarnation: u64,
}

/// Opens every configured drive with the driver that fits it, watched for stalls. New files are created at their size,
/// with `progress(done, total)` in bytes.
///
/// # Errors
/// [`DrivesError`] names the drive.
pub fn open_devices(
    config: &Config,
    pool: &Pool,
    bypass: &Bypass,
    progress: &Progress,
) -> Result<Vec<Arc<dyn BlockDevice>>, DrivesError> {
    if let Some(path) = &config.storage.data_directory {
        make_folder(path)?;
    }
    let drives = config.storage.drives.iter();
    drives.map(|drive| open_device(drive, config, pool, bypass, progress)).collect()
}

/// Opens one drive; see [`open_devices`].
///
/// # Errors
/// [`DrivesError`] names it.
pub fn open_device(
    drive: &Drive,
    config: &Config,
    pool: &Pool,
    bypass: &Bypass,
    progress: &Progress,
) -> Result<Arc<dyn BlockDevice>, DrivesError> {
    let timeout = config.storage.drive_timeout;
    let (media, size) = match drive {
        Drive::Pci { address } => {
            return bypass
                .open_drive(*address, config, pool)
                .map(|device| memkv_block::watch(device, timeout))
                .map_err(|source| DrivesError::Bypass { name: drive.name(), source });
        }
        Drive::Device { media } => (media, None),
        Drive::File { media, size } => (media, *size),
        Drive::Memory { size } => {
            let make = match config.shares_memory() {
                true => memkv_block::shared_memory,
                false => memkv_block::memory,
            };
            return make(*size, config.memory.hugepages.into())
                .map_err(|source| DrivesError::Memory { size: *size, source });
        }
    };
    let name = media.display().to_string();
    let (shown, progress) = (name.clone(), progress.clone());
    let mut options = OpenOptions::new(media, pool.clone());
    options.size = size;
    options.progress = Some(Box::new(move |done, total| progress(&shown, done, total)));
    memkv_block::open(options)
        .map(|device| memkv_block::watch(device, timeout))
        .map_err(|source| DrivesError::Open { name, source })
}

/// Makes a folder with all above it, for nobody else's eyes: the XDG Base Directory Specification.
fn make_folder(path: &Path) -> Result<(), DrivesError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| DrivesError::Folder { path: path.to_owned(), source })
}

/// A drive that was claimed, with a queue of this reactor.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) name: String,
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) queue: Rc<dyn BlockQueue>,
}

/// Formats new drives, recovers old ones, and joins them into a store on this reactor.
///
/// # Errors
/// [`DrivesError`] names the drive and what to do.
pub async fn open_store(
    local: Local,
    config: Config,
    pool: Pool,
    devices: Vec<Arc<dyn BlockDevice>>,
) -> Result<OpenStore, DrivesError> {
    let mut opened = Vec::with_capacity(devices.len());
    for device in devices {
        let name = device.name().to_owned();
        let queue = device
            .open_queue(&local)
            .map_err(|source| DrivesError::Io { name: name.clone(), source })?;
        opened.push(Opened { name, device, queue });
    }
    let superblocks = superblocks(&local, &opened, &config, &pool).await?;
    let (mut found, mut surplus) = (Vec::new(), Vec::new());
    for (drive, superblock) in opened.into_iter().zip(superblocks) {
        match superblock {
            Ok(superblock) => found.push((drive, superblock)),
            Err(why) => surplus.push((drive, why)),
        }
    }
    let device = |drive: &Opened| drive.device.clone();
    let members = keep_members(found, device, config.degraded && surplus.is_empty());
    let (mut opened, mut left_out) = match (members, surplus.pop()) {
        // It may be the one that is missing: that it cannot be used says more.
        (Err(MembershipError::Missing { .. }), Some((_, why))) => return Err(why),
        (members, last) => {
            surplus.extend(last);
            members?
        }
    };
    left_out.extend(surplus.into_iter().map(|(drive, why)| surplus_drive(drive.device, &why)));
    check_block_size(&mut opened, config.storage.block_size)?;

    let mut drives = Vec::with_capacity(opened.len());
    let mut recoveries = Vec::with_capacity(opened.len());
    let mut incarnation = 0;
    let mut devices = Vec::with_capacity(opened.len());
    let node = opened[0].1.identity.node.0;
    for (drive, superblock) in opened {
        let began = Instant::now();
        let (journal, recovered): (_, Recovered<Found>) =
            memkv_journal::open(drive.queue.clone(), &local, pool.clone(), superblock)
                .await
                .map_err(|source| DrivesError::Recover { name: drive.name.clone(), source })?;
        let recovery = Recovery {
            clean: recovered.clean,
            records: recovered.live.records(),
            report: recovered.report.clone(),
            took: began.elapsed(),
        };
        tracing::info!(
            drive = drive.name,
            clean = recovery.clean,
            records = recovery.records,
            milliseconds = recovery.took.as_millis() as u64,
            "drive recovered"
        );
        incarnation = incarnation.max(journal.superblock().incarnation);
        recoveries.push(recovery);
        devices.push(drive.device);
        drives.push(RecoveredDrive { journal, recovered });
    }
    let policy = policy(&config).build();
    let store = Store::recover(&local, store_config(&config), policy, drives).await?;
    Ok(OpenStore { store, devices, left_out, recoveries, node, incarnation })
}

pub(crate) fn policy(config: &Config) -> Policy {
    match config.storage.eviction.policy {
        EvictionPolicy::Chain => Policy::Chain,
        EvictionPolicy::Lru => Policy::Lru,
        EvictionPolicy::S3Fifo => Policy::S3Fifo,
    }
}

pub(crate) fn store_config(config: &Config) -> StoreConfig {
    let (trim, scrub) = (config.storage.trim, config.storage.scrub_bytes_per_second);
    let eviction = config.storage.eviction;
    let share = |percent: u8| f64::from(percent) / 100.0;
    let durability = match (config.storage.mode, config.storage.durability) {
        (StorageMode::Memory, _) => memkv_store::Durability::Memory,
        (_, Durability::Process) => memkv_store::Durability::Process,
        (_, Durability::Power) => memkv_store::Durability::Power,
    };
    StoreConfig {
        durability,
        extent_bytes: config.storage.block_size as u32,
        eviction: eviction.enabled.then(|| EvictionConfig {
            high: share(eviction.high),
            low: share(eviction.low),
            retain: eviction.retain,
            pin_max: eviction.pin_max,
        }),
        trim: trim.enabled.then(|| TrimConfig {
            interval: Duration::from_millis(trim.interval_ms),
            extents: trim.extents,
        }),
        scrub: (scrub > 0)
            .then(|| ScrubConfig { bytes_per_second: scrub, ..ScrubConfig::default() }),
        lease_max: Duration::from_millis(u64::from(config.limits.lease_ms)),
        default_deadline: Duration::from_millis(u64::from(config.limits.request_timeout_ms)),
        ..StoreConfig::default()
    }
}

/// Reads every drive's superblock; formats them all when none has one, but for block devices, which
/// are formatted by `memkv setup` alone. A drive without one beside others that have one is told of
/// with the reason: it may be one that was joining, of which the others need not know.
async fn superblocks(
    local: &Local,
    opened: &[Opened],
    config: &Config,
    pool: &Pool,
) -> Result<Vec<Result<Superblock, DrivesError>>, DrivesError> {
    let mut found = Vec::with_capacity(opened.len());
    for drive in opened {
        let geometry = drive.device.geometry();
        match memkv_journal::read_superblock(&*drive.queue, &geometry, pool).await {
            Ok(superblock) => found.push(Some(Ok(superblock))),
            Err(ReadError::NotFormatted) => found.push(None),
            Err(source) => {
                let name = drive.name.clone();
                let cut_short = matches!(source, ReadError::NoQuorum { .. });
                let error = DrivesError::Superblock { name, source };
                match cut_short {
                    true => found.push(Some(Err(error))),
                    false => return Err(error),
                }
            }
        }
    }
    let formatted = |found: &Option<Result<_, _>>| matches!(found, Some(Ok(_)));
    let old = found.iter().position(formatted);
    let new = found.iter().position(Option::is_none);
    match (old, new) {
        (None, Some(new)) if config.storage.mode == StorageMode::Direct => {
            Err(DrivesError::NotSetUp { name: opened[new].name.clone() })
        }
        (Some(old), _) => {
            for (drive, found) in opened.iter().zip(&mut found) {
                if found.is_none() {
                    check_blank(drive, pool).await?;
                    let (new, old) = (drive.name.clone(), opened[old].name.clone());
                    *found = Some(Err(DrivesError::Mixed { new, old }));
                }
            }
            Ok(found.into_iter().flatten().collect())
        }
        (None, _) => {
            if let Some(damaged) = found.into_iter().flatten().find_map(Result::err) {
                return Err(damaged);
            }
            for drive in opened {
                check_blank(drive, pool).await?;
            }
            let units = (config.storage.block_size / memkv_dma::UNIT as u64) as u16;
            let options =
                move |_| FormatOptions { extent_units: Some(units), ..FormatOptions::default() };
            let formatted = format_node(local, opened, pool, options).await?;
            Ok(formatted.into_iter().map(Ok).collect())
        }
    }
}

/// A drive that is listed beside all members of the node and has no part in it. A member always has
/// a superblock, or one that cannot be used while the others miss it.
fn surplus_drive(device: Arc<dyn BlockDevice>, why: &DrivesError) -> LeftOut {
    let blank = matches!(why, DrivesError::Mixed { .. });
    let reason = match blank {
        true => "it is blank: memkvctl reload has it join the node".to_owned(),
        false => format!(
            "{}; it is no member of the node, and was joining it when that was cut short: memkv \
             drive wipe --force {} while the node is stopped, then memkvctl reload",
            crate::serve::chain(why),
            device.name()
        ),
    };
    tracing::error!(drive = device.name(), %reason, "drive left out");
    LeftOut { device, uuid: None, blank, reason }
}

/// Formats drives side by side as one new node, each as `options` says for its capacity.
pub(crate) async fn format_node(
    local: &Local,
    opened: &[Opened],
    pool: &Pool,
    options: impl Fn(u64) -> FormatOptions,
) -> Result<Vec<Superblock>, DrivesError> {
    let mut secret = [0; 32];
    random(&mut secret);
    let node = NodeUuid(new_uuid());
    let uuids: Vec<_> = opened.iter().map(|_| memkv_journal::DriveUuid(new_uuid())).collect();
    let mut formatting = Vec::with_capacity(opened.len());
    for (drive, &uuid) in opened.iter().zip(&uuids) {
        let identity = Identity { node, drive: uuid, epoch: 1, members: uuids.clone(), secret };
        let geometry = drive.device.geometry();
        let options = options(geometry.capacity);
        let (drive, pool) = (drive.clone(), pool.clone());
        formatting.push(local.spawn_join(async move {
            let queue = &*drive.queue;
            let superblock = memkv_journal::format(queue, &geometry, &pool, identity, options)
                .await
                .map_err(|source| DrivesError::Format { name: drive.name.clone(), source })?;
            tracing::info!(drive = drive.name, %uuid, "drive formatted");
            Ok::<_, DrivesError>(superblock)
        }));
    }
    let mut formatted = Vec::with_capacity(opened.len());
    for one in formatting {
        formatted.push(one.await?);
    }
    Ok(formatted)
}

/// Bytes at the start of a drive that must be zero before it is formatted.
const BLANK: usize = 64 * 1024;

async fn check_blank(drive: &Opened, pool: &Pool) -> Result<(), DrivesError> {
    let name = || drive.name.clone();
    let mut chunk = pool.allocate_wait(Class::Checkpoint, BLANK).await;
    chunk.charge(Class::Drive);
    let (result, chunk) = memkv_block::read(&*drive.queue, 0, BLANK, chunk).await;
    result.map_err(|source| DrivesError::Io { name: name(), source })?;
    let chunk = chunk.expect("a buffer comes back from a read that was done");
    if chunk.as_slice().iter().any(|&byte| byte != 0) {
        return Err(DrivesError::Foreign { name: name() });
    }
    Ok(())
}

/// Whether drives of these superblocks are the members of one node, all of them.
pub(crate) fn check_node(superblocks: &[Superblock]) -> Result<(), DrivesError> {
    let identities: Vec<_> = superblocks.iter().map(|superblock| &superblock.identity).collect();
    membership::resolve(&identities, false)?;
    Ok(())
}

/// Whether drives hold extents of the size that is configured. Where none was recorded, by an
/// earlier version, the configured one is from now on.
fn check_block_size(
    drives: &mut [(Opened, Superblock)],
    configured: u64,
) -> Result<(), DrivesError> {
    let unit = memkv_dma::UNIT as u64;
    for (Opened { name, .. }, superblock) in drives {
        let formatted = u64::from(superblock.layout.extent_units) * unit;
        if formatted == 0 {
            superblock.layout.extent_units = (configured / unit) as u16;
        } else if formatted != configured {
            return Err(DrivesError::BlockSize { name: name.clone(), formatted, configured });
        }
    }
    Ok(())
}

/// How a member was formatted, for a drive of another size.
pub(crate) fn options_like(member: &Superblock, capacity: u64) -> FormatOptions {
    let layout = &member.layout;
    let extent_units = Some(layout.extent_units).filter(|units| *units > 0);
    let options = FormatOptions { extent_units, ..FormatOptions::default() };
    let geometry = Geometry {
        capacity: layout.capacity,
        sector: layout.sector,
        max_transfer: memkv_block::MAX_TRANSFER,
    };
    let usual = Layout::plan(&geometry, &options).map(|usual| usual.limits.rows);
    if usual == Ok(layout.limits.rows) {
        return options;
    }
    let rows = u128::from(layout.limits.rows) * u128::from(capacity) / u128::from(layout.capacity);
    FormatOptions { block_limit: Some((rows as u64).max(1)), ..options }
}

pub(crate) fn new_uuid() -> Uuid {
    let mut bytes = [0; 16];
    random(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

/// Fills with bytes nobody can guess.
pub fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel gives random bytes");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_folder_of_the_unnamed_drive_is_made_with_all_above_it() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let folder = home.path().join("not/yet/made");
        for _ in 0..2 {
            make_folder(&folder).expect("it can be made, and may be there");
            let mode = folder.metadata().expect("it is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }
        let file = home.path().join("file");
        std::fs::write(&file, "in the way").expect("room for a file");
        let error = make_folder(&file.join("memkv")).expect_err("a file is no folder");
        let told = error.to_string();
        assert!(told.contains("file/memkv") && told.contains("--data-dir"), "{told}");
    }
}
