//! The way to KVM: its device is checked for what a machine needs.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::Memory;

/// What every machine needs of KVM, with the name that is told when it lacks.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
];

/// Why KVM cannot carry the machine.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum KvmError {
    #[error("the KVM device is another device")]
    NotKvm,
    #[error("KVM speaks API version {0}; version {KVM_API_VERSION} is needed")]
    Version(i32),
    #[error("this host's KVM lacks {0}")]
    Capability(&'static str),
    #[error("this host's KVM allows {most} vCPUs in a machine; {asked} were asked for")]
    Vcpus { asked: u32, most: usize },
    #[error("KVM does not create a machine")]
    CreateVm(#[source] kvm_ioctls::Error),
    #[error("KVM refuses {mib} MiB of guest memory at {address:#x}")]
    Memory {
        mib: u64,
        address: u64,
        source: kvm_ioctls::Error,
    },
}

/// Checks that a machine of `vcpus` vCPUs is possible with the device, which is `/dev/kvm`, open.
///
/// # Errors
/// What is missing on this host, by name.
#[allow(unsafe_code)]
pub fn check(device: OwnedFd, vcpus: u32) -> Result<Kvm, KvmError> {
    // SAFETY: the descriptor is open, and its owner gives it away.
    let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
    match kvm.get_api_version() {
        ..0 => return Err(KvmError::NotKvm),
        version if version.cast_unsigned() != KVM_API_VERSION => return Err(KvmError::Version(version)),
        _ => {}
    }
    if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        return Err(KvmError::Capability(name));
    }
    let most = kvm.get_max_vcpus();
    if usize::try_from(vcpus).is_ok_and(|asked| asked <= most) {
        Ok(kvm)
    } else {
        Err(KvmError::Vcpus { asked: vcpus, most })
    }
}

/// Gives the machine its memory. This comes before the interrupt controller: with one in place, every change of the
/// memory slots waits until all readers of the old ones are known to be done (milliseconds each).
///
/// # Errors
/// The piece that KVM refuses.
#[allow(unsafe_code)]
pub fn add_memory(vm: &VmFd, memory: &Memory) -> Result<(), KvmError> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let address = region.start_addr().raw_value();
        let description = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: address,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a live mapping that `memory` owns, regions do not overlap, and the machine keeps a
        // clone of `memory` for as long as the VM's descriptor is open.
        unsafe { vm.set_user_memory_region(description) }.map_err(|source| KvmError::Memory {
            mib: region.len() >> 20,
            address,
            source,
        })?;
    }
    Ok(())
}
