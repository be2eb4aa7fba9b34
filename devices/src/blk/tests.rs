mod hang;
mod hostile;
mod model;
mod slots;
mod traffic;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::testing::{Buffer, Machine, PATIENCE};
use crate::virtio::{feature, status};

const SECTORS: usize = 512;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn options(read_only: bool, queues: u16) -> Options {
    Options {
        id: "husk-7".into(),
        read_only,
        queues,
    }
}

/// An empty slot.
fn made(options: Options) -> Result<(Block, Handle), OptionsError> {
    Block::new(options, || Ok(()))
}

/// A file of so many sectors whose every sector differs.
fn image(sectors: usize) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&pattern(sectors, 1)).unwrap();
    file
}

fn pattern(sectors: usize, seed: u32) -> Vec<u8> {
    (0..u32::try_from(sectors * 128).unwrap())
        .flat_map(|word| word.wrapping_mul(2_654_435_761).wrapping_add(seed).to_le_bytes())
        .collect()
}

fn opened(file: &NamedTempFile) -> File {
    OpenOptions::new().read(true).write(true).open(file.path()).unwrap()
}

fn contents(file: &NamedTempFile) -> Vec<u8> {
    let mut data = Vec::new();
    let mut file = opened(file);
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut data).unwrap();
    data
}

fn block(file: &NamedTempFile, read_only: bool, queues: u16) -> Block {
    let (block, handle) = made(options(read_only, queues)).unwrap();
    handle.attach(opened(file)).unwrap();
    block
}

fn machine(file: &NamedTempFile, read_only: bool, queues: u16) -> Machine {
    Machine::started(block(file, read_only, queues))
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// A request under way.
struct Pending {
    queue: usize,
    head: u16,
    data: u64,
    length: usize,
    status: u64,
}

impl Machine {
    /// Submits and notifies; `data` follows the header, `length` bytes are asked for.
    fn send(&mut self, queue: usize, kind: u32, sector: u64, data: &[u8], length: usize) -> Pending {
        let head = self.allocate_with(&header(kind, sector));
        let mut buffers = vec![Buffer::Read(head, 16)];
        let target = self.allocate(length as u64 + 1);
        if !data.is_empty() {
            buffers.push(Buffer::Read(
                self.allocate_with(data),
                u32::try_from(data.len()).unwrap(),
            ));
        }
        if length > 0 {
            buffers.push(Buffer::Write(target, u32::try_from(length).unwrap()));
        }
        let status = target + length as u64;
        buffers.push(Buffer::Write(status, 1));
        self.memory.write_obj(0xee_u8, GuestAddress(status)).unwrap();
        let head = self.submit(queue, &buffers);
        self.notify(queue);
        Pending {
            queue,
            head,
            data: target,
            length,
            status,
        }
    }

    /// The status of the request that ends next on its queue, which must be this one.
    fn finish(&mut self, pending: &Pending) -> (u8, Vec<u8>) {
        let (head, _) = self.wait_used(pending.queue);
        assert_eq!(head, pending.head);
        self.outcome(pending)
    }

    fn outcome(&self, pending: &Pending) -> (u8, Vec<u8>) {
        (
            self.bytes(pending.status, 1)[0],
            self.bytes(pending.data, pending.length),
        )
    }

    fn ask(&mut self, kind: u32, sector: u64, data: &[u8], length: usize) -> (u8, Vec<u8>) {
        let pending = self.send(0, kind, sector, data, length);
        self.finish(&pending)
    }

    fn capacity(&self) -> u64 {
        u64::from(self.read(0x100)) | u64::from(self.read(0x104)) << 32
    }
}

#[test]
fn shows_its_configuration() {
    let file = image(SECTORS);
    let machine = machine(&file, false, 3);
    assert_eq!(machine.read(0x008), kind::BLOCK);
    assert_eq!(machine.capacity(), SECTORS as u64);
    assert_eq!(machine.read(0x10c), 126);
    assert_eq!(machine.read(0x114), 512);
    let mut queues = [0; 2];
    machine.transport.read(0x100 + 34, &mut queues);
    assert_eq!(queues, 3_u16.to_le_bytes());
    // Behind its end the space reads as zeros, also in one access with the end.
    let mut end = [1; 8];
    machine.transport.read(0x100 + 56, &mut end);
    assert_eq!(end, [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(machine.read(0xffc), 0);
}

#[test]
fn reads_writes_and_flushes() {
    let file = image(SECTORS);
    let mut machine = machine(&file, false, 1);
    let new = pattern(3, 99);
    assert_eq!(machine.ask(OUT, 5, &new, 0).0, OK);
    assert_eq!(machine.ask(FLUSH, 0, &[], 0).0, OK);
    assert_eq!(contents(&file)[5 * 512..8 * 512], new);
    assert_eq!(contents(&file).len(), SECTORS * 512);
    let old = pattern(SECTORS, 1);
    let (status, data) = machine.ask(IN, 4, &[], 5 * 512);
    assert_eq!(status, OK);
    assert_eq!(data, [&old[4 * 512..5 * 512], &new, &old[8 * 512..9 * 512]].concat());
}

#[test]
fn reports_how_much_it_wrote() {
    let file = image(SECTORS);
    let mut machine = machine(&file, false, 1);
    machine.send(0, IN, 0, &[], 1024);
    assert_eq!(machine.wait_used(0).1, 1025);
    machine.send(0, OUT, 0, &[1; 512], 0);
    assert_eq!(machine.wait_used(0).1, 1);
    machine.send(0, GET_ID, 0, &[], 20);
    assert_eq!(machine.wait_used(0).1, 21);
}

#[test]
fn tells_its_serial() {
    let file = image(SECTORS);
    let mut machine = machine(&file, true, 1);
    let (status, id) = machine.ask(GET_ID, 0, &[], 20);
    assert_eq!((status, &id[..]), (OK, &b"husk-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]));
    assert_eq!(machine.ask(GET_ID, 0, &[], 4), (OK, b"husk".to_vec()));
}

#[test]
fn takes_buffers_however_they_are_cut() {
    let file = image(SECTORS);
    let mut machine = machine(&file, false, 1);
    // Header and data in three and two buffers whose borders are not theirs.
    let new = pattern(2, 5);
    let request = machine.allocate_with(&[header(OUT, 9), new.clone()].concat());
    let status = machine.allocate(1);
    machine.submit(
        0,
        &[
            Buffer::Read(request, 3),
            Buffer::Read(request + 3, 0),
            Buffer::Read(request + 3, 20),
            Buffer::Read(request + 23, 1017),
            Buffer::Write(status, 1),
        ],
    );
    machine.notify(0);
    machine.wait_used(0);
    assert_eq!(machine.bytes(status, 1), [OK]);
    assert_eq!(contents(&file)[9 * 512..11 * 512], new);
    // Data over the border of two regions, far away, and with the status in the same buffer.
    let request = machine.allocate_with(&header(IN, 9));
    let border = (8 << 20) - 100;
    let far = 1 << 32;
    machine.submit_indirect(
        0,
        &[
            Buffer::Read(request, 16),
            Buffer::Write(border, 200),
            Buffer::Write(far, 825),
            Buffer::Write(far + 900, 0),
        ],
    );
    machine.notify(0);
    assert_eq!(machine.wait_used(0).1, 1025);
    assert_eq!(machine.bytes(border, 200), new[..200]);
    assert_eq!(machine.bytes(far, 825), [&new[200..], &[OK]].concat());
}

#[test]
fn keeps_a_read_only_slot_from_being_written() {
    let file = image(SECTORS);
    let mut machine = machine(&file, true, 1);
    assert_ne!(machine.offered() & config::F_RO, 0);
    assert_eq!(machine.ask(OUT, 0, &[0; 512], 0).0, IOERR);
    assert_eq!(machine.ask(DISCARD, 0, &range(0, 8, 0), 0).0, UNSUPP);
    assert_eq!(machine.ask(WRITE_ZEROES, 0, &range(0, 8, 0), 0).0, UNSUPP);
    assert_eq!(machine.ask(IN, 0, &[], 512).0, OK);
    assert!(contents(&file) == pattern(SECTORS, 1));
}

#[test]
fn discards_and_writes_zeroes() {
    let file = image(SECTORS);
    let mut machine = machine(&file, false, 1);
    assert_eq!(machine.ask(DISCARD, 0, &range(8, 16, 0), 0).0, OK);
    assert_eq!(machine.ask(WRITE_ZEROES, 0, &range(40, 3, 0), 0).0, OK);
    let several = [range(100, 1, 1), range(102, 9, 0), range(511, 1, 1)].concat();
    assert_eq!(machine.ask(WRITE_ZEROES, 0, &several, 0).0, OK);
    let mut expected = pattern(SECTORS, 1);
    for (start, end) in [(8, 24), (40, 43), (100, 101), (102, 111), (511, 512)] {
        expected[start * 512..end * 512].fill(0);
    }
    assert!(contents(&file) == expected);
}

#[test]
fn writes_zeroes_where_the_file_system_cannot() {
    // A file in memory has no ZERO_RANGE.
    let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.write_all(&pattern(600, 1)).unwrap();
    let (backend, _open) = backend::Backend::open(vec![file.try_clone().unwrap()], false).unwrap();
    for (sector, sectors, unmap) in [(1, 300, false), (400, 8, true)] {
        backend
            .write_zeroes(sector * 512, sectors * 512, unmap, &AtomicBool::new(false))
            .unwrap();
    }
    let mut data = vec![0; 600 * 512];
    file.read_exact_at(&mut data, 0).unwrap();
    let mut expected = pattern(600, 1);
    expected[512..301 * 512].fill(0);
    expected[400 * 512..408 * 512].fill(0);
    assert!(data == expected);
}

#[test]
fn fails_requests_behind_the_end_of_a_file_that_shrank() {
    let file = image(SECTORS);
    let mut machine = machine(&file, true, 1);
    opened(&file).set_len(1000).unwrap();
    assert_eq!(machine.ask(IN, 0, &[], 512).0, OK);
    assert_eq!(machine.ask(IN, 1, &[], 512).0, IOERR);
    assert_eq!(machine.ask(IN, 300, &[], 512).0, IOERR);
}

#[test]
fn works_without_the_optional_features() {
    let file = image(SECTORS);
    let mut machine = Machine::new(block(&file, false, 1));
    machine.start(feature::VERSION_1);
    let new = pattern(1, 7);
    assert_eq!(machine.ask(OUT, 5, &new, 0).0, OK);
    assert_eq!(machine.ask(IN, 5, &[], 512), (OK, new));
    assert_eq!(machine.ask(DISCARD, 0, &range(0, 8, 0), 0).0, UNSUPP);
}

#[test]
fn leaves_queues_alone_that_the_driver_does_not_enable() {
    let file = image(SECTORS);
    let mut machine = Machine::new(block(&file, false, 3));
    let offered = machine.offered();
    assert!(machine.negotiate(offered));
    let ring = machine.lay_out(8, true);
    machine.enable(1, &ring);
    machine.rings = vec![ring.clone(), ring];
    machine.drive();
    for _ in 0..2 {
        let pending = machine.send(1, IN, 0, &[], 512);
        assert_eq!(machine.finish(&pending).0, OK);
        machine = machine.moved_to(block(&file, false, 3));
    }
}
