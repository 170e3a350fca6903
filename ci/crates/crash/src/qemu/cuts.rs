//! When the power could have gone: moments at which it is known what both drives had been told and
//! what the server owed.
//!
//! While the load runs a thread looks again and again how long the ledger and the two write logs are.
//! The order of looking makes each [`Sample`] a true statement: the ledger first, for whatever is
//! acknowledged in it was done before the logs were looked at; the first log before and after the
//! second, and equal, so that both lengths were true at one moment; the ledger again, for whatever
//! is in the logs had been asked for by then.
//!
//! Where only one drive was told anything between two samples, every entry of its log in between is
//! a moment, too.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::writelog::WriteLog;

/// Drives of the server.
pub const DRIVES: usize = 2;

/// How often is looked.
const INTERVAL: Duration = Duration::from_micros(50);

/// What was so at one moment.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Moment {
    /// What is acknowledged within these bytes of the ledger is owed.
    pub acknowledged: u64,
    /// What is in the logs was asked for within these bytes of the ledger.
    pub asked: u64,
    /// The lengths of the logs.
    pub at: [u64; DRIVES],
}

/// Looks once; nothing when a drive was written to meanwhile.
fn look(ledger: &File, logs: &[File; DRIVES]) -> io::Result<Option<Moment>> {
    let length = |file: &File| file.metadata().map(|file| file.len());
    let acknowledged = length(ledger)?;
    let at = [length(&logs[0])?, length(&logs[1])?];
    if length(&logs[0])? != at[0] {
        return Ok(None);
    }
    Ok(Some(Moment { acknowledged, asked: length(ledger)?, at }))
}

/// A thread that looks until it is told to stop.
pub struct Sampler {
    stop: std::sync::Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Vec<Moment>>>,
}

impl Sampler {
    /// Begins to look.
    ///
    /// # Errors
    /// When one of the files is not there.
    pub fn start(ledger: &Path, logs: &[PathBuf; DRIVES]) -> io::Result<Sampler> {
        let ledger = File::options().create(true).append(true).open(ledger)?;
        let logs = [File::open(&logs[0])?, File::open(&logs[1])?];
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let told = std::sync::Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut moments: Vec<Moment> = Vec::new();
            while !told.load(Ordering::Relaxed) {
                if let Some(moment) = look(&ledger, &logs)? {
                    keep(&mut moments, moment);
                }
                thread::sleep(INTERVAL);
            }
            Ok(moments)
        });
        Ok(Sampler { stop, thread })
    }

    /// Ends, and what was seen.
    ///
    /// # Errors
    /// When a file could not be looked at.
    pub fn stop(self) -> io::Result<Vec<Moment>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the sampler panicked")
    }
}

/// Of moments at which the drives stood still the last one counts: it owes the most.
fn keep(moments: &mut Vec<Moment>, moment: Moment) {
    match moments.last_mut() {
        Some(last) if last.at == moment.at => *last = moment,
        _ => moments.push(moment),
    }
}

/// Every moment at which the power could have gone, in order: the samples, and what lies between.
#[must_use]
pub fn moments(samples: &[Moment], logs: &[WriteLog; DRIVES]) -> Vec<Moment> {
    let mut all = Vec::new();
    for (index, sample) in samples.iter().enumerate() {
        all.push(*sample);
        let Some(next) = samples.get(index + 1) else { break };
        let moved = |drive: usize| sample.at[drive] != next.at[drive];
        let drive = match (moved(0), moved(1)) {
            (true, false) => 0,
            (false, true) => 1,
            _ => continue,
        };
        let ends = logs[drive].entries().iter().map(|entry| entry.end);
        for end in ends.filter(|end| (sample.at[drive] + 1..next.at[drive]).contains(end)) {
            let mut at = sample.at;
            at[drive] = end;
            let acknowledged = sample.acknowledged;
            all.push(Moment { acknowledged, asked: next.asked, at });
        }
    }
    all
}

/// The ledger as it stood: all of what is owed, and of what was asked later the question only.
#[must_use]
pub fn ledger_at(text: &str, moment: &Moment) -> String {
    let (owed, later) = (moment.acknowledged as usize, moment.asked as usize);
    let mut lines = text[..owed].to_owned();
    for line in text[owed..later].lines() {
        if line.starts_with("put ") || line.starts_with("delete ") {
            lines.push_str(line);
            lines.push('\n');
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(acknowledged: u64, asked: u64, at: [u64; 2]) -> Moment {
        Moment { acknowledged, asked, at }
    }

    /// A log of writes of one sector each, as long as it is said to be.
    fn log(writes: usize) -> WriteLog {
        let word = |words: [u64; 4]| {
            let mut sector: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            sector.resize(512, 0);
            sector
        };
        let mut bytes = word([0x6a_7366_7773_6872, 1, 0, 512]);
        for write in 0..writes {
            bytes.extend(word([write as u64, 1, 0, 0]));
            bytes.extend([write as u8; 512]);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        WriteLog::open(file.path()).unwrap()
    }

    #[test]
    fn between_two_samples_every_entry_of_the_drive_that_moved_is_a_moment() {
        let logs = [log(5), log(2)];
        let samples = [
            moment(10, 12, [512, 512]),
            moment(20, 25, [512 + 3 * 1024, 512]),
            moment(30, 31, [512 + 5 * 1024, 512 + 1024]),
        ];
        let want = [
            moment(10, 12, [512, 512]),
            moment(10, 25, [512 + 1024, 512]),
            moment(10, 25, [512 + 2 * 1024, 512]),
            moment(20, 25, [512 + 3 * 1024, 512]),
            // Both moved: nothing in between is known.
            moment(30, 31, [512 + 5 * 1024, 512 + 1024]),
        ];
        assert_eq!(moments(&samples, &logs), want);
    }

    #[test]
    fn while_drives_stand_still_the_last_look_counts() {
        let mut moments = Vec::new();
        for seen in [moment(1, 2, [5, 5]), moment(3, 3, [5, 5]), moment(3, 4, [5, 6])] {
            keep(&mut moments, seen);
        }
        assert_eq!(moments, [moment(3, 3, [5, 5]), moment(3, 4, [5, 6])]);
    }

    #[test]
    fn later_answers_are_not_owed_and_later_questions_are_possible() {
        let text = "put 1 0 replace\nstored 1 0\nput 1 1 replace\nstored 1 1\ndelete 1\n";
        let (first, second) = (text.find("put 1 1").unwrap(), text.len());
        let asked = ledger_at(text, &moment(first as u64, second as u64, [0, 0]));
        assert_eq!(asked, "put 1 0 replace\nstored 1 0\nput 1 1 replace\ndelete 1\n");
        let all = ledger_at(text, &moment(second as u64, second as u64, [0, 0]));
        assert_eq!(all, text);
    }

    #[test]
    fn a_sampler_sees_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["ledger", "log0", "log1"].map(|name| folder.path().join(name));
        paths.iter().for_each(|path| std::fs::write(path, "x").unwrap());
        let files = [File::open(&paths[1]).unwrap(), File::open(&paths[2]).unwrap()];
        let seen = look(&File::open(&paths[0]).unwrap(), &files).unwrap();
        assert_eq!(seen, Some(moment(1, 1, [1, 1])));
    }
}
