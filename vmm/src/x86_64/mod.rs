//! What is x86_64's own: where things lie, how a kernel is entered, and what the guest is told about its machine.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod interrupts;
pub mod layout;
pub mod msrs;
pub mod registers;
