//! `start`: makes sure that the container's shim runs, and tells containerd where it listens.
//!
//! The shim is a fork of this process, with the listening socket already in its hands, so that containerd can connect at
//! once. This process ends when it has said where.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use husk_sandbox::host_cgroup;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, fork, getppid};

use crate::args::Flags;
use crate::bootstrap::Handshake;
use crate::place;
use crate::serve::{self, Charge};

/// The longest input that is read, in bytes.
const MAX_INPUT: u64 = 4 << 20;
/// The longest path of a socket (`sun_path` of unix(7) less its end), in bytes.
const MAX_SOCKET: usize = 107;
/// The file of a bundle in which containerd looks for the address when it comes back.
const ADDRESS: &str = "address";

/// Starts the shim of the bundle in the working directory, or finds the one that serves its group.
pub(crate) fn start(flags: &Flags) -> Result<()> {
    let mut input = Vec::new();
    let read = io::stdin().take(MAX_INPUT).read_to_end(&mut input);
    read.context("stdin cannot be read")?;
    // What is cut there may look like something else.
    ensure!(
        (input.len() as u64) < MAX_INPUT,
        "stdin is longer than {MAX_INPUT} bytes"
    );
    let handshake = Handshake::parse(&input, flags)?;
    let bundle = std::env::current_dir().context("the bundle cannot be found")?;
    let group = place::group(&bundle, &flags.id);
    let directory = handshake.socket_directory.as_deref();
    let socket = place::socket(directory, &flags.address, &flags.namespace, &group);
    let address = format!("unix://{}", socket.display());
    let answer = handshake.answer(&address).context("the answer cannot be written")?;
    if let Some(listener) = listen(&socket)? {
        if let Some(cgroup) = &handshake.options.shim_cgroup {
            enter(cgroup)?;
        }
        adjust_score();
        let charge = Charge {
            namespace: flags.namespace.clone(),
            name: group,
            bundle: bundle.clone(),
            events: handshake.events.or_else(|| std::env::var("TTRPC_ADDRESS").ok()),
            options: handshake.options,
            debug: handshake.debug,
            socket,
        };
        fork_shim(listener, charge)?;
    }
    write_address(&bundle, &address)?;
    let mut stdout = io::stdout();
    let said = stdout.write_all(&answer).and_then(|()| stdout.flush());
    said.context("stdout")
}

/// Listens on a socket, unless somebody does so already.
fn listen(path: &Path) -> Result<Option<UnixListener>> {
    let failed = || format!("the socket {} cannot be made", path.display());
    if path.as_os_str().len() > MAX_SOCKET {
        bail!("the socket's path {} is too long", path.display());
    }
    if let Some(directory) = path.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(directory);
        made.with_context(failed)?;
    }
    // Twice: the first time one that nobody listens on any more may be in the way.
    for _ in 0..2 {
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        match bound {
            Ok(listener) => {
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(failed)?;
                return Ok(Some(listener));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).with_context(failed),
        }
        match UnixStream::connect(path) {
            Ok(_) => return Ok(None),
            // Whoever has removed it meanwhile makes no difference.
            Err(_) => drop(fs::remove_file(path)),
        }
    }
    bail!("the socket {} is in the way", path.display())
}

#[allow(unsafe_code)]
fn fork_shim(listener: UnixListener, charge: Charge) -> Result<()> {
    // SAFETY: there is one thread, so that the child may use everything that this process may.
    match unsafe { fork() }.context("the shim cannot be started")? {
        ForkResult::Parent { .. } => Ok(()),
        ForkResult::Child => serve::live(listener, charge),
    }
}

/// Enters the cgroup that the shim is to be in, which is there already.
fn enter(cgroup: &str) -> Result<()> {
    let failed = || format!("the shim's cgroup {cgroup} cannot be entered");
    let directory = host_cgroup::directory(cgroup.trim_start_matches('/')).with_context(failed)?;
    // 0: whoever writes it.
    fs::write(directory.join("cgroup.procs"), "0").with_context(failed)
}

/// Lets what becomes the shim be killed before containerd, if the host must kill one of them.
fn adjust_score() {
    let read = |process: &str| -> Option<i32> {
        let text = fs::read_to_string(format!("/proc/{process}/oom_score_adj")).ok()?;
        text.trim().parse().ok()
    };
    let Some(score) = read(&getppid().to_string()) else {
        return;
    };
    // Without the right to it, it keeps the score that it has.
    let _ = fs::write("/proc/self/oom_score_adj", (score + 1).min(1000).to_string());
}

/// Writes where the shim listens, whole or not at all.
fn write_address(bundle: &Path, address: &str) -> Result<()> {
    let path = bundle.join(ADDRESS);
    let passing = bundle.join(format!(".{ADDRESS}"));
    let failed = || format!("{} cannot be written", path.display());
    fs::write(&passing, address).with_context(failed)?;
    fs::rename(&passing, &path).with_context(failed)
}

/// The socket that a bundle's address names.
pub(crate) fn read_address(bundle: &Path) -> Option<std::path::PathBuf> {
    let address = fs::read_to_string(bundle.join(ADDRESS)).ok()?;
    address.strip_prefix("unix://").map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_one_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s/socket");
        let listener = listen(&path).unwrap().unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(listen(&path).unwrap().is_none());
        drop(listener);
        assert!(listen(&path).unwrap().is_some(), "one that is dead is replaced");
        let long = directory.path().join("x".repeat(200));
        assert!(listen(&long).unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn the_address_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_address(directory.path()), None);
        write_address(directory.path(), "unix:///run/s").unwrap();
        assert_eq!(read_address(directory.path()), Some("/run/s".into()));
    }
}
