//! Partitions of a block device that stand nowhere on it (linux/blkpg.h).

use std::ffi::{c_int, c_longlong, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `_IO(0x12, 105)`.
const BLKPG: libc::c_ulong = 0x1269;
const ADD: c_int = 1;
const DELETE: c_int = 2;
/// The kernel's own limit (`DISK_MAX_PARTS`).
const MOST: c_int = 255;

/// `struct blkpg_partition`.
#[repr(C)]
struct Partition {
    start: c_longlong,
    length: c_longlong,
    number: c_int,
    names: [u8; 128],
}

#[allow(clippy::cast_possible_truncation)]
const SIZE: c_int = size_of::<Partition>() as c_int;

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct Argument {
    operation: c_int,
    flags: c_int,
    length: c_int,
    data: *mut c_void,
}

/// Makes bytes of a device, whole sectors of 512, its partition of this number, from 1 on.
pub(crate) fn add_partition(device: BorrowedFd<'_>, number: i32, offset: u64, length: u64) -> nix::Result<()> {
    let signed = |value: u64| c_longlong::try_from(value).map_err(|_| Errno::EINVAL);
    call(device, ADD, number, signed(offset)?, signed(length)?)
}

/// Removes all of a device's partitions that nobody uses.
pub(crate) fn remove_partitions(device: BorrowedFd<'_>) {
    for number in 1..=MOST {
        // The kernel numbers them without gaps here: they are made so.
        if call(device, DELETE, number, 0, 0) == Err(Errno::ENXIO) {
            break;
        }
    }
}

fn call(
    device: BorrowedFd<'_>,
    operation: c_int,
    number: c_int,
    start: c_longlong,
    length: c_longlong,
) -> nix::Result<()> {
    let mut partition = Partition {
        start,
        length,
        number,
        names: [0; 128],
    };
    let argument = Argument {
        operation,
        flags: 0,
        length: SIZE,
        data: (&raw mut partition).cast(),
    };
    // SAFETY: BLKPG reads the argument and the partition to which it points; both outlive the call.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), BLKPG as _, &raw const argument) }).map(drop)
}
