//! A guest's agent that dies: its code is taken away from it.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::unistd::{Whence, lseek64};

use crate::{Process, prepared};

const PAGE: usize = 4096;
/// Any page of code differs from any other in its first bytes, or is compared as a whole.
const KEY: usize = 64;
/// `hlt`, which a process may not execute.
const DEADLY: [u8; PAGE] = [0xf4; PAGE];
/// The longest that a guest may take to unpack its agent.
const PATIENCE: Duration = Duration::from_secs(120);

/// Overwrites the code of the agent in a guest's memory, from the host: the agent dies of its next instruction, and the
/// guest's kernel panics. An agent that waits for something dies when that happens.
///
/// A guest that has not come so far yet is waited for, by looking again and again: nothing else tells of it.
///
/// # Panics
/// The guest's memory cannot be written to, or the agent does not come to be in it.
pub fn kill_agent(vmm: &Process) {
    let archive = fs::read(prepared::bin().join("guest/initramfs.cpio")).expect("the guest's initramfs");
    let code = code(&archive);
    let mut missing: HashMap<&[u8], Vec<&[u8]>> = HashMap::new();
    for page in code.chunks_exact(PAGE) {
        missing.entry(&page[..KEY]).or_default().push(page);
    }
    let deadline = Instant::now() + PATIENCE;
    while !missing.is_empty() {
        if let Some(memory) = memory(vmm) {
            overwrite(&memory, &mut missing);
        }
        assert!(Instant::now() < deadline, "no agent in the memory of {vmm}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The executable segment of the first ELF file in an archive, which is the agent.
fn code(archive: &[u8]) -> &[u8] {
    let start = archive.windows(4).position(|bytes| bytes == b"\x7fELF");
    let file = &archive[start.expect("a program in the initramfs")..];
    let number = |at: usize, size: usize| {
        let bytes = file[at..at + size].iter().rev();
        bytes.fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    // The table of program headers: where it begins, the size of one, and how many there are.
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let is_code = |header: &usize| number(*header, 4) == 1 && number(header + 4, 4) & 1 != 0;
    let header = (0..count).map(|index| table + index * size).find(is_code);
    let header = header.expect("a segment of code");
    let (offset, length) = (number(header + 8, 8), number(header + 32, 8));
    assert_eq!(offset % PAGE, 0, "code begins at a page");
    &file[offset..offset + length]
}

/// The file of a machine's memory, once it is made.
fn memory(vmm: &Process) -> Option<File> {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", vmm.pid)).expect("the descriptors of husk-vmm");
    let is_memory = |path: &std::path::PathBuf| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:husk-guest"))
    };
    let path = descriptors.flatten().map(|entry| entry.path()).find(is_memory)?;
    let file = OpenOptions::new().read(true).write(true).open(path);
    Some(file.expect("open the guest's memory"))
}

/// Overwrites the pages that are there, and takes them off the list.
fn overwrite(memory: &File, missing: &mut HashMap<&[u8], Vec<&[u8]>>) {
    let mut end = 0;
    // Only what the guest has used: the rest is holes.
    while let Ok(start) = lseek64(memory, end, Whence::SeekData) {
        end = lseek64(memory, start, Whence::SeekHole).expect("data ends in a hole");
        let (first, length) = (start.cast_unsigned(), usize::try_from(end - start).expect("a length"));
        let mut data = vec![0; length];
        memory.read_exact_at(&mut data, first).expect("read the guest's memory");
        for (page, at) in data.chunks_exact(PAGE).zip((first..).step_by(PAGE)) {
            let Some(pages) = missing.get_mut(&page[..KEY]) else {
                continue;
            };
            let Some(index) = pages.iter().position(|wanted| *wanted == page) else {
                continue;
            };
            pages.swap_remove(index);
            if pages.is_empty() {
                missing.remove(&page[..KEY]);
            }
            memory.write_all_at(&DEADLY, at).expect("write to the guest's memory");
        }
    }
}
