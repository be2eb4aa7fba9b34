//! Tiny guests of a few instructions, on the real KVM: how a machine ends, and what its owner can ask of it.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{LIMIT, Setup, bzimage, elf, exits, file, kvm_is_there};
use husk_vmm_config::{End, ExitCounts, Request, Response, State, Topology};

/// `out` of a byte to a port, then `hlt` for good; the same bytes in 32-bit and 64-bit mode.
fn write_port(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee, 0xfa, 0xf4, 0xeb, 0xfd]
}

/// The sleep type of S5 with the bit that enables it, into the sleep control register.
fn power_off() -> Vec<u8> {
    write_port(0x600, 5 << 2 | 1 << 5)
}

const SPIN: &[u8] = &[0xeb, 0xfe];
/// `cli; hlt`
const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
/// `ud2`, without an interrupt table.
const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b];
/// A jump to where there are only device registers.
const NOWHERE: &[u8] = &[0xb8, 0, 0, 0, 0xd8, 0xff, 0xe0];

fn end_of(kernel: &[u8]) -> (End, i32) {
    let (report, status) = Setup::new(kernel).start().end();
    (report.end, status.code().unwrap())
}

#[test]
fn each_way_in_and_each_way_out_is_told_apart() {
    if !kvm_is_there() {
        return;
    }
    assert_eq!(end_of(&elf(&power_off(), true)), (End::Shutdown, 0));
    assert_eq!(end_of(&elf(&power_off(), false)), (End::Shutdown, 0));
    assert_eq!(end_of(&bzimage(&power_off())), (End::Shutdown, 0));
    assert_eq!(end_of(&elf(&write_port(0x602, 1), true)), (End::Reboot, 10));
    assert_eq!(end_of(&elf(&write_port(0x505, 1), true)), (End::Panic, 11));
    assert_eq!(end_of(&elf(TRIPLE_FAULT, true)), (End::TripleFault, 12));
    let (end, code) = end_of(&elf(NOWHERE, true));
    let End::Vcpu { index: 0, reason } = end else {
        panic!("{end:?}")
    };
    assert!(reason.contains("0xd8000000"), "{reason}");
    assert_eq!(code, 13);
}

#[test]
fn the_guest_finds_a_virtio_device_at_its_place() {
    if !kvm_is_there() {
        return;
    }
    // mov eax, [0xd0000000]; cmp eax, "virt"; jne itself
    let mut code = vec![0xa1, 0, 0, 0, 0xd0, 0x3d, 0x76, 0x69, 0x72, 0x74, 0x75, 0xfe];
    code.extend(power_off());
    let (report, _) = Setup::new(&elf(&code, true)).start().end();
    assert_eq!(report.end, End::Shutdown);
    assert_eq!(exits(&report.exits, "mmio_read"), 1);
    assert_eq!(exits(&report.exits, "pio_out"), 1);
    let names: Vec<&str> = report.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(names.first(), Some(&"process started"));
    assert_eq!(names.last(), Some(&"guest entered"));
    assert!(report.phases.is_sorted_by_key(|phase| phase.at_ns));
}

#[test]
fn a_second_vcpu_is_started_by_the_first() {
    if !kvm_is_there() {
        return;
    }
    // In real mode at 0x8000: power off.
    let low = u32::from_le_bytes([0xba, 0x00, 0x06, 0xb0]);
    let high = u32::from_le_bytes([0x34, 0xee, 0xf4, 0x90]);
    let mut code = Vec::new();
    for (address, value) in [
        (0x8000u32, low),
        (0x8004, high),
        // The local interrupt controller is enabled.
        (0xfee0_00f0, 0x1ff),
        // To processor 1: INIT, then start at page 8.
        (0xfee0_0310, 1 << 24),
        (0xfee0_0300, 0x4500),
        (0xfee0_0310, 1 << 24),
        (0xfee0_0300, 0x4608),
    ] {
        // mov dword [address], value
        code.extend([0xc7, 0x05]);
        code.extend(address.to_le_bytes());
        code.extend(value.to_le_bytes());
    }
    code.extend(HALT);
    let mut setup = Setup::new(&elf(&code, true));
    setup.vcpus = Topology {
        count: 2,
        threads_per_core: 2,
    };
    assert_eq!(setup.start().end().0.end, End::Shutdown);
}

#[test]
fn the_owner_can_pause_resume_kick_and_stop() {
    if !kvm_is_there() {
        return;
    }
    for code in [SPIN, HALT] {
        let mut setup = Setup::new(&elf(code, true));
        setup.vcpus.count = 3;
        let machine = setup.start();
        let client = machine.control();
        let before = machine.wait_for(|status| status.phases.iter().any(|phase| phase.name == "guest entered"));
        assert_eq!(before.state, State::Running);
        assert_eq!(client.request(&Request::Kick), Response::Done);
        machine.wait_for(|status| exits(&status.exits, "interrupted") >= 3);
        for _ in 0..20 {
            assert_eq!(client.request(&Request::Pause), Response::Done);
            assert_eq!(client.request(&Request::Pause), Response::Done);
            let paused = client.status();
            assert_eq!(paused.state, State::Paused);
            assert_eq!(client.status().exits, paused.exits, "nothing runs while paused");
            assert_eq!(client.request(&Request::Resume), Response::Done);
            assert_eq!(client.status().state, State::Running);
        }
        assert_eq!(client.request(&Request::Pause), Response::Done);
        assert_eq!(client.request(&Request::Stop), Response::Done);
        let (report, status) = machine.end();
        assert_eq!((report.end, status.code()), (End::Stopped, Some(14)));
    }
}

/// `mov dword [address], value`, in 32-bit mode.
fn store(address: u32, value: u32) -> Vec<u8> {
    [&[0xc7, 0x05][..], &address.to_le_bytes(), &value.to_le_bytes()].concat()
}

#[test]
fn a_driver_resets_and_starts_a_disk_and_the_owner_pauses_it() {
    if !kvm_is_there() {
        return;
    }
    // The first disk comes behind vsock and random numbers. Status, feature selector and features; no queue.
    const DISK: u32 = 0xd000_2000;
    let steps = [
        (0x70, 0),
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x70, 15),
        (0x70, 0),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x70, 15),
    ];
    let mut code: Vec<u8> = steps
        .iter()
        .flat_map(|(register, value)| store(DISK + register, *value))
        .collect();
    code.extend(HALT);
    let disk = file(&[0; 4096]);
    let machine = Setup::new(&elf(&code, true)).disk("slot", true, Some(disk)).start();
    machine.wait_for(|status| exits(&status.exits, "mmio_write") == steps.len() as u64);
    let client = machine.control();
    for _ in 0..3 {
        assert_eq!(client.request(&Request::Pause), Response::Done);
        assert_eq!(client.request(&Request::Kick), Response::Done);
        assert_eq!(client.request(&Request::Resume), Response::Done);
        assert_eq!(client.request(&Request::Detach { disk: "slot".into() }), Response::Done);
        assert_eq!(client.attach("slot", &file(&[0; 4096])), Response::Done);
    }
    assert_eq!(client.request(&Request::Stop), Response::Done);
    assert_eq!(machine.end().0.end, End::Stopped);
}

#[test]
fn a_bad_request_is_refused_with_a_reason_and_harms_nothing() {
    if !kvm_is_there() {
        return;
    }
    let machine = Setup::new(&elf(HALT, true)).disk("slot", true, None).start();
    let client = machine.control();
    let refusal = |response| match response {
        Response::Refused { reason } => reason,
        other => panic!("{other:?}"),
    };
    assert!(refusal(client.send(b"nonsense", &[])).contains("not understood"));
    assert!(refusal(client.send(br#"{"request":"fly"}"#, &[])).contains("fly"));
    assert!(refusal(client.send(&vec![b' '; 70 << 10], &[])).contains("longer than"));
    let attach = Request::Attach { disk: "slot".into() };
    assert!(refusal(client.request(&attach)).contains("no descriptor"));
    assert!(refusal(client.attach("other", &file(b"x"))).contains("no disk \"other\""));
    let detach = Request::Detach { disk: "other".into() };
    assert!(refusal(client.request(&detach)).contains("no disk \"other\""));
    assert_eq!(client.status().state, State::Running);
}

#[test]
fn many_clients_are_bounded_and_a_gone_one_makes_room() {
    if !kvm_is_there() {
        return;
    }
    let machine = Setup::new(&elf(HALT, true)).start();
    for _ in 0..3 {
        let clients: Vec<_> = (0..16).map(|_| machine.control()).collect();
        for client in &clients {
            assert_eq!(client.status().state, State::Running);
        }
    }
    assert_eq!(machine.status().state, State::Running);
}

#[test]
fn the_machine_ends_with_its_owner() {
    if !kvm_is_there() {
        return;
    }
    let mut machine = Setup::new(&elf(SPIN, true)).start();
    machine.wait_for(|status| status.phases.iter().any(|phase| phase.name == "guest entered"));
    machine.drop_lifeline();
    let (report, status) = machine.end();
    assert_eq!((report.end, status.code()), (End::OwnerGone, Some(15)));
}

fn failure(setup: Setup, change: impl FnOnce(&mut husk_vmm_config::Config)) -> String {
    let (report, status) = setup.start_changed(change).end();
    assert_eq!(status.code(), Some(1));
    assert_eq!(report.exits, ExitCounts::default());
    match report.end {
        End::Failed { reason } => reason,
        end => panic!("{end:?}"),
    }
}

#[test]
fn what_cannot_be_booted_is_named_in_the_report() {
    if !kvm_is_there() {
        return;
    }
    let good = elf(&power_off(), true);
    assert!(failure(Setup::new(b"#!/bin/sh\n"), |_| {}).contains("neither ELF nor bzImage"));
    assert!(failure(Setup::new(b""), |_| {}).contains("is empty"));
    assert!(failure(Setup::new(&good[..good.len() - 3]), |_| {}).contains("truncated"));
    let mut setup = Setup::new(&good);
    setup.initramfs.push(file(&vec![0; 40 << 20]));
    assert!(failure(setup, |_| {}).contains("40 MiB"));
    let reason = failure(Setup::new(&good), |config| config.memory_mib = u32::MAX);
    assert!(
        reason.contains("4294967295 MiB") || reason.contains("4294963967 MiB"),
        "{reason}"
    );
}

#[test]
fn a_wrong_descriptor_is_named_in_the_report() {
    if !kvm_is_there() {
        return;
    }
    let setup = || Setup::new(&elf(HALT, true));
    let reason = failure(setup(), |config| config.lifeline.0 = 999);
    assert_eq!(reason, "descriptor 999 for the lifeline is not open");
    let reason = failure(setup(), |config| {
        std::mem::swap(&mut config.control, &mut config.vsock.listener);
    });
    assert!(
        reason.contains("vsock listener is not a listening SOCK_STREAM"),
        "{reason}"
    );
}

#[test]
fn an_unusable_configuration_is_told_on_stderr() {
    let (report, status) = Setup::new(b"x")
        .start_changed(|config| config.vcpus.count = 65)
        .end_or_nothing();
    assert_eq!((report.as_str(), status.code()), ("", Some(2)));
}

#[test]
fn sixty_four_vcpus_and_much_memory_are_possible() {
    if !kvm_is_there() {
        return;
    }
    let mut setup = Setup::new(&elf(&power_off(), true));
    setup.vcpus.count = 64;
    setup.memory_mib = 6 << 10;
    let start = std::time::Instant::now();
    assert_eq!(setup.start().end().0.end, End::Shutdown);
    assert!(start.elapsed() < LIMIT);
}
