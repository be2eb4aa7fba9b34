//! The zero page of the 64-bit boot protocol: `struct boot_params`.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Range, map};
use crate::memory::Memory;
use crate::x86_64::layout;

/// A loader without a number of its own.
const LOADER_UNKNOWN: u8 = 0xff;

/// Writes the zero page. `header` is a bzImage's own; an ELF has none and gets one.
pub(super) fn write(
    memory: &Memory,
    header: Option<setup_header>,
    command_line_length: usize,
    initramfs: Option<Range>,
    rsdp: u64,
) -> Result<(), BootError> {
    let mut hdr = header.unwrap_or(setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*super::bzimage::MAGIC),
        kernel_alignment: 0x100_0000,
        cmdline_size: 2047,
        ..Default::default()
    });
    let most = usize::try_from(hdr.cmdline_size).unwrap_or(usize::MAX);
    if command_line_length > most {
        return Err(BootError::CommandLine {
            length: command_line_length,
            most,
        });
    }
    hdr.type_of_loader = LOADER_UNKNOWN;
    hdr.cmd_line_ptr = low_half(layout::COMMAND_LINE);
    if let Some(Range { start, length }) = initramfs {
        hdr.ramdisk_image = low_half(start);
        hdr.ramdisk_size = low_half(length);
    }
    let mut page = boot_params {
        hdr,
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    for (slot, (range, kind)) in page.e820_table.iter_mut().zip(map(memory)) {
        *slot = boot_e820_entry {
            addr: range.start,
            size: range.length,
            r#type: kind as u32,
        };
        page.e820_entries += 1;
    }
    memory
        .write_obj(page, GuestAddress(layout::ZERO_PAGE))
        .map_err(BootError::Write)
}

/// All that the zero page points to lies below 4 GiB.
#[allow(clippy::cast_possible_truncation)]
fn low_half(value: u64) -> u32 {
    debug_assert!(u32::try_from(value).is_ok());
    value as u32
}
