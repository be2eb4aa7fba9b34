//! One direction of a process's stream: bytes from one descriptor to another.

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{Shutdown, shutdown};

use crate::poller::Watch;

/// The most that is taken from one end before the other end has it.
pub(crate) const CHUNK: usize = 64 << 10;
/// After this many chunks the other descriptors get their turn.
const TURN: usize = 16;

/// Whether a flow has more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It waits for one of its ends.
    Waiting,
    /// No byte will pass any more.
    Ended,
}

/// Bytes that pass from one end to the other, in order, as fast as the slower end allows.
///
/// Each end is watched for one event at a time (`EPOLLONESHOT`): an end that has hung up while the other one is waited
/// for would else be reported over and over.
#[derive(Debug)]
pub(crate) struct Flow {
    from: Watch,
    to: Watch,
    kept: Vec<u8>,
    closing: bool,
}

impl Flow {
    /// How both ends are watched at first: for input at one end, for the loss of its reader at the other.
    pub(crate) const FROM: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLONESHOT);
    pub(crate) const TO: EpollFlags = EpollFlags::EPOLLONESHOT;

    /// Both ends are non-blocking.
    pub(crate) fn new(from: Watch, to: Watch) -> Self {
        Self {
            from,
            to,
            kept: Vec::new(),
            closing: false,
        }
    }

    /// Ends the flow when what has arrived until now has passed.
    pub(crate) fn close(&mut self, scratch: &mut [u8]) -> Progress {
        self.closing = true;
        self.advance(scratch)
    }

    /// The end that is written to has something to say.
    pub(crate) fn on_to(&mut self, events: EpollFlags, scratch: &mut [u8]) -> Progress {
        if events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            return Progress::Ended;
        }
        self.advance(scratch)
    }

    /// Moves what can be moved.
    pub(crate) fn advance(&mut self, scratch: &mut [u8]) -> Progress {
        for _ in 0..TURN {
            if !self.kept.is_empty() {
                match nix::unistd::write(&self.to, &self.kept) {
                    Ok(count) => drop(self.kept.drain(..count)),
                    Err(nix::Error::EINTR) => {}
                    Err(nix::Error::EAGAIN) => return self.wait_to(),
                    Err(_) => return Progress::Ended,
                }
                continue;
            }
            match nix::unistd::read(&self.from, scratch) {
                Ok(0) => return Progress::Ended,
                Ok(count) => match self.pass(&scratch[..count]) {
                    Progress::Waiting => {}
                    Progress::Ended => return Progress::Ended,
                },
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) if self.closing => return Progress::Ended,
                Err(nix::Error::EAGAIN) => break,
                // A terminal whose other end is closed says EIO, a connection that is reset ECONNRESET.
                Err(_) => return Progress::Ended,
            }
        }
        if self.kept.is_empty() {
            self.wait_from()
        } else {
            self.wait_to()
        }
    }

    fn pass(&mut self, bytes: &[u8]) -> Progress {
        let count = match nix::unistd::write(&self.to, bytes) {
            Ok(count) => count,
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => 0,
            Err(_) => return Progress::Ended,
        };
        self.kept.extend_from_slice(&bytes[count..]);
        Progress::Waiting
    }

    fn wait_from(&mut self) -> Progress {
        // An idle stream should not cost a chunk of memory.
        self.kept = Vec::new();
        Self::wait(&mut self.from, Self::FROM)
    }

    fn wait_to(&mut self) -> Progress {
        Self::wait(&mut self.to, EpollFlags::EPOLLOUT | EpollFlags::EPOLLONESHOT)
    }

    fn wait(end: &mut Watch, interest: EpollFlags) -> Progress {
        match end.rearm(interest) {
            Ok(()) => Progress::Waiting,
            Err(_) => Progress::Ended,
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        // The same connection may serve the other direction, so closing this copy would not tell the peer.
        let _ = shutdown(self.to.as_fd().as_raw_fd(), Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use nix::fcntl::OFlag;

    use super::*;
    use crate::poller::{Poller, Source};

    fn flow(poller: &Poller, from: OwnedFd, to: OwnedFd) -> Flow {
        let from = poller.watch(from, Source::FlowFrom(1), Flow::FROM).unwrap();
        let to = poller.watch(to, Source::FlowTo(1), Flow::TO).unwrap();
        Flow::new(from, to)
    }

    fn run(poller: &Poller, flow: &mut Flow) {
        let mut scratch = vec![0; CHUNK];
        let until = Some(std::time::Instant::now() + std::time::Duration::from_secs(20));
        loop {
            let events = poller.wait(until).unwrap();
            assert!(!events.is_empty(), "the flow stalls");
            for (source, events) in events {
                let progress = match source {
                    Source::FlowFrom(_) => flow.advance(&mut scratch),
                    _ => flow.on_to(events, &mut scratch),
                };
                if progress == Progress::Ended {
                    return;
                }
            }
        }
    }

    fn nonblocking_pair() -> (OwnedFd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours.into(), theirs)
    }

    #[test]
    fn every_byte_passes_in_order_through_a_slow_reader() {
        let poller = Poller::new().unwrap();
        let (from, mut source) = nonblocking_pair();
        let (to, mut sink) = nonblocking_pair();
        let mut flow = flow(&poller, from, to);
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || source.write_all(&sent).unwrap());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            let mut part = [0; 977];
            loop {
                match sink.read(&mut part).unwrap() {
                    0 => return all,
                    count => all.extend_from_slice(&part[..count]),
                }
            }
        });
        run(&poller, &mut flow);
        drop(flow);
        writer.join().unwrap();
        assert!(reader.join().unwrap() == bytes);
    }

    #[test]
    fn a_reader_that_goes_away_ends_an_idle_flow() {
        let poller = Poller::new().unwrap();
        let (from, _source) = nonblocking_pair();
        let (read, to) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        let mut flow = flow(&poller, from, to);
        drop(read);
        run(&poller, &mut flow);
    }

    #[test]
    fn closing_delivers_what_has_arrived() {
        let poller = Poller::new().unwrap();
        let (from, mut source) = nonblocking_pair();
        let (to, mut sink) = nonblocking_pair();
        let mut flow = flow(&poller, from, to);
        source.write_all(b"last words").unwrap();
        assert_eq!(flow.close(&mut [0; CHUNK]), Progress::Ended);
        drop(flow);
        let mut heard = String::new();
        sink.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "last words");
    }
}
