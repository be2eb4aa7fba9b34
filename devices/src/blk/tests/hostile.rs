//! Drivers that ask what they must not.

use super::*;

#[test]
fn refuses_what_a_request_must_not_ask() {
    let file = image(SECTORS);
    let mut machine = machine(&file, false, 1);
    let last = SECTORS as u64 - 1;
    let limit = 1_u32 << 21;
    for (kind, sector, data, length, expected) in [
        (IN, last, vec![], 512, OK),
        (IN, last, vec![], 1024, IOERR),
        (IN, last + 1, vec![], 512, IOERR),
        (IN, u64::MAX, vec![], 512, IOERR),
        (IN, u64::MAX / 512 + 1, vec![], 512, IOERR),
        (IN, 0, vec![], 100, IOERR),
        (OUT, last, vec![0; 1024], 0, IOERR),
        (OUT, u64::MAX - 1, vec![0; 1024], 0, IOERR),
        (OUT, 0, vec![0; 511], 0, IOERR),
        (2, 0, vec![], 0, UNSUPP),
        (u32::MAX, 0, vec![], 512, UNSUPP),
        (DISCARD, 0, vec![], 0, IOERR),
        (DISCARD, 0, vec![0; 15], 0, IOERR),
        (DISCARD, 0, range(0, 8, 1), 0, UNSUPP),
        (DISCARD, 0, range(last, 2, 0), 0, IOERR),
        (DISCARD, 0, range(u64::MAX, 1, 0), 0, IOERR),
        (DISCARD, 0, range(0, 1, 0).repeat(17), 0, IOERR),
        (WRITE_ZEROES, 0, range(0, 1, 2), 0, UNSUPP),
        (WRITE_ZEROES, 0, range(last, 2, 0), 0, IOERR),
        (WRITE_ZEROES, 0, range(0, limit + 1, 0), 0, IOERR),
        (WRITE_ZEROES, 0, range(0, 0, 0), 0, OK),
    ] {
        let answer = machine.ask(kind, sector, &data, length).0;
        assert_eq!(answer, expected, "{kind} {sector} {} {length}", data.len());
    }
    assert!(contents(&file) == pattern(SECTORS, 1));
    assert_eq!(machine.status() & status::NEEDS_RESET, 0);
}

#[test]
fn survives_buffers_outside_of_memory() {
    let file = image(SECTORS);
    let mut machine = machine(&file, false, 1);
    let status = machine.allocate(1);
    for outside in [
        16 << 20,
        (16 << 20) - 256,
        (1 << 32) + (8 << 20) - 1,
        u64::MAX - 511,
        u64::MAX,
    ] {
        for kind in [IN, OUT] {
            let request = machine.allocate_with(&header(kind, 0));
            let buffer = if kind == IN {
                Buffer::Write(outside, 512)
            } else {
                Buffer::Read(outside, 512)
            };
            machine.submit(0, &[Buffer::Read(request, 16), buffer, Buffer::Write(status, 1)]);
            machine.notify(0);
            assert_eq!(machine.wait_used(0).1, 1);
            assert_eq!(machine.bytes(status, 1), [IOERR], "{outside:#x}");
        }
        // Neither header nor status in memory, and no room for a status.
        let request = machine.allocate_with(&header(IN, 0));
        for buffers in [
            vec![Buffer::Read(outside, 16), Buffer::Write(status, 1)],
            vec![Buffer::Read(request, 16), Buffer::Write(outside, 1)],
            vec![Buffer::Read(request, 16), Buffer::Write(outside, 513)],
            vec![Buffer::Read(request, 16), Buffer::Write(status, 0)],
            vec![Buffer::Read(request, 16)],
            vec![Buffer::Read(request, 15), Buffer::Write(status, 1)],
            vec![Buffer::Write(status, 1)],
            vec![Buffer::Read(request, u32::MAX)],
        ] {
            machine.submit(0, &buffers);
            machine.notify(0);
            machine.wait_used(0);
        }
    }
    assert!(contents(&file) == pattern(SECTORS, 1));
    assert_eq!(machine.ask(IN, 0, &[], 512).0, OK);
}

#[test]
fn needs_a_reset_after_a_ring_that_makes_no_sense() {
    let file = image(SECTORS);
    let mut machine = machine(&file, false, 1);
    let table = machine.allocate(64 * 1024 * 16);
    type Attack<'a> = &'a dyn Fn(&mut Machine);
    let attacks: [(&str, Attack<'_>); 9] = [
        ("a head that is no descriptor", &|machine| {
            machine.make_available(0, 128)
        }),
        ("a chain that is a ring", &|machine| {
            let descriptors = machine.rings[0].descriptors;
            machine.write_descriptor(descriptors, 0, table, 16, 1, 1);
            machine.write_descriptor(descriptors, 1, table, 16, 1, 0);
            machine.make_available(0, 0);
        }),
        ("a chain that leaves its table", &|machine| {
            machine.write_descriptor(machine.rings[0].descriptors, 0, table, 16, 1, 128);
            machine.make_available(0, 0);
        }),
        ("an indirect table in an indirect table", &|machine| {
            machine.write_descriptor(machine.rings[0].descriptors, 0, table, 32, 4, 0);
            machine.write_descriptor(table, 0, table, 16, 1, 1);
            machine.write_descriptor(table, 1, table + 64, 16, 4, 0);
            machine.write_descriptor(table + 64, 0, table, 16, 2, 0);
            machine.make_available(0, 0);
        }),
        ("an empty indirect table", &|machine| {
            machine.write_descriptor(machine.rings[0].descriptors, 0, table, 0, 4, 0);
            machine.make_available(0, 0);
        }),
        ("a torn indirect table", &|machine| {
            machine.write_descriptor(machine.rings[0].descriptors, 0, table, 17, 4, 0);
            machine.make_available(0, 0);
        }),
        ("an indirect table outside of memory", &|machine| {
            machine.write_descriptor(machine.rings[0].descriptors, 0, u64::MAX - 15, 16, 4, 0);
            machine.make_available(0, 0);
        }),
        ("an indirect chain longer than the queue", &|machine| {
            machine.write_descriptor(machine.rings[0].descriptors, 0, table, 200 * 16, 4, 0);
            for index in 0..200 {
                machine.write_descriptor(table, index, table, 16, u16::from(index < 199), index + 1);
            }
            machine.make_available(0, 0);
        }),
        ("more requests than the queue has room for", &|machine| {
            // In one step: the device may take what comes one by one.
            machine.claim_available(0, 129);
        }),
    ];
    for (name, attack) in attacks {
        attack(&mut machine);
        machine.write(0x50, 0);
        machine.wait_needs_reset();
        assert_ne!(machine.wait_interrupt(PATIENCE) & 2, 0, "{name}");
        let offered = machine.offered();
        machine.start(offered);
        assert_eq!(machine.ask(IN, 3, &[], 512).0, OK, "{name}");
    }
    machine.submit(0, &[Buffer::Write(table, 16), Buffer::Read(table, 16)]);
    machine.notify(0);
    machine.wait_needs_reset();
}
