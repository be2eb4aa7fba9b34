//! The first page of a vCPU's `struct kvm_run`, mapped a second time for the one byte that other threads write.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The page's length. `immediate_exit` is among the first bytes.
const LENGTH: NonZeroUsize = match NonZeroUsize::new(4096) {
    Some(length) => length,
    None => unreachable!(),
};

/// A vCPU's `immediate_exit`: while it is set, `KVM_RUN` returns at once with `EINTR`.
///
/// Whoever wants a vCPU out of the guest sets it and then sends the thread a signal. A vCPU in the guest leaves by the
/// signal; one that is just about to enter finds the byte; so no kick is lost.
#[derive(Debug)]
pub(super) struct RunPage {
    page: NonNull<u8>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only accessed by atomic operations.
#[allow(unsafe_code)]
unsafe impl Send for RunPage {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps the page of a vCPU's descriptor.
    #[allow(unsafe_code)]
    pub(super) fn map(vcpu: impl AsFd) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; the descriptor is a vCPU's, whose mapping is
        // longer than one page and outlives the descriptor.
        let page = unsafe { mmap(None, LENGTH, protection, MapFlags::MAP_SHARED, vcpu, 0) }?;
        Ok(Self { page: page.cast() })
    }

    /// Lets the next or current `KVM_RUN` return, the latter with the help of a signal.
    pub(super) fn set(&self) {
        self.immediate_exit().store(1, Ordering::SeqCst);
    }

    /// Lets `KVM_RUN` enter the guest again.
    pub(super) fn clear(&self) {
        self.immediate_exit().store(0, Ordering::SeqCst);
    }

    #[allow(unsafe_code)]
    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the field lies within the mapped page.
        let byte = unsafe { self.page.add(std::mem::offset_of!(kvm_run, immediate_exit)) };
        // SAFETY: the byte is mapped for as long as `self` lives; this process accesses it by atomic operations only,
        // and the kernel reads it.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }
}

impl Drop for RunPage {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this address and length, and no reference to it is left.
        if let Err(error) = unsafe { munmap(self.page.cast(), LENGTH.get()) } {
            tracing::warn!(%error, "a vCPU's page is not unmapped");
        }
    }
}
