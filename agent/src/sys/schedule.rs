//! When and where a process runs.

use husk_protocol::agent::Scheduler;
use nix::errno::Errno;
use nix::sched::CpuSet;
use nix::unistd::Pid;

/// `struct sched_attr` of `linux/sched/types.h`, in its first version.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets a process's scheduling policy and what belongs to it (sched_setattr(2)).
pub(crate) fn set_scheduler(pid: Pid, scheduler: &Scheduler) -> nix::Result<()> {
    let attributes = Attributes {
        size: u32::try_from(size_of::<Attributes>()).map_err(|_| Errno::EINVAL)?,
        policy: scheduler.policy,
        flags: scheduler.flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    };
    let flags = 0;
    // SAFETY: the pointer is to attributes of the size that they say.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, pid.as_raw(), &raw const attributes, flags) };
    Errno::result(result).map(drop)
}

/// IOPRIO_WHO_PROCESS of linux/ioprio.h.
const ONE_PROCESS: libc::c_int = 1;

/// Sets a process's I/O scheduling class and level (ioprio_set(2)).
pub(crate) fn set_io_priority(pid: Pid, priority: u32) -> nix::Result<()> {
    // SAFETY: ioprio_set(2) touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, ONE_PROCESS, pid.as_raw(), priority) };
    Errno::result(result).map(drop)
}

/// Lets a process run on these CPUs alone.
pub(crate) fn set_affinity(pid: Pid, cpus: &[u32]) -> nix::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(usize::try_from(*cpu).map_err(|_| Errno::EINVAL)?)?;
    }
    nix::sched::sched_setaffinity(pid, &set)
}
