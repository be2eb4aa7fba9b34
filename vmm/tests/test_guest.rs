//! The bare-metal test guest does honest work: all of its drivers, and what it tells of failures.

#![allow(clippy::unwrap_used)]

mod bare;
mod harness;

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use bare::{Guest, kernel};
use harness::{Setup, file, kvm_is_there, wait_readable};
use husk_test_guest::checksum;
use husk_test_guest::order::pattern;
use husk_test_guest::report::{Reason, state};
use husk_vmm_config::End;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// A megabyte that has no two equal words.
fn content() -> Vec<u8> {
    (0..1u64 << 17)
        .flat_map(|word| pattern(7, 8 * word).to_le_bytes())
        .collect()
}

#[test]
fn disks_are_read_and_written_whole() {
    if !kvm_is_there() {
        return;
    }
    let data = content();
    let scratch = file(&vec![0; 1 << 20]);
    let setup = Setup::with_kernel(kernel()).disk("data", true, Some(file(&data))).disk(
        "scratch",
        false,
        Some(scratch.try_clone().unwrap()),
    );
    let orders = "+blk-read disk=0 qd=32 size=4096 count=256 +blk-read disk=0 qd=1 size=512 count=2048 \
                  +blk-write disk=1 qd=8 size=65536 count=16 seed=9";
    let guest = Guest::start(setup, orders);
    guest.go();
    let (page, report, _) = guest.finish();
    assert_eq!(report.end, End::Shutdown, "{}", bare::describe(&page));
    let expected = checksum::bytes(0, &data);
    assert_eq!(page.results[1].checksum, expected);
    assert_eq!(page.results[2].checksum, expected);
    assert_eq!((page.results[2].operations, page.results[2].bytes), (2048, 1 << 20));
    assert!(page.results[1..4].iter().all(|result| result.ticks > 0));
    let mut written = vec![0; 1 << 20];
    scratch.read_exact_at(&mut written, 0).unwrap();
    let (words, _) = written.as_chunks();
    assert!(
        (0..)
            .zip(words)
            .all(|(index, word)| u64::from_le_bytes(*word) == pattern(9, 8 * index))
    );
}

#[test]
fn random_numbers_are_read() {
    if !kvm_is_there() {
        return;
    }
    let guest = Guest::start(
        Setup::with_kernel(kernel()),
        "+rng size=64 count=50 +rng size=64 count=50",
    );
    guest.go();
    let (page, _, _) = guest.finish();
    let [first, second] = [page.results[1], page.results[2]];
    assert_eq!((first.operations, first.bytes), (50, 3200));
    assert_ne!(first.checksum, second.checksum);
}

/// The host's end of the next connection that the guest opens.
fn accept(acceptor: &OwnedFd) -> UnixStream {
    wait_readable(acceptor);
    let mut byte = [0];
    let mut parts = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = recvmsg::<()>(acceptor.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
    let rights = message.cmsgs().unwrap().next().unwrap();
    let ControlMessageOwned::ScmRights(descriptors) = rights else {
        panic!("{rights:?}")
    };
    // SAFETY: the descriptor was just received, and nobody else has it.
    UnixStream::from(unsafe { OwnedFd::from_raw_fd(descriptors[0]) })
}

#[test]
fn streams_are_echoed_and_taken() {
    if !kvm_is_there() {
        return;
    }
    let orders = "+vsock-echo size=64 count=50 +vsock-echo size=4096 count=50 +vsock-stream size=4096 count=500";
    let guest = Guest::start(Setup::with_kernel(kernel()), orders);
    guest.go();
    for _ in 0..2 {
        let mut stream = accept(&guest.machine.accept);
        let mut buffer = [0; 4096];
        // The guest ends with a reset, which may come as an error.
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..length]).unwrap();
        }
    }
    let mut stream = accept(&guest.machine.accept);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    drop(stream);
    let (page, _, _) = guest.finish();
    assert_eq!(page.results[1].operations, 50);
    assert_eq!(page.results[2].bytes, 50 * 4096);
    assert_eq!(all.len(), 500 * 4096);
    assert_eq!(page.results[3].checksum, checksum::bytes(0, &all));
}

#[test]
fn what_cannot_be_done_is_told_with_the_order_s_number() {
    if !kvm_is_there() {
        return;
    }
    for (orders, done, reason) in [
        ("+fly", 1, Reason::UnknownOrder),
        ("+rng count=1 +rng size=0x", 2, Reason::Option),
        ("+rng speed=1", 1, Reason::Option),
        ("+blk-read", 1, Reason::NoDevice),
        ("+attack-kicks device=2", 1, Reason::NoDevice),
        ("+vsock-echo port=99", 1, Reason::Refused),
    ] {
        let guest = Guest::start(Setup::with_kernel(kernel()), orders);
        guest.go();
        let (page, report, _) = guest.end();
        assert_eq!(page.state, state::FAILED, "{orders}");
        assert_eq!(
            (page.done, Reason::from_number(page.reason)),
            (done, Some(reason)),
            "{orders}"
        );
        assert_eq!(report.end, End::Shutdown, "{orders}");
    }
}
