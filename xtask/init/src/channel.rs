//! The framed channel between `cargo xtask host` and the emulated host, over one virtio-serial port.
//!
//! A frame is a type (1 byte), a length (4 bytes, little endian) and that many bytes. One port carries stdin, stdout,
//! stderr, window sizes, signals and the exit code, so that nothing overtakes what was sent before it.
//!
//! Each of the three streams has its own window: a sender may have at most [`WINDOW`] bytes on the way, and the receiver
//! gives [`Frame::Credit`] for what it has passed on. A reader that does not read therefore stops its own stream and
//! nothing else: stderr still flows while stdout is blocked, and a signal reaches a process that never reads its stdin.

mod start;
#[cfg(test)]
mod tests;

use std::fmt;

pub use start::{Share, Start, WindowSize};

/// Bytes of one stream that may be on the way without credit from the receiver.
pub const WINDOW: usize = 256 * 1024;

/// Longest piece of a stream in one frame, in bytes: what the kernel's virtio-serial driver takes in one write.
pub const CHUNK: usize = 32 * 1024;

/// Longest payload of any frame, in bytes. [`Frame::Start`] holds a whole environment, which Linux limits to a few MiB.
pub const MAX_PAYLOAD: usize = 8 * 1024 * 1024;

const HEADER: usize = 5;

/// A stream of the command's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Towards the emulated host.
    Stdin,
    /// From the emulated host.
    Stdout,
    /// From the emulated host.
    Stderr,
}

/// One message of the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// To the host: what to assemble and to run. The first frame, sent once.
    Start(Start),
    /// Bytes of a stream, at most [`CHUNK`].
    Data(Stream, Vec<u8>),
    /// To the host: stdin has ended. To xtask: never.
    EndOfInput,
    /// The receiver of a stream has passed on that many bytes.
    Credit(Stream, u32),
    /// To the host: nobody reads this output any more, close it under the command.
    Close(Stream),
    /// To the host: the caller's terminal has this size.
    Resize(WindowSize),
    /// To the host: this signal is for the command.
    Signal(i32),
    /// To xtask: the kernel is up and the first process runs.
    Booted,
    /// To xtask: the machine is assembled and the command runs.
    Started,
    /// To xtask: the command ended with this exit code (128 + n for signal n). Nothing follows.
    Exit(i32),
    /// To xtask: the machine could not be assembled or the command not be started, and why. Nothing follows.
    Failed(String),
}

/// The peer sent what is no frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelError {
    /// No frame has this type.
    UnknownType(u8),
    /// The frame of this type announces more than [`MAX_PAYLOAD`] bytes.
    TooLong {
        /// The frame's type.
        kind: u8,
        /// The announced length in bytes.
        length: u32,
    },
    /// The payload of a frame of this type does not have the type's form.
    BadPayload(u8),
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(kind) => write!(f, "frame of unknown type {kind}"),
            Self::TooLong { kind, length } => write!(f, "frame of type {kind} announces {length} bytes"),
            Self::BadPayload(kind) => write!(f, "malformed payload in a frame of type {kind}"),
        }
    }
}

impl std::error::Error for ChannelError {}

const START: u8 = 1;
const STDIN: u8 = 2;
const STDOUT: u8 = 3;
const STDERR: u8 = 4;
const END_OF_INPUT: u8 = 5;
const CREDIT: u8 = 6;
const CLOSE: u8 = 7;
const RESIZE: u8 = 8;
const SIGNAL: u8 = 9;
const BOOTED: u8 = 10;
const EXIT: u8 = 11;
const FAILED: u8 = 12;
const STARTED: u8 = 13;

impl Stream {
    fn kind(self) -> u8 {
        match self {
            Self::Stdin => STDIN,
            Self::Stdout => STDOUT,
            Self::Stderr => STDERR,
        }
    }

    fn of_kind(kind: u8) -> Option<Self> {
        match kind {
            STDIN => Some(Self::Stdin),
            STDOUT => Some(Self::Stdout),
            STDERR => Some(Self::Stderr),
            _ => None,
        }
    }
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let header = out.len();
        out.extend([self.kind(), 0, 0, 0, 0]);
        match self {
            Self::Start(start) => start.encode(out),
            Self::Data(_, bytes) => out.extend(bytes),
            Self::Credit(stream, bytes) => {
                out.push(stream.kind());
                out.extend(bytes.to_le_bytes());
            }
            Self::Close(stream) => out.push(stream.kind()),
            Self::Resize(size) => size.encode(out),
            Self::Signal(number) | Self::Exit(number) => out.extend(number.to_le_bytes()),
            Self::Failed(reason) => out.extend(reason.as_bytes()),
            Self::EndOfInput | Self::Booted | Self::Started => {}
        }
        // A frame above MAX_PAYLOAD is refused by the receiver, whose error names the length.
        let length = u32::try_from(out.len() - header - HEADER).unwrap_or(u32::MAX);
        out[header + 1..header + HEADER].copy_from_slice(&length.to_le_bytes());
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Start(_) => START,
            Self::Data(stream, _) => stream.kind(),
            Self::EndOfInput => END_OF_INPUT,
            Self::Credit(..) => CREDIT,
            Self::Close(_) => CLOSE,
            Self::Resize(_) => RESIZE,
            Self::Signal(_) => SIGNAL,
            Self::Booted => BOOTED,
            Self::Started => STARTED,
            Self::Exit(_) => EXIT,
            Self::Failed(_) => FAILED,
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, ChannelError> {
        let bad = || ChannelError::BadPayload(kind);
        let number = || payload.try_into().map(i32::from_le_bytes).map_err(|_| bad());
        Ok(match kind {
            START => Self::Start(Start::decode(payload).ok_or_else(bad)?),
            END_OF_INPUT if payload.is_empty() => Self::EndOfInput,
            BOOTED if payload.is_empty() => Self::Booted,
            STARTED if payload.is_empty() => Self::Started,
            END_OF_INPUT | BOOTED | STARTED => return Err(bad()),
            CREDIT => {
                let [stream, bytes @ ..] = payload else {
                    return Err(bad());
                };
                let stream = Stream::of_kind(*stream).ok_or_else(bad)?;
                Self::Credit(stream, u32::from_le_bytes(bytes.try_into().map_err(|_| bad())?))
            }
            CLOSE => match payload {
                [stream] => Self::Close(Stream::of_kind(*stream).ok_or_else(bad)?),
                _ => return Err(bad()),
            },
            RESIZE => Self::Resize(WindowSize::decode(payload).ok_or_else(bad)?),
            SIGNAL => Self::Signal(number()?),
            EXIT => Self::Exit(number()?),
            FAILED => Self::Failed(String::from_utf8_lossy(payload).into_owned()),
            _ => match Stream::of_kind(kind) {
                Some(_) if payload.len() > CHUNK => return Err(bad()),
                Some(stream) => Self::Data(stream, payload.to_vec()),
                None => return Err(ChannelError::UnknownType(kind)),
            },
        })
    }
}

/// Puts the bytes that arrive together to frames.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    taken: usize,
}

impl Decoder {
    /// Adds bytes as they came from the port.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend(bytes);
    }

    /// The next complete frame, `None` when more bytes are needed.
    ///
    /// # Errors
    /// The bytes are no frame. The channel is of no use after that.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ChannelError> {
        let rest = &self.bytes[self.taken..];
        let Some(([kind, length @ ..], rest)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length);
        let size = length as usize;
        if size > MAX_PAYLOAD {
            return Err(ChannelError::TooLong { kind: *kind, length });
        }
        let Some(payload) = rest.get(..size) else {
            return Ok(None);
        };
        let frame = Frame::decode(*kind, payload)?;
        self.taken += HEADER + size;
        Ok(Some(frame))
    }
}
