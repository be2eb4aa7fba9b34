//! The guest's physical address space and its ports.
//!
//! | addresses | what |
//! |---|---|
//! | `0x0`..`0xa0000` | memory; below `0x21000` what the kernel is handed at its entry |
//! | `0xa0000`..`0x100000` | reserved; the ACPI tables lie at `0xe0000` |
//! | `0x100000`..`0xd0000000` | memory: kernel, and initramfs at its end |
//! | `0xd0000000`..`0x100000000` | device registers: virtio from `0xd0000000` on, interrupt controllers from `0xfec00000` on |
//! | `0x100000000`.. | the rest of memory |

use husk_devices::power;

/// The boot processor's descriptor table.
pub const GDT: u64 = 0x500;
/// The PVH start info with its module list and memory map behind it.
pub const START_INFO: u64 = 0x6000;
/// The zero page (`struct boot_params`).
pub const ZERO_PAGE: u64 = 0x7000;
/// Six pages of page tables that map the first 4 GiB onto themselves.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The end of memory below 1 MiB.
pub const LOW_MEMORY_END: u64 = 0xa_0000;
/// The ACPI tables, in the range where a PC's firmware keeps them.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// The end of the room for ACPI tables and of the reserved range.
pub const ACPI_TABLES_END: u64 = 0x10_0000;
/// Where memory goes on behind the reserved range.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// The first virtio device's registers; the others follow.
pub const VIRTIO: u64 = 0xd000_0000;
/// The size of one virtio device's registers.
pub const VIRTIO_WINDOW: u64 = 0x1000;
/// The first virtio device's interrupt; the others follow, one each.
pub const VIRTIO_GSI: u32 = 5;
/// The interrupt controller has 24 pins.
pub const GSI_END: u32 = 24;
/// The I/O interrupt controller, where KVM has it.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local interrupt controllers, where KVM has them.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM needs on Intel hosts without "unrestricted guest".
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three more such pages.
pub const KVM_TSS: usize = 0xfffb_d000;

/// The first serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// The number of the serial port's registers.
pub const SERIAL_PORTS: u16 = 8;
/// The serial port's interrupt.
pub const SERIAL_GSI: u32 = 4;
/// The panic notifier's port.
pub const PVPANIC_PORT: u16 = 0x505;
/// The ACPI power registers' ports: sleep control, sleep status, reset.
pub const POWER_PORT: u16 = 0x600;
/// The sleep control register.
pub const SLEEP_CONTROL: u16 = POWER_PORT;
/// The sleep status register.
pub const SLEEP_STATUS: u16 = POWER_PORT + 1;
/// The reset register.
pub const RESET: u16 = POWER_PORT + 2;
/// What the guest writes into the reset register.
pub const RESET_VALUE: u8 = power::RESET_VALUE;
/// The sleep type of S5 (off).
pub const SLEEP_TYPE_OFF: u8 = power::S5_TYPE;

// The device has its registers where the tables say.
const _: () = assert!((SLEEP_CONTROL - POWER_PORT) as u64 == power::SLEEP_CONTROL);
const _: () = assert!((SLEEP_STATUS - POWER_PORT) as u64 == power::SLEEP_STATUS);
const _: () = assert!((RESET - POWER_PORT) as u64 == power::RESET);
