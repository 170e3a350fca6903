//! Reads the traces that the Mooncake project publishes of real serving clusters.
//!
//! A trace is text, one JSON object a line:
//!
//! ```text
//! {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48]}
//! ```
//!
//! `timestamp` is in milliseconds since the trace began, the lengths count tokens, and `hash_ids`
//! has one number per block of 512 tokens in prompt order: an equal number means an equal prefix up
//! to and with that block. The file may be compressed with zstd; that is told from its first bytes,
//! not from its name. It is read as a stream, a line at a time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::block::BlockHash;

/// Tokens that one `hash_ids` entry of a Mooncake trace stands for.
pub const TOKENS_PER_BLOCK: u64 = 512;

/// The longest line taken, in bytes. A prompt of a million blocks fits; a file that is no trace is
/// refused before it fills the memory.
pub const LINE_MAX: usize = 16 << 20;

/// The first four bytes of a zstd frame (RFC 8878, section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// One request to an inference engine, as far as its KV cache is concerned.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// When it arrives, counted from the beginning of the trace.
    pub at: Duration,
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// The blocks of the prompt, in order.
    pub blocks: Vec<BlockHash>,
}

/// Why a trace could not be read on.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file could not be opened.
    #[error("cannot open the trace {path}")]
    Open {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Reading failed, or the compressed stream is damaged.
    #[error("cannot read the trace at line {line}")]
    Read {
        /// The line that was being read, counted from 1.
        line: u64,
        /// What the system or the decompressor said.
        source: io::Error,
    },
    /// A line is not a request.
    #[error("line {line} of the trace is not a request")]
    Parse {
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it, and at which column.
        source: serde_json::Error,
    },
    /// A line is longer than [`LINE_MAX`].
    #[error("line {line} of the trace is longer than {LINE_MAX} bytes")]
    LineTooLong {
        /// The line, counted from 1.
        line: u64,
    },
}

/// One line as it stands in the file. Fields that other traces add are ignored.
#[derive(Deserialize)]
struct Line {
    timestamp: u64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

/// Reads requests one after the other; ends at the first error.
pub struct TraceReader {
    input: Box<dyn BufRead + Send>,
    line: u64,
    bytes: Vec<u8>,
    failed: bool,
}

impl TraceReader {
    /// Opens a trace file, plain or compressed.
    ///
    /// # Errors
    /// [`TraceError::Open`] when it cannot be opened, [`TraceError::Read`] when its first bytes
    /// cannot be read.
    pub fn open(path: &Path) -> Result<TraceReader, TraceError> {
        let file = File::open(path)
            .map_err(|source| TraceError::Open { path: path.to_owned(), source })?;
        TraceReader::new(file)
    }

    /// Reads a trace, plain or compressed, from any source of bytes.
    ///
    /// # Errors
    /// [`TraceError::Read`] when the first bytes cannot be read.
    pub fn new(mut input: impl Read + Send + 'static) -> Result<TraceReader, TraceError> {
        let at_start = |source| TraceError::Read { line: 1, source };
        let mut magic = Vec::with_capacity(ZSTD_MAGIC.len());
        input.by_ref().take(ZSTD_MAGIC.len() as u64).read_to_end(&mut magic).map_err(at_start)?;
        let compressed = magic == ZSTD_MAGIC;
        let whole = BufReader::with_capacity(1 << 16, Cursor::new(magic).chain(input));
        let input: Box<dyn BufRead + Send> = if compressed {
            let decoder = zstd::Decoder::with_buffer(whole).map_err(at_start)?;
            Box::new(BufReader::with_capacity(1 << 16, decoder))
        } else {
            Box::new(whole)
        };
        Ok(TraceReader { input, line: 0, bytes: Vec::new(), failed: false })
    }

    /// The next request, or `None` at the end. Empty lines are skipped.
    fn read(&mut self) -> Result<Option<Request>, TraceError> {
        loop {
            self.line += 1;
            let line = self.line;
            self.bytes.clear();
            let mut limited = self.input.by_ref().take(LINE_MAX as u64 + 1);
            let read = limited.read_until(b'\n', &mut self.bytes);
            if read.map_err(|source| TraceError::Read { line, source })? == 0 {
                return Ok(None);
            }
            if self.bytes.len() > LINE_MAX {
                return Err(TraceError::LineTooLong { line });
            }
            let text = self.bytes.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let parsed: Line = serde_json::from_slice(text)
                .map_err(|source| TraceError::Parse { line, source })?;
            return Ok(Some(parsed.into()));
        }
    }
}

impl From<Line> for Request {
    fn from(line: Line) -> Request {
        Request {
            at: Duration::from_millis(line.timestamp),
            input_tokens: line.input_length,
            output_tokens: line.output_length,
            blocks: line.hash_ids.into_iter().map(BlockHash).collect(),
        }
    }
}

impl Iterator for TraceReader {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let read = self.read();
        self.failed = read.is_err();
        read.transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    const TWO: &str = concat!(
        r#"{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}"#,
        "\n\n",
        r#"{"hash_ids": [0, 14], "timestamp": 3001, "input_length": 900, "output_length": 9, "x": 1}"#,
    );

    fn read(bytes: impl Into<Vec<u8>>) -> Vec<Result<Request, TraceError>> {
        TraceReader::new(Cursor::new(bytes.into())).unwrap().collect()
    }

    #[test]
    fn plain_and_compressed_read_alike() {
        let plain: Vec<Request> = read(TWO).into_iter().map(Result::unwrap).collect();
        assert_eq!(plain.len(), 2);
        assert_eq!(plain[0].blocks, [BlockHash(0), BlockHash(1), BlockHash(2)]);
        assert_eq!(plain[1].at, Duration::from_millis(3001));
        assert_eq!((plain[1].input_tokens, plain[1].output_tokens), (900, 9));
        let compressed = zstd::encode_all(TWO.as_bytes(), 3).unwrap();
        let unpacked: Vec<Request> = read(compressed).into_iter().map(Result::unwrap).collect();
        assert_eq!(plain, unpacked);
    }

    #[test]
    fn several_compressed_frames_are_one_trace() {
        let mut frames = zstd::encode_all(TWO.as_bytes(), 1).unwrap();
        frames.extend(zstd::encode_all(format!("\n{TWO}").as_bytes(), 1).unwrap());
        assert_eq!(read(frames).into_iter().map(Result::unwrap).count(), 4);
    }

    #[test]
    fn an_empty_trace_has_no_requests() {
        assert!(read("").is_empty());
        assert!(read("\n\n").is_empty());
        assert_eq!(read("{}").len(), 1, "two bytes are fewer than the magic");
    }

    #[test]
    fn a_bad_line_is_named_and_ends_the_trace() {
        let outcome = read(format!("{TWO}\nnot json\n{TWO}"));
        assert_eq!(outcome.len(), 3);
        let error = outcome[2].as_ref().unwrap_err();
        assert!(matches!(error, TraceError::Parse { line: 4, .. }), "{error:?}");
        assert_eq!(error.to_string(), "line 4 of the trace is not a request");
        assert!(error.source().unwrap().to_string().contains("column"));
    }

    #[test]
    fn missing_fields_and_negative_times_are_refused() {
        for bad in [
            r#"{"timestamp": 0, "input_length": 1, "output_length": 1}"#,
            r#"{"timestamp": -5, "input_length": 1, "output_length": 1, "hash_ids": []}"#,
            r#"{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [-1]}"#,
            r#"[1, 2]"#,
        ] {
            let outcome = read(bad);
            assert!(matches!(outcome[0], Err(TraceError::Parse { line: 1, .. })), "{bad}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let endless = TraceReader::new(io::repeat(b' ')).unwrap().next();
        assert!(matches!(endless, Some(Err(TraceError::LineTooLong { line: 1 }))));
    }

    #[test]
    fn a_cut_off_compressed_trace_is_an_error_not_an_end() {
        let mut compressed = zstd::encode_all(TWO.as_bytes(), 3).unwrap();
        compressed.truncate(compressed.len() - 6);
        let outcome = read(compressed);
        assert!(matches!(outcome.last(), Some(Err(TraceError::Read { .. }))), "{outcome:?}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = TraceReader::open(Path::new("no/such/trace")).err().unwrap();
        assert_eq!(error.to_string(), "cannot open the trace no/such/trace");
    }
}
