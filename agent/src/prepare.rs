//! What a new process gets from outside, before it does anything by itself.
//!
//! In a user namespace a process has no privilege over the guest: it could neither map its ids nor raise a limit. The
//! agent does for every process what only the guest's root may do, while the process waits for that.

use std::fs;

use husk_protocol::agent::{CreateRequest, Process, Rlimit};
use nix::unistd::Pid;

use crate::namespaces::id_map;
use crate::refusal::Refusal;
use crate::sys;

/// RLIMIT_NOFILE of asm-generic/resource.h; libc has it in a different type for each C library.
const FILES: u32 = 7;

/// How many files a process may have open, and may ask for: what systemd gives its services, and so what containers have
/// whose engine is one. The agent itself may have more; some programs close every number up to the limit one by one.
const DEFAULT_FILES: (u64, u64) = (1024, 524_288);

/// Gives a process that waits for it what it is to have. `created` is the request for a container whose first process
/// it is.
pub(crate) fn prepare(pid: Pid, process: &Process, created: Option<&CreateRequest>) -> Result<(), Refusal> {
    if let Some(request) = created {
        map_ids(pid, request)?;
    }
    if let Some(score) = process.oom_score_adj {
        write(pid, "oom_score_adj", &score.to_string())?;
    }
    set_limits(pid, &process.rlimits)?;
    if let Some(scheduler) = process.scheduler.as_ref() {
        sys::set_scheduler(pid, scheduler).map_err(Refusal::system("process.scheduler"))?;
    }
    if let Some(priority) = process.io_priority {
        sys::set_io_priority(pid, priority).map_err(Refusal::system("process.io_priority"))?;
    }
    // Only of a further process.
    if created.is_none() && !process.initial_cpus.is_empty() {
        sys::set_affinity(pid, &process.initial_cpus).map_err(Refusal::system("process.initial_cpus"))?;
    }
    Ok(())
}

fn map_ids(pid: Pid, request: &CreateRequest) -> Result<(), Refusal> {
    for (file, mappings) in [("uid_map", &request.uid_mappings), ("gid_map", &request.gid_mappings)] {
        if !mappings.is_empty() {
            write(pid, file, &id_map(mappings))?;
        }
    }
    Ok(())
}

fn write(pid: Pid, file: &str, text: &str) -> Result<(), Refusal> {
    fs::write(format!("/proc/{pid}/{file}"), text).map_err(Refusal::file(format!("writing {file}")))
}

fn set_limits(pid: Pid, limits: &[Rlimit]) -> Result<(), Refusal> {
    let failed = |resource: u32| Refusal::system(format!("resource limit {resource}"));
    let (soft, hard) = DEFAULT_FILES;
    let most = sys::hard_limit(FILES).map_err(failed(FILES))?;
    sys::set_limit(pid, FILES, soft.min(most), hard.min(most)).map_err(failed(FILES))?;
    for limit in limits {
        sys::set_limit(pid, limit.resource, limit.soft, limit.hard).map_err(failed(limit.resource))?;
    }
    Ok(())
}
