//! Hand-made programs of a few instructions: kernels and first processes that do one wrong thing.

/// Where the code of a kernel lies in guest memory: above the first MiB, below what the smallest guest has.
const KERNEL_AT: u64 = 0x10_0000;
/// Where the code of a process lies.
const PROGRAM_AT: u64 = 0x40_0000;

/// `jmp .` in 32-bit and in 64-bit mode: a kernel that hangs and keeps its vCPU busy.
pub const LOOPS: &[u8] = &[0xeb, 0xfe];
/// `cli; hlt; jmp .-1`: a kernel that hangs and never wakes up.
pub const SLEEPS: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
/// `ud2`: without an interrupt table the third fault in a row, which ends a machine.
pub const FAULTS: &[u8] = &[0x0f, 0x0b];
/// `mov eax, 60; mov edi, 3; syscall`: a process that exits with code 3.
pub const EXITS: &[u8] = &[0xb8, 60, 0, 0, 0, 0xbf, 3, 0, 0, 0, 0x0f, 0x05];
/// `mov eax, 34; syscall; jmp .-9`: a process that pauses for ever.
pub const PAUSES: &[u8] = &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];

/// An ELF kernel of this code, to be entered through PVH or at its 64-bit entry.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    // The PVH note: name "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY), the entry's physical address.
    let mut note = Vec::new();
    for word in [4, 8, 18, u32::from_le_bytes(*b"Xen\0")] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(&KERNEL_AT.to_le_bytes());
    elf(code, KERNEL_AT, Some(&note))
}

/// An ELF program of this code.
pub fn program(code: &[u8]) -> Vec<u8> {
    elf(code, PROGRAM_AT, None)
}

/// An initramfs (cpio, "newc") whose /init is this program.
pub fn initramfs(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, "init", 0o100_755, init);
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    let size = content.len();
    let name_size = name.len() + 1;
    // Inode, mode, owner, group, links, time, size, device and special device (major, minor), name's size, checksum.
    let fields = [1, mode as usize, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

/// One loaded segment at `address`, entered at its start, and perhaps one note.
fn elf(code: &[u8], address: u64, note: Option<&[u8]>) -> Vec<u8> {
    /// The sizes of the ELF header and of a program header.
    const HEADER: u64 = 64;
    const SEGMENT: u64 = 56;
    let segments = 1 + u64::from(note.is_some());
    let note_at = HEADER + segments * SEGMENT;
    // A page's offset in the file is the same as in memory, as execve(2) wants it.
    let code_at = 4096;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Type EXEC, machine x86-64, version 1.
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for field in [address, HEADER, 0] {
        file.extend_from_slice(&field.to_le_bytes());
    }
    // Flags, then the sizes and counts of headers: this one, program headers, section headers.
    file.extend_from_slice(&[
        0,
        0,
        0,
        0,
        64,
        0,
        56,
        0,
        segments.to_le_bytes()[0],
        0,
        64,
        0,
        0,
        0,
        0,
        0,
    ]);
    let mut segment = |kind: u32, flags: u32, offset: u64, address: u64, size: u64| {
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&flags.to_le_bytes());
        for field in [offset, address, address, size, size, 4096] {
            file.extend_from_slice(&field.to_le_bytes());
        }
    };
    segment(1, 5, code_at, address, code.len() as u64);
    if let Some(note) = note {
        segment(4, 4, note_at, 0, note.len() as u64);
        file.extend_from_slice(note);
    }
    file.resize(4096, 0);
    file.extend_from_slice(code);
    file
}
