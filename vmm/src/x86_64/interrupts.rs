//! The interrupt controllers, which are KVM's, and the lines that lead to them.

use std::io;

use kvm_ioctls::VmFd;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::layout;

/// Why there are no interrupts.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum InterruptError {
    #[error("KVM refuses the page of the identity map")]
    IdentityMap(#[source] kvm_ioctls::Error),
    #[error("KVM refuses the pages of the task state")]
    TaskState(#[source] kvm_ioctls::Error),
    #[error("KVM does not create the interrupt controllers")]
    Create(#[source] kvm_ioctls::Error),
    #[error("no event descriptor for interrupt {gsi}")]
    Event { gsi: u32, source: io::Error },
    #[error("KVM does not connect interrupt {gsi}")]
    Connect { gsi: u32, source: kvm_ioctls::Error },
}

/// Creates the interrupt controllers in the kernel, without the old timer chip: the guest has the local timer.
///
/// # Errors
/// What KVM refuses.
pub fn create(vm: &VmFd) -> Result<(), InterruptError> {
    // Both add pages to the machine on some hosts, so they come before the controllers as all memory does.
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(InterruptError::IdentityMap)?;
    vm.set_tss_address(layout::KVM_TSS).map_err(InterruptError::TaskState)?;
    vm.create_irq_chip().map_err(InterruptError::Create)
}

/// A new event descriptor; each write to it is one edge on interrupt `gsi`.
///
/// # Errors
/// What KVM refuses.
pub fn line(vm: &VmFd, gsi: u32) -> Result<EventFd, InterruptError> {
    let line = EventFd::new(EFD_NONBLOCK).map_err(|source| InterruptError::Event { gsi, source })?;
    vm.register_irqfd(&line, gsi)
        .map_err(|source| InterruptError::Connect { gsi, source })?;
    Ok(line)
}
