//! Many requests under way.

use super::*;

#[test]
fn puts_a_request_back_when_it_shall_stop() {
    let file = image(SECTORS);
    let (_block, handle) = made(options(false, 1)).unwrap();
    handle.attach(opened(&file)).unwrap();
    let mut machine = machine(&file, false, 1);
    machine.transport.pause().unwrap();
    let request = machine.allocate_with(&header(IN, 0));
    let target = machine.allocate(513);
    machine.submit(0, &[Buffer::Read(request, 16), Buffer::Write(target, 513)]);
    let ring = machine.rings[0].clone();
    let mut queue = virtio_queue::Queue::new(128).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(ring.descriptors))
        .unwrap();
    queue.try_set_avail_ring_address(GuestAddress(ring.available)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(ring.used)).unwrap();
    queue.set_ready(true);
    let mut chain = crate::virtio::chain::Chain::new();
    assert!(chain.take(&mut queue, &machine.memory).unwrap());
    let stopping = Arc::new(AtomicBool::new(true));
    let mut service = request::Service::new(machine.memory.clone(), handle.slot.clone(), 0, stopping.clone());
    let request = service.look(&chain);
    assert_eq!(service.serve(&chain, &request, false), request::Answer::Stopped);
    stopping.store(false, Ordering::SeqCst);
    assert_eq!(service.serve(&chain, &request, false), request::Answer::Given(513));
    machine.transport.resume();
    assert_eq!(machine.wait_used(0).1, 513);
}

/// Reads of which each goes on where the one before it ends are done by one system call.
#[test]
fn reads_in_a_row_are_each_answered_for_themselves() {
    let file = image(SECTORS);
    let mut machine = machine(&file, false, 1);
    let data = contents(&file);
    let end = SECTORS as u64;
    let nowhere = u64::MAX - 0xffff;
    // Where each begins and how many sectors it has; its buffer, if not one of its own; its status.
    let rows = [
        vec![(0, 1, None, OK), (1, 2, None, OK), (3, 1, None, OK), (4, 5, None, OK)],
        vec![
            (7, 1, None, OK),
            (8, 1, Some(nowhere), IOERR),
            (9, 1, None, OK),
            (10, 0, None, OK),
        ],
        vec![(end - 2, 1, None, OK), (end - 1, 1, None, OK), (end, 1, None, IOERR)],
        vec![
            (5, 300, None, OK),
            (305, 100, None, OK),
            (405, 1, None, OK),
            (7, 1, None, OK),
        ],
    ];
    for row in rows {
        let mut requests = Vec::new();
        for (sector, count, place, status) in row {
            let request = machine.allocate_with(&header(IN, sector));
            let length = count * 512;
            let target = place.unwrap_or_else(|| machine.allocate(length as u64 + 1));
            let state = machine.allocate_with(&[0xee]);
            let buffers = [
                Buffer::Read(request, 16),
                Buffer::Write(target, u32::try_from(length).unwrap()),
                Buffer::Write(state, 1),
            ];
            let head = machine.submit(0, &buffers);
            requests.push((head, sector, length, target, state, status));
        }
        machine.notify(0);
        for (head, sector, length, target, state, status) in requests {
            let written = if status == OK { length + 1 } else { 1 };
            assert_eq!(
                machine.wait_used(0),
                (head, u32::try_from(written).unwrap()),
                "at {sector}"
            );
            assert_eq!(machine.bytes(state, 1), [status], "at {sector}");
            if status == OK {
                let start = usize::try_from(sector).unwrap() * 512;
                assert!(
                    machine.bytes(target, length) == data[start..start + length],
                    "at {sector}"
                );
            }
        }
    }
}

/// Requests of several megabytes, in the middle of which the device is paused and moved.
#[test]
fn moves_in_the_middle_of_traffic() {
    const LONG: usize = 1 << 20;
    let mut file = tempfile::Builder::new().tempfile().unwrap();
    file.write_all(&vec![0; 4 * LONG]).unwrap();
    let mut machine = machine(&file, false, 2);
    let data = pattern(LONG / 512, 3);
    let source = machine.allocate_with(&data);
    let target = machine.allocate(LONG as u64);
    let mut requests = Vec::new();
    for index in 0..4_u64 {
        let position = index * (LONG / 512) as u64;
        requests.push((
            machine.allocate_with(&header(OUT, position)),
            machine.allocate_with(&header(IN, position)),
        ));
    }
    let status = machine.allocate(1);
    let long = u32::try_from(LONG).unwrap();
    for round in 0..40 {
        machine.memory.write_obj(0xee_u8, GuestAddress(status)).unwrap();
        for (write, read) in &requests {
            machine.submit(
                0,
                &[
                    Buffer::Read(*write, 16),
                    Buffer::Read(source, long),
                    Buffer::Write(status, 1),
                ],
            );
            machine.submit(
                1,
                &[
                    Buffer::Read(*read, 16),
                    Buffer::Write(target, long),
                    Buffer::Write(status, 1),
                ],
            );
        }
        machine.notify(0);
        machine.notify(1);
        match round % 4 {
            0 | 2 => machine = machine.moved_to(block(&file, false, 2)),
            1 => {
                machine.transport.pause().unwrap();
                machine.transport.resume();
            }
            _ => {}
        }
        for _ in &requests {
            assert_eq!(machine.wait_used(0).1, 1);
            assert_eq!(machine.wait_used(1).1, long + 1);
        }
        assert_eq!(machine.take_used(0), None);
        assert_eq!(machine.take_used(1), None);
        assert_eq!(machine.bytes(status, 1), [OK]);
    }
    assert!(contents(&file) == data.repeat(4));
    // Every byte was written by now, so a read shows it.
    machine.submit(
        0,
        &[
            Buffer::Read(requests[3].1, 16),
            Buffer::Write(target, long),
            Buffer::Write(status, 1),
        ],
    );
    machine.notify(0);
    machine.wait_used(0);
    assert!(machine.bytes(target, LONG) == data);
}

#[test]
fn loses_no_wakeup() {
    let file = image(SECTORS);
    for features in [feature::VERSION_1, feature::VERSION_1 | feature::EVENT_IDX] {
        let mut machine = Machine::new(block(&file, true, 1));
        machine.start(features | config::F_RO);
        let request = machine.allocate_with(&header(IN, 0));
        let target = machine.allocate(513);
        for round in 0..5000 {
            // One to four under way, so that driver and device meet at the ring's end in every order.
            for _ in 0..=round % 4 {
                machine.submit(0, &[Buffer::Read(request, 16), Buffer::Write(target, 513)]);
                machine.notify(0);
            }
            for _ in 0..=round % 4 {
                assert_eq!(machine.wait_used(0).1, 513);
            }
        }
    }
}

#[test]
fn attaches_and_detaches_in_the_middle_of_traffic() {
    let file = image(SECTORS);
    let (block, handle) = made(options(false, 1)).unwrap();
    let mut machine = Machine::started(block);
    let ended = Arc::new(AtomicBool::new(false));
    let end = ended.clone();
    let path = file.path().to_owned();
    let owner = std::thread::spawn(move || {
        while !end.load(Ordering::SeqCst) {
            let disk = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            handle.attach(disk).unwrap();
            handle.detach().unwrap();
        }
    });
    let request = machine.allocate_with(&header(IN, 0));
    let target = machine.allocate(513);
    for _ in 0..5000 {
        machine.submit(0, &[Buffer::Read(request, 16), Buffer::Write(target, 513)]);
        machine.notify(0);
        let length = machine.wait_used(0).1;
        match machine.bytes(target + 512, 1)[0] {
            OK => assert_eq!(length, 513),
            IOERR => assert_eq!(length, 1),
            other => panic!("status {other}"),
        }
    }
    ended.store(true, Ordering::SeqCst);
    owner.join().unwrap();
}

#[test]
fn answers_on_each_of_several_queues() {
    let file = image(SECTORS);
    let mut machine = machine(&file, false, 4);
    let expected = pattern(SECTORS, 1);
    for round in 0..50 {
        let pending: Vec<Pending> = (0..16)
            .map(|index| machine.send(index % 4, IN, (index * 7 + round) as u64, &[], 512))
            .collect();
        for (index, request) in pending.iter().enumerate() {
            let (status, data) = machine.finish(request);
            let start = (index * 7 + round) * 512;
            assert_eq!(status, OK);
            assert!(data == expected[start..start + 512]);
        }
        let offered = machine.offered();
        if round % 10 == 9 {
            machine = Machine::new(block(&file, false, 4));
            machine.start(offered);
        }
    }
}
