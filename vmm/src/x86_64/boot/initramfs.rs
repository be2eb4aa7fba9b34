//! Initramfs archives, one behind the other at the end of memory below 4 GiB.

use std::fs::File;
use std::io;

use thiserror::Error;

use super::Range;
use crate::memory::{self, Memory};

/// The kernel finds the next archive at a multiple of four bytes behind the one before.
const ALIGN: u64 = 4;
const PAGE: u64 = 0x1000;

/// Why there is no initramfs in guest memory.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum InitramfsError {
    #[error("archive {index} cannot be read")]
    Read { index: usize, source: io::Error },
    #[error("archive {index} is empty")]
    Empty { index: usize },
    #[error(
        "the archives take {} MiB and the kernel {} MiB of memory, but the guest has only {} MiB for both",
        size.div_ceil(1 << 20), kernel_end.div_ceil(1 << 20), limit >> 20
    )]
    TooLarge { size: u64, kernel_end: u64, limit: u64 },
    #[error("archive {index} cannot be copied into guest memory")]
    Copy { index: usize, source: io::Error },
}

/// Places the archives below `limit` and above `kernel_end`; `None` if there is none.
pub(super) fn load(
    memory: &Memory,
    archives: &[File],
    kernel_end: u64,
    limit: u64,
) -> Result<Option<Range>, InitramfsError> {
    let mut size = 0u64;
    let mut lengths = Vec::new();
    for (index, archive) in archives.iter().enumerate() {
        let metadata = archive
            .metadata()
            .map_err(|source| InitramfsError::Read { index, source })?;
        if metadata.len() == 0 {
            return Err(InitramfsError::Empty { index });
        }
        lengths.push(metadata.len());
        size = size.next_multiple_of(ALIGN).saturating_add(metadata.len());
    }
    if lengths.is_empty() {
        return Ok(None);
    }
    let start = limit.checked_sub(size).map(|start| start / PAGE * PAGE);
    let Some(start) = start.filter(|start| *start >= kernel_end) else {
        return Err(InitramfsError::TooLarge {
            size,
            kernel_end,
            limit,
        });
    };
    let mut address = start;
    for (index, (archive, length)) in archives.iter().zip(lengths).enumerate() {
        address = address.next_multiple_of(ALIGN);
        memory::load(memory, address, archive, 0, length).map_err(|source| InitramfsError::Copy { index, source })?;
        address += length;
    }
    Ok(Some(Range { start, length: size }))
}
