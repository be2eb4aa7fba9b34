//! Whether /dev/kvm can be used.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use thiserror::Error;

const DEVICE: &str = "/dev/kvm";
/// The one version of KVM's interface that there has been since 2007.
const API_VERSION: i32 = 12;
/// `_IO(KVMIO, 0x00)`.
const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;

/// Why KVM cannot be used, and what to do.
#[derive(Debug, Error)]
pub(super) enum KvmError {
    #[error("{DEVICE} does not exist")]
    Missing,
    #[error("{DEVICE}: permission denied for this user")]
    Permission,
    #[error("{DEVICE} cannot be opened")]
    Open(#[source] io::Error),
    #[error("{DEVICE} is no KVM device")]
    NotKvm,
    #[error("KVM's interface has version {0} instead of {API_VERSION}")]
    Version(i32),
}

impl KvmError {
    /// What to do about it.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Missing => {
                "switch virtualization on in the firmware's setup (or nested virtualization, in a virtual machine) and \
                 load the kernel's module: modprobe kvm_intel or kvm_amd"
            }
            Self::Permission => "add yourself to the group kvm: sudo usermod -aG kvm $USER, then log in again",
            Self::Open(_) | Self::NotKvm | Self::Version(_) => {
                "see what the kernel says about KVM: dmesg | grep -i kvm"
            }
        }
    }
}

/// Opens the device and asks for its version.
pub(super) fn check() -> Result<File, KvmError> {
    let opened = OpenOptions::new().read(true).write(true).open(DEVICE);
    let device = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => KvmError::Missing,
        io::ErrorKind::PermissionDenied => KvmError::Permission,
        _ => KvmError::Open(error),
    })?;
    match api_version(&device) {
        Ok(API_VERSION) => Ok(device),
        Ok(version) => Err(KvmError::Version(version)),
        Err(_) => Err(KvmError::NotKvm),
    }
}

#[allow(unsafe_code)]
fn api_version(device: &File) -> nix::Result<i32> {
    // SAFETY: this request has no argument and changes nothing.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), KVM_GET_API_VERSION as _, 0) })
}
