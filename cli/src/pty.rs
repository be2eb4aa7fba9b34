//! The terminal of a container that nobody is attached to yet: its master side goes to the caller's socket, and what
//! passes through it to the guest's own terminal.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};
use husk_sandbox::agent::WindowSize;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

/// What goes with the descriptor: receivers take it for the terminal's name.
const NAME: &[u8] = b"/dev/ptmx";

nix::ioctl_write_int_bad!(
    /// Makes a terminal the controlling one of this session.
    set_controlling_terminal,
    libc::TIOCSCTTY
);

nix::ioctl_read_bad!(
    /// Reads a terminal's size.
    get_window_size,
    libc::TIOCGWINSZ,
    libc::winsize
);

/// Makes a terminal and sends its master side to the socket at `path`; gives the other side, which is this session's
/// controlling terminal from now on, so that a new size and a hang-up come as signals.
#[allow(unsafe_code)]
pub(crate) fn hand_over(path: &Path, window: Option<&WindowSize>) -> Result<OwnedFd> {
    let size = window.map(|window| libc::winsize {
        ws_row: u16::try_from(window.rows).unwrap_or(u16::MAX),
        ws_col: u16::try_from(window.columns).unwrap_or(u16::MAX),
        ws_xpixel: 0,
        ws_ypixel: 0,
    });
    let pair = openpty(size.as_ref(), None).context("a terminal cannot be made")?;
    for fd in [&pair.master, &pair.slave] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("a terminal cannot be made")?;
    }
    // The guest's terminal does what a terminal does; this one passes everything on.
    let mut raw = tcgetattr(&pair.slave).context("the terminal cannot be made raw")?;
    cfmakeraw(&mut raw);
    tcsetattr(&pair.slave, SetArg::TCSANOW, &raw).context("the terminal cannot be made raw")?;
    // Only when somebody else has it: the end of the last master side would hang up this session.
    send(path, &pair.master).with_context(|| format!("the console socket {} does not take it", path.display()))?;
    // SAFETY: the request takes a number.
    unsafe { set_controlling_terminal(pair.slave.as_raw_fd(), 0) }.context("the terminal cannot be taken")?;
    Ok(pair.slave)
}

fn send(path: &Path, master: &OwnedFd) -> Result<()> {
    let socket = UnixStream::connect(path)?;
    let descriptors = [master.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let name = [IoSlice::new(NAME)];
    sendmsg::<()>(socket.as_raw_fd(), &name, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// The size of a terminal, if it has one.
#[allow(unsafe_code)]
pub(crate) fn window(terminal: &impl AsFd) -> Option<WindowSize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request writes a `winsize`, to which the pointer leads.
    unsafe { get_window_size(terminal.as_fd().as_raw_fd(), &raw mut size) }.ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| WindowSize {
        columns: size.ws_col.into(),
        rows: size.ws_row.into(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::os::fd::{FromRawFd, RawFd};
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn the_socket_gets_the_master_side() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let pair = openpty(None, None).unwrap();
        send(&path, &pair.master).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut text = [0; 100];
        let mut buffers = [IoSliceMut::new(&mut text)];
        let mut space = nix::cmsg_space!(RawFd);
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::empty()).unwrap();
        assert_eq!(message.bytes, NAME.len());
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
            panic!("no descriptor came")
        };
        // SAFETY: the kernel has just made this descriptor for us.
        let master = unsafe { OwnedFd::from_raw_fd(fds[0]) };
        nix::unistd::write(&master, b"x\n").unwrap();
        let mut byte = [0; 2];
        assert_eq!(nix::unistd::read(&pair.slave, &mut byte).unwrap(), 2);
        assert!(send(&dir.path().join("none"), &pair.master).is_err());
    }
}
