//! Storage that does not answer.
//!
//! A page of guest memory whose faults nobody handles makes the worker's system call hang, as dead storage would, until
//! the test lets go of it.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use vm_memory::{GuestMemory, Permissions};

use super::*;
use crate::virtio::mmio::PauseError;

const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;

/// How long these tests wait for what does not come.
const SHORT: Duration = Duration::from_millis(300);

/// Makes the page at the guest's address hang whoever touches it, until the descriptor is closed.
fn hang(machine: &Machine, address: u64) -> OwnedFd {
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    let fd = i32::try_from(fd).unwrap();
    assert!(
        fd >= 0,
        "userfaultfd: {}; run the test as root",
        std::io::Error::last_os_error()
    );
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut slices = machine
        .memory
        .get_slices(GuestAddress(address), 4096, Permissions::Write)
        .unwrap();
    let page = slices.next().unwrap().unwrap().ptr_guard_mut().as_ptr();
    // SAFETY: the page is whole, mapped and private; losing its contents to zeros harms nobody.
    assert_eq!(unsafe { libc::madvise(page.cast(), 4096, libc::MADV_DONTNEED) }, 0);
    let mut api = [UFFD_API, 0, 0];
    // SAFETY: the argument is a `struct uffdio_api`: three words.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API as _, api.as_mut_ptr()) };
    assert_eq!(result, 0);
    let mut register = [page as u64, 4096, MODE_MISSING, 0];
    // SAFETY: the argument is a `struct uffdio_register`: four words, of which the first two name the page.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER as _, register.as_mut_ptr()) };
    assert_eq!(result, 0);
    fd
}

/// A disk of which the last request hangs.
fn hanging(file: &NamedTempFile) -> (Machine, Handle, OwnedFd) {
    let (mut block, handle) = made(options(false, 1)).unwrap();
    block.stop_limit = SHORT;
    handle.attach(opened(file)).unwrap();
    let mut machine = Machine::started(block);
    let request = machine.allocate_with(&header(IN, 0));
    let page = machine.allocate(4096);
    let status = machine.allocate(1);
    let hang = hang(&machine, page);
    machine.submit(
        0,
        &[
            Buffer::Read(request, 16),
            Buffer::Write(page, 512),
            Buffer::Write(status, 1),
        ],
    );
    machine.notify(0);
    // The worker is in its system call when it waits for the page.
    assert!(crate::testing::wait_readable(&hang, PATIENCE));
    (machine, handle, hang)
}

#[test]
fn gives_up_on_storage_that_does_not_answer_and_works_again_when_it_does() {
    let file = image(SECTORS);
    let (mut machine, _handle, hang) = hanging(&file);
    let before = Instant::now();
    assert_eq!(machine.transport.pause(), Err(PauseError));
    assert!(before.elapsed() < PATIENCE);
    assert_ne!(machine.status() & status::NEEDS_RESET, 0);
    machine.transport.resume();
    // As long as the worker hangs, the device cannot start; then it can.
    let offered = machine.offered();
    assert!(machine.negotiate(offered));
    machine.drive();
    assert_ne!(machine.status() & status::NEEDS_RESET, 0);
    drop(hang);
    let deadline = Instant::now() + PATIENCE;
    while machine.status() & status::NEEDS_RESET != 0 {
        assert!(Instant::now() < deadline, "the worker does not end");
        assert!(machine.negotiate(offered));
        machine.drive();
    }
    machine.start(offered);
    assert_eq!(machine.ask(IN, 0, &[], 512).0, OK);
}

/// Answers are held to be given back together, but not while the storage is waited for.
#[test]
fn gives_back_what_is_done_before_it_waits() {
    let file = image(SECTORS);
    let (block, handle) = made(options(false, 1)).unwrap();
    handle.attach(opened(&file)).unwrap();
    let mut machine = Machine::started(block);
    let page = machine.allocate(4096);
    let hang = hang(&machine, page);
    let quick = machine.allocate(4096);
    for (kind, data) in [
        (IN, Buffer::Write(quick, 512)),
        (IN, Buffer::Write(quick, 1024)),
        (OUT, Buffer::Read(page, 512)),
    ] {
        let request = machine.allocate_with(&header(kind, 0));
        let status = machine.allocate(1);
        machine.submit(0, &[Buffer::Read(request, 16), data, Buffer::Write(status, 1)]);
    }
    machine.notify(0);
    assert_eq!(machine.wait_used(0).1, 513);
    assert_eq!(machine.wait_used(0).1, 1025);
    assert!(crate::testing::wait_readable(&hang, PATIENCE));
    assert_eq!(machine.take_used(0), None);
    drop(hang);
    assert_eq!(machine.wait_used(0).1, 1);
}

#[test]
fn says_that_a_detached_disk_is_still_open() {
    let file = image(SECTORS);
    let (mut machine, handle, hang) = hanging(&file);
    assert_eq!(handle.detach_within(SHORT), Err(DetachError::Busy));
    assert_eq!(machine.capacity(), 0);
    assert_eq!(handle.detach(), Err(DetachError::Empty));
    drop(hang);
    assert_eq!(machine.wait_used(0).1, 513);
}
