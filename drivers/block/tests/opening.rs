//! What may be opened, and how it is made.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use memkv_block::{BlockDevice, Kind, OpenError, OpenOptions, open};
use memkv_dma::{Hugepages, Pool, PoolConfig};

const MIB: u64 = 1 << 20;

fn options(path: &Path, size: Option<u64>) -> OpenOptions {
    let config = PoolConfig { size: 8 * MIB, chunk: 2 * MIB, hugepages: Hugepages::Never };
    let mut options = OpenOptions::new(path, Pool::new(config).unwrap());
    (options.size, options.force) = (size, Some(Kind::Threads));
    options
}

fn open_file(path: &Path, size: Option<u64>) -> Result<Arc<dyn BlockDevice>, OpenError> {
    open(options(path, size))
}

#[test]
fn a_file_is_made_with_its_room_reserved() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drive");
    let calls = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&calls);
    let mut options = options(&path, Some(8 * MIB + 5));
    options.progress = Some(Box::new(move |done, total| told.lock().unwrap().push((done, total))));
    let device = open(options).unwrap();
    assert_eq!(device.geometry().capacity, 8 * MIB);
    assert_eq!(*calls.lock().unwrap(), [(0, 8 * MIB), (8 * MIB, 8 * MIB)]);
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(&path).unwrap();
        assert!(metadata.blocks() * 512 >= 8 * MIB, "its room is reserved");
        assert_eq!(metadata.mode() & 0o777, 0o600, "nobody else reads it");
    }
}

#[test]
fn a_file_grows_and_never_shrinks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drive");
    let capacity = |size| open_file(&path, size).map(|d| d.geometry().capacity);
    assert_eq!(capacity(Some(MIB)).unwrap(), MIB);
    assert_eq!(capacity(None).unwrap(), MIB);
    assert_eq!(capacity(Some(2 * MIB)).unwrap(), 2 * MIB);
    match capacity(Some(MIB)) {
        Err(OpenError::TooLarge { have, want, .. }) => assert_eq!((have, want), (2 * MIB, MIB)),
        other => panic!("{other:?}"),
    }
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * MIB);
}

#[test]
fn what_is_no_drive_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drive");
    assert!(matches!(open_file(directory.path(), None), Err(OpenError::NotADrive { .. })));
    assert!(matches!(open_file(Path::new("/dev/null"), None), Err(OpenError::NotADrive { .. })));
    assert!(matches!(open_file(&path, None), Err(OpenError::Open { .. })));
    assert!(!path.exists(), "without a size nothing is made");
    assert!(matches!(open_file(&path, Some(100)), Err(OpenError::TooSmall { .. })));
    std::fs::write(&path, b"short").unwrap();
    assert!(matches!(open_file(&path, None), Err(OpenError::TooSmall { .. })));
    assert!(matches!(
        open_file(&directory.path().join("no/such/folder"), Some(MIB)),
        Err(OpenError::Open { .. })
    ));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_file_system_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drive");
    // More than any file system holds in one file, or has room for.
    let error = open_file(&path, Some(1 << 55)).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::Allocate { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_driver_that_is_not_for_paths_cannot_be_forced() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(&directory.path().join("drive"), Some(MIB));
    options.force = Some(Kind::Memory);
    assert!(matches!(open(options), Err(OpenError::Unavailable { kind: Kind::Memory, .. })));
}

#[test]
fn the_best_driver_is_chosen_and_the_reason_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(&directory.path().join("drive"), Some(MIB));
    options.force = None;
    let device = open(options).unwrap();
    assert!(matches!(device.kind(), Kind::Uring | Kind::Threads));
    let by = if device.kind() == Kind::Uring { "by io_uring" } else { "by worker threads" };
    assert!(device.reason().contains(by), "{}", device.reason());
}

#[test]
fn a_drive_that_is_in_use_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drive");
    std::fs::write(&path, vec![0; MIB as usize]).unwrap();
    let holder = std::fs::File::open(&path).unwrap();
    holder.lock().unwrap();
    let at_once = || OpenOptions { patience: Duration::ZERO, ..options(&path, None) };
    assert!(matches!(open(at_once()), Err(OpenError::InUse { .. })));
    let patient = OpenOptions { patience: Duration::from_secs(60), ..options(&path, None) };
    let told = std::thread::spawn(|| drop(holder));
    open(patient).unwrap();
    told.join().unwrap();
    open(at_once()).unwrap();
}
