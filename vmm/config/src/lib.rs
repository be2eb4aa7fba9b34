//! What passes between `husk-vmm` and the process that owns it: the configuration on the way in, control messages
//! while the machine runs, and the [`Report`] at its end.
//!
//! The crate knows neither KVM nor devices, so that the host's side can speak to a machine monitor without linking
//! one. `husk-vmm` is started with every file, socket and tap already open; the [`Config`] names them by descriptor
//! number and is itself read from a descriptor. Nothing in it is a path: a machine monitor that finds itself in an
//! empty root has all that it needs.

#![forbid(unsafe_code)]

mod config;
mod confinement;
mod control;
mod report;

pub use config::{
    Config, ConfigError, Console, Descriptor, Disk, HostPort, Kernel, MAX_COMMAND_LINE, MAX_DISKS, MAX_QUEUES,
    MAX_VCPUS, MIN_MEMORY_MIB, Topology, Vsock,
};
pub use confinement::{Effect, Measure, Part};
pub use control::{MAX_MESSAGE, MAX_PARTS, Request, Response, State, Status};
pub use report::{End, ExitCounts, Phase, Report};
