//! What a machine leaves behind: why it ended, and what it had counted by then.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The last word of `husk-vmm`, written to [`Config::report`](crate::Config::report).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Why the machine ended.
    pub end: End,
    /// Exits to user space by kind, over all vCPUs.
    pub exits: ExitCounts,
    /// The boot's phases.
    pub phases: Vec<Phase>,
}

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum End {
    /// The guest switched itself off (ACPI S5).
    Shutdown,
    /// The guest asked for a reset (ACPI reset register).
    Reboot,
    /// The guest's kernel panicked and said so (pvpanic).
    Panic,
    /// A vCPU triple-faulted (`KVM_EXIT_SHUTDOWN`).
    TripleFault,
    /// KVM cannot continue a vCPU.
    Vcpu {
        /// The vCPU's index.
        index: u32,
        /// What KVM said.
        reason: String,
    },
    /// A thread of the machine monitor made a system call that it never makes, and that its filter does not allow.
    Violation {
        /// What the thread is for: `main`, `devices`, `vCPU`, `disk`.
        thread: String,
        /// The system call's name.
        system_call: String,
    },
    /// The owner asked for it.
    Stopped,
    /// The owner is gone: the lifeline hung up.
    OwnerGone,
    /// The machine could not be built or one of its threads failed.
    Failed {
        /// The error and its causes.
        reason: String,
    },
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("the guest shut down"),
            Self::Reboot => f.write_str("the guest asked for a reboot"),
            Self::Panic => f.write_str("the guest's kernel panicked"),
            Self::TripleFault => f.write_str("the guest triple-faulted"),
            Self::Vcpu { index, reason } => write!(f, "vCPU {index} cannot continue: {reason}"),
            Self::Violation { thread, system_call } => write!(
                f,
                "husk-vmm was ended: its {thread} thread made the system call {system_call}, which it may not; either \
                 the guest attacks the host, or this is a fault in husk"
            ),
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::OwnerGone => f.write_str("the machine's owner is gone"),
            Self::Failed { reason } => write!(f, "the machine failed: {reason}"),
        }
    }
}

/// Exits to user space by kind (`mmio_read`, `mmio_write`, `pio_in`, `pio_out`, `hlt`, `interrupted`...).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExitCounts(pub BTreeMap<String, u64>);

impl ExitCounts {
    /// All exits together.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// A point on the way of a boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// What was reached, for a person (`memory mapped`, `kernel loaded`, `first guest entry`).
    pub name: String,
    /// When, in nanoseconds of the host's `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}
