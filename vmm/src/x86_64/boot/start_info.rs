//! The PVH start info: `struct hvm_start_info`, version 1, with one module at most and the memory map.

use linux_loader::start_info::{XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{Range, map};
use crate::memory::Memory;
use crate::x86_64::layout;

const MODULES: u64 = layout::START_INFO + 0x100;
const MEMORY_MAP: u64 = layout::START_INFO + 0x200;

pub(super) fn write(memory: &Memory, initramfs: Option<Range>, rsdp: u64) -> Result<(), GuestMemoryError> {
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        ..Default::default()
    };
    if let Some(Range { start, length }) = initramfs {
        info.nr_modules = 1;
        info.modlist_paddr = MODULES;
        let module = hvm_modlist_entry {
            paddr: start,
            size: length,
            ..Default::default()
        };
        memory.write_obj(module, GuestAddress(MODULES))?;
    }
    let mut address = MEMORY_MAP;
    for (range, kind) in map(memory) {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.length,
            type_: kind as u32,
            reserved: 0,
        };
        memory.write_obj(entry, GuestAddress(address))?;
        address += size_of_val(&entry) as u64;
        info.memmap_entries += 1;
    }
    memory.write_obj(info, GuestAddress(layout::START_INFO))
}
