//! Where things lie on a drive, decided once when it is formatted.
//!
//! ```text
//! 0         64 KiB                                                        a multiple of 2 MiB
//! | superblock ×4 | journal ring | checkpoint A | checkpoint B | (gap) | data: units of 16 KiB … |
//! ```
//!
//! The checkpoints are sized for the block limit: a fixed row a block or part, a reference a part,
//! and an average whole key. When either runs out, puts are refused; nothing is ever written over.

use memkv_block::Geometry;
use thiserror::Error;

use crate::checkpoint::codec;
use crate::frame::{FRAME_ALIGN, FRAME_MAX};
use crate::ids::{EXTENT_UNITS, UNIT};
use crate::record::Usage;

/// Copies of the superblock.
pub const SUPERBLOCK_COPIES: usize = 4;
/// Bytes of one copy.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Bytes from one copy to the next.
pub const SUPERBLOCK_STRIDE: u64 = 16 * 1024;

const RING_OFFSET: u64 = SUPERBLOCK_COPIES as u64 * SUPERBLOCK_STRIDE;
const MIB: u64 = 1 << 20;
const RING_DEFAULT: u64 = 256 * MIB;
/// Smallest ring: eight frames of the smallest largest size.
pub const RING_MIN: u64 = 128 * 1024;
const FRAME_MAX_MIN: u64 = 16 * 1024;
/// From this capacity on the data region begins at a multiple of 2 MiB, so that views and transfers
/// fall on hugepages.
const ALIGN_HUGE_FROM: u64 = 256 * MIB;
/// Up to this capacity every unit may be a block of its own; above, the limit is one block in four
/// units (64 KiB, the smallest block of the field).
const EVERY_UNIT_UP_TO: u64 = 64 << 30;
/// Bytes of whole key reserved a block, unless told otherwise.
const KEY_AVERAGE: u32 = 128;

/// What whoever formats a drive may choose. `None` is the default of each.
#[derive(Clone, Copy, Debug, Default)]
pub struct FormatOptions {
    /// Bytes of the journal ring, at least [`RING_MIN`]. Default: the larger of 256 MiB and 1/1000
    /// of the drive, but at most 1/8 of it.
    pub ring_bytes: Option<u64>,
    /// Most blocks and parts the drive can remember. Default: one a unit up to 64 GiB, one in four
    /// units above.
    pub block_limit: Option<u64>,
    /// Bytes of whole key (tenant, namespace, key) to reserve a block. Default 128.
    pub key_average: Option<u32>,
    /// Units of the largest extent the store will write, a power of two up to
    /// [`EXTENT_UNITS`](crate::EXTENT_UNITS). Default: not recorded.
    pub extent_units: Option<u16>,
}

/// Why a drive cannot be laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum LayoutError {
    /// Nothing would be left for data.
    #[error("the drive has {capacity} bytes; its journal alone needs {needed}")]
    TooSmall {
        /// Bytes of the drive.
        capacity: u64,
        /// Bytes before the data region, and one unit.
        needed: u64,
    },
    /// The ring asked for is smaller than [`RING_MIN`].
    #[error("a ring of {bytes} bytes is smaller than the least, {RING_MIN}")]
    RingTooSmall {
        /// Bytes asked for.
        bytes: u64,
    },
    /// A block limit or key average of zero.
    #[error("the block limit and the key average must not be zero")]
    ZeroLimit,
    /// An extent of a size that cannot be.
    #[error("an extent of {0} units is not a power of two up to {EXTENT_UNITS}")]
    Extent(u16),
    /// The drive's sectors are larger than a frame's grain.
    #[error("the drive has sectors of {0} bytes; up to {FRAME_ALIGN} are supported")]
    Sector(u32),
}

/// The places of one drive. All offsets are bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes of the drive when it was formatted.
    pub capacity: u64,
    /// Sector size when it was formatted.
    pub sector: u32,
    /// Start of the ring.
    pub ring_offset: u64,
    /// Bytes of the ring.
    pub ring_bytes: u64,
    /// Starts of checkpoints A and B.
    pub checkpoint_offset: [u64; 2],
    /// Bytes of each checkpoint.
    pub checkpoint_bytes: u64,
    /// Start of the data region.
    pub data_offset: u64,
    /// Units in the data region.
    pub units: u32,
    /// Most bytes of a frame in this ring.
    pub frame_max: u32,
    /// What a checkpoint can hold.
    pub limits: Usage,
    /// Units of the largest extent on the drive; 0 where it was never recorded. Blocks are cut into
    /// extents of this size, so it must stay what it was.
    pub extent_units: u16,
}

impl Layout {
    /// Lays out a drive.
    pub fn plan(geometry: &Geometry, options: &FormatOptions) -> Result<Layout, LayoutError> {
        let capacity = geometry.capacity;
        if geometry.sector as usize > FRAME_ALIGN || !geometry.sector.is_power_of_two() {
            return Err(LayoutError::Sector(geometry.sector));
        }
        let extent_units = options.extent_units.unwrap_or(0);
        if extent_units > EXTENT_UNITS || !matches!(extent_units.count_ones(), 0 | 1) {
            return Err(LayoutError::Extent(extent_units));
        }
        let ring_bytes = plan_ring(capacity, options)?;
        let whole_units = capacity / UNIT as u64;
        let per_block = if capacity <= EVERY_UNIT_UP_TO { 1 } else { 4 };
        let rows = options.block_limit.unwrap_or_else(|| (whole_units / per_block).max(1));
        let key_average = u64::from(options.key_average.unwrap_or(KEY_AVERAGE));
        if rows == 0 || key_average == 0 {
            return Err(LayoutError::ZeroLimit);
        }
        let key_bytes = (rows * key_average).max(codec::KEY_BYTES_LEAST);
        let limits = Usage { rows, parts: rows.max(codec::PARTS_LEAST), key_bytes };
        let checkpoint_bytes = codec::area_bytes(limits);
        let first = RING_OFFSET + ring_bytes;
        let align = if capacity >= ALIGN_HUGE_FROM { 2 * MIB } else { UNIT as u64 };
        let data_offset = (first + 2 * checkpoint_bytes).next_multiple_of(align);
        let units = capacity.saturating_sub(data_offset) / UNIT as u64;
        if units == 0 {
            return Err(LayoutError::TooSmall { capacity, needed: data_offset + UNIT as u64 });
        }
        let layout = Layout {
            capacity,
            sector: geometry.sector,
            ring_offset: RING_OFFSET,
            ring_bytes,
            checkpoint_offset: [first, first + checkpoint_bytes],
            checkpoint_bytes,
            data_offset,
            units: u32::try_from(units).unwrap_or(u32::MAX),
            frame_max: frame_max(ring_bytes),
            limits,
            extent_units,
        };
        assert!(layout.is_sound(), "a planned layout is sound: {layout:?}");
        Ok(layout)
    }

    /// Whether the numbers, read from a drive, can be those of a layout.
    pub fn is_sound(&self) -> bool {
        let page = FRAME_ALIGN as u64;
        let small = |bytes: u64| bytes <= 1 << 56;
        let limits = self.limits;
        let sizes = [self.capacity, self.ring_bytes, self.checkpoint_bytes, self.data_offset];
        if !sizes.into_iter().all(small)
            || ![limits.rows, limits.parts, limits.key_bytes].into_iter().all(|n| n <= 1 << 48)
        {
            return false;
        }
        let [first, second] = self.checkpoint_offset;
        self.sector.is_power_of_two()
            && self.sector as usize <= FRAME_ALIGN
            && self.ring_offset == RING_OFFSET
            && self.ring_bytes >= RING_MIN
            && self.ring_bytes.is_multiple_of(page)
            && self.frame_max == frame_max(self.ring_bytes)
            && limits.rows > 0
            && self.extent_units <= EXTENT_UNITS
            && (self.extent_units == 0 || self.extent_units.is_power_of_two())
            && first == self.ring_offset + self.ring_bytes
            && second == first + self.checkpoint_bytes
            && self.checkpoint_bytes == codec::area_bytes(limits)
            && self.data_offset >= second + self.checkpoint_bytes
            && self.data_offset.is_multiple_of(UNIT as u64)
            && self.units > 0
            && self.data_offset + u64::from(self.units) * UNIT as u64 <= self.capacity
    }
}

fn plan_ring(capacity: u64, options: &FormatOptions) -> Result<u64, LayoutError> {
    let page = FRAME_ALIGN as u64;
    if let Some(bytes) = options.ring_bytes {
        if bytes < RING_MIN {
            return Err(LayoutError::RingTooSmall { bytes });
        }
        return Ok(bytes.min(1 << 50).next_multiple_of(page));
    }
    let wanted = RING_DEFAULT.max(capacity / 1000).min(capacity / 8).max(RING_MIN);
    Ok(wanted.next_multiple_of(page))
}

fn frame_max(ring_bytes: u64) -> u32 {
    let bytes = (ring_bytes / 8).clamp(FRAME_MAX_MIN, FRAME_MAX as u64);
    (bytes - bytes % FRAME_ALIGN as u64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry(capacity: u64) -> Geometry {
        Geometry { capacity, sector: 512, max_transfer: 1 << 20 }
    }

    #[test]
    fn a_terabyte_gives_a_ring_of_a_thousandth_and_aligned_data() {
        let layout = Layout::plan(&geometry(1 << 40), &FormatOptions::default()).unwrap();
        assert_eq!(layout.ring_bytes, ((1u64 << 40) / 1000).next_multiple_of(4096));
        assert_eq!(layout.data_offset % (2 * MIB), 0);
        assert_eq!(layout.frame_max as usize, FRAME_MAX);
        assert!(layout.data_offset < (1 << 40) / 50, "at most 2 % of the drive is not data");
    }

    #[test]
    fn a_small_drive_gives_an_eighth_to_its_ring() {
        let layout = Layout::plan(&geometry(16 * MIB), &FormatOptions::default()).unwrap();
        assert_eq!(layout.ring_bytes, 2 * MIB);
        assert!(u64::from(layout.units) * UNIT as u64 > 12 * MIB);
        assert_eq!(layout.limits.rows, 1024, "every unit may be a block");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let plan = |capacity, options| Layout::plan(&geometry(capacity), &options);
        let none = FormatOptions::default();
        assert!(matches!(plan(200 << 10, none), Err(LayoutError::TooSmall { .. })));
        let ring = FormatOptions { ring_bytes: Some(4096), ..none };
        assert_eq!(plan(MIB, ring), Err(LayoutError::RingTooSmall { bytes: 4096 }));
        let zero = FormatOptions { block_limit: Some(0), ..none };
        assert_eq!(plan(16 * MIB, zero), Err(LayoutError::ZeroLimit));
        let wide = Geometry { capacity: 16 * MIB, sector: 8192, max_transfer: 1 << 20 };
        assert_eq!(Layout::plan(&wide, &none), Err(LayoutError::Sector(8192)));
    }

    #[test]
    fn a_layout_with_one_number_changed_is_none() {
        let good = Layout::plan(&geometry(64 * MIB), &FormatOptions::default()).unwrap();
        assert!(good.is_sound());
        let page = FRAME_ALIGN as u64;
        let unit = UNIT as u64;
        let [first, second] = good.checkpoint_offset;
        let limits = |limits| Layout { limits, ..good };
        let bad = [
            Layout { capacity: good.capacity / 2, ..good },
            Layout { capacity: 1 << 57, ..good },
            Layout { capacity: good.data_offset + u64::from(good.units) * unit - 1, ..good },
            Layout { sector: 0, ..good },
            Layout { sector: 513, ..good },
            Layout { sector: 8192, ..good },
            Layout { ring_offset: good.ring_offset + page, ..good },
            Layout { ring_bytes: RING_MIN - page, ..good },
            Layout { ring_bytes: good.ring_bytes + 1, ..good },
            Layout { ring_bytes: good.ring_bytes - page, ..good },
            Layout { ring_bytes: 1 << 57, ..good },
            Layout { checkpoint_offset: [first + page, second], ..good },
            Layout { checkpoint_offset: [first, second + page], ..good },
            Layout { checkpoint_bytes: good.checkpoint_bytes + page, ..good },
            Layout { checkpoint_bytes: 1 << 57, ..good },
            Layout { data_offset: second + good.checkpoint_bytes / unit * unit - unit, ..good },
            Layout { data_offset: good.data_offset + page, units: 1, ..good },
            Layout { data_offset: 1 << 57, ..good },
            Layout { units: 0, ..good },
            Layout { units: good.units + (4 * MIB / unit) as u32, ..good },
            Layout { frame_max: good.frame_max / 2, ..good },
            Layout { extent_units: 3, ..good },
            Layout { extent_units: EXTENT_UNITS * 2, ..good },
            limits(Usage { rows: 0, ..good.limits }),
            limits(Usage { rows: good.limits.rows * 2, ..good.limits }),
            limits(Usage { parts: 1 << 49, ..good.limits }),
            limits(Usage { key_bytes: 1 << 49, ..good.limits }),
        ];
        for (number, layout) in bad.into_iter().enumerate() {
            assert!(!layout.is_sound(), "{number}: {layout:?}");
        }
    }

    proptest! {
        #[test]
        fn every_plan_is_sound(
            capacity in 0u64..1 << 46,
            ring in prop::option::of(0u64..1 << 30),
            limit in prop::option::of(1u64..1 << 20),
        ) {
            let options = FormatOptions {
                ring_bytes: ring,
                block_limit: limit,
                ..FormatOptions::default()
            };
            if let Ok(layout) = Layout::plan(&geometry(capacity), &options) {
                prop_assert!(layout.is_sound());
            }
        }
    }
}
