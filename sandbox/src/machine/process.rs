//! Starting `husk-vmm`.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use husk_vmm_config::Config;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::setsid;

use super::MachineError;
use crate::confinement::Label;

/// Where the program is started.
#[derive(Debug)]
pub(super) struct Place {
    /// `cgroup.procs` of its cgroup.
    pub(super) cgroup: Option<File>,
    /// Its network namespace.
    pub(super) network: Option<File>,
    /// The labels under which it is executed.
    pub(super) labels: Vec<Label>,
}

/// Starts the program with the named descriptors, under their own numbers, and its configuration in a further one.
/// Everything else that this process has open closes at the exec.
#[allow(unsafe_code)]
pub(super) fn spawn(
    program: &Path,
    config: &Config,
    given: &[OwnedFd],
    log: &File,
    place: Place,
) -> Result<Child, MachineError> {
    let confining = place.labels.first().map(|label| label.field);
    let failed = |source| MachineError::Spawn {
        program: program.into(),
        source,
    };
    let config = config_file(config).map_err(failed)?;
    let mut command = Command::new(program);
    command
        .arg("--config-fd")
        .arg(config.as_raw_fd().to_string())
        .env_clear()
        .envs(std::env::var_os("HUSK_LOG").map(|filter| ("HUSK_LOG", filter)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log.try_clone().map_err(failed)?);
    let inherited: Vec<RawFd> = given.iter().chain([&config]).map(AsRawFd::as_raw_fd).collect();
    let prepare = move || {
        // A terminal's signals are for the owner.
        setsid()?;
        for fd in &inherited {
            // SAFETY: the parent keeps the descriptors open until this process has been started.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        if let Some(cgroup) = &place.cgroup {
            nix::unistd::write(cgroup, b"0")?;
        }
        if let Some(network) = &place.network {
            setns(network, CloneFlags::CLONE_NEWNET)?;
        }
        place.labels.iter().try_for_each(Label::take)
    };
    // SAFETY: between fork and exec there are system calls alone, and nothing that allocates or locks.
    unsafe { command.pre_exec(prepare) };
    command.spawn().map_err(|source| match confining {
        // Which of the two has failed cannot be told; that it starts without is what everyday use shows.
        Some(field) => MachineError::Confined {
            program: program.into(),
            field,
            source,
        },
        None => failed(source),
    })
}

/// The configuration in a file without a name, to be read from its beginning.
fn config_file(config: &Config) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"husk-config", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(config)?)?;
    file.rewind()?;
    Ok(file.into())
}
