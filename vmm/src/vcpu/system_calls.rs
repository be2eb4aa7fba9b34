//! What a vCPU's thread asks of the host's kernel.

use std::ffi::c_uint;

use husk_devices::system_calls::{Condition, SystemCall};
use kvm_bindings::{KVMIO, kvm_regs};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, ioctl_expr};

/// What a vCPU's thread does, beside what its accesses to registers make the devices' transports do.
pub const SYSTEM_CALLS: &[SystemCall] = &[
    SystemCall::with(libc::SYS_ioctl, &RUN),
    SystemCall::with(libc::SYS_ioctl, &KVMCLOCK_CTRL),
    // Where the guest was when KVM could not go on.
    SystemCall::with(libc::SYS_ioctl, &GET_REGS),
];

const RUN: [Condition; 1] = request(_IOC_NONE, 0x80, 0);
const KVMCLOCK_CTRL: [Condition; 1] = request(_IOC_NONE, 0xad, 0);
const GET_REGS: [Condition; 1] = request(_IOC_READ, 0x81, size_of::<kvm_regs>());

/// An ioctl(2) request of KVM's.
#[allow(clippy::cast_possible_truncation)] // requests have 32 bits, of which 14 are for the size
const fn request(direction: c_uint, number: c_uint, size: usize) -> [Condition; 1] {
    [Condition::is(
        1,
        ioctl_expr(direction, KVMIO, number, size as c_uint) as u32,
    )]
}
