//! Features and configuration space (sections 5.2.3 and 5.2.4).

use crate::virtio::feature;

/// The size of each queue. A driver keeps memory for as many requests, so more would cost every guest.
pub(super) const QUEUE_SIZE: u16 = 128;
/// The most buffers with data in a request: a chain holds a header and a status byte too (section 5.2.5).
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The most sectors that one range of a discard or write-zeroes request covers: 1 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// The most ranges in one discard or write-zeroes request.
pub(super) const MAX_RANGES: u32 = 16;
/// Where discards start best: 4 KiB, the block of nearly every file system below.
const DISCARD_ALIGNMENT: u32 = 8;
/// The logical block: one sector, so that a file of any length shows nearly whole.
const BLOCK_SIZE: u32 = 512;
/// The physical block's size as a power of two of logical blocks: 4 KiB.
const PHYSICAL_EXPONENT: u8 = 3;

/// Feature bits.
pub(super) const F_SEG_MAX: u64 = 1 << 2;
pub(super) const F_RO: u64 = 1 << 5;
pub(super) const F_BLK_SIZE: u64 = 1 << 6;
pub(super) const F_FLUSH: u64 = 1 << 9;
pub(super) const F_TOPOLOGY: u64 = 1 << 10;
pub(super) const F_MQ: u64 = 1 << 12;
pub(super) const F_DISCARD: u64 = 1 << 13;
pub(super) const F_WRITE_ZEROES: u64 = 1 << 14;

/// The features of a slot. `SIZE_MAX` is not offered: a buffer can be of any length.
pub(super) fn features(read_only: bool, queues: u16) -> u64 {
    let mut features = feature::INDIRECT_DESC | feature::EVENT_IDX | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH;
    features |= if read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
    if queues > 1 {
        features |= F_MQ;
    }
    features
}

/// `struct virtio_blk_config` of a disk of so many sectors.
pub(super) fn space(sectors: u64, queues: u16) -> [u8; 60] {
    let mut space = [0; 60];
    let mut put = |offset: usize, value: &[u8]| space[offset..offset + value.len()].copy_from_slice(value);
    put(0, &sectors.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &BLOCK_SIZE.to_le_bytes());
    put(24, &[PHYSICAL_EXPONENT]);
    put(26, &(1_u16 << PHYSICAL_EXPONENT).to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    put(44, &DISCARD_ALIGNMENT.to_le_bytes());
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[1]);
    space
}
