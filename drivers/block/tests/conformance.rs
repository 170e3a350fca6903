//! What every driver promises, asked of the drivers of this crate; and what only files have.

use std::path::PathBuf;
use std::time::Duration;

use memkv_block::{IoError, Kind, OpenError, OpenOptions, open, read, write};
use memkv_dma::Hugepages;
use tempfile::TempDir;

#[macro_use]
mod suite;

use suite::{CAPACITY, MIB, Maker, Rig, on_reactor, pool, reactor};

fn rig(kind: Kind) -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool();
    let device = match kind {
        Kind::Memory => memkv_block::memory(CAPACITY, Hugepages::Never).unwrap(),
        _ => {
            let mut options = OpenOptions::new(directory.path().join("drive"), pool.clone());
            (options.size, options.force) = (Some(CAPACITY), Some(kind));
            open(options).unwrap()
        }
    };
    assert_eq!(device.kind(), kind);
    Rig { device, sector: 4096, pool, below: Box::new(directory) }
}

/// The file of a drive.
fn path(rig: &Rig) -> PathBuf {
    rig.below.downcast_ref::<TempDir>().expect("its directory").path().join("drive")
}

fn a_file_truncated_underneath_is_an_error(make: Maker) {
    let rig = make();
    let path = path(&rig);
    on_reactor(&rig, move |bench| async move {
        write(&*bench.queue, 0, 8192, bench.filled(8192, 1)).await.0.unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        for (len, moved) in [(4096, 4096), (5000, 0), (0, 0)] {
            file.set_len(len).unwrap();
            let (result, buffer) = read(&*bench.queue, 0, 8192, bench.buffer(8192)).await;
            match result {
                Err(IoError::Short { wanted: 8192, got }) => assert!(got >= moved && got <= len),
                Err(IoError::Os(_)) => {}
                other => panic!("a file of {len} bytes: {other:?}"),
            }
            assert_eq!(buffer.map(|buffer| buffer.len()), Some(8192));
        }
        // Past the end: a file grows again, which is no concern of the driver.
        write(&*bench.queue, MIB, 4096, bench.filled(4096, 2)).await.0.unwrap();
        bench.expect(MIB, 4096, 2).await;
    });
}

fn a_drive_is_locked(make: Maker) {
    let rig = make();
    let path = path(&rig);
    let again = |size: Option<u64>| {
        let mut options = OpenOptions::new(&path, rig.pool.clone());
        (options.size, options.force) = (size, Some(rig.device.kind()));
        options.patience = Duration::ZERO;
        open(options)
    };
    match again(None).map(|_| ()) {
        Err(OpenError::InUse { path: named }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
    let Rig { device, .. } = &rig;
    assert_eq!(device.name(), path.to_str().unwrap());
    assert!(!device.reason().is_empty());
    assert!(device.view(0, 4096).is_none() && device.view_mut(0, 4096).is_none());
}

/// A queue keeps the drive open and locked, even when the device itself is gone.
fn the_lock_goes_with_the_last_handle(make: Maker) {
    let rig = make();
    let path = path(&rig);
    let Rig { device, pool, below: _directory, .. } = rig;
    let kind = device.kind();
    let again = || {
        let mut options = OpenOptions::new(&path, pool.clone());
        options.force = Some(kind);
        options.patience = Duration::ZERO;
        open(options)
    };
    let reactor = reactor();
    let queue = device.open_queue(&reactor.local()).unwrap();
    drop(device);
    assert!(matches!(again(), Err(OpenError::InUse { .. })));
    drop((queue, reactor));
    assert_eq!(again().unwrap().geometry().capacity, CAPACITY);
}

conformance!(memory, || super::rig(super::Kind::Memory));
conformance!(
    threads,
    || super::rig(super::Kind::Threads),
    a_file_truncated_underneath_is_an_error,
    a_drive_is_locked,
    the_lock_goes_with_the_last_handle,
);
#[cfg(target_os = "linux")]
conformance!(
    uring,
    || super::rig(super::Kind::Uring),
    a_file_truncated_underneath_is_an_error,
    a_drive_is_locked,
    the_lock_goes_with_the_last_handle,
);
