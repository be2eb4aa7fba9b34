//! Disks that come and go, and what a slot refuses.

use super::*;

#[test]
fn gets_a_disk_later_and_loses_it_again() {
    let file = image(SECTORS);
    let (block, handle) = made(options(false, 2)).unwrap();
    let mut machine = Machine::started(block);
    assert_eq!(machine.capacity(), 0);
    assert_eq!(machine.ask(IN, 0, &[], 512).0, IOERR);
    assert_eq!(machine.ask(FLUSH, 0, &[], 0).0, IOERR);
    assert_eq!(machine.ask(GET_ID, 0, &[], 20).0, OK);
    machine.wait_interrupt(Duration::ZERO);
    for _ in 0..3 {
        let before = machine.read(0xfc);
        handle.attach(opened(&file)).unwrap();
        assert_eq!(machine.wait_interrupt(PATIENCE), 2);
        assert_ne!(machine.read(0xfc), before);
        assert_eq!(machine.capacity(), SECTORS as u64);
        assert_eq!(machine.ask(IN, 0, &[], 512).0, OK);
        assert!(matches!(handle.attach(opened(&file)), Err(AttachError::Occupied)));
        machine.wait_interrupt(Duration::ZERO);
        handle.detach().unwrap();
        assert_eq!(machine.wait_interrupt(PATIENCE), 2);
        assert_eq!(machine.capacity(), 0);
        assert_eq!(machine.ask(IN, 0, &[], 512).0, IOERR);
        machine.wait_interrupt(Duration::ZERO);
        assert_eq!(handle.detach(), Err(DetachError::Empty));
    }
    let open = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|path| path == file.path())
        .count();
    // The temporary file's own descriptor.
    assert_eq!(open, 1);
}

#[test]
fn tells_of_a_disk_that_came_between_probing_and_start() {
    let file = image(SECTORS);
    let (block, handle) = made(options(false, 1)).unwrap();
    let mut machine = Machine::new(block);
    assert_eq!(machine.capacity(), 0);
    handle.attach(opened(&file)).unwrap();
    let offered = machine.offered();
    machine.start(offered);
    assert_eq!(machine.wait_interrupt(PATIENCE), 2);
    assert_eq!(machine.capacity(), SECTORS as u64);
}

#[test]
fn does_not_tell_of_a_disk_that_was_always_there() {
    let file = image(SECTORS);
    let mut machine = machine(&file, false, 1);
    assert_eq!(machine.wait_interrupt(Duration::from_millis(50)), 0);
}

#[test]
fn tells_of_a_disk_that_came_during_a_pause() {
    let file = image(SECTORS);
    let (block, handle) = made(options(false, 1)).unwrap();
    let mut machine = Machine::started(block);
    assert_eq!(machine.capacity(), 0);
    machine.transport.pause().unwrap();
    handle.attach(opened(&file)).unwrap();
    machine.transport.resume();
    assert_ne!(machine.wait_interrupt(PATIENCE) & 2, 0);
}

#[test]
fn tells_of_another_disk_after_a_restore() {
    let file = image(SECTORS);
    let (empty, _handle) = made(options(false, 1)).unwrap();
    let machine = Machine::started(empty);
    let before = machine.read(0xfc);
    let mut machine = machine.moved_to(block(&file, false, 1));
    assert_ne!(machine.wait_interrupt(PATIENCE) & 2, 0);
    assert_ne!(machine.read(0xfc), before);
    assert_eq!(machine.capacity(), SECTORS as u64);
}

#[test]
fn refuses_files_that_cannot_be_its_disk() {
    let (_block, handle) = made(options(false, 1)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, [0; 511]).unwrap();
    let write = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert!(matches!(handle.attach(write()), Err(AttachError::Short)));
    std::fs::write(&path, [0; 512]).unwrap();
    let append = OpenOptions::new().read(true).append(true).open(&path).unwrap();
    assert!(matches!(handle.attach(append), Err(AttachError::Append)));
    assert!(matches!(
        handle.attach(File::open(&path).unwrap()),
        Err(AttachError::ReadOnly)
    ));
    assert!(matches!(
        handle.attach(OpenOptions::new().write(true).open(&path).unwrap()),
        Err(AttachError::ReadOnly)
    ));
    for path in [directory.path(), std::path::Path::new("/dev/null")] {
        let file = File::open(path).unwrap();
        assert!(matches!(handle.attach(file), Err(AttachError::Kind)));
    }
    handle.attach(write()).unwrap();
}

#[test]
fn refuses_options_outside_their_range() {
    for id in ["", "a\n", "123456789012345678901", "ü"] {
        let options = Options {
            id: id.into(),
            ..options(true, 1)
        };
        assert!(matches!(made(options), Err(OptionsError::Id(refused)) if refused == id));
    }
    assert!(matches!(made(options(true, 0)), Err(OptionsError::Queues(0))));
    assert!(matches!(made(options(true, 65)), Err(OptionsError::Queues(65))));
}

#[test]
fn refuses_a_state_that_is_not_its_own() {
    let (mut block, _handle) = made(options(true, 1)).unwrap();
    let DeviceState::Block(state) = block.save() else {
        panic!("not a disk's state");
    };
    let other = BlockState {
        version: 2,
        ..state.clone()
    };
    assert!(matches!(
        block.restore(DeviceState::Block(other)),
        Err(StateError::Version { found: 2, .. })
    ));
    let other = BlockState {
        read_only: false,
        ..state
    };
    assert!(matches!(
        block.restore(DeviceState::Block(other)),
        Err(StateError::Configuration(_))
    ));
}

#[test]
fn several_files_are_one_disk() {
    let lengths = [3, 1, 200, 5];
    let whole = pattern(lengths.iter().sum(), 9);
    let mut rest = whole.as_slice();
    let files: Vec<File> = lengths
        .iter()
        .map(|sectors| {
            let (part, left) = rest.split_at(sectors * 512);
            rest = left;
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(part).unwrap();
            file
        })
        .collect();
    let copies = |range: std::ops::Range<usize>| -> Vec<File> {
        files[range].iter().map(|file| file.try_clone().unwrap()).collect()
    };
    let (block, handle) = made(options(true, 1)).unwrap();
    handle.attach_parts(copies(0..4)).unwrap();
    let mut machine = Machine::new(block);
    machine.start(feature::VERSION_1);
    // Within a part, over one border, over all of them, to the last sector and beyond it.
    for (sector, sectors) in [(1, 1), (2, 2), (0, 209), (203, 6), (208, 1)] {
        let expected = &whole[sector * 512..(sector + sectors) * 512];
        let (status, data) = machine.ask(IN, sector as u64, &[], sectors * 512);
        assert!(status == OK && data == expected, "{sectors} sectors from {sector} on");
    }
    assert_eq!(machine.ask(IN, 209, &[], 512).0, IOERR);

    let (_block, handle) = made(options(true, 1)).unwrap();
    files[1].set_len(700).unwrap();
    assert!(matches!(handle.attach_parts(copies(0..4)), Err(AttachError::Uneven(1))));
    assert!(matches!(handle.attach_parts(Vec::new()), Err(AttachError::NoParts)));
    let (_block, writable) = made(options(false, 1)).unwrap();
    let refused = writable.attach_parts(copies(2..4));
    assert!(matches!(refused, Err(AttachError::WritableParts)));
}

#[test]
fn threads_enter_first_and_one_that_fails_to_serves_nothing() {
    let (sender, entered) = std::sync::mpsc::channel();
    let tell = move || {
        sender
            .send(std::thread::current().name().map(str::to_owned))
            .map_err(std::io::Error::other)
    };
    let (_block, _handle) = Block::new(options(true, 2), tell).unwrap();
    let mut names = [(); 2].map(|()| entered.recv_timeout(PATIENCE).unwrap().unwrap());
    names.sort();
    assert_eq!(names, ["husk-7 q0", "husk-7 q1"]);

    let file = image(SECTORS);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
    let fail = move || {
        let _ = wait.lock().unwrap().recv();
        Err(std::io::ErrorKind::PermissionDenied.into())
    };
    let (block, handle) = Block::new(options(false, 1), fail).unwrap();
    handle.attach(opened(&file)).unwrap();
    let mut machine = Machine::started(block);
    machine.send(0, OUT, 0, &[7; 512], 0);
    drop(go);
    assert!(machine.transport.pause().is_err(), "there is no worker that could stop");
    assert_ne!(machine.status() & status::NEEDS_RESET, 0);
    assert_eq!(contents(&file), pattern(SECTORS, 1));
}
