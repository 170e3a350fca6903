//! The value of a manifest.
//!
//! ```text
//!   0   4  "kvm1"
//!   4   4  number of chunks, little endian
//!   8   …  each chunk: u16 length of its hash, the hash
//!   …   …  the bytes of the manifest, to the end
//! ```
//!
//! The chunks stand before the bytes so that a reader knows what the manifest is worth without understanding it:
//! only its consumer knows where in the bytes the hashes are.

const MAGIC: [u8; 4] = *b"kvm1";

/// A manifest with the hashes of the chunks that were put for it.
pub(crate) fn encode<'a>(chunks: impl ExactSizeIterator<Item = &'a [u8]>, bytes: &[u8]) -> Vec<u8> {
    let mut value = MAGIC.to_vec();
    value.extend_from_slice(&(chunks.len() as u32).to_le_bytes());
    for hash in chunks {
        let length = u16::try_from(hash.len()).expect("a hash is a part of a key");
        value.extend_from_slice(&length.to_le_bytes());
        value.extend_from_slice(hash);
    }
    value.extend_from_slice(bytes);
    value
}

/// The hashes and the bytes; `None` when it is no manifest of ours.
pub(crate) fn decode(value: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let (count, mut rest) = value.strip_prefix(&MAGIC)?.split_first_chunk::<4>()?;
    let mut chunks = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let (length, more) = rest.split_first_chunk::<2>()?;
        let (hash, more) = more.split_at_checked(u16::from_le_bytes(*length).into())?;
        chunks.push(hash);
        rest = more;
    }
    Some((chunks, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let hashes: [&[u8]; 3] = [b"12345678", b"", &[255; 510]];
        for chunks in [&hashes[..], &[]] {
            for bytes in [&b""[..], b"kvm1", &[7; 1000]] {
                let value = encode(chunks.iter().copied(), bytes);
                assert_eq!(decode(&value), Some((chunks.to_vec(), bytes)));
            }
        }
    }

    #[test]
    fn what_is_cut_or_strange_is_none() {
        let value = encode([&b"12345678"[..], b"87654321"].into_iter(), b"");
        for end in 0..value.len() {
            assert_eq!(decode(&value[..end]), None, "{end}");
        }
        assert_eq!(decode(b"a value of somebody else"), None);
        assert_eq!(decode(b"kvm1\xff\xff\xff\xff"), None);
    }
}
