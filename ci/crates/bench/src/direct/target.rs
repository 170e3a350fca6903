//! Files and loop devices to work on, gone when they are dropped.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{BenchError, doing};

/// What a target is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sort {
    /// A file.
    File,
    /// A loop device over a file, with direct I/O.
    Loop,
}

impl Sort {
    /// As tables and checks name it.
    pub fn name(self) -> &'static str {
        match self {
            Sort::File => "file",
            Sort::Loop => "loop device",
        }
    }
}

/// A target that was written once from end to end.
pub struct Scratch {
    path: PathBuf,
    file: PathBuf,
    bytes: u64,
    sort: Sort,
}

impl Scratch {
    /// Makes one in `folder`; why it cannot be had on this machine.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn make(
        folder: &Path,
        name: &str,
        sort: Sort,
        bytes: u64,
    ) -> Result<Result<Scratch, String>, BenchError> {
        let file = folder.join(format!("{name}.{sort:?}").to_lowercase());
        let mut scratch = Scratch { path: file.clone(), file, bytes, sort: Sort::File };
        fill(&scratch.file, bytes).map_err(doing("a scratch file"))?;
        if sort == Sort::Loop {
            match attach(&scratch.file) {
                Ok(path) => (scratch.path, scratch.sort) = (path, Sort::Loop),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Ok(Ok(scratch))
    }

    /// Its path: that of the device where it is one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be taken down is said; the run goes on.
        if self.sort == Sort::Loop {
            let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
            if !detached.is_ok_and(|status| status.success()) {
                eprintln!("bench: {} is still there", self.path.display());
            }
        }
        if let Err(error) = fs::remove_file(&self.file) {
            eprintln!("bench: {}: {error}", self.file.display());
        }
    }
}

/// Noise from end to end, on the disk.
fn fill(path: &Path, bytes: u64) -> std::io::Result<()> {
    let mut noise = vec![0; 4 << 20];
    fastrand::Rng::with_seed(0x7363_7261_7463_6820).fill(&mut noise);
    let mut file = File::create_new(path)?;
    let mut left = bytes;
    while left > 0 {
        let len = left.min(noise.len() as u64);
        file.write_all(&noise[..len as usize])?;
        left -= len;
    }
    file.sync_all()?;
    // Direct writes would have to take what the cache holds out of it first.
    forget(&file)
}

#[cfg(target_os = "linux")]
fn forget(file: &File) -> std::io::Result<()> {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    Ok(posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

#[cfg(not(target_os = "linux"))]
fn forget(_file: &File) -> std::io::Result<()> {
    Ok(())
}

fn attach(file: &Path) -> Result<PathBuf, String> {
    let mut command = Command::new("losetup");
    command.args(["--direct-io=on", "--find", "--show"]).arg(file);
    let output = command.output().map_err(|error| format!("no losetup: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("losetup said: {}", said.trim()));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
