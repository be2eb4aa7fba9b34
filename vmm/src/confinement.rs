//! What the process gives up before anything of the guest runs.
//!
//! All that a machine needs is in descriptors, so its process can do without everything else: [`enter`] takes from the
//! whole process what it can reach by name and every right it has over others, and each thread gives up the system calls
//! that it does not make ([`filters`]). A thread that makes one all the same ends the machine, with a report that names
//! the call ([`violation`]).
//!
//! Order matters. Other descriptors are closed first, as the rest costs less without them; namespaces come while there
//! is one thread and perhaps a right to make them; capabilities go when nothing needs them any more; Landlock needs
//! `no_new_privs`, and forbids what made the namespaces.
//!
//! Filters, descriptors, capabilities, limits and `no_new_privs` are there on every host. Namespaces and Landlock are not:
//! without them the machine runs, and says so.

mod descriptors;
pub mod filters;
mod landlock;
pub mod limits;
mod namespaces;
mod privileges;
mod runtime;
pub mod violation;

use std::io;
use std::os::fd::RawFd;

use husk_vmm_config::{Effect, Measure, Part};
use thiserror::Error;

/// Why the process cannot be confined.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ConfinementError {
    #[error("other descriptors cannot be closed")]
    Descriptors(#[source] io::Error),
    #[error("capabilities cannot be given up")]
    Capabilities(#[source] io::Error),
    #[error("new privileges cannot be forgone")]
    NoNewPrivileges(#[source] io::Error),
    #[error("the limit of {resource} cannot be set")]
    Limit { resource: &'static str, source: io::Error },
    #[error("the process cannot be kept from being looked into")]
    Dumpable(#[source] io::Error),
    #[error(transparent)]
    Filter(#[from] filters::FilterError),
}

/// Confines the whole process, which has one thread, to the descriptors `kept` and the standard streams; it will have
/// `most_descriptors` open at most. With `keep_network` its network namespace stays the one that it was given. Tells how far the parts go that not every host has.
///
/// # Errors
/// A part that every host has is refused.
pub fn enter(kept: &[RawFd], most_descriptors: u64, keep_network: bool) -> Result<Vec<Measure>, ConfinementError> {
    descriptors::close_all_but(kept).map_err(ConfinementError::Descriptors)?;
    limits::descriptors(most_descriptors)?;
    descriptors::reserve();
    runtime::settle();
    let mut measures = Vec::from(namespaces::enter(keep_network));
    measures.push(privileges::drop_capabilities().map_err(ConfinementError::Capabilities)?);
    nix::sys::prctl::set_no_new_privs().map_err(|errno| ConfinementError::NoNewPrivileges(errno.into()))?;
    measures.push(landlock::enter());
    // Last, as a change of credentials or namespaces may set it anew.
    nix::sys::prctl::set_dumpable(false).map_err(|errno| ConfinementError::Dumpable(errno.into()))?;
    Ok(measures)
}

/// Confines this process and its thread as the main thread of a machine, and tells how far that goes.
///
/// # Errors
/// As [`enter`] and [`filters::enter`].
pub fn measure() -> Result<Vec<Measure>, ConfinementError> {
    let mut measures = enter(&[], limits::FEW_DESCRIPTORS, false)?;
    filters::enter(filters::Kind::Main)?;
    measures.push(Measure {
        part: Part::Filters,
        effect: Effect::Full,
        detail: "a filter of system calls for each kind of thread".into(),
    });
    Ok(measures)
}

/// Says in the log what is missing.
pub fn log(measures: &[Measure]) {
    for Measure { part, effect, detail } in measures {
        match effect {
            Effect::Full => tracing::debug!(?part, "confined: {detail}"),
            Effect::Partial | Effect::None => tracing::debug!(?part, ?effect, "less confined than possible: {detail}"),
        }
    }
}
