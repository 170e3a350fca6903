//! The disk's own speed, told by fio: direct I/O at depth 4 from memory in hugepages.
//!
//! Hugepages matter: from pages of 4 KiB a virtual disk reaches a third of its speed, and a floor
//! measured that way would be no floor.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use memkv_dma::DmaBuf;
use serde_json::Value;

use crate::error::{BenchError, doing};
use crate::measure::Operation;

/// Requests in flight of the floor.
const DEPTH: usize = 4;
/// Bytes of a request of the floor.
const BLOCK: usize = 4 << 20;

/// What fio is asked: direct I/O by io_uring from hugepages.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// A file or a block device.
    pub target: &'a Path,
    /// How much of it is used.
    pub target_bytes: u64,
    /// Write or read.
    pub operation: Operation,
    /// Bytes of a request.
    pub block: usize,
    /// Requests in flight.
    pub depth: usize,
    /// In any order, else one after the other.
    pub random: bool,
    /// Bytes moved.
    pub bytes: u64,
}

/// What fio found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Floor {
    /// GiB per second.
    pub speed: f64,
    /// Requests per second.
    pub iops: f64,
    /// CPU seconds per GiB.
    pub cost: f64,
}

/// fio and the file it works on.
pub struct Fio {
    file: PathBuf,
    file_bytes: u64,
    run_bytes: u64,
}

impl Fio {
    /// Looks for fio, writes its file once from `noise` and tries it; the reason when it cannot
    /// run as it should.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn prepare(
        folder: &Path,
        file_bytes: u64,
        run_bytes: u64,
        noise: &DmaBuf,
    ) -> Result<Result<Fio, String>, BenchError> {
        if Command::new("fio").arg("--version").output().is_err() {
            return Ok(Err("fio is not installed".to_owned()));
        }
        let file = folder.join("fio.data");
        let io = |error| doing("fio's file")(error);
        let data = OpenOptions::new().create_new(true).write(true).open(&file).map_err(io)?;
        let noise = noise.as_slice();
        for at in (0..file_bytes).step_by(noise.len()) {
            let len = noise.len().min((file_bytes - at) as usize);
            data.write_all_at(&noise[..len], at).map_err(io)?;
        }
        data.sync_all().map_err(io)?;
        let fio = Fio { file, file_bytes, run_bytes };
        let tried = fio.run(Operation::Get);
        Ok(tried.map(|_| fio))
    }

    /// GiB per second of writing or reading; what fio says when it does not work.
    pub fn run(&self, operation: Operation) -> Result<f64, String> {
        let job = Job {
            target: &self.file,
            target_bytes: self.file_bytes,
            operation,
            block: BLOCK,
            depth: DEPTH,
            random: false,
            bytes: self.run_bytes,
        };
        job.run().map(|floor| floor.speed)
    }
}

impl Job<'_> {
    /// Does it; what fio says when it does not work.
    pub fn run(&self) -> Result<Floor, String> {
        let direction = match self.operation {
            Operation::Put => "write",
            Operation::Get => "read",
        };
        let order = if self.random { "rand" } else { "" };
        let mut command = Command::new("fio");
        command.args(["--name=floor", "--ioengine=io_uring", "--direct=1"]);
        command.args(["--mem=shmhuge", "--output-format=json", "--fallocate=none"]);
        // What it would change of its buffers before each write is no part of a disk's speed.
        command.args(["--scramble_buffers=0", "--norandommap", "--randrepeat=0"]);
        command.arg(format!("--filename={}", self.target.display()));
        command.arg(format!("--rw={order}{direction}"));
        command.arg(format!("--bs={}", self.block));
        command.arg(format!("--iodepth={}", self.depth));
        command.arg(format!("--size={}", self.target_bytes));
        command.arg(format!("--io_size={}", self.bytes));
        let output = command.output().map_err(|error| format!("fio cannot be started: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
            return Err(format!("fio failed and said: {line}"));
        }
        floor(&output.stdout, direction).ok_or_else(|| "fio's answer cannot be read".to_owned())
    }
}

/// What fio's only job found; its CPU time is told as shares of the time that it ran.
fn floor(answer: &[u8], direction: &str) -> Option<Floor> {
    // Warnings may stand in front of the document.
    let begin = answer.iter().position(|byte| *byte == b'{')?;
    let answer: Value = serde_json::from_slice(&answer[begin..]).ok()?;
    let job = &answer["jobs"][0];
    let speed = job[direction]["bw_bytes"].as_f64()? / f64::from(1 << 30);
    let busy = (job["usr_cpu"].as_f64()? + job["sys_cpu"].as_f64()?) / 100.0;
    let iops = job[direction]["iops"].as_f64()?;
    (speed > 0.0).then_some(Floor { speed, iops, cost: busy / speed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_read_from_behind_warnings() {
        let answer = br#"fio: a warning
            {"jobs": [{"write": {"bw_bytes": 3221225472, "iops": 768.0}, "usr_cpu": 4.5,
             "sys_cpu": 1.5, "read": {"bw_bytes": 0, "iops": 0}}]}"#;
        let found = floor(answer, "write").unwrap();
        assert_eq!((found.speed, found.iops), (3.0, 768.0));
        assert!((found.cost - 0.02).abs() < 1e-9);
        assert_eq!(floor(answer, "read"), None);
        assert_eq!(floor(b"no document", "read"), None);
    }
}
