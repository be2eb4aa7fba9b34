//! What a program in husk-vmm's place can still do.

/// What each kind of thread can do all the same: it is what the C library and the standard library do when they must.
pub(crate) const WORKS: &[(&str, fn())] = &[
    ("use memory of all sizes", use_memory),
    ("wait with a limit", || {
        let (_sender, receiver) = std::sync::mpsc::channel::<()>();
        assert!(receiver.recv_timeout(std::time::Duration::from_millis(5)).is_err());
    }),
    ("make hash tables", || {
        let table: std::collections::HashMap<u32, u32> = (0..1000).map(|n| (n, n)).collect();
        assert_eq!(table.len(), 1000);
    }),
    ("tell the time without the kernel's page for it", || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let told = unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut time) };
        assert_eq!(told, 0);
    }),
    ("panic and go on", || {
        std::panic::set_hook(Box::new(|panic| eprintln!("a panic as it should be: {panic}")));
        assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
    }),
    ("write to the log", || eprintln!("a line in the log")),
];

fn use_memory() {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for round in 0..4 {
        for shift in 3..25 {
            let mut piece = vec![1u8; 1 << shift];
            piece.reserve_exact((1 << shift) + round);
            piece.shrink_to_fit();
            if shift % 2 == round % 2 {
                kept.push(piece);
            }
        }
        if kept.len() > 30 {
            kept.clear();
        }
    }
}

/// A way to end oneself: its name, what is done, and the signals by which the process may die of it.
type Way = (&'static str, fn(), &'static [i32]);

/// How a process can end itself.
pub(crate) const ENDS: &[Way] = &[
    ("abort", || std::process::abort(), &[libc::SIGABRT]),
    (
        "overflow its stack",
        || {
            std::hint::black_box(deep(1));
        },
        // The second where the C library does not tell where the stack ends.
        &[libc::SIGABRT, libc::SIGSEGV],
    ),
    (
        "read where no memory is",
        || {
            let nowhere = std::hint::black_box(8 as *const u8);
            unsafe { nowhere.read_volatile() };
        },
        &[libc::SIGSEGV],
    ),
];

#[allow(unconditional_recursion)]
fn deep(n: u64) -> u64 {
    let frame = std::hint::black_box([n; 64]);
    deep(frame[0] + 1) + frame[1]
}
