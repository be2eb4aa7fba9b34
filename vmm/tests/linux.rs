//! A real Linux in the machine: what it finds, and how it ends.
//!
//! These boot `HUSK_TEST_KERNEL` (an ELF or bzImage) with busybox from `/bin/busybox` as its userland. They need a KVM
//! that carries a real guest, so they are left out unless asked for: `cargo xtask test` does, where it has such a KVM.

#![allow(clippy::unwrap_used)]

mod harness;

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use harness::{Owned, Setup, file};
use husk_vmm_config::{End, Report, Request, Response, Topology};

fn kernel() -> File {
    let path = std::env::var("HUSK_TEST_KERNEL").expect("HUSK_TEST_KERNEL names the kernel to boot");
    File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// An archive in the "newc" form with busybox and `/init`.
fn initramfs(script: &str) -> File {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let init = format!("#!/bin/busybox sh\n{PRELUDE}{script}\n");
    let mut archive = Vec::new();
    for (name, mode, content) in [
        ("bin", 0o40755u32, &b""[..]),
        ("dev", 0o40755, b""),
        ("proc", 0o40755, b""),
        ("sys", 0o40755, b""),
        ("bin/busybox", 0o100755, &busybox),
        ("init", 0o100755, init.as_bytes()),
        ("TRAILER!!!", 0, b""),
    ] {
        let length = u32::try_from(content.len()).unwrap();
        let name_length = u32::try_from(name.len() + 1).unwrap();
        archive.extend(b"070701");
        for field in [0, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0] {
            archive.extend(format!("{field:08x}").bytes());
        }
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    file(&archive)
}

const PRELUDE: &str = "\
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
";

const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=acpi";

fn linux(script: &str) -> Setup {
    let mut setup = Setup::with_kernel(kernel());
    setup.memory_mib = 128;
    setup.initramfs.push(initramfs(script));
    setup.command_line = COMMAND_LINE.into();
    setup.console = true;
    setup
}

/// All that the guest said until its end, and the report.
fn transcript(machine: Owned) -> (String, Report) {
    let mut console = UnixStream::connect(&machine.console_path).unwrap();
    console.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
    let mut said = Vec::new();
    let outcome = console.read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said).replace('\r', "");
    if let Err(error) = outcome {
        panic!("{error}: {:?}\n{said}", machine.request(&Request::Status));
    }
    (said, machine.end().0)
}

fn run(setup: Setup) -> (String, Report) {
    let start = Instant::now();
    let (said, report) = transcript(setup.start());
    eprintln!(
        "--- {:?}, {:?}, {:?}\n{said}",
        start.elapsed(),
        report.end,
        report.exits
    );
    for pair in report.phases.windows(2) {
        eprintln!("{:>12} us  {}", (pair[1].at_ns - pair[0].at_ns) / 1000, pair[1].name);
    }
    (said, report)
}

#[test]
#[ignore = "boots Linux"]
fn shutdown_reboot_and_panic_are_told_apart() {
    for (script, end) in [
        ("poweroff -f", End::Shutdown),
        ("reboot -f", End::Reboot),
        ("echo c > /proc/sysrq-trigger", End::Panic),
    ] {
        let (said, report) = run(linux(script));
        assert_eq!(report.end, end, "{said}");
    }
}

#[test]
#[ignore = "boots Linux"]
fn the_topology_is_true() {
    let script = "\
cd /sys/devices/system/cpu
echo online=$(cat online)
for n in 0 1 2 3; do
  [ -d cpu$n ] && echo cpu$n core=$(cat cpu$n/topology/core_id) package=$(cat cpu$n/topology/physical_package_id) \
    threads=$(cat cpu$n/topology/thread_siblings_list) cores=$(cat cpu$n/topology/core_siblings_list)
done
poweroff -f";
    for (count, threads_per_core, expected) in [
        (1, 1, &["online=0", "cpu0 core=0 package=0 threads=0 cores=0"][..]),
        (2, 1, &["online=0-1", "cpu1 core=1 package=0 threads=1 cores=0-1"]),
        (
            4,
            2,
            &[
                "online=0-3",
                "cpu0 core=0 package=0 threads=0-1 cores=0-3",
                "cpu3 core=1 package=0 threads=2-3 cores=0-3",
            ],
        ),
    ] {
        let mut setup = linux(script);
        setup.vcpus = Topology {
            count,
            threads_per_core,
        };
        let (said, report) = run(setup);
        assert_eq!(report.end, End::Shutdown);
        for line in expected {
            assert!(said.lines().any(|found| found == *line), "{line} is not in:\n{said}");
        }
    }
}

#[test]
#[ignore = "boots Linux"]
fn devices_are_found_and_disks_can_be_read_and_attached() {
    let script = "\
for d in vda vdb vdc; do echo $d serial=$(cat /sys/block/$d/serial) size=$(cat /sys/block/$d/size) ro=$(cat /sys/block/$d/ro); done
echo content=$(dd if=/dev/vda bs=1 count=5 2>/dev/null)
echo written > /dev/vdb; sync
for v in /sys/bus/virtio/devices/*; do echo device=$(cat $v/device); done
echo rng=$(dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c)
echo attach now
while [ $(cat /sys/block/vdc/size) = 0 ]; do usleep 10000; done
echo vdc size=$(cat /sys/block/vdc/size) content=$(dd if=/dev/vdc bs=1 count=5 2>/dev/null)
poweroff -f";
    let mut disk = b"hello".to_vec();
    disk.resize(1 << 20, 0);
    let writable = file(&disk);
    let setup = linux(script)
        .disk("husk-0", true, Some(file(&disk)))
        .disk("husk-1", false, Some(writable.try_clone().unwrap()))
        .disk("husk-2", true, None);
    let machine = setup.start();
    let mut console = UnixStream::connect(&machine.console_path).unwrap();
    let mut said = String::new();
    let mut attached = false;
    let mut buffer = [0; 4096];
    loop {
        let length = console.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        said.push_str(&String::from_utf8_lossy(&buffer[..length]));
        if said.contains("attach now") && !attached {
            attached = true;
            assert_eq!(machine.control().attach("husk-2", &file(&disk)), Response::Done);
        }
    }
    eprintln!("{said}");
    let (report, _) = machine.end();
    assert_eq!(report.end, End::Shutdown);
    let said = said.replace('\r', "");
    for line in [
        "vda serial=husk-0 size=2048 ro=1",
        "vdb serial=husk-1 size=2048 ro=0",
        "vdc serial=husk-2 size=0 ro=1",
        "content=hello",
        "device=0x0013",
        "device=0x0004",
        "rng=16",
        "vdc size=2048 content=hello",
    ] {
        assert!(said.lines().any(|found| found == line), "{line} is not in:\n{said}");
    }
    assert!(report.phases.iter().any(|phase| phase.name == "vsock driver ready"));
    let mut text = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&writable, &mut text, 0).unwrap();
    assert_eq!(&text, b"written\n");
}

#[test]
#[ignore = "boots Linux"]
fn little_and_much_memory_are_found() {
    for (mib, least) in [(32, 8_000u64), (128, 80_000), (4608, 4_400_000)] {
        let mut setup = linux("grep MemTotal /proc/meminfo; poweroff -f");
        setup.memory_mib = mib;
        let (said, report) = run(setup);
        assert_eq!(report.end, End::Shutdown);
        let line = said.lines().find(|line| line.starts_with("MemTotal:")).unwrap();
        let total: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(total > least && total < u64::from(mib) << 10, "{line} of {mib} MiB");
    }
}

#[test]
#[ignore = "boots Linux"]
fn a_paused_guest_goes_on_where_it_was() {
    let script = "\
echo ready
n=0; while [ $n -lt 200 ]; do n=$((n+1)); usleep 1000; done
echo counted=$n
poweroff -f";
    let mut setup = linux(script);
    setup.vcpus.count = 2;
    let machine = setup.start();
    let client = machine.control();
    for _ in 0..100 {
        assert_eq!(client.request(&Request::Pause), Response::Done);
        assert_eq!(client.request(&Request::Kick), Response::Done);
        assert_eq!(client.request(&Request::Resume), Response::Done);
        std::thread::sleep(Duration::from_millis(5));
    }
    let (said, report) = transcript(machine);
    assert_eq!(report.end, End::Shutdown);
    assert!(said.contains("counted=200"), "{said}");
}
