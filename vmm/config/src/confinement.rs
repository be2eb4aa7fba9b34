//! How far `husk-vmm` is confined on a host: what `husk-vmm --confinement` prints, as JSON.

use serde::{Deserialize, Serialize};

/// A part of the confinement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Filters of system calls (seccomp). Nothing runs without them.
    Filters,
    /// No capabilities, and no way to get any back.
    Capabilities,
    /// Namespaces of the process's own: mounts, network, IPC, host name, cgroups.
    Namespaces,
    /// A root directory in which nothing is.
    Root,
    /// Landlock: no access by name to anything that the process might still find.
    Landlock,
}

/// How much of a part is in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// All that husk knows of.
    Full,
    /// Some of it.
    Partial,
    /// Nothing.
    None,
}

/// A part of the confinement as a process has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// Which part.
    pub part: Part,
    /// How much of it.
    pub effect: Effect,
    /// What there is or why there is no more, for a person.
    pub detail: String,
}
