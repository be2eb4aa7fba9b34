//! Limits of resources: what the process will not need, it cannot use.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use husk_vmm_config::{Config, MAX_PARTS};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::ConfinementError;

/// Descriptors beside those that grow with the machine: 1,024 connections to the guest, each of which may be an accepted
/// client and a pair for a moment, clients of control socket and console, devices.
const BASE: u64 = 2304;
/// What a process needs that has no machine.
pub(super) const FEW_DESCRIPTORS: u64 = 512;
/// How much a file may grow that is not a disk, in bytes: the log, twice as long as it is allowed to become.
const GROWTH: u64 = 2 << 20;

/// The most descriptors that the machine will have open at a time.
#[must_use]
pub fn most_descriptors(config: &Config) -> u64 {
    let queues: u64 = config.disks.iter().map(|disk| u64::from(disk.queues)).sum();
    let files = config.disks.len() as u64 * MAX_PARTS as u64;
    BASE + config.descriptors().count() as u64 + files + 4 * queues + u64::from(config.vcpus.count)
}

/// No core dumps, in which the guest's memory would lie, and no more descriptors than this.
pub(super) fn descriptors(most: u64) -> Result<(), ConfinementError> {
    set(Resource::RLIMIT_CORE, "core dumps", 0)?;
    set(Resource::RLIMIT_NOFILE, "descriptors", most)
}

/// What the process no longer needs when the machine is built: files that grow. Where there is a disk to be written, its
/// size is not limited: it may not be there yet.
///
/// Threads and processes have no limit here. Filters forbid them, and KVM makes a thread of its own in the process at a
/// vCPU's first entry, which a limit would keep it from.
///
/// # Errors
/// A limit that cannot be set.
pub fn built(config: &Config) -> Result<(), ConfinementError> {
    if config.disks.iter().any(|disk| !disk.read_only) {
        return Ok(());
    }
    let streams = [length(&io::stdout()), length(&io::stderr())];
    let longest = streams.into_iter().max().unwrap_or(0);
    // What is too long is then an error of the write and not the end of the process.
    ignore(Signal::SIGXFSZ).map_err(|errno| limit("a file's size", errno))?;
    set(Resource::RLIMIT_FSIZE, "a file's size", longest.saturating_add(GROWTH))
}

/// The length of a stream that is a file.
fn length(stream: &impl AsFd) -> u64 {
    let Ok(copy) = stream.as_fd().try_clone_to_owned() else {
        return 0;
    };
    let metadata = File::from(copy).metadata();
    metadata.map_or(0, |file| if file.is_file() { file.len() } else { 0 })
}

#[allow(unsafe_code)]
fn ignore(number: Signal) -> nix::Result<()> {
    // SAFETY: ignoring a signal installs no function.
    unsafe { signal(number, SigHandler::SigIgn) }.map(drop)
}

/// Sets both limits, neither above what it was.
fn set(resource: Resource, name: &'static str, most: u64) -> Result<(), ConfinementError> {
    let (_, hard) = getrlimit(resource).map_err(|errno| limit(name, errno))?;
    let most = most.min(hard);
    setrlimit(resource, most, most).map_err(|errno| limit(name, errno))
}

fn limit(resource: &'static str, errno: Errno) -> ConfinementError {
    ConfinementError::Limit {
        resource,
        source: errno.into(),
    }
}
