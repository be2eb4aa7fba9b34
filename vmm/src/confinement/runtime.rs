//! What every thread asks of the kernel, whatever it is for: the C library's and the standard library's own calls.

use husk_devices::system_calls::{Condition, SystemCall};

const EXECUTABLE: u32 = libc::PROT_EXEC.cast_unsigned();

/// Memory, locks, clocks, signals and the end; writing (to the log, an event, the report) and closing.
pub(super) const SYSTEM_CALLS: &[SystemCall] = &[
    // Memory is never executable, and new memory is nobody else's file.
    SystemCall::with(
        libc::SYS_mmap,
        &[
            Condition::lacks(2, EXECUTABLE),
            Condition::has(3, libc::MAP_ANONYMOUS.cast_unsigned()),
        ],
    ),
    SystemCall::with(libc::SYS_mprotect, &[Condition::lacks(2, EXECUTABLE)]),
    SystemCall::any(libc::SYS_mremap),
    SystemCall::any(libc::SYS_munmap),
    SystemCall::any(libc::SYS_brk),
    // The allocator gives memory back.
    SystemCall::with(
        libc::SYS_madvise,
        &[Condition::is(2, libc::MADV_DONTNEED.cast_unsigned())],
    ),
    SystemCall::with(libc::SYS_madvise, &[Condition::is(2, libc::MADV_FREE.cast_unsigned())]),
    // Locks.
    SystemCall::any(libc::SYS_futex),
    SystemCall::any(libc::SYS_sched_yield),
    // Where the kernel's page of clocks has no usable one.
    SystemCall::any(libc::SYS_clock_gettime),
    // The seed of a hash table.
    SystemCall::any(libc::SYS_getrandom),
    // Signals: vCPUs are sent one, and a call that was interrupted goes on.
    SystemCall::any(libc::SYS_rt_sigreturn),
    SystemCall::any(libc::SYS_rt_sigprocmask),
    SystemCall::any(libc::SYS_restart_syscall),
    // How a process aborts, or dies of an access to memory that it does not have.
    SystemCall::with(
        libc::SYS_rt_sigaction,
        &[Condition::is(0, libc::SIGABRT.cast_unsigned())],
    ),
    SystemCall::with(
        libc::SYS_rt_sigaction,
        &[Condition::is(0, libc::SIGSEGV.cast_unsigned())],
    ),
    SystemCall::with(
        libc::SYS_rt_sigaction,
        &[Condition::is(0, libc::SIGBUS.cast_unsigned())],
    ),
    SystemCall::any(libc::SYS_getpid),
    SystemCall::any(libc::SYS_gettid),
    // How threads and the process end.
    SystemCall::any(libc::SYS_sigaltstack),
    SystemCall::any(libc::SYS_set_tid_address),
    SystemCall::any(libc::SYS_rseq),
    SystemCall::any(libc::SYS_exit),
    SystemCall::any(libc::SYS_exit_group),
    SystemCall::any(libc::SYS_write),
    SystemCall::any(libc::SYS_writev),
    SystemCall::any(libc::SYS_close),
    // Unoptimized, the standard library looks whether what it closes is open.
    SystemCall::with(libc::SYS_fcntl, &[Condition::is(1, libc::F_GETFD.cast_unsigned())]),
];

/// Keeps the C library to the calls above. glibc's allocator gives each thread an arena, and opens a file below /proc when
/// the first of them shrinks: one for all threads knows no such thing. musl's, which husk is shipped with, has no arenas.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub(super) fn settle() {
    // SAFETY: the call takes numbers alone; there is one thread, and what is allocated already stays where it is.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Keeps the C library to the calls above, which needs nothing here.
#[cfg(not(target_env = "gnu"))]
pub(super) fn settle() {}
