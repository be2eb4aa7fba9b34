//! The ways to a machine that any process of its user can take: the sockets in its run directory.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use husk_vmm_config::{MAX_MESSAGE, Request, Response, Status};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use thiserror::Error;

use crate::rundir::{self, short_path};

/// The longest answer to `CONNECT`.
const MAX_ANSWER: usize = 32;

/// An open run directory, through which its machine is reached.
#[derive(Debug)]
pub struct Link {
    dir: OwnedFd,
    patience: Duration,
}

/// Why a machine does not answer.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum LinkError {
    #[error("the machine has ended")]
    Ended,
    #[error("the machine does not answer on its {socket} socket")]
    Socket {
        socket: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the guest refuses connections to its port {0}")]
    Refused(u32),
    #[error("the sandbox has no console; start it with husk run --console")]
    NoConsole,
    #[error("the machine refuses: {0}")]
    Request(String),
    #[error("the machine's answer cannot be understood; do husk and husk-vmm belong together?")]
    Answer,
}

fn failed(socket: &'static str) -> impl Fn(io::Error) -> LinkError {
    move |source| match source.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => LinkError::Ended,
        _ => LinkError::Socket { socket, source },
    }
}

impl Link {
    /// The way through a run directory; no answer is waited for longer than `patience`.
    #[must_use]
    pub fn new(dir: OwnedFd, patience: Duration) -> Self {
        Self { dir, patience }
    }

    /// How long answers are waited for.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Connects to a vsock port of the guest.
    ///
    /// # Errors
    /// The machine has ended or does not answer; the guest does not listen.
    pub fn connect(&self, port: u32) -> Result<UnixStream, LinkError> {
        let failed = failed("vsock");
        let mut stream = UnixStream::connect(short_path(&self.dir, rundir::VSOCK)).map_err(&failed)?;
        stream.set_read_timeout(Some(self.patience)).map_err(&failed)?;
        stream.set_write_timeout(Some(self.patience)).map_err(&failed)?;
        stream
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .map_err(&failed)?;
        let answer = read_line(&mut stream).map_err(&failed)?;
        if answer.is_empty() {
            return Err(LinkError::Refused(port));
        }
        if !answer.starts_with(b"OK ") {
            return Err(LinkError::Answer);
        }
        stream.set_read_timeout(None).map_err(&failed)?;
        stream.set_write_timeout(None).map_err(&failed)?;
        Ok(stream)
    }

    /// Connects to the guest's console.
    ///
    /// # Errors
    /// There is none, or the machine has ended.
    pub fn console(&self) -> Result<UnixStream, LinkError> {
        UnixStream::connect(short_path(&self.dir, rundir::CONSOLE)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => LinkError::NoConsole,
            _ => failed("console")(source),
        })
    }

    /// Asks the machine for something; files go with the request.
    ///
    /// # Errors
    /// The machine has ended, does not answer, or refuses.
    pub fn request(&self, request: &Request, files: &[BorrowedFd<'_>]) -> Result<Response, LinkError> {
        let exchange = || -> Result<Vec<u8>, io::Error> {
            let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
            let patience = TimeVal::milliseconds(i64::try_from(self.patience.as_millis()).unwrap_or(i64::MAX));
            setsockopt(&socket, ReceiveTimeout, &patience)?;
            setsockopt(&socket, SendTimeout, &patience)?;
            connect(
                socket.as_raw_fd(),
                &UnixAddr::new(&short_path(&self.dir, rundir::CONTROL))?,
            )?;
            let text = serde_json::to_vec(request)?;
            let files: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&files)];
            let rights = if files.is_empty() { &[][..] } else { &rights[..] };
            let flags = MsgFlags::MSG_NOSIGNAL;
            sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&text)], rights, flags, None)?;
            let mut answer = vec![0; MAX_MESSAGE];
            let length = receive(&socket, &mut answer)?;
            answer.truncate(length);
            Ok(answer)
        };
        let answer = exchange().map_err(failed("control"))?;
        if answer.is_empty() {
            return Err(LinkError::Ended);
        }
        match serde_json::from_slice(&answer) {
            Ok(Response::Refused { reason }) => Err(LinkError::Request(reason)),
            Ok(response) => Ok(response),
            Err(_) => Err(LinkError::Answer),
        }
    }

    /// The machine's state, exits and phases.
    ///
    /// # Errors
    /// As [`Link::request`].
    pub fn status(&self) -> Result<Status, LinkError> {
        match self.request(&Request::Status, &[])? {
            Response::Status(status) => Ok(status),
            _ => Err(LinkError::Answer),
        }
    }

    /// Puts an image into an empty disk slot: the files one behind the other.
    ///
    /// # Errors
    /// As [`Link::request`].
    pub fn attach(&self, disk: &str, files: &[impl AsFd]) -> Result<(), LinkError> {
        let request = Request::Attach { disk: disk.into() };
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        self.request(&request, &files).map(drop)
    }
}

fn receive(socket: &OwnedFd, answer: &mut [u8]) -> nix::Result<usize> {
    loop {
        match recv(socket.as_raw_fd(), answer, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Reads up to a line's end, byte for byte: what follows belongs to the stream. Empty if the stream ends.
fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MAX_ANSWER {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(Vec::new()),
            Ok(_) if byte == *b"\n" => break,
            Ok(_) => line.extend_from_slice(&byte),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(line)
}
