//! A bzImage, entered by the 64-bit boot protocol (Documentation/arch/x86/boot.rst of Linux).
//!
//! The compressed kernel moves and unpacks itself; `init_size` says how much memory it needs for that from where it
//! is loaded.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linux_loader::bootparam::{XLF_KERNEL_64, setup_header};
use thiserror::Error;
use vm_memory::ByteValued;

use super::{Entry, Loaded, low_memory_end};
use crate::memory::{self, Memory};
use crate::x86_64::layout;

pub(super) const MAGIC: &[u8; 4] = b"HdrS";
pub(super) const MAGIC_OFFSET: u64 = 0x202;
const HEADER_OFFSET: u64 = 0x1f1;
/// Protocol 2.12 brought `xloadflags`.
const VERSION_64: u16 = 0x20c;
const LOADED_HIGH: u8 = 1;
/// The 64-bit entry lies behind the 32-bit one.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;

/// What is wrong with a bzImage.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum BzImageError {
    #[error("the file cannot be read")]
    Read(#[source] io::Error),
    #[error("the file is truncated: {needed} bytes are needed, and it has {length}")]
    Truncated { needed: u64, length: u64 },
    #[error("it speaks boot protocol {:#x}; at least 0x20c is needed", .0)]
    Version(u16),
    #[error("it has no 64-bit entry")]
    No64Bit,
    #[error("it wants to lie below 1 MiB")]
    Low,
    #[error("it needs memory up to {} MiB, but the guest has only {} MiB of memory there", end.div_ceil(1 << 20), memory >> 20)]
    TooSmall { end: u64, memory: u64 },
    #[error("it cannot be copied into guest memory")]
    Copy(#[source] io::Error),
}

pub(super) fn load(memory: &Memory, kernel: &File) -> Result<Loaded, BzImageError> {
    let length = kernel.metadata().map_err(BzImageError::Read)?.len();
    let header = read_header(kernel, length)?;
    let sectors = if header.setup_sects == 0 { 4 } else { header.setup_sects };
    let offset = SECTOR * (u64::from(sectors) + 1);
    // `syssize` counts the protected-mode code in units of 16 bytes.
    let needed = offset + 16 * u64::from(header.syssize);
    if needed > length || offset >= length {
        return Err(BzImageError::Truncated { needed, length });
    }
    let start = header.pref_address;
    if start < layout::HIGH_MEMORY {
        return Err(BzImageError::Low);
    }
    let size = length - offset;
    let end = start.saturating_add(size.max(u64::from(header.init_size)));
    let memory_end = low_memory_end(memory);
    if end > memory_end {
        return Err(BzImageError::TooSmall {
            end,
            memory: memory_end,
        });
    }
    memory::load(memory, start, kernel, offset, size).map_err(BzImageError::Copy)?;
    Ok(Loaded {
        entry: Entry::Linux64 {
            address: start + ENTRY_64,
        },
        end,
        initramfs_limit: memory_end.min(u64::from(header.initrd_addr_max) + 1),
        header: Some(header),
    })
}

/// Reads the setup header. The byte at 0x201, a jump's distance, tells where it ends; what lies behind belongs to code.
fn read_header(kernel: &File, length: u64) -> Result<setup_header, BzImageError> {
    let mut header = setup_header::default();
    let size = header.as_slice().len() as u64;
    if HEADER_OFFSET + size > length {
        return Err(BzImageError::Truncated {
            needed: HEADER_OFFSET + size,
            length,
        });
    }
    let mut jump = [0];
    kernel.read_exact_at(&mut jump, 0x201).map_err(BzImageError::Read)?;
    let own = (MAGIC_OFFSET + u64::from(jump[0]) - HEADER_OFFSET).min(size);
    let own = usize::try_from(own).unwrap_or_default();
    let bytes = header.as_mut_slice();
    let part = bytes.get_mut(..own).unwrap_or_default();
    kernel.read_exact_at(part, HEADER_OFFSET).map_err(BzImageError::Read)?;
    if header.version < VERSION_64 {
        return Err(BzImageError::Version(header.version));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 || header.loadflags & LOADED_HIGH == 0 {
        return Err(BzImageError::No64Bit);
    }
    Ok(header)
}
