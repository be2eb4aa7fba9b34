//! The few model-specific registers that differ from their reset values at a kernel's entry.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

/// Number, name, value.
const AT_ENTRY: &[(u32, &str, u64)] = &[
    // Fast string operations, as firmware leaves them.
    (0x1a0, "IA32_MISC_ENABLE", 1),
    // Memory is write-back where no range says otherwise.
    (0x2ff, "IA32_MTRR_DEF_TYPE", 1 << 11 | 6),
];

/// Why the registers are not set.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum MsrError {
    #[error("no list of registers can be made")]
    List(#[source] vmm_sys_util::fam::Error),
    #[error("KVM does not take the register {name}")]
    Set {
        name: &'static str,
        source: kvm_ioctls::Error,
    },
}

/// Sets the registers. One that KVM does not know or whose value it refuses is left alone and logged: none is needed
/// for a boot.
///
/// # Errors
/// A failure of the call itself.
pub fn set(vcpu: &VcpuFd) -> Result<(), MsrError> {
    let mut rest = AT_ENTRY;
    while let Some((_, name, _)) = rest.first() {
        let entries: Vec<kvm_msr_entry> = rest
            .iter()
            .map(|(index, _, data)| kvm_msr_entry {
                index: *index,
                data: *data,
                ..Default::default()
            })
            .collect();
        let list = Msrs::from_entries(&entries).map_err(MsrError::List)?;
        // KVM stops at the first register that it refuses and says how many it took before.
        let taken = vcpu.set_msrs(&list).map_err(|source| MsrError::Set { name, source })?;
        if let Some((index, name, value)) = rest.get(taken) {
            tracing::debug!("KVM refuses {name} ({index:#x}) = {value:#x}");
        }
        rest = rest.get(taken + 1..).unwrap_or_default();
    }
    Ok(())
}
