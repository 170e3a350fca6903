//! What the values of files and directories look like. All numbers are little-endian.
//!
//! ```text
//! file       magic 4 | version 4 | size 8 | seconds 8 | nanos 4 | parts 4 | part bytes 8 | id 16 | 8 | inline …
//! directory  magic 4 | version 4 | entries: kind 1, length 2, name …
//! ```
//!
//! A file whose bytes do not follow its head has them in parts, each a value of its own whose key is made of
//! the id, so that another version of the file, with another id, does not touch them. Of all values only the
//! head says which parts are a file: it is put last and in one piece.

/// Bytes of a head, without what follows it.
pub(crate) const HEAD_BYTES: usize = 64;
const FILE: &[u8; 4] = b"MKVF";
const DIRECTORY: &[u8; 4] = b"MKVD";
const VERSION: u32 = 1;

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes of the file.
    pub size: u64,
    /// When it was stored, since the epoch.
    pub seconds: i64,
    /// And these.
    pub nanos: u32,
    /// How many parts; 0 when its bytes follow the head.
    pub parts: u32,
    /// Bytes of each part but the last.
    pub part_bytes: u64,
    /// Names the parts.
    pub id: [u8; 16],
}

impl Head {
    /// The bytes of a head.
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(FILE);
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.size.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.seconds.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.nanos.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.parts.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.part_bytes.to_le_bytes());
        bytes[40..56].copy_from_slice(&self.id);
        bytes
    }

    /// The head that a value begins with, if it makes sense.
    pub fn decode(value: &[u8]) -> Option<Head> {
        let mut cursor = Cursor(value.get(..HEAD_BYTES)?);
        if cursor.take::<4>()? != *FILE || u32::from_le_bytes(cursor.take()?) != VERSION {
            return None;
        }
        let head = Head {
            size: u64::from_le_bytes(cursor.take()?),
            seconds: i64::from_le_bytes(cursor.take()?),
            nanos: u32::from_le_bytes(cursor.take()?),
            parts: u32::from_le_bytes(cursor.take()?),
            part_bytes: u64::from_le_bytes(cursor.take()?),
            id: cursor.take()?,
        };
        let nanos = head.nanos < 1_000_000_000;
        let parts = head.parts == 0
            || head.part_bytes > 0 && head.size.div_ceil(head.part_bytes) == head.parts.into();
        (nanos && parts && i64::try_from(head.size).is_ok()).then_some(head)
    }
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// One part of a path.
    pub name: Vec<u8>,
    /// Whether it is a directory itself.
    pub directory: bool,
}

/// The value of a directory.
pub(crate) fn encode_directory(entries: &[Entry]) -> Vec<u8> {
    let mut value = [&DIRECTORY[..], &VERSION.to_le_bytes()].concat();
    for entry in entries {
        value.push(entry.directory.into());
        value.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
        value.extend_from_slice(&entry.name);
    }
    value
}

/// The names of a directory's value, if it makes sense.
pub(crate) fn decode_directory(value: &[u8]) -> Option<Vec<Entry>> {
    let mut cursor = Cursor(value);
    if cursor.take::<4>()? != *DIRECTORY || u32::from_le_bytes(cursor.take()?) != VERSION {
        return None;
    }
    let mut entries = Vec::new();
    while !cursor.0.is_empty() {
        let [kind] = cursor.take()?;
        let length = u16::from_le_bytes(cursor.take()?).into();
        let name = cursor.0.get(..length)?.to_vec();
        cursor.0 = &cursor.0[length..];
        entries.push(Entry { name, directory: kind == 1 });
    }
    Some(entries)
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        let id = std::array::from_fn(|at| at as u8);
        Head { size: 33, seconds: -5, nanos: 999_999_999, parts: 3, part_bytes: 16, id }
    }

    #[test]
    fn a_head_is_what_it_was() {
        let bytes = head().encode();
        assert_eq!(Head::decode(&bytes), Some(head()));
        assert_eq!(Head::decode(&[&bytes[..], b"what follows"].concat()), Some(head()));
        assert_eq!(Head::decode(&bytes[..HEAD_BYTES - 1]), None);
    }

    #[test]
    fn a_head_that_makes_no_sense_is_none() {
        let wrong = |at: usize, byte: u8| {
            let mut bytes = head().encode();
            bytes[at] = byte;
            Head::decode(&bytes)
        };
        assert_eq!(wrong(0, 0), None, "another magic");
        assert_eq!(wrong(4, 2), None, "another version");
        assert_eq!(wrong(28, 4), None, "more parts than the size has");
        assert_eq!(wrong(32, 0), None, "parts of nothing");
        assert_eq!(wrong(15, 0x80), None, "longer than a file can be");
        assert_eq!(wrong(27, 0xff), None, "more than a second");
    }

    #[test]
    fn a_directory_is_what_it_was() {
        let entry = |name: &[u8], directory| Entry { name: name.to_vec(), directory };
        let entries = [entry(b"a file", false), entry(&[0xff; 300], false), entry(b"d", true)];
        let value = encode_directory(&entries);
        assert_eq!(decode_directory(&value).as_deref(), Some(&entries[..]));
        assert_eq!(decode_directory(&encode_directory(&[])).as_deref(), Some(&[][..]));
        assert_eq!(decode_directory(&value[..value.len() - 1]), None);
        assert_eq!(decode_directory(b"MKVD"), None);
        assert_eq!(decode_directory(&head().encode()), None);
    }
}
