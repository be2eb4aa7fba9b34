//! An uncompressed ELF kernel, entered through PVH where it has the note, else at its 64-bit entry.
//!
//! Every number in the file is checked against the file's length and the guest's memory before it is used, so that a
//! truncated image or too small a guest is told by its numbers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linux_loader::elf::{ELFCLASS64, ELFDATA2LSB, EM_X86_64, Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use thiserror::Error;
use vm_memory::ByteValued;

use super::{Entry, Loaded, low_memory_end};
use crate::memory::{self, Memory};
use crate::x86_64::layout;

/// The type of the note that holds the PVH entry (`XEN_ELFNOTE_PHYS32_ENTRY`), whose name is "Xen".
const PVH_NOTE: u32 = 18;
/// Notes beyond this length are not searched.
const MAX_NOTES: u64 = 1 << 20;

/// What is wrong with an ELF kernel.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ElfError {
    #[error("the file cannot be read")]
    Read(#[source] io::Error),
    #[error("the file is truncated: {needed} bytes are needed for its {part}, and it has {length}")]
    Truncated {
        part: &'static str,
        needed: u64,
        length: u64,
    },
    #[error("it is not a 64-bit little-endian file for x86-64")]
    Machine,
    #[error("its program headers have the size {0}; 56 is expected")]
    HeaderSize(u16),
    #[error("it has no segment to load")]
    NoSegments,
    #[error("its segment at {address:#x} is larger in the file ({file} bytes) than in memory ({memory} bytes)")]
    SegmentSize { address: u64, file: u64, memory: u64 },
    #[error("its segment at {address:#x} lies below 1 MiB")]
    SegmentLow { address: u64 },
    #[error("its segment ends at {} MiB, but the guest has only {} MiB of memory there", end.div_ceil(1 << 20), memory >> 20)]
    TooSmall { end: u64, memory: u64 },
    #[error("its segment at {address:#x} cannot be copied into guest memory")]
    Copy { address: u64, source: io::Error },
    #[error("its entry {0:#x} lies in none of its segments")]
    Entry(u64),
}

pub(super) fn load(memory: &Memory, kernel: &File) -> Result<Loaded, ElfError> {
    let length = kernel.metadata().map_err(ElfError::Read)?.len();
    let (header, segments) = read_headers(kernel, length)?;
    let mut end = 0;
    for segment in segments.iter().filter(|segment| segment.p_type == PT_LOAD) {
        end = end.max(load_segment(memory, kernel, length, segment)?);
    }
    if end == 0 {
        return Err(ElfError::NoSegments);
    }
    let entry = match find_pvh_entry(kernel, length, &segments)? {
        Some(address) => Entry::Pvh { address },
        None => Entry::Linux64 {
            address: header.e_entry,
        },
    };
    let (Entry::Pvh { address } | Entry::Linux64 { address }) = entry;
    let holds_entry = |segment: &Elf64_Phdr| {
        segment.p_type == PT_LOAD && (segment.p_paddr..segment.p_paddr + segment.p_memsz).contains(&address)
    };
    if !segments.iter().any(holds_entry) {
        return Err(ElfError::Entry(address));
    }
    Ok(Loaded {
        entry,
        end,
        initramfs_limit: low_memory_end(memory),
        header: None,
    })
}

fn read_headers(kernel: &File, length: u64) -> Result<(Elf64_Ehdr, Vec<Elf64_Phdr>), ElfError> {
    let mut header = Elf64_Ehdr::default();
    read(kernel, length, "header", header.as_mut_slice(), 0)?;
    if header.e_ident[4] != ELFCLASS64 || header.e_ident[5] != ELFDATA2LSB || header.e_machine != EM_X86_64 {
        return Err(ElfError::Machine);
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Err(ElfError::HeaderSize(header.e_phentsize));
    }
    let mut segments = vec![Elf64_Phdr::default(); usize::from(header.e_phnum)];
    let mut offset = header.e_phoff;
    for segment in &mut segments {
        read(kernel, length, "program headers", segment.as_mut_slice(), offset)?;
        offset += u64::from(header.e_phentsize);
    }
    Ok((header, segments))
}

/// Copies a segment and returns where its memory ends. What it has beyond its part of the file is zero already.
fn load_segment(memory: &Memory, kernel: &File, length: u64, segment: &Elf64_Phdr) -> Result<u64, ElfError> {
    let address = segment.p_paddr;
    check_length(length, "segments", segment.p_offset, segment.p_filesz)?;
    if segment.p_filesz > segment.p_memsz {
        return Err(ElfError::SegmentSize {
            address,
            file: segment.p_filesz,
            memory: segment.p_memsz,
        });
    }
    if address < layout::HIGH_MEMORY {
        return Err(ElfError::SegmentLow { address });
    }
    let end = address.saturating_add(segment.p_memsz);
    let memory_end = low_memory_end(memory);
    if end > memory_end {
        return Err(ElfError::TooSmall {
            end,
            memory: memory_end,
        });
    }
    memory::load(memory, address, kernel, segment.p_offset, segment.p_filesz)
        .map_err(|source| ElfError::Copy { address, source })?;
    Ok(end)
}

fn find_pvh_entry(kernel: &File, length: u64, segments: &[Elf64_Phdr]) -> Result<Option<u64>, ElfError> {
    for segment in segments.iter().filter(|segment| segment.p_type == PT_NOTE) {
        check_length(length, "notes", segment.p_offset, segment.p_filesz)?;
        let count = usize::try_from(segment.p_filesz.min(MAX_NOTES)).unwrap_or_default();
        let mut notes = vec![0; count];
        read(kernel, length, "notes", &mut notes, segment.p_offset)?;
        let align = if segment.p_align == 8 { 8 } else { 4 };
        if let Some(entry) = pvh_entry(&notes, align) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Searches notes for the PVH entry: name size, descriptor size, type, name, descriptor, the last two padded.
fn pvh_entry(mut notes: &[u8], align: usize) -> Option<u64> {
    loop {
        let (header, rest) = notes.split_first_chunk::<12>()?;
        let field = |at: usize| Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?));
        let name_size = usize::try_from(field(0)?).ok()?;
        let descriptor_size = usize::try_from(field(4)?).ok()?;
        let descriptor_at = name_size.checked_next_multiple_of(align)?;
        let descriptor = rest.get(descriptor_at..)?.get(..descriptor_size)?;
        if field(8)? == PVH_NOTE && rest.get(..name_size)? == b"Xen\0" {
            return match descriptor_size {
                4 => Some(u32::from_le_bytes(descriptor.try_into().ok()?).into()),
                8 => Some(u64::from_le_bytes(descriptor.try_into().ok()?)),
                _ => None,
            };
        }
        notes = rest.get(descriptor_at.checked_add(descriptor_size.checked_next_multiple_of(align)?)?..)?;
    }
}

fn check_length(length: u64, part: &'static str, offset: u64, size: u64) -> Result<(), ElfError> {
    let needed = offset.saturating_add(size);
    if needed > length {
        return Err(ElfError::Truncated { part, needed, length });
    }
    Ok(())
}

fn read(kernel: &File, length: u64, part: &'static str, into: &mut [u8], offset: u64) -> Result<(), ElfError> {
    check_length(length, part, offset, into.len() as u64)?;
    kernel.read_exact_at(into, offset).map_err(ElfError::Read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name.len(), descriptor.len()] {
            note.extend(u32::try_from(word).unwrap().to_le_bytes());
        }
        note.extend(kind.to_le_bytes());
        for part in [name, descriptor] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn finds_the_pvh_note_behind_others() {
        let mut notes = note(b"Linux\0", 257, b"6.12");
        notes.extend(note(b"Xen\0", 17, b"x"));
        assert_eq!(pvh_entry(&notes, 4), None);
        notes.extend(note(b"Xen\0", PVH_NOTE, &0x123_4560u32.to_le_bytes()));
        assert_eq!(pvh_entry(&notes, 4), Some(0x123_4560));
    }

    proptest! {
        #[test]
        fn any_notes_are_read_without_a_panic(notes: Vec<u8>) {
            pvh_entry(&notes, 4);
            pvh_entry(&notes, 8);
        }
    }
}
