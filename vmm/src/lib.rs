//! A machine monitor on KVM: one process, one microVM.
//!
//! # The way in
//! `husk-vmm` is started with every file and socket that it needs as open descriptors. One of them holds the
//! [configuration](husk_vmm_config::Config), which names the others; [`resources`] takes them. It opens nothing
//! by name.
//!
//! Before anything of the guest runs the process gives up all that it does not need for them: [`confinement`].
//!
//! [`machine::Machine::build`] reads as the story of a boot: [guest memory](memory), [interrupt
//! controllers](x86_64::interrupts), [devices], [vCPUs](vcpu), [kernel](x86_64::boot).
//!
//! # Threads
//! All of them start before the guest does, and each takes the [filter](confinement::filters) of its kind:
//! - the main thread is the [control loop](control): requests, the owner's lifeline, the machine's [end](ending);
//! - each vCPU has one, which runs the guest and serves its register accesses;
//! - one event loop serves the devices that never block;
//! - each disk has its own, as it can block.
//!
//! # The way out
//! Whoever notices that the machine ends tells [`ending::Ending`]; the first one counts. The control loop hears it,
//! sends the vCPUs home and leaves a [report](husk_vmm_config::Report). Its process ends a moment later: only then has
//! every request to a disk come to rest.

#![deny(unsafe_code)]

pub mod confinement;
pub mod control;
pub mod devices;
pub mod ending;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod report;
pub mod resources;
pub mod threads;
pub mod timeline;
pub mod vcpu;
pub mod x86_64;
