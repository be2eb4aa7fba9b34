//! The loopback interface.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

nix::ioctl_write_ptr_bad!(set_interface_flags, libc::SIOCSIFFLAGS, libc::ifreq);

/// Brings `lo` up. The kernel gives it its addresses.
pub(crate) fn bring_loopback_up() -> Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context("socket")?;
    // SAFETY: ifreq is plain data of integers and unions of them, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).context("the flag's width")?;
    // SAFETY: the request is the structure that SIOCSIFFLAGS reads, it lives until the call returns, and the socket is
    // open.
    unsafe { set_interface_flags(socket.as_raw_fd(), &raw const request) }.context("bringing lo up")?;
    Ok(())
}
