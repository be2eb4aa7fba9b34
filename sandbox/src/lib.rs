//! The life cycle of a sandbox on the host.
//!
//! A [`Sandbox`](sandbox::Sandbox) is one virtual machine with one or more containers in it. Its way, in the order of
//! the modules:
//!
//! 1. [`bundle`]: an OCI bundle, or a root directory alone, becomes what the agent is told;
//! 2. [`rundir`]: the sandbox takes its name; [`keeper`] sees to it that nothing is left when the owner is killed;
//! 3. [`machine`]: `husk-vmm` is started with everything as open descriptors and boots a [`kernel`] while
//! 4. [`image`] makes or finds the root file system's image, which is then put into one of the machine's disk slots;
//!    [`confinement`] under which the program runs comes from the bundle;
//! 5. [`guest`]: the agent is told to create containers and processes, and says when they end ([`rpc`] carries the
//!    calls, [`relay`] copies the processes' streams);
//! 6. [`lifecycle`]: what another process than the owner may do with a container, and when;
//!    [`hooks`] run at the points of that life where the bundle wants them, and what it costs the host is in
//!    [`host_cgroup`];
//! 7. [`timeline`] knows when each of these points was reached.
//!
//! The crate knows neither KVM nor containerd; OCI JSON is known in [`bundle`] alone.

#![deny(unsafe_code)]

pub mod artefacts;
pub mod bundle;
pub mod confinement;
pub mod files;
pub mod guest;
pub mod hooks;
pub mod host_cgroup;
pub mod image;
pub mod keeper;
pub mod kernel;
pub mod lifecycle;
pub mod machine;
pub mod relay;
pub mod rpc;
pub mod rundir;
pub mod sandbox;
pub mod size;
pub mod timeline;

pub use husk_protocol::agent;
pub use husk_vmm_config as vmm;
