//! A log of everything that was written to a drive: what `blklogwrites` of QEMU leaves, in the format
//! of Linux's dm-log-writes.
//!
//! ```text
//! sector 0      magic u64 | version u64 | entries u64 | bytes of a sector u32
//! then, again and again, from the start of a sector on
//!               sector u64 | sectors u64 | flags u64 | bytes of a mark u64
//!               the bytes that were written, unless it was a flush or a discard
//! ```
//!
//! All numbers are little-endian. An entry is appended when its command is done, before the command
//! is answered. So whatever was answered at some moment lies within the length that the log had then,
//! and what was answered when a flush was asked for lies before the flush.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use thiserror::Error;

const MAGIC: u64 = 0x6a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

/// Bytes of an entry's head, at the start of its first sector.
const HEAD: usize = 32;

/// What was asked of the drive.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Bytes to a place; they lie in the log from `bytes_at` on.
    Write {
        /// Where in the log.
        bytes_at: u64,
    },
    /// What was answered before is durable.
    Flush,
    /// The range holds nothing any more.
    Discard,
}

/// One entry.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What.
    pub command: Command,
    /// Where on the drive; 0 for a flush.
    pub offset: u64,
    /// How many bytes; 0 for a flush.
    pub len: u64,
    /// The length of the log with this entry.
    pub end: u64,
}

/// Why a log cannot be read.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file.
    #[error("the write log")]
    Io(#[from] io::Error),
    /// It does not begin like one.
    #[error("the write log does not begin with magic, version 1 and a size of sectors")]
    Head,
    /// An entry makes no sense.
    #[error("the entry at byte {at} of the write log makes no sense: {what}")]
    Entry {
        /// Where it begins.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// A whole log. Bytes that were written stay in the file until they are asked for.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    entries: Vec<Entry>,
}

impl WriteLog {
    /// Reads every entry.
    ///
    /// # Errors
    /// When the file cannot be read, or is no such log from the first byte to the last.
    pub fn open(path: &Path) -> Result<WriteLog, LogError> {
        let file = File::open(path)?;
        let total = file.metadata()?.len();
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0)?;
        let sector = u64::from(number(&head, 24) as u32);
        let known = number(&head, 0) == MAGIC && number(&head, 8) == VERSION;
        if !known || !sector.is_power_of_two() || sector < HEAD as u64 {
            return Err(LogError::Head);
        }
        let mut entries = Vec::new();
        let mut at = sector;
        while at < total {
            file.read_exact_at(&mut head, at)?;
            let entry = entry(&head, at, sector, total)?;
            at = entry.end;
            entries.push(entry);
        }
        Ok(WriteLog { file, entries })
    }

    /// All entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The bytes that an entry wrote: none for a flush, zeros for a discard.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn bytes(&self, entry: &Entry) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; entry.len as usize];
        if let Command::Write { bytes_at } = entry.command {
            self.file.read_exact_at(&mut bytes, bytes_at)?;
        }
        Ok(bytes)
    }
}

fn number(head: &[u8; HEAD], at: usize) -> u64 {
    u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"))
}

/// The entry whose head begins at `at`.
fn entry(head: &[u8; HEAD], at: u64, sector: u64, total: u64) -> Result<Entry, LogError> {
    let wrong = |what| Err(LogError::Entry { at, what });
    let scaled = |sectors: u64| sectors.checked_mul(sector).filter(|bytes| *bytes < 1 << 50);
    let (Some(offset), Some(len)) = (scaled(number(head, 0)), scaled(number(head, 8))) else {
        return wrong("it lies beyond any drive");
    };
    if number(head, 24) != 0 {
        return wrong("it has a mark, which nobody made");
    }
    let bytes_at = at + sector;
    let (command, end) = match number(head, 16) {
        0 => (Command::Write { bytes_at }, bytes_at + len),
        FLUSH if len == 0 => (Command::Flush, bytes_at),
        DISCARD => (Command::Discard, bytes_at),
        _ => return wrong("its flags"),
    };
    if end > total {
        return wrong("the log ends within it");
    }
    Ok(Entry { command, offset, len, end })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// Sectors of the log of the tests.
    const SECTOR: usize = 512;

    #[derive(Clone, Debug)]
    enum Asked {
        Write(u8, u8),
        Flush,
        Discard(u8, u8),
    }

    fn head(words: [u64; 4]) -> Vec<u8> {
        let mut sector: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        sector.resize(SECTOR, 0);
        sector
    }

    fn log(asked: &[Asked]) -> Vec<u8> {
        let mut log = head([MAGIC, VERSION, asked.len() as u64, SECTOR as u64]);
        for (index, asked) in asked.iter().enumerate() {
            match *asked {
                Asked::Write(at, sectors) => {
                    log.extend(head([at.into(), sectors.into(), 0, 0]));
                    log.extend(vec![index as u8; usize::from(sectors) * SECTOR]);
                }
                Asked::Flush => log.extend(head([0, 0, FLUSH, 0])),
                Asked::Discard(at, sectors) => {
                    log.extend(head([at.into(), sectors.into(), DISCARD, 0]));
                }
            }
        }
        log
    }

    fn read(bytes: &[u8]) -> Result<WriteLog, LogError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        WriteLog::open(file.path())
    }

    fn asked() -> impl Strategy<Value = Asked> {
        prop_oneof![
            (any::<u8>(), 1u8..5).prop_map(|(at, sectors)| Asked::Write(at, sectors)),
            Just(Asked::Flush),
            (any::<u8>(), 1u8..5).prop_map(|(at, sectors)| Asked::Discard(at, sectors)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_log_is_read_as_it_was_written(asked in prop::collection::vec(asked(), 0..12)) {
            let bytes = log(&asked);
            let log = read(&bytes).unwrap();
            prop_assert_eq!(log.entries().len(), asked.len());
            let mut end = SECTOR as u64;
            for (index, (entry, asked)) in log.entries().iter().zip(&asked).enumerate() {
                let written = log.bytes(entry).unwrap();
                let place = |at: u8| u64::from(at) * SECTOR as u64;
                match *asked {
                    Asked::Write(at, sectors) => {
                        let write = matches!(entry.command, Command::Write { .. });
                        prop_assert!(write, "{entry:?}");
                        prop_assert_eq!(entry.offset, place(at));
                        let want = vec![index as u8; usize::from(sectors) * SECTOR];
                        prop_assert_eq!(&written, &want);
                        end += (SECTOR + written.len()) as u64;
                    }
                    Asked::Flush => {
                        prop_assert_eq!(entry.command, Command::Flush);
                        prop_assert!(written.is_empty());
                        end += SECTOR as u64;
                    }
                    Asked::Discard(at, sectors) => {
                        prop_assert_eq!(entry.command, Command::Discard);
                        prop_assert_eq!((entry.offset, entry.len), (place(at), place(sectors)));
                        prop_assert!(written.iter().all(|byte| *byte == 0));
                        end += SECTOR as u64;
                    }
                }
                prop_assert_eq!(entry.end, end);
            }
            prop_assert_eq!(end, bytes.len() as u64);
        }

        #[test]
        fn a_log_that_was_cut_or_bent_is_refused_or_read(
            asked in prop::collection::vec(asked(), 1..6), at in any::<u16>(), bit in 0u8..8,
        ) {
            let bytes = log(&asked);
            let at = usize::from(at) % bytes.len();
            let _ = read(&bytes[..at]);
            let mut bent = bytes;
            bent[at] ^= 1 << bit;
            let _ = read(&bent);
        }
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let good = log(&[Asked::Write(3, 2), Asked::Flush]);
        assert!(matches!(read(&good[..good.len() - 1]), Err(LogError::Entry { .. })));
        assert!(matches!(read(&[]), Err(LogError::Io(_))));
        let changed = |at: usize, byte: u8| {
            let mut log = good.clone();
            log[at] = byte;
            read(&log).unwrap_err()
        };
        assert!(matches!(changed(0, 0), LogError::Head));
        assert!(matches!(changed(8, 2), LogError::Head));
        assert!(matches!(changed(24, 1), LogError::Head));
        for (at, byte) in [(16, 2), (16, 8), (24, 1), (7, 1), (15, 1), (8, 9)] {
            assert!(matches!(changed(SECTOR + at, byte), LogError::Entry { at: 512, .. }), "{at}");
        }
    }
}
