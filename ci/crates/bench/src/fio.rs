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

/// Requests in flight.
const DEPTH: u32 = 4;

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
        let direction = match operation {
            Operation::Put => "write",
            Operation::Get => "read",
        };
        let mut command = Command::new("fio");
        command.args(["--name=floor", "--ioengine=io_uring", "--direct=1", "--bs=4M"]);
        command.args(["--mem=shmhuge", "--output-format=json", "--fallocate=none"]);
        command.arg(format!("--filename={}", self.file.display()));
        command.arg(format!("--rw={direction}"));
        command.arg(format!("--iodepth={DEPTH}"));
        command.arg(format!("--size={}", self.file_bytes));
        command.arg(format!("--io_size={}", self.run_bytes));
        let output = command.output().map_err(|error| format!("fio cannot be started: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
            return Err(format!("fio failed and said: {line}"));
        }
        speed(&output.stdout, direction).ok_or_else(|| "fio's answer cannot be read".to_owned())
    }
}

/// The bytes per second of fio's only job, as GiB per second.
fn speed(answer: &[u8], direction: &str) -> Option<f64> {
    // Warnings may stand in front of the document.
    let begin = answer.iter().position(|byte| *byte == b'{')?;
    let answer: Value = serde_json::from_slice(&answer[begin..]).ok()?;
    let bytes = answer["jobs"][0][direction]["bw_bytes"].as_f64()?;
    (bytes > 0.0).then_some(bytes / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_read_from_behind_warnings() {
        let answer = br#"fio: a warning
            {"jobs": [{"write": {"bw_bytes": 3221225472}, "read": {"bw_bytes": 0}}]}"#;
        assert_eq!(speed(answer, "write"), Some(3.0));
        assert_eq!(speed(answer, "read"), None);
        assert_eq!(speed(b"no document", "read"), None);
    }
}
