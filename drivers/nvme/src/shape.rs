//! What a drive is and what it takes, made of what it told.

use crate::error::NvmeError;
use crate::identify::{ControllerPage, LimitsPage, NamespacePage};
use crate::registers::Capabilities;

/// The longest command: what one list of 4 KiB describes, 512 pages of 4 KiB, and the page before.
const MAX_COMMAND: u64 = 2 << 20;

/// Bytes of the list of pages that every command has, and entries in it.
pub(crate) const LIST: usize = 4096;
pub(crate) const LIST_ENTRIES: usize = LIST / 8;

/// Blocks that one command of the NVM command set names at most (NLB has 16 bits and counts from 0).
const MAX_BLOCKS: u64 = 1 << 16;

/// Commands of one queue outstanding at most.
const MAX_ENTRIES: u32 = 128;

/// The largest page of a controller that queues are laid out for, as its logarithm.
const MAX_PAGE_BITS: u32 = 16;

/// How a drive is told that a range holds nothing any more.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Trim {
    /// It cannot be told.
    Unknown,
    /// By dataset management, so many bytes a command.
    Dataset { max: u64 },
    /// By write zeroes with the bit that deallocates, so many bytes a command.
    Zeroes { max: u64 },
}

/// All that the path of data needs to know of a drive.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    pub namespace: u32,
    /// Bytes of a block, as their logarithm.
    pub block_bits: u32,
    pub capacity: u64,
    /// Bytes of the controller's page.
    pub page: u64,
    /// Bytes that one read or write moves at most.
    pub transfer: u64,
    pub trim: Trim,
    /// What is written may lie in a cache until it is flushed.
    pub caches: bool,
    /// Entries of an I/O queue.
    pub entries: u16,
}

impl Shape {
    pub fn of(
        capabilities: Capabilities,
        controller: &ControllerPage,
        limits: LimitsPage,
        namespace: u32,
        page: NamespacePage,
    ) -> Result<Shape, NvmeError> {
        let page_bits = capabilities.page_bits();
        if page_bits > MAX_PAGE_BITS {
            return Err(NvmeError::PageSize { bits: page_bits });
        }
        let block = 1 << page.block_bits;
        // Lengths that a drive tells as powers of two of its smallest page.
        let pages = |bits: u8| 1u64.checked_shl(u32::from(bits) + page_bits).unwrap_or(u64::MAX);
        let told = if controller.transfer_bits > 0 {
            pages(controller.transfer_bits)
        } else {
            MAX_COMMAND
        };
        let transfer = told.min(MAX_COMMAND).min(MAX_BLOCKS * block);
        if transfer < block {
            return Err(NvmeError::Transfer { block, max: transfer });
        }
        let trim = if controller.deallocates {
            let blocks = limits.deallocate_blocks.unwrap_or(u64::MAX).min(u64::from(u32::MAX));
            Trim::Dataset { max: blocks * block }
        } else if controller.zeroes && page.zeroes_deallocate {
            let told = limits.zero_bits.map_or(u64::MAX, pages);
            Trim::Zeroes { max: (told.max(block) & !(block - 1)).min(MAX_BLOCKS * block) }
        } else {
            Trim::Unknown
        };
        Ok(Shape {
            namespace,
            block_bits: page.block_bits,
            capacity: page.blocks << page.block_bits,
            page: 1 << page_bits,
            transfer,
            trim,
            caches: controller.caches,
            entries: capabilities.entries().clamp(2, MAX_ENTRIES) as u16,
        })
    }
}

/// What a drive is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub version: (u16, u8),
    pub controller: ControllerPage,
    pub namespaces: Vec<u32>,
    pub shape: Shape,
    /// I/O queues that it grants.
    pub queues: u16,
}

impl Identity {
    /// Whether it can be driven on as the drive that it was. Its firmware may be another.
    pub fn is_same_drive(&self, now: &ControllerPage, shape: &Shape, queues: u16) -> bool {
        self.controller.serial == now.serial
            && self.controller.model == now.model
            && self.shape == *shape
            && self.queues <= queues
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identify::Text;

    fn controller(transfer_bits: u8, deallocates: bool, zeroes: bool) -> ControllerPage {
        ControllerPage {
            serial: Text::new(b"S"),
            model: Text::new(b"M"),
            firmware: Text::new(b"F"),
            transfer_bits,
            shutdown: None,
            namespaces: 1,
            deallocates,
            zeroes,
            caches: true,
        }
    }

    fn shape(
        capabilities: u64,
        told: &ControllerPage,
        limits: LimitsPage,
        block_bits: u32,
    ) -> Result<Shape, NvmeError> {
        let page = NamespacePage { blocks: 1000, block_bits, zeroes_deallocate: true };
        Shape::of(Capabilities(capabilities), told, limits, 1, page)
    }

    #[test]
    fn transfers_keep_to_every_limit() {
        let transfer = |mdts, bits| {
            shape(0xff, &controller(mdts, true, true), LimitsPage::default(), bits)
                .map(|shape| shape.transfer)
        };
        assert_eq!(transfer(7, 12).unwrap(), 512 << 10);
        assert_eq!(transfer(0, 12).unwrap(), MAX_COMMAND);
        assert_eq!(transfer(255, 9).unwrap(), MAX_COMMAND);
        assert_eq!(transfer(1, 13).unwrap(), 8 << 10);
        assert!(matches!(transfer(1, 14), Err(NvmeError::Transfer { block: 0x4000, max: 0x2000 })));
    }

    #[test]
    fn a_drive_is_told_of_empty_ranges_as_it_can_hear_it() {
        let trim = |deallocates, zeroes, limits| {
            shape(0xff, &controller(0, deallocates, zeroes), limits, 9).unwrap().trim
        };
        let none = LimitsPage::default();
        assert_eq!(trim(true, true, none), Trim::Dataset { max: 512 * u64::from(u32::MAX) });
        let limits = LimitsPage { deallocate_blocks: Some(8), zero_bits: Some(1) };
        assert_eq!(trim(true, false, limits), Trim::Dataset { max: 4096 });
        assert_eq!(trim(false, true, limits), Trim::Zeroes { max: 8192 });
        assert_eq!(trim(false, true, none), Trim::Zeroes { max: 512 << 16 });
        assert_eq!(trim(false, false, none), Trim::Unknown);
    }

    #[test]
    fn queues_and_pages_are_what_the_controller_takes() {
        let of = |capabilities| {
            shape(capabilities, &controller(0, true, true), LimitsPage::default(), 9)
        };
        assert_eq!(of(0xffff).unwrap().entries, 128);
        assert_eq!(of(0x1f).unwrap().entries, 32);
        assert_eq!(of(4 << 48).unwrap().page, 64 << 10);
        assert!(matches!(of(5 << 48), Err(NvmeError::PageSize { bits: 17 })));
    }
}
