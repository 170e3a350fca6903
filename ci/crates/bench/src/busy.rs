//! Threads of others: processes that never rest while a row is measured beside them.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::error::{BenchError, doing};

/// Processes of one busy thread each, ended when this is dropped.
pub struct Busy(Vec<Child>);

impl Busy {
    /// Starts this very binary so many times as one of them.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(count: usize) -> Result<Busy, BenchError> {
        let own = std::env::current_exe().map_err(doing("the path of this binary"))?;
        let mut busy = Busy(Vec::new());
        for _ in 0..count {
            let mut command = Command::new(&own);
            command.arg("busy").stdin(Stdio::piped());
            busy.0.push(command.spawn().map_err(doing("a busy process cannot be started"))?);
        }
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Nothing more can be done when this fails, and it is fine when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Computes until standard input ends: with the process that started this one at the latest.
pub fn work() -> io::Result<()> {
    let end = thread::spawn(|| io::stdin().read_to_end(&mut Vec::new()));
    let mut sum = 0_u64;
    while !end.is_finished() {
        for term in 0..1_000_000 {
            sum = std::hint::black_box(sum.wrapping_add(term));
        }
    }
    end.join().expect("reading does not panic").map(drop)
}
