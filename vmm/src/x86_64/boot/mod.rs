//! From kernel files to guest memory: image, initramfs, command line, and the structure that names them to the kernel.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::layout;
use super::registers::Entry;
use crate::memory::{HOLE_END, HOLE_START, Memory};
use crate::resources::BootFiles;

mod bzimage;
mod elf;
mod initramfs;
mod start_info;
mod zero_page;

pub use bzimage::BzImageError;
pub use elf::ElfError;
pub use initramfs::InitramfsError;

/// Why no kernel is in guest memory.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum BootError {
    #[error("the kernel image cannot be read")]
    Read(#[source] io::Error),
    #[error("the kernel image is empty")]
    Empty,
    #[error("the kernel image is neither ELF nor bzImage")]
    Unknown,
    #[error("the kernel image is not a usable ELF")]
    Elf(#[from] ElfError),
    #[error("the kernel image is not a usable bzImage")]
    BzImage(#[from] BzImageError),
    #[error("the initramfs cannot be loaded")]
    Initramfs(#[from] InitramfsError),
    #[error("the kernel's command line of {length} bytes is longer than the {most} that the kernel takes")]
    CommandLine { length: usize, most: usize },
    #[error("what the kernel is handed does not fit into guest memory")]
    Write(#[source] vm_memory::GuestMemoryError),
}

/// A kernel in guest memory.
struct Loaded {
    entry: Entry,
    /// Where the kernel's memory ends, in which nothing else may lie at its entry.
    end: u64,
    /// The last address plus one that an initramfs may have.
    initramfs_limit: u64,
    /// The setup header of a bzImage.
    header: Option<linux_loader::bootparam::setup_header>,
}

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    length: u64,
}

/// What an address range is to the kernel; the numbers are those of the e820 map and of PVH's memory map alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum RangeKind {
    Memory = 1,
    Reserved = 2,
}

/// Loads everything and returns where the kernel is entered. `rsdp` is the address of the ACPI tables' root.
///
/// # Errors
/// What is wrong with a file, by name, or how much memory lacks.
pub fn load(memory: &Memory, files: &BootFiles, command_line: &str, rsdp: u64) -> Result<Entry, BootError> {
    let loaded = match identify(&files.kernel)? {
        Kind::Elf => elf::load(memory, &files.kernel)?,
        Kind::BzImage => bzimage::load(memory, &files.kernel)?,
    };
    let initramfs = initramfs::load(memory, &files.initramfs, loaded.end, loaded.initramfs_limit)?;
    write_command_line(memory, command_line)?;
    match loaded.entry {
        Entry::Pvh { .. } => start_info::write(memory, initramfs, rsdp).map_err(BootError::Write)?,
        Entry::Linux64 { .. } => {
            let length = command_line.len();
            zero_page::write(memory, loaded.header, length, initramfs, rsdp)?;
        }
    }
    Ok(loaded.entry)
}

enum Kind {
    Elf,
    BzImage,
}

fn identify(kernel: &File) -> Result<Kind, BootError> {
    let length = kernel.metadata().map_err(BootError::Read)?.len();
    if length == 0 {
        return Err(BootError::Empty);
    }
    let mut magic = [0; 4];
    if length >= 4 {
        kernel.read_exact_at(&mut magic, 0).map_err(BootError::Read)?;
    }
    if &magic == linux_loader::elf::ELFMAG {
        return Ok(Kind::Elf);
    }
    if length >= bzimage::MAGIC_OFFSET + 4 {
        kernel
            .read_exact_at(&mut magic, bzimage::MAGIC_OFFSET)
            .map_err(BootError::Read)?;
        if &magic == bzimage::MAGIC {
            return Ok(Kind::BzImage);
        }
    }
    Err(BootError::Unknown)
}

fn write_command_line(memory: &Memory, command_line: &str) -> Result<(), BootError> {
    let mut text = command_line.as_bytes().to_vec();
    text.push(0);
    memory
        .write_slice(&text, GuestAddress(layout::COMMAND_LINE))
        .map_err(BootError::Write)
}

/// The end of memory below 4 GiB.
fn low_memory_end(memory: &Memory) -> u64 {
    let end = memory.last_addr().0 + 1;
    if end > HOLE_END { HOLE_START } else { end }
}

/// What lies where, in rising order. What is not named is no memory.
fn map(memory: &Memory) -> Vec<(Range, RangeKind)> {
    let range = |start, end| Range {
        start,
        length: end - start,
    };
    let end = memory.last_addr().0 + 1;
    let mut map = vec![
        (range(0, layout::LOW_MEMORY_END), RangeKind::Memory),
        (
            range(layout::LOW_MEMORY_END, layout::ACPI_TABLES_END),
            RangeKind::Reserved,
        ),
        (range(layout::HIGH_MEMORY, low_memory_end(memory)), RangeKind::Memory),
    ];
    if end > HOLE_END {
        map.push((range(HOLE_END, end), RangeKind::Memory));
    }
    map
}

#[cfg(test)]
mod tests;
