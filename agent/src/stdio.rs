//! Stdio connections that wait for the process to which they belong.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use husk_protocol::TOKEN_LEN;

use crate::poller::Watch;

/// How long a connection waits for its process and a process for its connections. On a host that starts many guests at
/// once, what lies between the two can take tens of seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The most connections that wait at a time.
pub(crate) const MAX_WAITING: usize = 4096;

/// What names a stdio connection.
pub(crate) type Token = [u8; TOKEN_LEN];

/// A connection whose token is not complete yet.
#[derive(Debug)]
pub(crate) struct Newcomer {
    socket: Watch,
    token: Token,
    have: usize,
    deadline: Instant,
}

/// How a newcomer's introduction goes on.
#[derive(Debug)]
pub(crate) enum Introduction {
    /// More bytes must come.
    Unfinished,
    Done(Token),
    /// It has left, or failed.
    Gone,
}

impl Newcomer {
    pub(crate) fn new(socket: Watch, now: Instant) -> Self {
        Self {
            socket,
            token: Token::default(),
            have: 0,
            deadline: now + PATIENCE,
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads the token, and not a byte more: what follows is the stream's.
    pub(crate) fn listen(&mut self) -> Introduction {
        match nix::unistd::read(&self.socket, &mut self.token[self.have..]) {
            Ok(0) => Introduction::Gone,
            Ok(count) => {
                self.have += count;
                if self.have == TOKEN_LEN {
                    Introduction::Done(self.token)
                } else {
                    Introduction::Unfinished
                }
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Introduction::Unfinished,
            Err(_) => Introduction::Gone,
        }
    }

    /// A copy of the connection that is watched no longer.
    pub(crate) fn into_socket(self) -> std::io::Result<OwnedFd> {
        std::os::fd::AsFd::as_fd(&self.socket).try_clone_to_owned()
    }
}

/// Connections whose token is known, until a process claims them.
#[derive(Debug, Default)]
pub(crate) struct Unclaimed {
    waiting: HashMap<Token, (OwnedFd, Instant)>,
}

impl Unclaimed {
    /// Keeps a connection; one whose token is there already or that is one too many is closed.
    pub(crate) fn keep(&mut self, token: Token, socket: OwnedFd, now: Instant) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.entry(token).or_insert((socket, now + PATIENCE));
        }
    }

    pub(crate) fn has(&self, token: &Token) -> bool {
        self.waiting.contains_key(token)
    }

    pub(crate) fn claim(&mut self, token: &Token) -> Option<OwnedFd> {
        self.waiting.remove(token).map(|(socket, _)| socket)
    }

    /// When the first connection's time is up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|(_, deadline)| *deadline).min()
    }

    /// Closes connections that nobody has claimed in time.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.waiting.retain(|_, (_, deadline)| *deadline > now);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use nix::sys::epoll::EpollFlags;

    use super::*;
    use crate::poller::{Poller, Source};

    fn newcomer() -> (Poller, Newcomer, UnixStream) {
        let poller = Poller::new().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let watch = poller
            .watch(ours.into(), Source::Newcomer(1), EpollFlags::EPOLLIN)
            .unwrap();
        (poller, Newcomer::new(watch, Instant::now()), theirs)
    }

    #[test]
    fn a_token_may_come_in_parts_and_the_stream_follows_it() {
        let (_poller, mut newcomer, mut peer) = newcomer();
        assert!(matches!(newcomer.listen(), Introduction::Unfinished));
        peer.write_all(&[1; 7]).unwrap();
        assert!(matches!(newcomer.listen(), Introduction::Unfinished));
        peer.write_all(&[1; 9]).unwrap();
        peer.write_all(b"input").unwrap();
        assert!(matches!(newcomer.listen(), Introduction::Done(token) if token == [1; 16]));
        let mut stream = UnixStream::from(newcomer.into_socket().unwrap());
        let mut rest = [0; 5];
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"input");
    }

    #[test]
    fn a_newcomer_that_leaves_is_gone() {
        let (_poller, mut newcomer, mut peer) = newcomer();
        peer.write_all(&[1; 3]).unwrap();
        drop(peer);
        assert!(matches!(newcomer.listen(), Introduction::Unfinished));
        assert!(matches!(newcomer.listen(), Introduction::Gone));
    }

    #[test]
    fn a_token_is_claimed_once_and_expires() {
        let now = Instant::now();
        let mut unclaimed = Unclaimed::default();
        let end = || OwnedFd::from(UnixStream::pair().unwrap().0);
        unclaimed.keep([1; 16], end(), now);
        unclaimed.keep([2; 16], end(), now + Duration::from_secs(1));
        assert!(unclaimed.has(&[1; 16]) && unclaimed.claim(&[1; 16]).is_some());
        assert!(unclaimed.claim(&[1; 16]).is_none());
        let end = now + Duration::from_secs(1) + PATIENCE;
        assert_eq!(unclaimed.deadline(), Some(end));
        unclaimed.expire(end);
        assert!(!unclaimed.has(&[2; 16]));
        assert_eq!(unclaimed.deadline(), None);
    }

    #[test]
    fn a_second_connection_cannot_take_a_tokens_place() {
        let mut unclaimed = Unclaimed::default();
        let (first, mut first_peer) = UnixStream::pair().unwrap();
        unclaimed.keep([1; 16], first.into(), Instant::now());
        unclaimed.keep([1; 16], UnixStream::pair().unwrap().0.into(), Instant::now());
        let mut claimed = UnixStream::from(unclaimed.claim(&[1; 16]).unwrap());
        claimed.write_all(b"x").unwrap();
        let mut byte = [0];
        first_peer.read_exact(&mut byte).unwrap();
    }
}
