//! Guest-physical memory and device registers, by address, at any alignment.
//!
//! Devices and other processors change it at any time, so it is never borrowed.

use core::arch::asm;

use husk_test_guest::layout::{IMAGE, IMAGE_END};

/// Everything below is mapped.
const MAPPED_END: u64 = 1 << 32;

/// Panics for an address that could be the program's own, or is not mapped.
fn check(address: u64, length: u64) {
    let end = address.saturating_add(length);
    assert!(end <= MAPPED_END && (end <= IMAGE || address >= IMAGE_END));
}

macro_rules! access {
    ($read:ident, $write:ident, $kind:ty, $class:ident, $size:literal, $place:literal) => {
        /// One read access of this width.
        #[inline]
        pub(super) fn $read(address: u64) -> $kind {
            check(address, size_of::<$kind>() as u64);
            let value: $kind;
            // SAFETY: the address is mapped, and in no Rust object: the image is the only place of those.
            unsafe {
                asm!(concat!("mov {0", $place, "}, ", $size, " ptr [{1}]"),
                    out($class) value, in(reg) address, options(nostack, preserves_flags));
            }
            value
        }

        /// One write access of this width.
        #[inline]
        pub(super) fn $write(address: u64, value: $kind) {
            check(address, size_of::<$kind>() as u64);
            // SAFETY: as above.
            unsafe {
                asm!(concat!("mov ", $size, " ptr [{1}], {0", $place, "}"),
                    in($class) value, in(reg) address, options(nostack, preserves_flags));
            }
        }
    };
}

access!(read8, write8, u8, reg_byte, "byte", "");
access!(read16, write16, u16, reg, "word", ":x");
access!(read32, write32, u32, reg, "dword", ":e");
access!(read64, write64, u64, reg, "qword", ":r");

/// Copies a text that ends with a zero byte, as far as it fits and is ASCII.
pub(super) fn text(address: u64, into: &mut [u8]) -> &str {
    let mut length = 0;
    for (place, from) in into.iter_mut().zip(address..) {
        *place = read8(from);
        if *place == 0 {
            break;
        }
        length += 1;
    }
    core::str::from_utf8(into.get(..length).unwrap_or_default()).unwrap_or_default()
}

/// Copies bytes to memory.
pub(super) fn copy(bytes: &[u8], to: u64) {
    for (byte, address) in bytes.iter().zip(to..) {
        write8(address, *byte);
    }
}

/// The 64-bit words in a range.
pub(super) fn words(address: u64, length: u64) -> impl Iterator<Item = u64> {
    (0..length / 8).map(move |index| read64(address + 8 * index))
}
