//! The terminal in which husk runs.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use husk_sandbox::agent::WindowSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::pty;

/// What the terminal was before it was made raw, until it is restored.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// A terminal that passes every key on. Dropping it restores the terminal, and so does a panic.
#[derive(Debug)]
pub(crate) struct Raw(());

impl Raw {
    /// Makes the terminal on stdin raw.
    pub(crate) fn new() -> nix::Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            print(panic);
        }));
        *lock() = Some(before);
        tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(before) = lock().take() {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &before);
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Termios>> {
    // The value is whole whatever happened to the thread that held it.
    BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Whether stdin is a terminal.
pub(crate) fn on_stdin() -> bool {
    std::io::stdin().is_terminal()
}

/// Whether this process has a controlling terminal that has not been hung up.
pub(crate) fn controls() -> bool {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    File::options().read(true).custom_flags(flags).open("/dev/tty").is_ok()
}

/// The size of the terminal that stdin, stdout or stderr is.
pub(crate) fn window() -> Option<WindowSize> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
        .iter()
        .find_map(pty::window)
}
