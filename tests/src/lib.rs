//! The harness of the end-to-end tests: husk as a user meets it, through its commands alone.
//!
//! A test begins with [`Host::new`], which gives it a run directory of its own and remembers the machine's processes,
//! mounts, cgroups, sockets and files. [`Host::husk`] begins a command, [`Husk::run`] runs it to its end within a hard
//! time limit, and [`Outcome`] states what must have come out. When the [`Host`] is dropped, everything that was not
//! there before is the test's failure.
//!
//! ```no_run
//! # use husk_tests::{Host, busybox};
//! let host = Host::new();
//! host.husk().rootfs(busybox()).run(["sh", "-c", "echo seven; exit 7"]).exits(7).prints("seven\n");
//! ```
//!
//! The tests themselves are in `cases/`, by subject. They need root, a usable `/dev/kvm` and what `cargo xtask test`
//! builds and names in the environment ([`prepared`]); they fail, and say so, where it is missing.

mod agent;
mod bundle;
mod container;
mod containerd;
mod daemon;
mod devices;
mod diagnosis;
mod disk;
mod docker;
mod host;
mod husk;
pub mod images;
mod leftovers;
mod outcome;
mod pattern;
mod podman;
pub mod prepared;
pub mod probe;
mod process;
mod recorded;
mod running;
mod sandbox;
mod tar;
mod terminal;
pub mod tiny;
mod trees;

pub use agent::kill_agent;
pub use bundle::Bundle;
pub use container::{Container, read_pid, wait_for};
pub use containerd::{Containerd, Cri, Event, Events, Release};
pub use devices::with_devices;
pub use disk::SmallDisk;
pub use docker::Docker;
pub use host::Host;
pub use husk::Husk;
pub use leftovers::Snapshot;
pub use outcome::Outcome;
pub use pattern::Pattern;
pub use podman::Podman;
pub use probe::{Facts, PROBE};
pub use process::Process;
pub use recorded::{Engine, RECORDED};
pub use running::Running;
pub use sandbox::Sandbox;
pub use tar::Tar;
pub use terminal::Terminal;
pub use trees::{busybox, copy, debian};
