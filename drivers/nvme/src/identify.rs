//! What a controller tells about itself: Base Specification 2.0, section 5.17.2, and NVM Command Set
//! Specification 1.0, section 4.1.5. Its pages are outside bytes: a broken drive may say anything.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use crate::error::NvmeError;

/// Bytes of every page.
pub(crate) const PAGE: usize = 4096;

fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(page[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"))
}

/// Text of a fixed length, padded with blanks; what is no printable character does not get into a log.
/// It lies in its place: a controller is asked what it is in every reset, which asks for no memory.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    bytes: [u8; TEXT],
    len: usize,
}

/// Bytes of the longest one.
const TEXT: usize = 40;

impl Text {
    /// What is longer is cut off.
    pub fn new(raw: &[u8]) -> Text {
        let mut bytes = [0; TEXT];
        let readable = |byte: u8| if matches!(byte, b' '..=b'~') { byte } else { b'?' };
        let is_blank = |byte: &u8| matches!(readable(*byte), b' ' | b'?');
        let from = raw.iter().position(|byte| !is_blank(byte)).unwrap_or(raw.len());
        let to = raw.iter().rposition(|byte| !is_blank(byte)).map_or(from, |last| last + 1);
        let len = (to - from).min(TEXT);
        for (place, byte) in bytes.iter_mut().zip(&raw[from..from + len]) {
            *place = readable(*byte);
        }
        Text { bytes, len }
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).expect("printable characters")
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

fn text_at(page: &[u8], at: usize, len: usize) -> Text {
    Text::new(&page[at..at + len])
}

/// The controller (CNS 01h, figure 275).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ControllerPage {
    pub serial: Text,
    pub model: Text,
    pub firmware: Text,
    /// The longest transfer in units of the smallest page, as its logarithm; 0: any.
    pub transfer_bits: u8,
    /// How long a shutdown may take.
    pub shutdown: Option<Duration>,
    /// Namespaces that there may be.
    pub namespaces: u32,
    pub deallocates: bool,
    pub zeroes: bool,
    /// What is written may lie in a cache that a power cut empties.
    pub caches: bool,
}

impl ControllerPage {
    pub fn parse(page: &[u8; PAGE]) -> Result<ControllerPage, NvmeError> {
        // Bits 3:0 are the smallest entry that is allowed, 7:4 the largest (SQES, CQES).
        let (submission, completion) = (page[512], page[513]);
        let takes = |sizes: u8, bits: u8| sizes & 0xf <= bits && bits <= sizes >> 4;
        if !takes(submission, 6) || !takes(completion, 4) {
            return Err(NvmeError::EntrySizes { submission, completion });
        }
        let shutdown = u32_at(page, 88);
        let optional = u16_at(page, 520);
        Ok(ControllerPage {
            serial: text_at(page, 4, 20),
            model: text_at(page, 24, 40),
            firmware: text_at(page, 64, 8),
            transfer_bits: page[77],
            shutdown: (shutdown > 0).then(|| Duration::from_micros(u64::from(shutdown))),
            namespaces: u32_at(page, 516),
            deallocates: optional & 1 << 2 != 0,
            zeroes: optional & 1 << 3 != 0,
            caches: page[525] & 1 != 0,
        })
    }
}

/// Limits of the NVM command set (CNS 06h, figure 118 of the NVM Command Set Specification); all are
/// optional.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct LimitsPage {
    /// The longest write zeroes, in units of the smallest page, as its logarithm.
    pub zero_bits: Option<u8>,
    /// Blocks of one range, and of one command, that deallocates.
    pub deallocate_blocks: Option<u64>,
}

impl LimitsPage {
    pub fn parse(page: &[u8; PAGE]) -> LimitsPage {
        let some = |value: u64| (value > 0).then_some(value);
        let (range, command) = (some(u64::from(u32_at(page, 4))), some(u64_at(page, 8)));
        LimitsPage {
            zero_bits: (page[1] > 0).then_some(page[1]),
            deallocate_blocks: match (range, command) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        }
    }
}

/// The namespaces that exist (CNS 02h): ascending, ended by a 0.
pub(crate) fn namespaces(page: &[u8; PAGE]) -> impl Iterator<Item = u32> {
    let mut last = 0;
    // A list that is not ascending is broken from there on.
    page.chunks_exact(4).map(|id| u32_at(id, 0)).take_while(move |&id| {
        let before = std::mem::replace(&mut last, id);
        before < id && id != u32::MAX
    })
}

/// One namespace (CNS 00h, figure 97 of the NVM Command Set Specification).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct NamespacePage {
    /// Blocks in it.
    pub blocks: u64,
    /// Bytes of a block, as their logarithm: 9 to 22.
    pub block_bits: u32,
    /// A write of zeroes can deallocate.
    pub zeroes_deallocate: bool,
}

/// Logarithms of the blocks that are driven: 512 bytes to 4 MiB.
const BLOCK_BITS: std::ops::RangeInclusive<u8> = 9..=22;

impl NamespacePage {
    pub fn parse(id: u32, page: &[u8; PAGE]) -> Result<NamespacePage, NvmeError> {
        let blocks = u64_at(page, 0);
        let flbas = page[26];
        // With more than 16 formats, bits 6:5 are the upper ones of the index.
        let formats = usize::from(page[25]) + 1;
        let upper = if formats > 16 { usize::from(flbas >> 5 & 3) << 4 } else { 0 };
        let format = upper | usize::from(flbas & 0xf);
        if format >= formats || format >= 64 {
            return Err(NvmeError::Format { namespace: id, format: format as u8 });
        }
        let descriptor = &page[128 + 4 * format..][..4];
        let (metadata, block_bits) = (u16_at(descriptor, 0), descriptor[2]);
        if metadata > 0 {
            return Err(NvmeError::Metadata { namespace: id, bytes: metadata });
        }
        if !BLOCK_BITS.contains(&block_bits) {
            return Err(NvmeError::BlockSize { namespace: id, bits: block_bits });
        }
        let block_bits = u32::from(block_bits);
        if blocks == 0 || blocks > u64::MAX >> block_bits {
            return Err(NvmeError::Capacity { namespace: id, blocks });
        }
        Ok(NamespacePage { blocks, block_bits, zeroes_deallocate: page[33] & 1 << 3 != 0 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(bytes: &[(usize, &[u8])]) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        bytes.iter().for_each(|(at, bytes)| page[*at..*at + bytes.len()].copy_from_slice(bytes));
        page
    }

    #[test]
    fn a_controller_is_read() {
        let text = page(&[
            (4, b"serial              "),
            (24, b"a model\x00\x1b[31m"),
            (64, b"8.2.0   "),
            (77, &[7]),
            (88, &5_000_000u32.to_le_bytes()),
            (512, &[0x66, 0x44]),
            (516, &256u32.to_le_bytes()),
            (520, &0b1100u16.to_le_bytes()),
            (525, &[7]),
        ]);
        let read = ControllerPage::parse(&text).unwrap();
        assert_eq!((&*read.serial, &*read.firmware), ("serial", "8.2.0"));
        assert_eq!(&*read.model, "a model??[31m", "no bytes that would move a cursor");
        assert_eq!((read.transfer_bits, read.namespaces), (7, 256));
        assert!(read.deallocates && read.zeroes && read.caches);
        assert_eq!(read.shutdown, Some(Duration::from_secs(5)));
        let strange = ControllerPage::parse(&page(&[(512, &[0x77, 0x44])]));
        assert!(matches!(strange, Err(NvmeError::EntrySizes { submission: 0x77, .. })));
    }

    #[test]
    fn namespaces_are_read_or_refused() {
        let with = |flbas: u8, formats: u8, format: &[u8], blocks: u64| {
            let index = if formats > 16 { usize::from(flbas & 0xf | flbas >> 1 & 0x30) } else { 0 };
            let page = page(&[
                (0, &blocks.to_le_bytes()),
                (25, &[formats - 1, flbas]),
                (33, &[1 << 3]),
                (128 + 4 * index, format),
            ]);
            NamespacePage::parse(1, &page)
        };
        let good = with(0, 1, &[0, 0, 12, 0], 1000).unwrap();
        assert_eq!((good.blocks, good.block_bits, good.zeroes_deallocate), (1000, 12, true));
        assert_eq!(with(0x21, 20, &[0, 0, 13, 0], 1).unwrap().block_bits, 13);
        assert_eq!(with(0x20, 17, &[0, 0, 9, 0], 1).unwrap().block_bits, 9);
        assert!(matches!(with(1, 1, &[0; 4], 1), Err(NvmeError::Format { format: 1, .. })));
        assert!(matches!(with(0, 1, &[8, 0, 9, 0], 1), Err(NvmeError::Metadata { bytes: 8, .. })));
        for bits in [0, 8, 23, 64, 255] {
            let refused = with(0, 1, &[0, 0, bits, 0], 1);
            assert!(matches!(refused, Err(NvmeError::BlockSize { .. })), "{bits}");
        }
        for blocks in [0, 1 << 55, u64::MAX] {
            let refused = with(0, 1, &[0, 0, 9, 0], blocks);
            assert!(matches!(refused, Err(NvmeError::Capacity { .. })), "{blocks}");
        }
    }

    #[test]
    fn a_list_of_namespaces_ends_where_it_breaks() {
        let list = |ids: &[u32]| {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            namespaces(&page(&[(0, &bytes)])).collect::<Vec<u32>>()
        };
        assert_eq!(list(&[1, 3, 9]), [1, 3, 9]);
        assert_eq!(list(&[]), []);
        assert_eq!(list(&[2, 2, 3]), [2]);
        assert_eq!(list(&[4, 1, u32::MAX]), [4]);
        assert_eq!(namespaces(&[0xff; PAGE]).count(), 0);
    }

    #[test]
    fn text_is_what_stands_between_blanks() {
        let text = |raw: &[u8]| Text::new(raw).to_string();
        assert_eq!(text(b"  a drive \x00 "), "a drive");
        assert_eq!((text(b""), text(b" \x00 ")), (String::new(), String::new()));
        assert_eq!(text(&[b'x'; 64]).len(), TEXT);
    }

    #[test]
    fn limits_are_the_tighter_ones() {
        let limits = |dmrsl: u32, dmsl: u64| {
            LimitsPage::parse(&page(&[(4, &dmrsl.to_le_bytes()), (8, &dmsl.to_le_bytes())]))
        };
        assert_eq!(limits(0, 0).deallocate_blocks, None);
        assert_eq!(limits(7, 0).deallocate_blocks, Some(7));
        assert_eq!(limits(0, 9).deallocate_blocks, Some(9));
        assert_eq!(limits(7, 5).deallocate_blocks, Some(5));
        assert_eq!(LimitsPage::parse(&page(&[(1, &[5])])).zero_bits, Some(5));
    }

    proptest! {
        /// Whatever a drive says, it is an answer.
        #[test]
        fn no_page_is_too_strange(head in proptest::collection::vec(any::<u8>(), 600)) {
            let page = page(&[(0, &head)]);
            let _ = ControllerPage::parse(&page);
            if let Ok(namespace) = NamespacePage::parse(1, &page) {
                let bytes = namespace.blocks.checked_mul(1 << namespace.block_bits);
                prop_assert!(bytes.is_some_and(|bytes| bytes > 0));
            }
            let limits = LimitsPage::parse(&page);
            prop_assert!(limits.deallocate_blocks != Some(0));
            let namespaces: Vec<u32> = namespaces(&page).collect();
            prop_assert!(namespaces.is_sorted() && !namespaces.contains(&0));
        }
    }
}
