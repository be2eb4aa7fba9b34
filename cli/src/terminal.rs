//! The terminal in which husk runs.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use husk_sandbox::agent::WindowSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

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

nix::ioctl_read_bad!(
    /// Reads a terminal's size.
    get_window_size,
    libc::TIOCGWINSZ,
    libc::winsize
);

/// The size of the terminal that stdin, stdout or stderr is.
#[allow(unsafe_code)]
pub(crate) fn window() -> Option<WindowSize> {
    [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO]
        .into_iter()
        .find_map(|fd| {
            let mut size = libc::winsize {
                ws_row: 0,
                ws_col: 0,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            // SAFETY: the request writes a `winsize`, to which the pointer leads.
            unsafe { get_window_size(fd, &raw mut size) }.ok()?;
            (size.ws_col > 0 && size.ws_row > 0).then(|| WindowSize {
                columns: size.ws_col.into(),
                rows: size.ws_row.into(),
                ..Default::default()
            })
        })
}
