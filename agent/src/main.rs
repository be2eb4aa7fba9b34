//! PID 1 of a husk guest.
//!
//! The agent is one process with one thread. [`boot`] turns the bare kernel into a system that can hold containers;
//! then [`agent::Agent`] waits in one event loop for everything at once: calls of the sandbox's owner on the host
//! ([`calls`]), its stdio connections ([`stdio`]), what processes write ([`flow`]), processes that end, disks that
//! appear and memory that runs out. A container's process is a fork of the agent that builds its own surroundings
//! ([`child`]) and then executes; having a single thread is what makes that fork safe, and what keeps a guest that
//! has run out of threads or memory from taking its agent along.
//!
//! Data comes in over vsock from the host only (see [`husk_protocol`]) and leaves the same way.

// The standard library's start-up wants descriptors 0 to 2 open, or else aborts: before [`boot`] there is nothing
// that could be opened in their place.
#![cfg_attr(not(test), no_main)]
#![deny(unsafe_code)]

mod agent;
mod birth;
mod boot;
mod calls;
mod cgroup;
mod check;
mod child;
mod connection;
mod container;
mod create;
mod disk;
mod exits;
mod files;
mod flow;
mod host;
mod journal;
mod namespaces;
mod pause;
mod pending;
mod poller;
mod prepare;
mod processes;
mod refusal;
mod shared;
mod start;
mod stdio;
mod streams;
mod sys;
#[cfg(test)]
mod tests;
mod update;

use std::convert::Infallible;

use agent::Agent;

/// The agent's entry, called by the C library.
#[cfg(not(test))]
#[allow(unsafe_code)]
// SAFETY: the binary has no other `main`, and the C library calls it with a compatible signature.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    if std::process::id() != 1 {
        eprintln!("husk-agent is the first process of a husk guest and runs nowhere else");
        return 1;
    }
    let Err(error) = run();
    boot::complain(&format!("cannot go on: {error}"));
    1
}

/// What is in the way of the agent's work as a whole.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error("the guest cannot be prepared: {0}")]
    Boot(#[from] boot::BootError),
    #[error("the host cannot be reached: {0}")]
    Host(#[from] host::HostError),
    #[error("the event loop: {0}")]
    Loop(#[from] nix::Error),
}

/// From the kernel's hand-over to the end of the guest.
#[cfg_attr(test, allow(dead_code))]
fn run() -> Result<Infallible, Fatal> {
    let started = sys::monotonic_ns();
    boot::leave_initial_root()?;
    boot::mount_system()?;
    boot::open_standard_streams()?;
    boot::load_modules()?;
    boot::prepare_cgroups()?;
    boot::raise_limits()?;
    boot::stop_proactive_compaction()?;
    boot::quieten_kernel();
    sys::bring_loopback_up().map_err(boot::BootError::Loopback)?;

    let calls = host::listen(husk_protocol::AGENT_PORT)?;
    let streams = host::listen(husk_protocol::STDIO_PORT)?;
    let surroundings = agent::Surroundings {
        calls,
        streams,
        admit: host::is_host,
        cgroups: boot::CGROUPS.into(),
        run: boot::RUN.into(),
        block_devices: boot::BLOCK_DEVICES.into(),
    };
    let agent = Agent::new(surroundings)?;
    // A host that does not hear of it gives the guest up in its own time.
    if let Err(error) = host::say_ready(started) {
        boot::complain(&error.to_string());
    }
    Ok(agent.run()?)
}
