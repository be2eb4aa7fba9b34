//! A disk against a model of one.

use super::*;

/// What a driver may ask, and how it cuts its buffers.
#[derive(Clone, Debug)]
enum Operation {
    Write {
        sector: usize,
        sectors: usize,
        seed: u32,
        cuts: Vec<usize>,
    },
    Read {
        sector: usize,
        sectors: usize,
        cuts: Vec<usize>,
    },
    Zero {
        sector: usize,
        sectors: usize,
        discard: bool,
        unmap: bool,
    },
    Flush,
    Move,
}

const MODEL: usize = 64;

fn operation() -> impl Strategy<Value = Operation> {
    let cuts = || prop::collection::vec(0_usize..4096, 0..5);
    prop_oneof![
        4 => (0..MODEL, 1..9_usize, any::<u32>(), cuts())
            .prop_map(|(sector, sectors, seed, cuts)| Operation::Write { sector, sectors, seed, cuts }),
        4 => (0..MODEL, 1..9_usize, cuts()).prop_map(|(sector, sectors, cuts)| Operation::Read { sector, sectors, cuts }),
        2 => (0..MODEL, 1..20_usize, any::<bool>(), any::<bool>())
            .prop_map(|(sector, sectors, discard, unmap)| Operation::Zero { sector, sectors, discard, unmap }),
        1 => Just(Operation::Flush),
        1 => Just(Operation::Move),
    ]
}

/// `length` bytes at `address`, cut at the given places.
fn cut(address: u64, length: usize, cuts: &[usize], make: fn(u64, u32) -> Buffer) -> Vec<Buffer> {
    let mut borders: Vec<usize> = cuts.iter().map(|cut| cut % length).chain([0, length]).collect();
    borders.sort_unstable();
    borders
        .windows(2)
        .map(|pair| make(address + pair[0] as u64, u32::try_from(pair[1] - pair[0]).unwrap()))
        .collect()
}

fn apply(machine: &mut Machine, model: &mut [u8], operation: &Operation) {
    let area = GuestAddress(1 << 32);
    let base = area.0;
    let fits = |sector: usize, sectors: usize| sector + sectors <= MODEL;
    let (request, buffers, good, length) = match operation {
        Operation::Write {
            sector,
            sectors,
            seed,
            cuts,
        } => {
            let data = pattern(*sectors, *seed);
            let request = [header(OUT, *sector as u64), data.clone()].concat();
            if fits(*sector, *sectors) {
                model[sector * 512..][..data.len()].copy_from_slice(&data);
            }
            (
                request,
                cut(base, 16 + data.len(), cuts, Buffer::Read),
                fits(*sector, *sectors),
                0,
            )
        }
        Operation::Read { sector, sectors, .. } => {
            let good = fits(*sector, *sectors);
            (
                header(IN, *sector as u64),
                vec![Buffer::Read(base, 16)],
                good,
                sectors * 512,
            )
        }
        Operation::Zero {
            sector,
            sectors,
            discard,
            unmap,
        } => {
            let count = u32::try_from(*sectors).unwrap();
            let kind = if *discard { DISCARD } else { WRITE_ZEROES };
            let flags = u32::from(*unmap && !*discard);
            let request = [header(kind, 0), range(*sector as u64, count, flags)].concat();
            if fits(*sector, *sectors) {
                model[sector * 512..][..sectors * 512].fill(0);
            }
            (request, vec![Buffer::Read(base, 32)], fits(*sector, *sectors), 0)
        }
        Operation::Flush => (header(FLUSH, 0), vec![Buffer::Read(base, 16)], true, 0),
        Operation::Move => return,
    };
    machine.memory.write_slice(&request, area).unwrap();
    let target = base + 0x1_0000;
    let cuts: &[usize] = if let Operation::Read { cuts, .. } = operation {
        cuts
    } else {
        &[]
    };
    let mut buffers = buffers;
    buffers.extend(cut(target, length + 1, cuts, Buffer::Write));
    if request.len() % 3 == 0 || cuts.len() == 2 {
        machine.submit_indirect(0, &buffers);
    } else {
        machine.submit(0, &buffers);
    }
    machine.notify(0);
    machine.wait_used(0);
    let status = machine.bytes(target + length as u64, 1)[0];
    assert_eq!(status, if good { OK } else { IOERR }, "{operation:?}");
    if let (Operation::Read { sector, .. }, true) = (operation, good) {
        assert!(
            machine.bytes(target, length) == model[sector * 512..][..length],
            "{operation:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn agrees_with_a_model(operations in prop::collection::vec(operation(), 1..60)) {
        let file = image(MODEL);
        let mut model = pattern(MODEL, 1);
        let mut machine = machine(&file, false, 1);
        for operation in &operations {
            if matches!(operation, Operation::Move) {
                machine = machine.moved_to(block(&file, false, 1));
            }
            apply(&mut machine, &mut model, operation);
        }
        prop_assert!(contents(&file) == model);
    }
}
