//! What a child tells the agent, one packet each, and what the agent answers.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use husk_protocol::agent::Failure;
use husk_protocol::agent::failure::Kind;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// A failure's text is cut to this length.
const MAX_TEXT: usize = 2048;

/// A packet from a child.
#[derive(Debug)]
pub(crate) enum Packet {
    /// The terminal's master side.
    Terminal(OwnedFd),
    /// Everything is ready for execve(2).
    Created,
    /// It has come to nothing; the child exits.
    Failed(Failure),
}

/// What the agent says when the process is to execute. Any other byte, but the next one, is a signal that would have
/// ended the process: it exits as if it had.
pub(crate) const START: u8 = 0;

/// What the agent says when it has done its part in the making of the process.
pub(crate) const PREPARED: u8 = u8::MAX;

/// Sends one.
pub(crate) fn send(channel: BorrowedFd<'_>, packet: &Packet) -> nix::Result<()> {
    let (bytes, fd) = match packet {
        Packet::Terminal(master) => (vec![b'T'], Some(master.as_raw_fd())),
        Packet::Created => (vec![b'C'], None),
        Packet::Failed(failure) => {
            let kind = match failure.kind.enum_value_or_default() {
                Kind::OTHER => b'0',
                Kind::COMMAND_NOT_FOUND => b'1',
                Kind::COMMAND_NOT_EXECUTABLE => b'2',
            };
            let text = failure.message.as_bytes();
            ([&[b'F', kind], &text[..text.len().min(MAX_TEXT)]].concat(), None)
        }
    };
    let Some(fd) = fd else {
        // A seccomp filter that lets a process start lets it write, and perhaps no more than that.
        return nix::unistd::write(channel, &bytes).map(drop);
    };
    let rights = [ControlMessage::ScmRights(&[fd])];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, flags, None).map(drop)
}

/// Receives one; `None` when the child's end is closed.
#[allow(unsafe_code)]
pub(crate) fn receive(channel: BorrowedFd<'_>) -> nix::Result<Option<Packet>> {
    let mut bytes = [0; MAX_TEXT + 2];
    let mut control = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(channel.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let fds: Vec<OwnedFd> = message
        .cmsgs()?
        .filter_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        // SAFETY: the kernel has just put these descriptors into our table for us.
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect();
    let count = message.bytes;
    Ok(match (bytes[..count].split_first(), fds.into_iter().next()) {
        (None, _) => None,
        (Some((b'T', _)), Some(master)) => Some(Packet::Terminal(master)),
        (Some((b'C', _)), _) => Some(Packet::Created),
        (Some((b'F', rest)), _) => {
            let kind = match rest.first() {
                Some(b'1') => Kind::COMMAND_NOT_FOUND,
                Some(b'2') => Kind::COMMAND_NOT_EXECUTABLE,
                _ => Kind::OTHER,
            };
            let message = String::from_utf8_lossy(rest.get(1..).unwrap_or_default()).into_owned();
            Some(Packet::Failed(Failure {
                kind: kind.into(),
                message,
                ..Failure::default()
            }))
        }
        _ => return Err(nix::Error::EBADMSG),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn packets_arrive_as_they_were_sent() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let (pipe, _) = nix::unistd::pipe().unwrap();
        send(theirs.as_fd(), &Packet::Terminal(pipe)).unwrap();
        send(theirs.as_fd(), &Packet::Created).unwrap();
        let failure = Failure {
            kind: Kind::COMMAND_NOT_FOUND.into(),
            message: "x".repeat(MAX_TEXT + 1),
            ..Failure::default()
        };
        send(theirs.as_fd(), &Packet::Failed(failure)).unwrap();
        drop(theirs);
        assert!(matches!(receive(ours.as_fd()), Ok(Some(Packet::Terminal(_)))));
        assert!(matches!(receive(ours.as_fd()), Ok(Some(Packet::Created))));
        let Ok(Some(Packet::Failed(failure))) = receive(ours.as_fd()) else {
            panic!()
        };
        assert_eq!(failure.kind.unwrap(), Kind::COMMAND_NOT_FOUND);
        assert_eq!(failure.message.len(), MAX_TEXT);
        assert!(matches!(receive(ours.as_fd()), Ok(None)));
    }
}
