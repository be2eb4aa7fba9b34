//! A terminal with a command of husk's on it, as a person at a keyboard has it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};

use crate::running::{Plan, Source};
use crate::{Host, Outcome, Running};

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);
nix::ioctl_write_int_bad!(set_controlling_terminal, libc::TIOCSCTTY);

/// A pseudo terminal; a command of husk's is its session's leader.
pub struct Terminal<'h> {
    running: Running<'h>,
    master: File,
    /// Kept open so that the terminal's settings can still be asked for when the command has ended.
    slave: File,
    before: Termios,
}

impl<'h> Terminal<'h> {
    #[track_caller]
    pub(crate) fn start(host: &'h Host, mut command: Command, limit: Duration) -> Self {
        let size = Winsize {
            ws_row: 50,
            ws_col: 132,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let OpenptyResult { master, slave } = openpty(Some(&size), None).expect("open a terminal");
        let (master, slave) = (File::from(master), File::from(slave));
        // A command that had the master itself would never see its window closed.
        for end in [&master, &slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("mark a descriptor");
        }
        let copy = |file: &File| file.try_clone().expect("duplicate a descriptor");
        let before = tcgetattr(&slave).expect("read the terminal's settings");
        command.stdin(copy(&slave)).stdout(copy(&slave)).stderr(copy(&slave));
        let become_session_leader = || {
            nix::unistd::setsid()?;
            // SAFETY: descriptor 0 is the terminal, and the call takes no pointer.
            unsafe { set_controlling_terminal(0, 0) }?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes two system calls and nothing else: no allocation, no lock.
        unsafe { command.pre_exec(become_session_leader) };
        let plan = Plan {
            source: Source::Open,
            input: Some(copy(&master)),
            stdout: copy(&master),
            stderr: None,
            sink: None,
            limit,
        };
        let running = Running::start(host, command, plan);
        Self {
            running,
            master,
            slave,
            before,
        }
    }

    /// Types these keys.
    #[track_caller]
    pub fn types(&mut self, keys: impl AsRef<[u8]>) -> &mut Self {
        self.running.forget_output().send(keys);
        self
    }

    /// Waits until this stands on the screen, of what came since the last keys.
    #[track_caller]
    pub fn shows(&mut self, text: &str) -> &mut Self {
        self.running.await_output(text);
        self
    }

    /// Makes the window that large.
    pub fn resize(&mut self, rows: u16, columns: u16) -> &mut Self {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the structure is the one that TIOCSWINSZ reads, and it lives until the call returns.
        unsafe { set_window_size(self.master.as_raw_fd(), &raw const size) }.expect("resize a terminal");
        self
    }

    /// The command on it.
    pub fn running(&mut self) -> &mut Running<'h> {
        &mut self.running
    }

    /// Waits for the end of the command. The terminal must then be as it was before.
    #[track_caller]
    pub fn finish(self) -> Outcome {
        let Self {
            mut running,
            master,
            slave,
            before,
        } = self;
        running.await_exit();
        let after = tcgetattr(&slave).expect("read the terminal's settings");
        // The end of the output comes when nobody has the terminal open.
        drop(slave);
        let outcome = running.finish();
        drop(master);
        assert_eq!(before, after, "the terminal's settings after {outcome}");
        outcome
    }

    /// The window is closed: what is on it gets SIGHUP and finds its terminal gone.
    #[track_caller]
    pub fn close_window(self) -> Outcome {
        let Self {
            mut running,
            master,
            slave,
            ..
        } = self;
        drop((master, slave));
        running.close_output().end_input();
        running.finish()
    }
}
