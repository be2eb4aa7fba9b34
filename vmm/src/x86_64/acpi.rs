//! The ACPI tables: what the guest finds of its machine.
//!
//! Hardware-reduced ACPI: no fixed hardware, no legacy timer, no 8259. Power-off and reset are registers of one byte
//! each; processors and interrupt controller are in the MADT, devices in the DSDT's AML.

use acpi_tables::Aml;
use acpi_tables::aml::{Device, IO, Interrupt, Memory32Fixed, Name, ONE, Package, Path, ResourceTemplate, Scope, ZERO};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::memory::Memory;

const OEM: [u8; 6] = *b"HUSK  ";
const TABLE: [u8; 8] = *b"HUSKVM  ";
const REVISION: u32 = 1;
/// FADT: "no VGA here" and "no CMOS clock here" (ACPI 6.5, table 5.11).
const NO_VGA_NO_CLOCK: u16 = 1 << 2 | 1 << 5;

/// What the tables describe beside the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Devices {
    /// The number of virtio devices.
    pub virtio: u32,
    /// Whether there is a serial port.
    pub serial: bool,
}

/// Why there are no ACPI tables.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum AcpiError {
    #[error("the tables of {needed} bytes do not fit into the {room} bytes reserved for them")]
    TooLong { needed: u64, room: u64 },
    #[error("the tables do not fit into guest memory")]
    Write(#[source] vm_memory::GuestMemoryError),
}

/// Writes all tables and returns the address of their root.
///
/// # Errors
/// Tables that do not fit where they belong.
pub fn write(memory: &Memory, vcpus: u32, devices: Devices) -> Result<u64, AcpiError> {
    let mut bytes = Vec::new();
    let root = layout::ACPI_TABLES;
    // The root comes first, so that a kernel that searches for it finds it; its content is known last.
    let tables = root + Rsdp::len().next_multiple_of(16) as u64;
    let mut place = |table: &dyn Aml| {
        let start = bytes.len().next_multiple_of(16);
        bytes.resize(start, 0);
        table.to_aml_bytes(&mut bytes);
        tables + start as u64
    };
    let dsdt = place(&dsdt(devices));
    let fadt = place(&fadt(dsdt));
    let madt = place(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt);
    let end = tables + bytes.len() as u64;
    if end > layout::ACPI_TABLES_END {
        return Err(AcpiError::TooLong {
            needed: end - root,
            room: layout::ACPI_TABLES_END - root,
        });
    }
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    for (address, part) in [(root, &rsdp), (tables, &bytes)] {
        memory
            .write_slice(part, GuestAddress(address))
            .map_err(AcpiError::Write)?;
    }
    Ok(root)
}

fn port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless)
        .dsdt_64(dsdt);
    fadt.iapc_boot_arch = NO_VGA_NO_CLOCK.into();
    fadt.reset_reg = port(layout::RESET);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"husk\0\0\0\0").into();
    fadt.finalize()
}

/// Processors and the I/O interrupt controller. At most 64 processors have identifiers below 255, for which the plain
/// local APIC's entry is the one to use whatever mode the guest chooses.
fn madt(vcpus: u32) -> impl Aml {
    let mut madt = MADT::new(
        OEM,
        TABLE,
        REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for index in (0u8..=u8::MAX).take(usize::try_from(vcpus).unwrap_or_default()) {
        madt.add_structure(ProcessorLocalApic::new(index, index, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn dsdt(devices: Devices) -> impl Aml {
    let mut aml = Vec::new();
    let off = layout::SLEEP_TYPE_OFF;
    Name::new("_S5_".into(), &Package::new(vec![&off, &ZERO, &ZERO, &ZERO])).to_aml_bytes(&mut aml);
    for index in 0..devices.virtio {
        virtio(index, &mut aml);
    }
    Scope::new("_SB_".into(), vec![&PanicNotifier]).to_aml_bytes(&mut aml);
    if devices.serial {
        Scope::new("_SB_".into(), vec![&SerialPort]).to_aml_bytes(&mut aml);
    }
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    table.append_slice(&aml);
    table.update_checksum();
    table
}

/// A virtio-mmio device, as Linux's `virtio_mmio` driver knows it.
fn virtio(index: u32, aml: &mut Vec<u8>) {
    let (address, gsi) = virtio_place(index);
    let name = format!("_SB_.V{index:03}");
    Device::new(
        Path::new(&name),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            &Name::new("_CCA".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, address, 0x1000),
                    &Interrupt::new(true, true, false, false, gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// Where a virtio device lies: its registers' address and its interrupt.
#[allow(clippy::cast_possible_truncation)]
fn virtio_place(index: u32) -> (u32, u32) {
    // At most 19 devices have an interrupt, so that all lie far below 4 GiB.
    let address = layout::VIRTIO + u64::from(index) * layout::VIRTIO_WINDOW;
    (address as u32, layout::VIRTIO_GSI + index)
}

struct PanicNotifier;

impl Aml for PanicNotifier {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let port = layout::PVPANIC_PORT;
        Device::new(
            "PEVT".into(),
            vec![
                &Name::new("_HID".into(), &"QEMU0001"),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(port, port, 1, 1)])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let port = layout::SERIAL_PORT;
        Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &acpi_tables::aml::EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &IO::new(port, port, 1, 8),
                        &Interrupt::new(true, true, false, false, layout::SERIAL_GSI),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    fn read(memory: &Memory, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn table(memory: &Memory, address: u64) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        read(memory, address, length as usize)
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn the_root_leads_to_every_table_and_all_checksums_hold() {
        let memory = memory::create(32).unwrap();
        let devices = Devices {
            virtio: 14,
            serial: true,
        };
        let root = write(&memory, 64, devices).unwrap();
        let rsdp = read(&memory, root, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = table(&memory, u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
        assert_eq!((&xsdt[..4], sum(&xsdt), xsdt.len()), (&b"XSDT"[..], 0, 36 + 16));
        let entry = |at: usize| u64::from_le_bytes(xsdt[at..at + 8].try_into().unwrap());
        let fadt = table(&memory, entry(36));
        assert_eq!((&fadt[..4], sum(&fadt), fadt.len()), (&b"FACP"[..], 0, 276));
        let madt = table(&memory, entry(44));
        assert_eq!(
            (&madt[..4], sum(&madt), madt.len()),
            (&b"APIC"[..], 0, 44 + 64 * 8 + 12)
        );
        let dsdt = table(&memory, u64::from_le_bytes(fadt[140..148].try_into().unwrap()));
        assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
    }

    #[test]
    fn the_serial_port_is_there_only_when_asked_for() {
        let bytes = |serial| {
            let mut bytes = Vec::new();
            dsdt(Devices { virtio: 1, serial }).to_aml_bytes(&mut bytes);
            bytes.windows(4).any(|name| name == b"COM1")
        };
        assert!(bytes(true));
        assert!(!bytes(false));
    }
}
