//! The thread that controls the machine: it waits for its end, its owner's end, and requests.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use husk_devices::system_calls::SystemCall;
use husk_vmm_config::{End, MAX_MESSAGE, MAX_PARTS, Request, Response};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockFlag, accept4, recvmsg, send};
use thiserror::Error;

use crate::ending::{Ending, chain};
use crate::machine::Machine;

/// What the control loop asks of the host's kernel, beside what it takes to put files into disk slots and to pause devices.
pub const SYSTEM_CALLS: &[SystemCall] = &[
    // Which of the two waits is up to the C library.
    #[cfg(target_arch = "x86_64")]
    SystemCall::any(libc::SYS_epoll_wait),
    SystemCall::any(libc::SYS_epoll_pwait),
    SystemCall::any(libc::SYS_epoll_ctl),
    SystemCall::any(libc::SYS_accept4),
    SystemCall::any(libc::SYS_recvmsg),
    SystemCall::any(libc::SYS_sendto),
];

/// Clients that are served at the same time; one more is hung up on.
const MAX_CLIENTS: usize = 16;
const ENDING: u64 = 0;
const LIFELINE: u64 = 1;
const LISTENER: u64 = 2;
/// The first client's token; the others follow.
const CLIENT: u64 = 3;

/// Why the machine cannot be controlled.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ControlError {
    #[error("the control loop cannot watch the {what}")]
    Watch { what: &'static str, source: io::Error },
    #[error("the control loop cannot wait")]
    Wait(#[source] io::Error),
}

/// The control loop with its clients.
#[derive(Debug)]
pub struct Control {
    epoll: Epoll,
    listener: OwnedFd,
    _lifeline: OwnedFd,
    clients: [Option<OwnedFd>; MAX_CLIENTS],
}

impl Control {
    /// Prepares the loop.
    ///
    /// # Errors
    /// A descriptor that cannot be waited for.
    pub fn new(listener: OwnedFd, lifeline: OwnedFd, ending: &Ending) -> Result<Self, ControlError> {
        let failed = |what| {
            move |errno: Errno| ControlError::Watch {
                what,
                source: errno.into(),
            }
        };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("machine"))?;
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll.add(ending, readable(ENDING)).map_err(failed("machine's end"))?;
        // Only the hang-up counts, whatever the owner may write.
        let hang_up = EpollEvent::new(EpollFlags::EPOLLRDHUP, LIFELINE);
        epoll.add(&lifeline, hang_up).map_err(failed("lifeline"))?;
        epoll.add(&listener, readable(LISTENER)).map_err(failed("listener"))?;
        Ok(Self {
            epoll,
            listener,
            _lifeline: lifeline,
            clients: Default::default(),
        })
    }

    /// Serves requests until the machine ends or its owner is gone.
    ///
    /// # Errors
    /// The loop itself fails.
    pub fn run(&mut self, machine: &mut Machine, ending: &Ending) -> Result<(), ControlError> {
        let mut events = [EpollEvent::empty(); 8];
        while !ending.is_over() {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(ControlError::Wait(errno.into())),
            };
            for event in events.iter().take(count) {
                match event.data() {
                    ENDING => {}
                    LIFELINE => ending.end(End::OwnerGone),
                    LISTENER => self.accept(),
                    token => self.serve(token, machine, ending),
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let client = match accept4(self.listener.as_raw_fd(), flags) {
            // SAFETY: the descriptor was just made for us.
            #[allow(unsafe_code)]
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => return,
            Err(errno) => {
                // The connection would stay in the queue, and the loop would come here again and again.
                tracing::error!(%errno, "a control connection cannot be accepted; there will be no new ones");
                let _ = self.epoll.delete(&self.listener);
                return;
            }
        };
        if self.clients.iter().all(Option::is_some) {
            self.forget_the_gone();
        }
        let Some((token, slot)) = (CLIENT..).zip(&mut self.clients).find(|(_, slot)| slot.is_none()) else {
            tracing::warn!("more than {MAX_CLIENTS} control connections: the newest is closed");
            return;
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        match self.epoll.add(&client, event) {
            Ok(()) => *slot = Some(client),
            Err(errno) => tracing::warn!(%errno, "a control connection cannot be watched"),
        }
    }

    /// Makes room: clients may have hung up, which the loop has not come to yet.
    fn forget_the_gone(&mut self) {
        for slot in &mut self.clients {
            let is_gone = |client: &OwnedFd| {
                let (mut byte, flags) = ([0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
                let mut parts = [IoSliceMut::new(&mut byte)];
                // Nothing to look at is not the end.
                match recvmsg::<()>(client.as_raw_fd(), &mut parts, None, flags) {
                    Ok(message) => message.bytes == 0,
                    Err(errno) => !matches!(errno, Errno::EAGAIN | Errno::EINTR),
                }
            };
            if slot.as_ref().is_some_and(is_gone) {
                *slot = None;
            }
        }
    }

    /// Answers one request of a client. One that hangs up, or does not take its answer, is forgotten.
    fn serve(&mut self, token: u64, machine: &mut Machine, ending: &Ending) {
        let index = usize::try_from(token.saturating_sub(CLIENT)).unwrap_or(usize::MAX);
        let Some(slot) = self.clients.get_mut(index) else {
            return;
        };
        let Some(client) = slot.as_ref() else { return };
        let packet = match Packet::receive(client) {
            Ok(Some(packet)) => packet,
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Ok(None) | Err(_) => {
                *slot = None;
                return;
            }
        };
        let (response, stop) = answer(packet, machine);
        let text = serde_json::to_vec(&response).unwrap_or_default();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if let Err(errno) = send(client.as_raw_fd(), &text, flags) {
            tracing::debug!(%errno, "a control connection did not take its answer");
            *slot = None;
        }
        if stop {
            ending.end(End::Stopped);
        }
    }
}

/// A packet of a client.
struct Packet {
    /// The request; `None` if it was longer than allowed.
    text: Option<Vec<u8>>,
    /// The descriptors that came with it; `None` if they were more than allowed.
    descriptors: Option<Vec<OwnedFd>>,
}

impl Packet {
    /// Takes the next packet; `None` says that the client hung up.
    fn receive(client: &impl AsFd) -> Result<Option<Self>, Errno> {
        let mut text = vec![0; MAX_MESSAGE];
        let mut parts = [IoSliceMut::new(&mut text)];
        let mut space = nix::cmsg_space!([RawFd; MAX_PARTS]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(client.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                for fd in received {
                    // SAFETY: the kernel just made the descriptor for us.
                    #[allow(unsafe_code)]
                    descriptors.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
        let complete = !message.flags.contains(MsgFlags::MSG_CTRUNC);
        let length = message.bytes;
        if length == 0 {
            return Ok(None);
        }
        text.truncate(length);
        Ok(Some(Self {
            text: whole.then_some(text),
            descriptors: complete.then_some(descriptors),
        }))
    }
}

/// Carries out a request; the flag says that the machine is to end once the answer is sent.
fn answer(packet: Packet, machine: &mut Machine) -> (Response, bool) {
    let Some(text) = packet.text else {
        return (
            refused(format!("the request is longer than {MAX_MESSAGE} bytes")),
            false,
        );
    };
    let request = match serde_json::from_slice(&text) {
        Ok(request) => request,
        Err(error) => return (refused(format!("the request is not understood: {error}")), false),
    };
    tracing::debug!(?request, "control");
    let result = match request {
        Request::Status => return (Response::Status(machine.status()), false),
        Request::Stop => return (Response::Done, true),
        Request::Pause => machine.pause().map_err(|error| chain(&error)),
        Request::Resume => {
            machine.resume();
            Ok(())
        }
        Request::Kick => {
            machine.kick();
            Ok(())
        }
        Request::Attach { disk } => match packet.descriptors {
            Some(files) if files.is_empty() => Err("no descriptor came with the request".into()),
            Some(files) => machine
                .devices()
                .attach(&disk, files.into_iter().map(Into::into).collect())
                .map_err(|error| chain(&error)),
            None => Err(format!("more than {MAX_PARTS} descriptors came with the request")),
        },
        Request::Detach { disk } => machine.devices().detach(&disk).map_err(|error| chain(&error)),
    };
    match result {
        Ok(()) => (Response::Done, false),
        Err(reason) => (refused(reason), false),
    }
}

fn refused(reason: String) -> Response {
    Response::Refused { reason }
}
