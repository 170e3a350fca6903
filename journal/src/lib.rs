//! What one drive remembers: superblock, log, checkpoint, allocator.
