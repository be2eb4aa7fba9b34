//! The boot processor's registers at a kernel's entry.
//!
//! The application processors need none: they wait in KVM until the guest's kernel starts them.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::memory::Memory;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_HUGE: u64 = 1 << 7;

/// How and where a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// PVH: 32-bit protected mode without paging, `ebx` points to the start info.
    Pvh {
        /// The entry's physical address.
        address: u64,
    },
    /// Linux's 64-bit boot protocol: long mode with an identity map, `rsi` points to the zero page.
    Linux64 {
        /// The entry's physical address.
        address: u64,
    },
}

/// Why the registers are not set.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RegisterError {
    #[error("the vCPU's special registers cannot be read")]
    Get(#[source] kvm_ioctls::Error),
    #[error("KVM refuses the vCPU's special registers")]
    SetSpecial(#[source] kvm_ioctls::Error),
    #[error("KVM refuses the vCPU's registers")]
    Set(#[source] kvm_ioctls::Error),
    #[error("the descriptor or page tables do not fit into guest memory")]
    Tables(#[source] vm_memory::GuestMemoryError),
}

/// A flat segment: its selector in our descriptor table, its type, and the bits in which code and data differ.
struct Flat {
    selector: u16,
    kind: u8,
    long: bool,
    system: bool,
}

impl Flat {
    const fn code(long: bool) -> Self {
        let (selector, kind, system) = (0x10, 0xb, false);
        Self {
            selector,
            kind,
            long,
            system,
        }
    }

    const DATA: Self = Self {
        selector: 0x18,
        kind: 0x3,
        long: false,
        system: false,
    };

    const TASK: Self = Self {
        selector: 0x20,
        kind: 0xb,
        long: false,
        system: true,
    };

    /// The segment as KVM takes it.
    fn segment(&self) -> kvm_segment {
        kvm_segment {
            base: 0,
            limit: if self.system { 0x67 } else { 0xffff_ffff },
            selector: self.selector,
            type_: self.kind,
            present: 1,
            dpl: 0,
            db: u8::from(!self.system && !self.long),
            s: u8::from(!self.system),
            l: u8::from(self.long),
            g: u8::from(!self.system),
            ..Default::default()
        }
    }

    /// The segment as the descriptor table holds it (Intel SDM volume 3, 3.4.5).
    fn descriptor(&self) -> u64 {
        let segment = self.segment();
        let limit = if self.system { 0x67 } else { 0xf_ffff };
        (limit & 0xffff)
            | u64::from(segment.type_) << 40
            | u64::from(segment.s) << 44
            | u64::from(segment.present) << 47
            | (limit >> 16) << 48
            | u64::from(segment.l) << 53
            | u64::from(segment.db) << 54
            | u64::from(segment.g) << 55
    }
}

/// Sets the boot processor's registers and writes the tables they refer to.
///
/// # Errors
/// What KVM refuses, or tables that do not fit into memory.
pub fn set(vcpu: &VcpuFd, memory: &Memory, entry: Entry) -> Result<(), RegisterError> {
    let long = matches!(entry, Entry::Linux64 { .. });
    let code = Flat::code(long);
    let table = [
        0,
        0,
        code.descriptor(),
        Flat::DATA.descriptor(),
        Flat::TASK.descriptor(),
    ];
    write_table(memory, layout::GDT, &table)?;

    let mut special = vcpu.get_sregs().map_err(RegisterError::Get)?;
    special.gdt.base = layout::GDT;
    special.gdt.limit = 8 * 5 - 1;
    special.idt.base = 0;
    special.idt.limit = 0;
    special.cs = code.segment();
    special.ds = Flat::DATA.segment();
    (special.es, special.fs, special.gs, special.ss) = (special.ds, special.ds, special.ds, special.ds);
    special.tr = Flat::TASK.segment();
    special.cr0 = CR0_PE | CR0_ET;
    special.cr4 = 0;
    if long {
        write_identity_map(memory)?;
        special.cr3 = layout::PAGE_TABLES;
        special.cr4 |= CR4_PAE;
        special.cr0 |= CR0_PG;
        special.efer |= EFER_LME | EFER_LMA;
    }
    vcpu.set_sregs(&special).map_err(RegisterError::SetSpecial)?;

    let mut registers = kvm_regs {
        rflags: 2,
        ..Default::default()
    };
    match entry {
        Entry::Pvh { address } => {
            registers.rip = address;
            registers.rbx = layout::START_INFO;
        }
        Entry::Linux64 { address } => {
            registers.rip = address;
            registers.rsi = layout::ZERO_PAGE;
        }
    }
    vcpu.set_regs(&registers).map_err(RegisterError::Set)
}

/// Maps the first 4 GiB onto themselves with pages of 2 MiB.
fn write_identity_map(memory: &Memory) -> Result<(), RegisterError> {
    let page = |index: u64| layout::PAGE_TABLES + 0x1000 * index;
    write_table(memory, page(0), &[page(1) | PAGE_PRESENT_WRITABLE])?;
    let directories: Vec<u64> = (2..6).map(|index| page(index) | PAGE_PRESENT_WRITABLE).collect();
    write_table(memory, page(1), &directories)?;
    let pages: Vec<u64> = (0..4 * 512)
        .map(|index| index << 21 | PAGE_PRESENT_WRITABLE | PAGE_HUGE)
        .collect();
    write_table(memory, page(2), &pages)
}

fn write_table(memory: &Memory, address: u64, entries: &[u64]) -> Result<(), RegisterError> {
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory
        .write_slice(&bytes, GuestAddress(address))
        .map_err(RegisterError::Tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_that_linux_names() {
        // From the boot protocol: flat 4 GiB, execute/read for code, read/write for data (accessed bits set).
        assert_eq!(Flat::code(true).descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(Flat::code(false).descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(Flat::DATA.descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(Flat::TASK.descriptor(), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn the_identity_map_reaches_from_0_to_4_gib() {
        let memory = crate::memory::create(32).unwrap();
        write_identity_map(&memory).unwrap();
        let read = |address: u64| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        assert_eq!(read(layout::PAGE_TABLES), (layout::PAGE_TABLES + 0x1000) | 3);
        assert_eq!(
            read(layout::PAGE_TABLES + 0x1000 + 8 * 3),
            (layout::PAGE_TABLES + 0x5000) | 3
        );
        assert_eq!(read(layout::PAGE_TABLES + 0x5000 + 8 * 511), 0xffe0_0083);
    }
}
