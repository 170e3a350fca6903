//! Inputs that are changes to a larger whole: what is printed of a failure stays short.
//!
//! ```text
//! size u32 | patches: at u32 | length u16 | bytes …
//! ```

/// Bytes at a place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Patch {
    /// Where.
    pub at: u32,
    /// Which, at most 65,535.
    pub bytes: Vec<u8>,
}

/// A size, or any number that a target wants first, and changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Patches {
    /// What the size means is the target's.
    pub size: u32,
    /// In the order in which they are made.
    pub patches: Vec<Patch>,
}

impl Patches {
    /// As an input.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.size.to_le_bytes().to_vec();
        for patch in &self.patches {
            let length = u16::try_from(patch.bytes.len()).expect("a patch is short");
            out.extend_from_slice(&patch.at.to_le_bytes());
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&patch.bytes);
        }
        out
    }

    /// Of an input, any input: what is cut short at its end is left out.
    pub fn parse(input: &[u8]) -> Option<Patches> {
        let (size, mut rest) = input.split_first_chunk::<4>()?;
        let mut patches = Vec::new();
        while let Some((head, after)) = rest.split_first_chunk::<6>() {
            let [a, b, c, d, low, high] = *head;
            let length = usize::from(u16::from_le_bytes([low, high])).min(after.len());
            let (bytes, after) = after.split_at(length);
            patches.push(Patch { at: u32::from_le_bytes([a, b, c, d]), bytes: bytes.to_vec() });
            rest = after;
        }
        Some(Patches { size: u32::from_le_bytes(*size), patches })
    }

    /// Makes the changes; what lies beyond the end is lost.
    pub fn apply(&self, image: &mut [u8]) {
        for patch in &self.patches {
            crate::draw::overwrite(image, patch.at as usize, &patch.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_read_back_and_stay_within_the_image() {
        let patch = |at, bytes: &[u8]| Patch { at, bytes: bytes.to_vec() };
        let patches = Patches { size: 7, patches: vec![patch(1, b"ab"), patch(5, b"xyz")] };
        let input = patches.encode();
        assert_eq!(Patches::parse(&input), Some(patches.clone()));
        let mut image = [0; 6];
        patches.apply(&mut image);
        assert_eq!(&image, b"\0ab\0\0x");
        let cut = Patches::parse(&input[..input.len() - 1]).expect("a size");
        assert_eq!(cut.patches[1], patch(5, b"xy"));
        assert_eq!(Patches::parse(&[1, 2, 3]), None);
    }
}
