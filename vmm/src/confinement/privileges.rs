//! Capabilities: none.

use std::io;

use husk_vmm_config::{Effect, Measure, Part};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities};

/// Gives up all capabilities, those too that an execve(2) could bring back.
pub(super) fn drop_capabilities() -> io::Result<Measure> {
    let bounded = empty_bounding_set()?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    // The ambient set goes with the permitted one.
    set_capabilities(None, none)?;
    Ok(Measure {
        part: Part::Capabilities,
        effect: if bounded { Effect::Full } else { Effect::Partial },
        detail: if bounded {
            "no capability in any set".into()
        } else {
            "no capability in any set but the bounding set, which this process may not change; no_new_privs makes up \
             for it"
                .into()
        },
    })
}

/// Whether the bounding set is empty now. Who has no right to change it keeps it.
fn empty_bounding_set() -> io::Result<bool> {
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The last one was the kernel's last.
            Err(Errno::INVAL) => break,
            Err(Errno::PERM) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}
