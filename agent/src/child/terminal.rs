//! A process's terminal, of the container's own devpts.

use std::os::fd::{AsFd, OwnedFd};

use husk_protocol::agent::WindowSize;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::paths::Root;
use super::{ChildError, at, step};
use crate::sys;

const MULTIPLEXER: &str = "/dev/pts/ptmx";

/// Both sides of a terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) master: OwnedFd,
    pub(super) peer: OwnedFd,
}

impl Terminal {
    fn new(master: OwnedFd) -> Result<Self, ChildError> {
        let peer = sys::open_terminal_peer(master.as_fd()).map_err(step("opening the terminal"))?;
        Ok(Self { master, peer })
    }

    pub(super) fn resize(&self, window: &WindowSize) -> nix::Result<()> {
        resize(&self.master, window)
    }

    /// The terminal's path in the container.
    pub(super) fn path(&self) -> Result<String, ChildError> {
        let number = sys::terminal_number(self.master.as_fd()).map_err(step("asking for the terminal's number"))?;
        Ok(format!("/dev/pts/{number}"))
    }
}

/// A new terminal of a root that is being built.
pub(super) fn open_below(root: &Root) -> Result<Terminal, ChildError> {
    Terminal::new(
        root.open_with(MULTIPLEXER, flags())
            .map_err(at("opening", MULTIPLEXER))?,
    )
}

/// A new terminal of the container that the process has joined.
pub(super) fn open_inside() -> Result<Terminal, ChildError> {
    Terminal::new(open(MULTIPLEXER, flags(), Mode::empty()).map_err(at("opening", MULTIPLEXER))?)
}

/// The container may have put something else there: opening must not block. The agent wants it so anyway.
fn flags() -> OFlag {
    OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK
}

/// Sets a terminal's size; a size beyond what a terminal can have is cut.
pub(crate) fn resize(terminal: &OwnedFd, window: &WindowSize) -> nix::Result<()> {
    let cut = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    sys::set_terminal_size(terminal.as_fd(), cut(window.columns), cut(window.rows))
}
