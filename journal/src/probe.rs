//! What lies on a drive that somebody wants to format: file systems, partition tables, members of
//! arrays and the like, known by their magic numbers.
//!
//! Only the two ends of a drive are looked at ([`HEAD`] and [`TAIL`] bytes), for that is where
//! whoever owns a drive signs it. The magics are public: each line of the tables below names what
//! is signed, and where. Nothing is written, and any bytes may be given: what is unknown and not
//! blank is a signature too, of nobody we know.

/// Bytes looked at from the start of a drive, at most: 2 MiB.
pub const HEAD: usize = 2 << 20;
/// Bytes looked at up to the end of a drive, at most: 1 MiB.
pub const TAIL: usize = 1 << 20;
/// Bytes at the start of a drive that are zero on a blank one: 64 KiB.
pub const BLANK: usize = 64 << 10;

/// What sort of owner signed a drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// A file system.
    FileSystem,
    /// A table of partitions.
    Partitions,
    /// An array, a volume group, an encrypted container: something built on the drive.
    Layer,
    /// Swap space.
    Swap,
    /// Nobody known: bytes that are not zero.
    Unknown,
}

/// A sign that a drive holds something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signature {
    /// What it is, in words: `an ext4 file system`.
    pub what: &'static str,
    /// What sort of owner that is.
    pub owner: Owner,
    /// Where the sign stands, bytes from the start of the drive.
    pub offset: u64,
}

/// The two ends of a drive. They may overlap on a small one.
#[derive(Clone, Copy)]
pub struct Edges<'a> {
    capacity: u64,
    head: &'a [u8],
    tail: &'a [u8],
}

impl<'a> Edges<'a> {
    /// The first bytes and the last bytes of a drive of `capacity` bytes.
    ///
    /// # Panics
    /// When either is longer than the drive.
    pub fn new(capacity: u64, head: &'a [u8], tail: &'a [u8]) -> Edges<'a> {
        assert!(head.len() as u64 <= capacity && tail.len() as u64 <= capacity);
        Edges { capacity, head, tail }
    }

    /// The `len` bytes at `offset`, if they are within one of the two ends.
    fn at(&self, offset: u64, len: usize) -> Option<&'a [u8]> {
        let end = offset.checked_add(len as u64)?;
        if end <= self.head.len() as u64 {
            return self.head.get(offset as usize..end as usize);
        }
        let from = offset.checked_sub(self.capacity - self.tail.len() as u64)?;
        let from = usize::try_from(from).ok()?;
        self.tail.get(from..from.checked_add(len)?)
    }

    fn is(&self, offset: u64, magic: &[u8]) -> bool {
        self.at(offset, magic.len()) == Some(magic)
    }

    /// Offset of what stands `back` bytes before the end.
    fn before_end(&self, back: u64) -> Option<u64> {
        self.capacity.checked_sub(back)
    }
}

/// What is signed, by whom, where from the start, with which bytes.
type Magic = (&'static str, Owner, u64, &'static [u8]);

use Owner::{FileSystem, Layer, Partitions, Swap};

/// Magics at fixed places from the start of the drive.
const FROM_START: &[Magic] = &[
    ("an XFS file system", FileSystem, 0, b"XFSB"),
    ("a Btrfs file system", FileSystem, 65_600, b"_BHRfS_M"),
    (
        "a bcachefs file system",
        FileSystem,
        4120,
        b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
    ),
    (
        "a bcache device",
        Layer,
        4120,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    ),
    ("an F2FS file system", FileSystem, 1024, b"\x10\x20\xf5\xf2"),
    ("an EROFS file system", FileSystem, 1024, b"\xe2\xe1\xf5\xe0"),
    ("a NILFS2 file system", FileSystem, 1030, b"\x34\x34"),
    ("an NTFS file system", FileSystem, 3, b"NTFS    "),
    ("an exFAT file system", FileSystem, 3, b"EXFAT   "),
    ("a FAT file system", FileSystem, 54, b"FAT12   "),
    ("a FAT file system", FileSystem, 54, b"FAT16   "),
    ("a FAT file system", FileSystem, 82, b"FAT32   "),
    ("a squashfs file system", FileSystem, 0, b"hsqs"),
    ("a JFS file system", FileSystem, 32_768, b"JFS1"),
    ("a ReiserFS file system", FileSystem, 65_588, b"ReIsEr"),
    ("a GFS2 file system", FileSystem, 65_536, b"\x01\x16\x19\x70"),
    ("an OCFS2 file system", FileSystem, 1024, b"OCFSV2"),
    ("an OCFS2 file system", FileSystem, 2048, b"OCFSV2"),
    ("an OCFS2 file system", FileSystem, 4096, b"OCFSV2"),
    ("an ISO 9660 file system", FileSystem, 32_769, b"CD001"),
    ("a UDF file system", FileSystem, 32_769, b"BEA01"),
    ("a VMFS volume", FileSystem, 1 << 20, b"\x0d\xd0\x01\xc0"),
    ("a Ceph BlueStore device", Layer, 0, b"bluestore block device"),
    ("a LUKS encrypted volume", Layer, 0, b"LUKS\xba\xbe"),
    ("a BitLocker volume", Layer, 3, b"-FVE-FS-"),
    ("an LVM physical volume", Layer, 0, b"LABELONE"),
    ("an LVM physical volume", Layer, 512, b"LABELONE"),
    ("an LVM physical volume", Layer, 1024, b"LABELONE"),
    ("an LVM physical volume", Layer, 1536, b"LABELONE"),
    ("a member of a Linux md array", Layer, 0, &MD),
    ("a member of a Linux md array", Layer, 4096, &MD),
    ("a GUID partition table", Partitions, 512, b"EFI PART"),
    ("a GUID partition table", Partitions, 4096, b"EFI PART"),
];

/// Magics at fixed places from the end of the drive.
const FROM_END: &[Magic] = &[
    ("the backup of a GUID partition table", Partitions, 512, b"EFI PART"),
    ("the backup of a GUID partition table", Partitions, 4096, b"EFI PART"),
    ("a member of an Intel RAID", Layer, 1024, b"Intel Raid ISM Cfg Sig. "),
    ("a member of a DDF RAID", Layer, 512, b"\xde\x11\xde\x11"),
];

/// `0xa92b4efc`, as little-endian arrays have it.
const MD: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];

/// Everything that signed the drive, in order of place; empty when it is blank.
pub fn signatures(edges: &Edges<'_>) -> Vec<Signature> {
    let mut found = Vec::new();
    for &(what, owner, offset, magic) in FROM_START {
        if edges.is(offset, magic) {
            found.push(Signature { what, owner, offset });
        }
    }
    for &(what, owner, back, magic) in FROM_END {
        if let Some(offset) = edges.before_end(back).filter(|&offset| edges.is(offset, magic)) {
            found.push(Signature { what, owner, offset });
        }
    }
    found.extend(ext(edges));
    found.extend(luks_second(edges));
    found.extend(swap(edges));
    found.extend(md_at_end(edges));
    found.extend(zfs(edges));
    found.extend(master_boot_record(edges, &found));
    if found.is_empty() {
        found.extend(not_blank(edges));
    }
    found.sort_by_key(|signature| signature.offset);
    found
}

/// ext2, ext3 and ext4: one magic, told apart by their features.
fn ext(edges: &Edges<'_>) -> Option<Signature> {
    const SUPERBLOCK: u64 = 1024;
    const HAS_JOURNAL: u32 = 0x4;
    /// Extents, 64 bit and the other incompatible features that ext4 brought.
    const EXT4_ONLY: u32 = 0x40 | 0x80 | 0x200 | 0x400;
    if !edges.is(SUPERBLOCK + 0x38, &[0x53, 0xef]) {
        return None;
    }
    let word = |at: u64| {
        let bytes = edges.at(SUPERBLOCK + at, 4).and_then(|bytes| bytes.first_chunk::<4>());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    let what = if word(0x60) & EXT4_ONLY != 0 {
        "an ext4 file system"
    } else if word(0x5c) & HAS_JOURNAL != 0 {
        "an ext3 file system"
    } else {
        "an ext2 file system"
    };
    Some(Signature { what, owner: FileSystem, offset: SUPERBLOCK + 0x38 })
}

/// The second header of LUKS2, which stands at one of a few places and outlives the first.
fn luks_second(edges: &Edges<'_>) -> Option<Signature> {
    let places = [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000];
    let offset = places.into_iter().find(|&at| edges.is(at, b"SKUL\xba\xbe"))?;
    Some(Signature { what: "a LUKS encrypted volume", owner: Layer, offset })
}

/// Swap space ends its first page, whatever the size of that is, with its magic.
fn swap(edges: &Edges<'_>) -> Option<Signature> {
    let magics: [&[u8]; 3] = [b"SWAPSPACE2", b"SWAP-SPACE", b"S1SUSPEND\0"];
    let ends = [4096, 8192, 16_384, 65_536].map(|page: u64| page - 10);
    let offset = ends.into_iter().find(|&at| magics.iter().any(|magic| edges.is(at, magic)))?;
    Some(Signature { what: "swap space", owner: Swap, offset })
}

/// Arrays of the versions 0.90 and 1.0 sign near the end, at a place that follows from the size.
fn md_at_end(edges: &Edges<'_>) -> Option<Signature> {
    const OLD: u64 = 64 << 10;
    let old = (edges.capacity & !(OLD - 1)).checked_sub(OLD);
    let new = (edges.capacity / 512).checked_sub(16).map(|sectors| (sectors & !7) * 512);
    let big_endian = [MD[3], MD[2], MD[1], MD[0]];
    let signed = |at: &u64| edges.is(*at, &MD) || edges.is(*at, &big_endian);
    let offset = [old, new].into_iter().flatten().find(signed)?;
    Some(Signature { what: "a member of a Linux md array", owner: Layer, offset })
}

/// ZFS keeps four labels of 256 KiB, two at each end; the second half of each is a ring of
/// uberblocks.
fn zfs(edges: &Edges<'_>) -> Option<Signature> {
    const LABEL: u64 = 256 << 10;
    const MAGIC: u64 = 0x00ba_b10c;
    let whole = edges.capacity & !(LABEL - 1);
    let labels = [Some(0), Some(LABEL), whole.checked_sub(2 * LABEL), whole.checked_sub(LABEL)];
    let uberblocks = labels
        .into_iter()
        .flatten()
        .flat_map(|label| (LABEL / 2..LABEL).step_by(1024).map(move |at| label + at));
    let signed =
        |at: &u64| edges.is(*at, &MAGIC.to_le_bytes()) || edges.is(*at, &MAGIC.to_be_bytes());
    let offset = { uberblocks }.find(signed)?;
    Some(Signature { what: "a member of a ZFS pool", owner: Layer, offset })
}

/// The boot signature: a table of partitions, when an entry is in use; else just a boot sector.
/// Several file systems end their first sector with it as well, and the protective table of a GUID
/// partition table is no second table.
fn master_boot_record(edges: &Edges<'_>, found: &[Signature]) -> Option<Signature> {
    const SIGN: u64 = 510;
    let sector = edges.at(0, 512)?;
    let explained = |signature: &Signature| {
        signature.offset < 512 || signature.what == "a GUID partition table"
    };
    if sector[510..] != [0x55, 0xaa] || found.iter().any(explained) {
        return None;
    }
    let (entries, _) = sector[446..510].as_chunks::<16>();
    let sound = entries.iter().all(|entry| matches!(entry[0], 0 | 0x80));
    let used = entries.iter().any(|entry| entry[4] != 0);
    let (what, owner) = if sound && used {
        ("an MBR partition table", Partitions)
    } else {
        ("a boot sector", Owner::Unknown)
    };
    Some(Signature { what, owner, offset: SIGN })
}

fn not_blank(edges: &Edges<'_>) -> Option<Signature> {
    let head = &edges.head[..edges.head.len().min(BLANK)];
    let offset = head.iter().position(|byte| *byte != 0)? as u64;
    Some(Signature { what: "data of an owner unknown to memkv", owner: Owner::Unknown, offset })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPACITY: usize = 8 << 20;

    struct Image(Vec<u8>);

    impl Image {
        fn blank() -> Image {
            Image(vec![0; CAPACITY])
        }

        fn with(mut self, offset: usize, bytes: &[u8]) -> Image {
            self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
            self
        }

        fn signatures(&self) -> Vec<Signature> {
            let tail = self.0.len().saturating_sub(TAIL);
            let head = &self.0[..self.0.len().min(HEAD)];
            signatures(&Edges::new(self.0.len() as u64, head, &self.0[tail..]))
        }

        fn words(&self) -> Vec<&'static str> {
            self.signatures().into_iter().map(|signature| signature.what).collect()
        }
    }

    /// The words for an image with `bytes` at `offset`.
    fn one(offset: usize, bytes: &[u8]) -> Vec<&'static str> {
        Image::blank().with(offset, bytes).words()
    }

    #[test]
    fn a_blank_drive_has_no_signature() {
        assert_eq!(Image::blank().signatures(), []);
        assert_eq!(one(BLANK, b"x"), <[&str; 0]>::default(), "only the start has to be blank");
    }

    #[test]
    fn the_usual_owners_are_known_by_name() {
        let end = CAPACITY;
        let table: [(usize, &[u8], &str); 22] = [
            (0, b"XFSB\0\0\x10\0", "an XFS file system"),
            (65_600, b"_BHRfS_M", "a Btrfs file system"),
            (1024, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS file system"),
            (3, b"NTFS    ", "an NTFS file system"),
            (82, b"FAT32   ", "a FAT file system"),
            (0x218, b"xLABELONE", "data of an owner unknown to memkv"),
            (512, b"LABELONE\x01\0\0\0", "an LVM physical volume"),
            (0, b"LUKS\xba\xbe\0\x02", "a LUKS encrypted volume"),
            (0x4000, b"SKUL\xba\xbe\0\x02", "a LUKS encrypted volume"),
            (0, &MD, "a member of a Linux md array"),
            (4096, &MD, "a member of a Linux md array"),
            (end - 65_536, &MD, "a member of a Linux md array"),
            (end - 8192, &MD, "a member of a Linux md array"),
            (4086, b"SWAPSPACE2", "swap space"),
            (65_526, b"SWAPSPACE2", "swap space"),
            (4086, b"S1SUSPEND\0", "swap space"),
            (512, b"EFI PART", "a GUID partition table"),
            (end - 512, b"EFI PART", "the backup of a GUID partition table"),
            (end - 1024, b"Intel Raid ISM Cfg Sig. 1.0", "a member of an Intel RAID"),
            (132 << 10, &0x00ba_b10c_u64.to_le_bytes(), "a member of a ZFS pool"),
            (end - (100 << 10), &0x00ba_b10c_u64.to_be_bytes(), "a member of a ZFS pool"),
            (5, &[1], "data of an owner unknown to memkv"),
        ];
        for (offset, bytes, what) in table {
            let found = Image::blank().with(offset, bytes).signatures();
            let found: Vec<_> = found.iter().map(|one| (one.offset, one.what)).collect();
            assert_eq!(found, [(offset as u64, what)], "{bytes:?} at {offset}");
        }
    }

    #[test]
    fn each_of_the_four_labels_of_zfs_is_looked_at_in_all_its_ring() {
        let label = 256 << 10;
        let magic = 0x00ba_b10c_u64.to_le_bytes();
        for begins in [0, label, CAPACITY - 2 * label, CAPACITY - label] {
            for at in [begins + label / 2, begins + label / 2 + 1024, begins + label - 1024] {
                assert_eq!(one(at, &magic), ["a member of a ZFS pool"], "{at}");
            }
        }
        // Neither the first half of a label nor what lies between uberblocks.
        for at in [CAPACITY - label + 1024, CAPACITY - 1024 + 8] {
            assert_eq!(one(at, &magic), <[&str; 0]>::default(), "{at}");
        }
    }

    #[test]
    fn ext_file_systems_are_told_apart() {
        let magic = |compatible: u32, incompatible: u32| {
            let image = Image::blank().with(1080, &[0x53, 0xef]);
            let image = image.with(1024 + 0x5c, &compatible.to_le_bytes());
            let image = image.with(1024 + 0x60, &incompatible.to_le_bytes());
            assert_eq!(image.signatures()[0].offset, 1080, "where the magic is");
            image.words()
        };
        assert_eq!(magic(0, 2), ["an ext2 file system"]);
        assert_eq!(magic(4, 2), ["an ext3 file system"]);
        assert_eq!(magic(4, 0x2c2), ["an ext4 file system"]);
    }

    /// A sector with the boot signature and one entry of this status and type.
    fn boot_sector(status: u8, kind: u8) -> [u8; 512] {
        let mut sector = [0; 512];
        (sector[446], sector[450]) = (status, kind);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    #[test]
    fn a_boot_signature_is_a_partition_table_only_with_partitions() {
        assert_eq!(one(0, &boot_sector(0x80, 0x83)), ["an MBR partition table"]);
        assert_eq!(one(0, &boot_sector(0, 0)), ["a boot sector"]);
        assert_eq!(one(0, &boot_sector(0x17, 0x83)), ["a boot sector"]);
        let gpt = Image::blank().with(0, &boot_sector(0, 0xee)).with(512, b"EFI PART");
        assert_eq!(gpt.words(), ["a GUID partition table"], "its protective MBR is part of it");
        let fat = Image::blank().with(0, &boot_sector(0, 0)).with(82, b"FAT32   ");
        assert_eq!(fat.words(), ["a FAT file system"]);
    }

    #[test]
    fn several_owners_are_all_named_in_order_of_place() {
        let image = Image::blank().with(CAPACITY - 8192, &MD).with(65_600, b"_BHRfS_M");
        let image = image.with(0, &boot_sector(0, 0x83));
        assert_eq!(
            image.words(),
            ["an MBR partition table", "a Btrfs file system", "a member of a Linux md array"]
        );
    }

    #[test]
    fn a_tiny_drive_can_be_probed() {
        for length in [0, 1, 511, 512, 4096, 70_000] {
            let mut image = Image(vec![0; length]);
            assert_eq!(image.signatures(), [], "{length}");
            if length > 0 {
                image.0[length - 1] = 1;
                assert_eq!(image.words().len(), usize::from(length <= BLANK), "{length}");
            }
        }
    }

    proptest! {
        /// Magic bytes anywhere in a drive of any size: no panic, every place is on the drive, and
        /// a drive whose start is not zero is never taken for blank.
        #[test]
        fn random_sectors_are_probed_without_surprise(
            sectors in 0usize..600,
            seeds in prop::collection::vec((any::<prop::sample::Index>(), 0usize..40), 0..12),
            noise in any::<[u8; 32]>(),
        ) {
            let mut image = vec![0; sectors * 512];
            for (place, which) in seeds {
                let magic: &[u8] = match FROM_START.iter().chain(FROM_END).nth(which) {
                    Some((_, _, _, magic)) => magic,
                    None => &noise,
                };
                let offset = place.index(image.len() + 1);
                let room = magic.len().min(image.len() - offset);
                image[offset..offset + room].copy_from_slice(&magic[..room]);
            }
            let found = Image(image.clone()).signatures();
            for signature in &found {
                prop_assert!(signature.offset < image.len() as u64);
            }
            let marked = image.iter().take(BLANK).any(|byte| *byte != 0);
            prop_assert!(!marked || !found.is_empty());
        }

        /// Whatever the table knows is found where the table says.
        #[test]
        fn every_magic_of_the_table_is_found(which in 0..FROM_START.len() + FROM_END.len()) {
            let from_start = FROM_START.get(which);
            let &(what, _, offset, magic) =
                from_start.unwrap_or_else(|| &FROM_END[which - FROM_START.len()]);
            let offset = offset as usize;
            let offset = if from_start.is_some() { offset } else { CAPACITY - offset };
            prop_assert!(one(offset, magic).contains(&what), "{}", what);
        }
    }
}
