//! Filters of system calls (seccomp), one for each kind of thread, made from the lists beside the threads' code.
//!
//! A thread's filter allows what is in its lists and traps everything else: the call is not made, and
//! [`violation`](super::violation) has the last word. A call of another architecture's table ends the process at once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use husk_devices::system_calls::{Condition, SystemCall};
use husk_devices::virtio::mmio;
use husk_devices::{blk, event, rng, serial, vsock};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use thiserror::Error;
use vmm_sys_util::signal::SIGRTMIN;

use super::runtime;
use crate::{control, vcpu};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: TargetArch = TargetArch::aarch64;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Controls the machine.
    Main,
    /// The event loop of the devices that never block.
    Devices,
    /// Runs a vCPU.
    Vcpu,
    /// Serves a disk's queue.
    Disk,
}

/// Why a thread has no filter.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum FilterError {
    #[error("the filter of the {0} thread cannot be made")]
    Compile(Kind, #[source] BackendError),
    #[error("the host's kernel does not take the filter of the {0} thread")]
    Install(Kind, #[source] seccompiler::Error),
}

thread_local! {
    /// What this thread is for, once it has its filter. Looking at it is safe in a signal's handler.
    static OWN: Cell<Option<Kind>> = const { Cell::new(None) };
}

impl Kind {
    /// All kinds of threads.
    pub const ALL: [Self; 4] = [Self::Main, Self::Devices, Self::Vcpu, Self::Disk];

    /// What the calling thread is for, once it has its filter.
    #[must_use]
    pub fn own() -> Option<Self> {
        OWN.get()
    }

    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Devices => "devices",
            Self::Vcpu => "vCPU",
            Self::Disk => "disk",
        }
    }

    fn lists(self) -> Vec<&'static [SystemCall]> {
        let own: &[&[SystemCall]] = match self {
            Self::Main => &[control::SYSTEM_CALLS, mmio::SYSTEM_CALLS, blk::HANDLE_SYSTEM_CALLS],
            Self::Devices => &[
                event::SYSTEM_CALLS,
                vsock::SYSTEM_CALLS,
                rng::SYSTEM_CALLS,
                serial::SYSTEM_CALLS,
            ],
            Self::Vcpu => &[vcpu::SYSTEM_CALLS, mmio::SYSTEM_CALLS],
            Self::Disk => &[blk::WORKER_SYSTEM_CALLS],
        };
        [&[runtime::SYSTEM_CALLS], own].concat()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Gives the calling thread the filter of its kind, for good. The process has `no_new_privs`.
///
/// # Errors
/// The host's kernel has no filters.
pub fn enter(kind: Kind) -> Result<(), FilterError> {
    let program = compile(kind)?;
    OWN.set(Some(kind));
    seccompiler::apply_filter(&program).map_err(|error| FilterError::Install(kind, error))
}

fn compile(kind: Kind) -> Result<BpfProgram, FilterError> {
    let rules = Rules::new(kind).map_err(|error| FilterError::Compile(kind, error))?;
    SeccompFilter::new(rules.0, SeccompAction::Trap, SeccompAction::Allow, ARCHITECTURE)
        .and_then(TryInto::try_into)
        .map_err(|error| FilterError::Compile(kind, error))
}

/// For each number the alternatives; none means any use.
struct Rules(BTreeMap<i64, Vec<SeccompRule>>);

impl Rules {
    fn new(kind: Kind) -> Result<Self, BackendError> {
        let mut rules = Self(BTreeMap::new());
        for call in kind.lists().into_iter().flatten() {
            rules.allow(call.number, call.conditions)?;
        }
        rules.allow_signals(kind)?;
        Ok(rules)
    }

    /// Every thread may abort the process by a signal to itself; the main thread sends vCPUs theirs.
    fn allow_signals(&mut self, kind: Kind) -> Result<(), BackendError> {
        let process = std::process::id();
        let thread = nix::unistd::gettid().as_raw().cast_unsigned();
        let abort = libc::SIGABRT.cast_unsigned();
        let is = Condition::is;
        self.allow(libc::SYS_tgkill, &[is(0, process), is(1, thread), is(2, abort)])?;
        // As some C libraries do it.
        self.allow(libc::SYS_tkill, &[is(0, thread), is(1, abort)])?;
        if kind == Kind::Main {
            let kick = SIGRTMIN().cast_unsigned();
            self.allow(libc::SYS_tgkill, &[is(0, process), is(2, kick)])?;
        }
        Ok(())
    }

    fn allow(&mut self, number: libc::c_long, conditions: &[Condition]) -> Result<(), BackendError> {
        if conditions.is_empty() {
            self.0.insert(number, Vec::new());
            return Ok(());
        }
        let conditions = conditions.iter().map(condition).collect::<Result<_, _>>()?;
        let rule = SeccompRule::new(conditions)?;
        self.0
            .entry(number)
            // One without alternatives allows more than any of them.
            .and_modify(|rules| {
                if !rules.is_empty() {
                    rules.push(rule.clone());
                }
            })
            .or_insert_with(|| vec![rule]);
        Ok(())
    }
}

fn condition(condition: &Condition) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(
        condition.argument,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(condition.mask.into()),
        condition.value.into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_without_a_condition_stays_so() {
        for order in [[true, false], [false, true]] {
            let mut rules = Rules(BTreeMap::new());
            for with in order {
                let condition = Condition::is(0, 1);
                let conditions = if with { &[condition][..] } else { &[] };
                rules.allow(7, conditions).unwrap();
            }
            assert_eq!(rules.0[&7], Vec::new());
        }
        let mut rules = Rules(BTreeMap::new());
        rules.allow(7, &[Condition::is(0, 1)]).unwrap();
        rules.allow(7, &[Condition::is(0, 2)]).unwrap();
        assert_eq!(rules.0[&7].len(), 2);
    }

    #[test]
    fn no_thread_makes_threads_processes_or_sockets_to_others() {
        let never = [
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_execve,
            libc::SYS_openat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_kill,
            libc::SYS_prctl,
            libc::SYS_seccomp,
            libc::SYS_ptrace,
        ];
        for kind in Kind::ALL {
            let Rules(rules) = Rules::new(kind).unwrap();
            for number in never {
                assert!(!rules.contains_key(&number), "{number} in a {kind} thread");
            }
        }
    }
}
