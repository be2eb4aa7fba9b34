//! What the build must know of the kernel's ELF: that stripping left the PVH entry.
//!
//! The entry is a note of type 18 and owner `Xen` (`XEN_ELFNOTE_PHYS32_ENTRY` in the
//! kernel's include/xen/interface/elfnote.h). Without it no VMM can enter an
//! uncompressed kernel through PVH, which would only be seen at the first boot.

/// What is wrong with a kernel's ELF.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Not a little-endian 64-bit ELF for x86-64.
    #[error("not an x86-64 ELF")]
    NotElf,
    /// A header or a note lies outside of the file.
    #[error("the ELF ends before {0} does")]
    Truncated(&'static str),
    /// There is no `XEN_ELFNOTE_PHYS32_ENTRY`.
    #[error("the ELF has no PVH entry (a `Xen` note of type 18)")]
    NoPvhNote,
}

const PT_NOTE: u32 = 4;
const PHYS32_ENTRY: u32 = 18;
/// `EM_X86_64`
const MACHINE: u16 = 62;
const PROGRAM_HEADER: usize = 56;

/// The physical address of the PVH entry of an ELF.
///
/// # Errors
/// See [`ElfError`].
pub fn pvh_entry(elf: &[u8]) -> Result<u64, ElfError> {
    let ident = elf.get(..6).ok_or(ElfError::NotElf)?;
    // Magic, ELFCLASS64, ELFDATA2LSB.
    if ident != b"\x7fELF\x02\x01" || u16_at(elf, 18) != Some(MACHINE) {
        return Err(ElfError::NotElf);
    }
    let header = || {
        let offset = usize::try_from(u64_at(elf, 32)?).ok()?;
        Some((offset, u16_at(elf, 54)?, u16_at(elf, 56)?))
    };
    let (offset, size, count) = header().ok_or(ElfError::Truncated("its header"))?;
    if usize::from(size) != PROGRAM_HEADER {
        return Err(ElfError::NotElf);
    }
    for index in 0..usize::from(count) {
        let segment = offset
            .checked_add(index * PROGRAM_HEADER)
            .and_then(|at| elf.get(at..at.checked_add(PROGRAM_HEADER)?))
            .ok_or(ElfError::Truncated("its program headers"))?;
        if u32_at(segment, 0) == Some(PT_NOTE)
            && let Some(entry) = entry_in_notes(notes_of(elf, segment)?)
        {
            return Ok(entry);
        }
    }
    Err(ElfError::NoPvhNote)
}

fn notes_of<'a>(elf: &'a [u8], segment: &[u8]) -> Result<&'a [u8], ElfError> {
    let range = || {
        let start = usize::try_from(u64_at(segment, 8)?).ok()?;
        let length = usize::try_from(u64_at(segment, 32)?).ok()?;
        elf.get(start..start.checked_add(length)?)
    };
    range().ok_or(ElfError::Truncated("its notes"))
}

/// Walks notes: name size, description size, type, then both padded to 4 bytes.
fn entry_in_notes(mut notes: &[u8]) -> Option<u64> {
    loop {
        let name_size = usize::try_from(u32_at(notes, 0)?).ok()?;
        let size = usize::try_from(u32_at(notes, 4)?).ok()?;
        let kind = u32_at(notes, 8)?;
        let name = notes.get(12..12_usize.checked_add(name_size)?)?;
        let start = 12 + name_size.checked_next_multiple_of(4)?;
        let description = notes.get(start..start.checked_add(size)?)?;
        if name == b"Xen\0" && kind == PHYS32_ENTRY {
            // The kernel writes 4 or 8 bytes, by its word size.
            return match size {
                4 => u32_at(description, 0).map(u64::from),
                _ => u64_at(description, 0),
            };
        }
        notes = notes.get(start.checked_add(size.checked_next_multiple_of(4)?)?..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
        bytes.extend(u32::try_from(description.len()).unwrap().to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(description);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn elf_with(notes: &[u8]) -> Vec<u8> {
        let mut elf = vec![0; 64 + PROGRAM_HEADER];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18..20].copy_from_slice(&MACHINE.to_le_bytes());
        elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56_u16.to_le_bytes());
        elf[56..58].copy_from_slice(&1_u16.to_le_bytes());
        elf[64..68].copy_from_slice(&PT_NOTE.to_le_bytes());
        let start = elf.len() as u64;
        elf[72..80].copy_from_slice(&start.to_le_bytes());
        elf[96..104].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        elf.extend(notes);
        elf
    }

    #[test]
    fn the_entry_is_found_behind_other_notes() {
        let mut notes = note(b"GNU\0", 3, &[7; 20]);
        notes.extend(note(b"Linux\0", PHYS32_ENTRY, &[1; 8]));
        notes.extend(note(b"Xen\0", 5, b"linux\0"));
        notes.extend(note(b"Xen\0", PHYS32_ENTRY, &0x20_1440_u64.to_le_bytes()));
        assert_eq!(pvh_entry(&elf_with(&notes)).unwrap(), 0x20_1440);
        let short = note(b"Xen\0", PHYS32_ENTRY, &0x1234_u32.to_le_bytes());
        assert_eq!(pvh_entry(&elf_with(&short)).unwrap(), 0x1234);
    }

    #[test]
    fn its_absence_is_an_error() {
        let notes = note(b"GNU\0", 3, &[7; 20]);
        assert!(matches!(pvh_entry(&elf_with(&notes)), Err(ElfError::NoPvhNote)));
        assert!(matches!(pvh_entry(&elf_with(&[])), Err(ElfError::NoPvhNote)));
    }

    #[test]
    fn other_files_and_cut_ones_are_told_apart() {
        assert!(matches!(pvh_entry(b""), Err(ElfError::NotElf)));
        assert!(matches!(
            pvh_entry(b"#!/bin/sh\necho no kernel here"),
            Err(ElfError::NotElf)
        ));
        let elf = elf_with(&note(b"Xen\0", PHYS32_ENTRY, &[0; 8]));
        assert!(matches!(
            pvh_entry(&elf[..60]),
            Err(ElfError::Truncated("its program headers"))
        ));
        assert!(matches!(pvh_entry(&elf[..40]), Err(ElfError::Truncated("its header"))));
        assert!(matches!(
            pvh_entry(&elf[..elf.len() - 1]),
            Err(ElfError::Truncated("its notes"))
        ));
    }

    proptest! {
        #[test]
        fn damaged_elfs_never_panic(at in 0_usize..200, value: u8, notes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut elf = elf_with(&notes);
            if let Some(byte) = elf.get_mut(at) {
                *byte = value;
            }
            let _ = pvh_entry(&elf);
        }
    }
}
