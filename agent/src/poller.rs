//! The one place where the agent waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// What an event is about. Numbers are never used twice, so an event that was already fetched when its subject went
/// away finds nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Somebody connects to the service's port.
    Calls,
    /// Somebody connects to the stdio port.
    Streams,
    /// A child has changed its state.
    Children,
    /// A device has.
    Devices,
    /// A connection to the service.
    Connection(u64),
    /// A stdio connection whose token is not complete.
    Newcomer(u64),
    /// The end from which a flow reads.
    FlowFrom(u64),
    /// The end to which a flow writes.
    FlowTo(u64),
    /// The channel to a process that is being built.
    Channel(u64),
    /// A container's memory.events.
    Memory(u64),
    /// A container's cgroup.events.
    Cgroup(u64),
}

const NUMBER_BITS: u32 = 56;

impl Source {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Self::Calls => (0, 0),
            Self::Streams => (1, 0),
            Self::Children => (2, 0),
            Self::Devices => (3, 0),
            Self::Connection(number) => (4, number),
            Self::Newcomer(number) => (5, number),
            Self::FlowFrom(number) => (6, number),
            Self::FlowTo(number) => (7, number),
            Self::Channel(number) => (8, number),
            Self::Memory(number) => (9, number),
            Self::Cgroup(number) => (10, number),
        };
        kind << NUMBER_BITS | number
    }

    fn decode(data: u64) -> Option<Self> {
        let number = data & ((1 << NUMBER_BITS) - 1);
        Some(match data >> NUMBER_BITS {
            0 => Self::Calls,
            1 => Self::Streams,
            2 => Self::Children,
            3 => Self::Devices,
            4 => Self::Connection(number),
            5 => Self::Newcomer(number),
            6 => Self::FlowFrom(number),
            7 => Self::FlowTo(number),
            8 => Self::Channel(number),
            9 => Self::Memory(number),
            10 => Self::Cgroup(number),
            _ => return None,
        })
    }
}

/// Watches descriptors.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: Rc<Epoll>,
    next: u64,
}

impl Poller {
    pub(crate) fn new() -> nix::Result<Self> {
        Ok(Self {
            epoll: Rc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?),
            next: 1,
        })
    }

    /// A number that was not used before.
    pub(crate) fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Watches a descriptor for as long as the result lives.
    pub(crate) fn watch(&self, fd: OwnedFd, source: Source, interest: EpollFlags) -> nix::Result<Watch> {
        self.epoll.add(&fd, EpollEvent::new(interest, source.encode()))?;
        Ok(Watch {
            epoll: Rc::clone(&self.epoll),
            fd,
            source,
            interest,
        })
    }

    /// Waits for events, until `deadline` at the latest.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> nix::Result<Vec<(Source, EpollFlags)>> {
        let timeout = match deadline {
            None => EpollTimeout::NONE,
            Some(deadline) => {
                // Rounded up, or the last millisecond would be spent in a busy loop.
                let left = deadline
                    .saturating_duration_since(Instant::now())
                    .as_micros()
                    .div_ceil(1000);
                EpollTimeout::try_from(i32::try_from(left).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::ZERO)
            }
        };
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(error),
        };
        Ok(events[..count]
            .iter()
            .filter_map(|event| Some((Source::decode(event.data())?, event.events())))
            .collect())
    }
}

/// A descriptor that is watched.
#[derive(Debug)]
pub(crate) struct Watch {
    epoll: Rc<Epoll>,
    fd: OwnedFd,
    source: Source,
    interest: EpollFlags,
}

impl Watch {
    /// Waits for something else from now on, or again where the last event was the only one asked for.
    pub(crate) fn rearm(&mut self, interest: EpollFlags) -> nix::Result<()> {
        self.interest = interest;
        self.epoll
            .modify(&self.fd, &mut EpollEvent::new(interest, self.source.encode()))
    }

    /// What is waited for.
    pub(crate) fn interest(&self) -> EpollFlags {
        self.interest
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Closing is not enough: a child that was forked a moment ago may still hold the description.
        let _ = self.epoll.delete(&self.fd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_their_encoding() {
        let number = (1 << NUMBER_BITS) - 1;
        for source in [
            Source::Calls,
            Source::Streams,
            Source::Children,
            Source::Devices,
            Source::Connection(number),
            Source::Newcomer(1),
            Source::FlowFrom(2),
            Source::FlowTo(number),
            Source::Channel(3),
            Source::Memory(4),
            Source::Cgroup(5),
        ] {
            assert_eq!(Source::decode(source.encode()), Some(source));
        }
        assert_eq!(Source::decode(u64::MAX), None);
    }

    #[test]
    fn a_watch_that_is_gone_reports_nothing() {
        let poller = Poller::new().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let copy = read.try_clone().unwrap();
        let watch = poller.watch(read, Source::Newcomer(9), EpollFlags::EPOLLIN).unwrap();
        nix::unistd::write(&write, b"x").unwrap();
        assert_eq!(poller.wait(None).unwrap(), [(Source::Newcomer(9), EpollFlags::EPOLLIN)]);
        drop(watch);
        assert_eq!(poller.wait(Some(Instant::now())).unwrap(), []);
        drop(copy);
    }
}
