//! System calls by name, in the three ABIs that a kernel of x86_64 can have.

use std::str::FromStr;

use syscalls::{aarch64, arm, loongarch64, mips, mips64, powerpc, powerpc64, riscv32, riscv64, s390x, x86, x86_64};

/// What tells an x32 call from one of x86_64, with which it shares the audit architecture (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Calls of x86_64 that x32 has under a number of its own (`arch/x86/entry/syscalls/syscall_64.tbl`).
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// Calls of x86_64 that x32 does not have (ABI "64" in the same table).
const X32_ABSENT: [&str; 11] = [
    "uselib",
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
];

/// Calls that i386 also has, or has only, behind `socketcall` (`include/uapi/linux/net.h`).
const SOCKETCALL: [(&str, u32); 18] = [
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
];

/// Calls that i386 also has, or has only, behind `ipc` (`include/uapi/linux/ipc.h`).
const IPC: [(&str, u32); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// The number of a call of x86_64.
pub(super) fn of_x86_64(name: &str) -> Option<u32> {
    number(name, |name| x86_64::Sysno::from_str(name).ok().map(|call| call.id()))
}

/// The number of a call of i386.
pub(super) fn of_i386(name: &str) -> Option<u32> {
    number(name, |name| x86::Sysno::from_str(name).ok().map(|call| call.id()))
}

/// The number of a call of x32, with [`X32_BIT`].
pub(super) fn of_x32(name: &str) -> Option<u32> {
    if X32_ABSENT.contains(&name) {
        return None;
    }
    let own = find(&X32_OWN, name);
    own.or_else(|| of_x86_64(name)).map(|number| number | X32_BIT)
}

/// The call through which i386 reaches another one by the number in its first argument, and that number.
pub(super) fn multiplexed_in_i386(name: &str) -> Option<(&'static str, u32)> {
    let through = |call, table| find(table, name).map(|number| (call, number));
    through("socketcall", &SOCKETCALL).or_else(|| through("ipc", &IPC))
}

/// Whether an architecture that a guest of husk never has knows the name.
pub(super) fn is_of_another_architecture(name: &str) -> bool {
    macro_rules! known_in {
        ($($arch:ident),*) => {
            $($arch::Sysno::from_str(name).is_ok())||*
        };
    }
    known_in!(
        aarch64,
        arm,
        loongarch64,
        mips,
        mips64,
        powerpc,
        powerpc64,
        riscv32,
        riscv64,
        s390x
    )
}

fn find(table: &[(&str, u32)], name: &str) -> Option<u32> {
    let entry = table.iter().find(|(known, _)| *known == name);
    entry.map(|(_, number)| *number)
}

fn number(name: &str, find: impl Fn(&str) -> Option<i32>) -> Option<u32> {
    // A name that is a word of Rust has a mark before it in the table.
    let number = find(name).or_else(|| find(&format!("r#{name}")))?;
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_numbers_of_their_architecture() {
        for (name, x86_64, i386, x32) in [
            ("read", Some(0), Some(3), Some(0)),
            ("ioctl", Some(16), Some(54), Some(514)),
            ("socket", Some(41), Some(359), Some(41)),
            ("clone3", Some(435), Some(435), Some(435)),
            ("mseal", Some(462), Some(462), Some(462)),
            ("break", None, Some(17), None),
            ("socketcall", None, Some(102), None),
            ("accept", Some(43), None, Some(43)),
            ("_llseek", None, Some(140), None),
            ("uselib", Some(134), Some(86), None),
            ("vserver", Some(236), Some(273), None),
            ("no_such_call", None, None, None),
            ("", None, None, None),
        ] {
            assert_eq!(of_x86_64(name), x86_64, "{name}");
            assert_eq!(of_i386(name), i386, "{name}");
            assert_eq!(of_x32(name), x32.map(|number| number | X32_BIT), "{name}");
        }
    }

    #[test]
    fn every_name_of_a_table_is_a_call() {
        for (name, _) in X32_OWN {
            assert!(of_x86_64(name).is_some(), "{name}");
        }
        for name in X32_ABSENT {
            assert!(of_x86_64(name).is_some(), "{name}");
        }
        for (name, _) in SOCKETCALL.iter().chain(&IPC) {
            let is_old = ["send", "recv"].contains(name);
            assert!(is_old || of_x86_64(name).is_some(), "{name}");
        }
    }

    #[test]
    fn names_of_other_architectures_are_known_as_that() {
        assert!(is_of_another_architecture("arm_fadvise64_64"));
        assert!(is_of_another_architecture("s390_runtime_instr"));
        assert!(is_of_another_architecture("riscv_flush_icache"));
        assert!(!is_of_another_architecture("no_such_call"));
    }
}
