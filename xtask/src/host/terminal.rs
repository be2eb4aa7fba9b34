//! The caller's terminal.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use xtask_init::channel::WindowSize;

nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, libc::winsize);

/// The terminal passes every key on, unchanged, until this is dropped.
pub(crate) struct RawMode<'fd> {
    terminal: BorrowedFd<'fd>,
    before: Termios,
}

impl<'fd> RawMode<'fd> {
    pub(crate) fn enter(terminal: BorrowedFd<'fd>) -> Result<Self> {
        let before = tcgetattr(terminal).context("reading the terminal's mode")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(terminal, SetArg::TCSANOW, &raw).context("setting the terminal to raw mode")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        // There is nobody left to tell when the terminal has gone.
        let _ = tcsetattr(self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// The terminal's size; 24 by 80 when it does not tell.
pub(crate) fn window_size(terminal: impl AsFd) -> WindowSize {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the structure is the one that TIOCGWINSZ fills, it is ours alone, and the descriptor is open.
    let told = unsafe { get_window_size(terminal.as_fd().as_raw_fd(), &raw mut size) };
    match told {
        Ok(_) if size.ws_row > 0 && size.ws_col > 0 => WindowSize {
            rows: size.ws_row,
            columns: size.ws_col,
        },
        _ => WindowSize { rows: 24, columns: 80 },
    }
}
