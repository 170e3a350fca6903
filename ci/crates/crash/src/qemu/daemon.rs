//! `qemu-storage-daemon`: images that the server sees as files, through FUSE, and that write down all
//! that is written to them, refuse chosen sectors, or stop answering.
//!
//! The daemon works on a request from one buffer, and before QEMU 10.1 it takes the next request into
//! the same buffer while the first is under way: of two writes at a time one stored the other's bytes.
//! (A read or a flush is too short to reach the bytes.) So the kernel is told to have one request of
//! direct I/O under way at a time; the rest waits in the kernel, where the server does not see it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use thiserror::Error;

use super::watch::Watch;

const BINARY: &str = "qemu-storage-daemon";

/// How long it may take to begin and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long it may answer nothing, not being paused.
const SILENCE: Duration = Duration::from_secs(40);

/// A command that an export answers with an input/output error.
#[derive(Copy, Clone, Debug)]
pub struct Refusal {
    /// `read` or `write`.
    pub command: &'static str,
    /// Refused when it touches the sector of 512 bytes that holds this byte.
    pub offset: u64,
}

/// One image, and the file as which it is seen.
#[derive(Clone, Debug)]
pub struct Export {
    /// The image.
    pub image: PathBuf,
    /// Where the server finds it.
    pub mount: PathBuf,
    /// Where everything that is written to it is written down.
    pub log: Option<PathBuf>,
    /// What it refuses.
    pub refusals: Vec<Refusal>,
}

/// Why there is no daemon.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// A file, or the process.
    #[error("{BINARY}: {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It ended, or does nothing.
    #[error("{BINARY}: {0}")]
    Failed(String),
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Io { what, source }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    mounts: Vec<PathBuf>,
    watch: Watch,
}

impl Daemon {
    /// Starts it and waits until every export is there. What it has to say goes to a file in `folder`.
    ///
    /// # Errors
    /// When it is not installed, or ends.
    pub fn start(folder: &Path, exports: &[Export]) -> Result<Daemon, DaemonError> {
        Daemon::watched(folder, exports, SILENCE)
    }

    fn watched(
        folder: &Path,
        exports: &[Export],
        silence: Duration,
    ) -> Result<Daemon, DaemonError> {
        let messages = folder.join("daemon.log");
        let output = File::create(&messages).map_err(io_error("its messages"))?;
        let mut command = Command::new(BINARY);
        for (number, export) in exports.iter().enumerate() {
            File::create(&export.mount).map_err(io_error("a file to mount on"))?;
            let (lines, top) = block_devices(number, export)?;
            for line in lines {
                command.arg("--blockdev").arg(line.to_string());
            }
            let mount = export.mount.display().to_string();
            let line = json!({
                "type": "fuse", "id": format!("export{number}"), "node-name": top,
                "mountpoint": mount, "writable": true,
            });
            command.arg("--export").arg(line.to_string());
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(io_error("cannot be started"))?;
        let mounts: Vec<PathBuf> = exports.iter().map(|export| export.mount.clone()).collect();
        let watch = Watch::over(Pid::from_raw(child.id().cast_signed()), mounts.clone(), silence);
        let mut daemon = Daemon { child, mounts, watch };
        daemon.wait_until_there(&messages)?;
        daemon.one_at_a_time(folder)?;
        Ok(daemon)
    }

    /// Limits each mount to one request under way, through the kernel's fusectl.
    fn one_at_a_time(&self, folder: &Path) -> Result<(), DaemonError> {
        let control = folder.join("fusectl");
        fs::create_dir_all(&control).map_err(io_error("a folder"))?;
        let nothing = None::<&str>;
        mount(Some("fusectl"), &control, Some("fusectl"), MsFlags::empty(), nothing)
            .map_err(|errno| io_error("cannot mount fusectl")(errno.into()))?;
        let limit = |path: &PathBuf| {
            let connection = nix::libc::minor(fs::metadata(path)?.dev()).to_string();
            fs::write(control.join(connection).join("max_background"), "1")
        };
        let limited = self.mounts.iter().try_for_each(limit);
        umount2(&control, MntFlags::MNT_DETACH)
            .map_err(|errno| io_error("cannot unmount fusectl")(errno.into()))?;
        limited.map_err(io_error("cannot limit its requests"))
    }

    fn wait_until_there(&mut self, messages: &Path) -> Result<(), DaemonError> {
        let begun = Instant::now();
        let there = |mount: &PathBuf| fs::metadata(mount).is_ok_and(|file| file.len() > 0);
        while !self.mounts.iter().all(there) {
            let ended = self.child.try_wait().map_err(io_error("cannot be waited for"))?;
            if ended.is_some() || begun.elapsed() > PATIENCE {
                let said = fs::read_to_string(messages).unwrap_or_default();
                let last =
                    said.lines().last().unwrap_or("it exports nothing, and does not say why");
                return Err(DaemonError::Failed(last.to_owned()));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// From now on no command is answered.
    ///
    /// # Errors
    /// When it is not there.
    pub fn pause(&self) -> Result<(), DaemonError> {
        self.watch.set_paused(true);
        self.signal(Signal::SIGSTOP)
    }

    /// What was not answered is, late.
    ///
    /// # Errors
    /// When it is not there.
    pub fn resume(&self) -> Result<(), DaemonError> {
        self.signal(Signal::SIGCONT)?;
        self.watch.set_paused(false);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<(), DaemonError> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).map_err(|errno| io_error("it takes no signal")(errno.into()))
    }

    /// Ends it in order: images and logs are whole.
    ///
    /// # Errors
    /// When it does not end, or not well.
    pub fn stop(mut self) -> Result<(), DaemonError> {
        self.watch.end();
        self.signal(Signal::SIGTERM)?;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.child.try_wait().map_err(io_error("cannot be waited for"))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(DaemonError::Failed(format!("it ended with {status}"))),
                None => thread::sleep(Duration::from_millis(2)),
            }
        }
        Err(DaemonError::Failed("it does not end".to_owned()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.watch.end();
        // Nothing more can be done when any of this fails; after an end in order all of it does.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for mount in &self.mounts {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
        self.watch.join();
    }
}

/// The image at the bottom, above it what writes down or refuses; and the name of what is on top.
fn block_devices(number: usize, export: &Export) -> Result<(Vec<Value>, String), DaemonError> {
    // A flush is written down above; this machine stays up, and its own drive need not be flushed.
    let file = |name: &str, path: &Path| {
        json!({
            "driver": "file", "node-name": format!("{name}{number}"), "cache": {"no-flush": true},
            "filename": path.display().to_string(), "discard": "unmap",
        })
    };
    let mut lines = vec![file("image", &export.image)];
    let mut below = format!("image{number}");
    if let Some(log) = &export.log {
        // It is appended to from its first byte on.
        File::create(log).map_err(io_error("a file to log to"))?;
        lines.push(file("logfile", log));
        lines.push(json!({
            "driver": "blklogwrites", "node-name": format!("log{number}"), "file": below,
            "log": format!("logfile{number}"), "discard": "unmap",
        }));
        below = format!("log{number}");
    }
    if !export.refusals.is_empty() {
        let refusals = export.refusals.iter().map(|refusal| {
            json!({
                "event": "none", "iotype": refusal.command, "sector": refusal.offset / 512,
                "errno": nix::libc::EIO, "once": false,
            })
        });
        lines.push(json!({
            "driver": "blkdebug", "node-name": format!("refuse{number}"), "image": below,
            "inject-error": refusals.collect::<Vec<_>>(), "discard": "unmap",
        }));
        below = format!("refuse{number}");
    }
    Ok((lines, below))
}

/// Why this machine cannot run these checks, if it cannot.
#[must_use]
pub fn missing(folder: &Path) -> Option<String> {
    if let Err(error) = Command::new(BINARY).arg("--version").output() {
        return Some(format!("no {BINARY} (Debian: qemu-utils): {error}"));
    }
    let image = folder.join("trial.image");
    let export = Export {
        image: image.clone(),
        mount: folder.join("trial"),
        log: Some(folder.join("trial.log")),
        refusals: vec![Refusal { command: "read", offset: 0 }],
    };
    let trial = || -> Result<(), String> {
        let file = File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(1 << 20).map_err(|error| error.to_string())?;
        let daemon = Daemon::start(folder, &[export]).map_err(|error| told(&error))?;
        daemon.stop().map_err(|error| told(&error))
    };
    trial().err()
}

fn told(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::watch;

    #[test]
    fn a_daemon_that_stops_answering_is_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        if let Some(reason) = missing(folder.path()) {
            eprintln!("SKIPPED: {reason}");
            return;
        }
        let image = folder.path().join("image");
        File::create(&image).and_then(|file| file.set_len(1 << 20)).expect("an image");
        let mount = folder.path().join("drive");
        let export = Export { image, mount: mount.clone(), log: None, refusals: Vec::new() };
        let silence = Duration::from_secs(3);
        let daemon = Daemon::watched(folder.path(), &[export], silence).expect("it starts");
        assert!(!watch::take_stuck());
        daemon.signal(Signal::SIGSTOP).expect("it is there");
        // It hangs until the daemon is gone.
        let begun = Instant::now();
        while fs::File::open(&mount).and_then(|file| file.sync_all()).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing ended it");
        }
        assert!(watch::take_stuck() && !watch::take_stuck());
    }
}
