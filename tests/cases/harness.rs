//! The tests' own tools, which must notice what they are there to notice.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;

use husk_tests::{Host, Pattern, tiny};
use nix::sched::{CloneFlags, unshare};

#[test]
fn a_tiny_program_does_what_its_few_instructions_say() {
    let host = Host::new();
    let path = host.scratch().join("exits");
    std::fs::write(&path, tiny::program(tiny::EXITS)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let status = Command::new(path).status().unwrap();
    assert_eq!(status.code(), Some(3));
}

#[test]
fn a_pattern_arrives_as_it_was_sent() {
    let mut bytes = Vec::new();
    Pattern::new(3_000_000).read_to_end(&mut bytes).unwrap();
    let mut expected = Pattern::new(3_000_000);
    bytes.chunks(70_001).for_each(|piece| expected.expect(piece));
    assert_eq!(expected.position(), 3_000_000);
}

#[test]
#[should_panic = "differ"]
fn a_page_that_comes_twice_is_noticed() {
    let mut bytes = Vec::new();
    Pattern::new(2 << 20).read_to_end(&mut bytes).unwrap();
    bytes.copy_within(4096..8192, 8192);
    Pattern::new(2 << 20).expect(&bytes);
}

#[test]
#[should_panic = "left behind"]
fn a_process_that_stays_is_noticed() {
    let host = Host::new();
    let mut shell = Command::new("sh");
    shell.args(["-c", "sleep 1000 >/dev/null 2>&1 &"]).status().unwrap();
    // The drop kills what is left when a test has failed already, as this one has by then.
    host.is_clean();
}

#[test]
#[should_panic = "left behind"]
fn a_file_in_the_run_directory_is_noticed() {
    let host = Host::new();
    std::fs::write(host.run_directory().join("forgotten"), "").unwrap();
    host.is_clean();
}

#[test]
#[should_panic = "socket /proc/self/fd"]
fn a_socket_that_stays_is_noticed() {
    let host = Host::new();
    let directory = std::fs::File::open(host.scratch()).unwrap();
    let _socket = UnixListener::bind(format!("/proc/self/fd/{}/vsock.sock", directory.as_raw_fd())).unwrap();
    host.is_clean();
}

#[test]
#[should_panic = "network namespace net:["]
fn a_network_namespace_that_stays_is_noticed() {
    let host = Host::new();
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        std::fs::File::open("/proc/thread-self/ns/net").unwrap()
    });
    let _namespace = made.join().unwrap();
    host.is_clean();
}
