use std::io::Write;

use linux_loader::bootparam::boot_params;
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};

use super::*;
use crate::memory;

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

/// An ELF with one segment of `code` at `address`, and the PVH note if asked for.
fn elf(address: u64, code: &[u8], pvh: bool) -> Vec<u8> {
    let mut image = Vec::new();
    image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend(2u16.to_le_bytes());
    image.extend(62u16.to_le_bytes());
    image.extend(1u32.to_le_bytes());
    for word in [address, 64, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    let note_at = 64 + 2 * 56;
    let code_at = note_at + 20;
    let length = code.len() as u64;
    segment(&mut image, 1, code_at, address, length);
    segment(&mut image, if pvh { 4 } else { 0 }, note_at, 0, 20);
    for word in [4u32, 4, 18] {
        image.extend(word.to_le_bytes());
    }
    image.extend(b"Xen\0");
    image.extend(u32::try_from(address).unwrap_or(0).to_le_bytes());
    image.extend(code);
    image
}

fn segment(image: &mut Vec<u8>, kind: u32, offset: u64, address: u64, length: u64) {
    image.extend(kind.to_le_bytes());
    image.extend(7u32.to_le_bytes());
    for word in [offset, address, address, length, length, 4] {
        image.extend(word.to_le_bytes());
    }
}

/// A bzImage of one setup sector and `payload`, that needs `init_size` bytes from 16 MiB on.
fn bzimage(payload: &[u8], init_size: u32) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &u32::try_from(payload.len() / 16).unwrap().to_le_bytes());
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &init_size.to_le_bytes());
    image.extend(payload);
    image
}

fn boot(mib: u32, kernel: &[u8], initramfs: &[&[u8]]) -> (Memory, Result<Entry, BootError>) {
    let memory = memory::create(mib).unwrap();
    let files = BootFiles {
        kernel: file(kernel),
        initramfs: initramfs.iter().map(|content| file(content)).collect(),
    };
    let entry = load(&memory, &files, "quiet panic=-1", layout::ACPI_TABLES);
    (memory, entry)
}

fn failure(mib: u32, kernel: &[u8], initramfs: &[&[u8]]) -> String {
    let error = boot(mib, kernel, initramfs).1.unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn text_at(memory: &Memory, address: u64, length: usize) -> Vec<u8> {
    let mut text = vec![0; length];
    memory.read_slice(&mut text, GuestAddress(address)).unwrap();
    text
}

#[test]
fn an_elf_with_the_note_is_entered_through_pvh() {
    let (memory, entry) = boot(64, &elf(0x20_0000, b"code", true), &[b"first", b"second"]);
    assert_eq!(entry.unwrap(), Entry::Pvh { address: 0x20_0000 });
    assert_eq!(text_at(&memory, 0x20_0000, 4), b"code");
    assert_eq!(text_at(&memory, layout::COMMAND_LINE, 15), b"quiet panic=-1\0");
    let info: hvm_start_info = memory.read_obj(GuestAddress(layout::START_INFO)).unwrap();
    assert_eq!((info.magic, info.version, info.nr_modules), (0x336e_c578, 1, 1));
    assert_eq!(info.rsdp_paddr, layout::ACPI_TABLES);
    let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!((module.paddr, module.size), ((64 << 20) - 0x1000, 14));
    assert_eq!(text_at(&memory, module.paddr, 14), b"first\0\0\0second");
    assert_eq!(info.memmap_entries, 3);
    let last: hvm_memmap_table_entry = memory.read_obj(GuestAddress(info.memmap_paddr + 48)).unwrap();
    assert_eq!((last.addr, last.size, last.type_), (0x10_0000, 63 << 20, 1));
}

#[test]
fn an_elf_without_the_note_is_entered_at_its_64_bit_entry() {
    let (memory, entry) = boot(3500, &elf(0x20_0000, b"code", false), &[b"archive"]);
    assert_eq!(entry.unwrap(), Entry::Linux64 { address: 0x20_0000 });
    let page: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
    let header = page.hdr;
    let (image, size, line) = (header.ramdisk_image, header.ramdisk_size, header.cmd_line_ptr);
    assert_eq!((u64::from(image), size), (HOLE_START - 0x1000, 7));
    assert_eq!(u64::from(line), layout::COMMAND_LINE);
    assert_eq!(page.e820_entries, 4);
    let high = page.e820_table[3];
    let (start, length) = (high.addr, high.size);
    assert_eq!((start, length), (HOLE_END, (3500 << 20) - HOLE_START));
}

#[test]
fn a_bzimage_is_entered_by_the_64_bit_protocol() {
    let (memory, entry) = boot(64, &bzimage(&[0x90; 0x400], 0x80_0000), &[b"archive"]);
    assert_eq!(entry.unwrap(), Entry::Linux64 { address: 0x100_0200 });
    assert_eq!(text_at(&memory, 0x100_0000, 2), [0x90; 2]);
    let page: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
    let (version, loader) = (page.hdr.version, page.hdr.type_of_loader);
    assert_eq!((version, loader), (0x20f, 0xff));
}

#[test]
fn each_broken_kernel_is_named() {
    let elf = elf(0x20_0000, &[0x90; 64], true);
    assert!(failure(64, b"", &[]).contains("is empty"));
    assert!(failure(64, b"x", &[]).contains("neither ELF nor bzImage"));
    assert!(failure(64, &[7; 4096], &[]).contains("neither ELF nor bzImage"));
    assert!(failure(64, &elf[..20], &[]).contains("truncated: 64 bytes are needed for its header"));
    assert!(failure(64, &elf[..100], &[]).contains("for its program headers"));
    assert!(failure(64, &elf[..elf.len() - 1], &[]).contains("for its segments, and it has 259"));
    let mut arm = elf.clone();
    arm[18] = 183;
    assert!(failure(64, &arm, &[]).contains("for x86-64"));
    let mut lost = elf.clone();
    lost[192..196].copy_from_slice(&0x30_0000u32.to_le_bytes());
    assert!(failure(64, &lost, &[]).contains("entry 0x300000 lies in none"));
    let bzimage = bzimage(&[0x90; 0x400], 0x80_0000);
    assert!(failure(64, &bzimage[..0x210], &[]).contains("truncated"));
    assert!(failure(64, &bzimage[..0x500], &[]).contains("truncated: 2048 bytes are needed, and it has 1280"));
}

#[test]
fn too_little_memory_is_told_in_mib() {
    assert!(failure(32, &elf(40 << 20, b"code", true), &[]).contains("ends at 41 MiB, but the guest has only 32"));
    assert!(failure(32, &bzimage(&[0; 16], 64 << 20), &[]).contains("memory up to 80 MiB"));
    let archive = vec![0; 31 << 20];
    assert!(failure(32, &elf(2 << 20, b"code", true), &[&archive]).contains("take 31 MiB"));
    assert!(failure(32, &elf(2 << 20, b"code", true), &[b"x", b""]).contains("archive 1 is empty"));
}

#[test]
fn a_segment_over_the_boot_structures_is_refused() {
    assert!(failure(32, &elf(0x7000, b"code", true), &[]).contains("below 1 MiB"));
}
