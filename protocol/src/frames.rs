//! Frames on a connection that serves files: each is its length as a big-endian `u32` and so many bytes.
//!
//! A message is one frame. An archive is any number of frames, and an empty one ends it.

use std::io::{self, Read, Write};

use protobuf::Message;

/// The longest frame, in bytes.
pub const MAX_FRAME: usize = 64 << 10;

/// Sends a message.
///
/// # Errors
/// It is longer than a frame; what writing has met.
pub fn send(to: &mut impl Write, message: &impl Message) -> io::Result<()> {
    let bytes = message.write_to_bytes().map_err(io::Error::other)?;
    write_frame(to, &bytes)
}

/// Receives a message; none if the connection has ended before it.
///
/// # Errors
/// The frame is no such message; what reading has met.
pub fn receive<M: Message>(from: &mut impl Read) -> io::Result<Option<M>> {
    let Some(length) = read_length(from)? else {
        return Ok(None);
    };
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    M::parse_from_bytes(&bytes).map(Some).map_err(io::Error::other)
}

fn write_frame(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= MAX_FRAME);
    let length = length.ok_or(io::ErrorKind::InvalidInput)?;
    to.write_all(&length.to_be_bytes())?;
    to.write_all(bytes)
}

/// The next frame's length; none if there is none.
fn read_length(from: &mut impl Read) -> io::Result<Option<usize>> {
    let mut length = [0; 4];
    let first = loop {
        match from.read(&mut length[..1]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..])?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some(length))
}

/// Sends an archive.
#[derive(Debug)]
pub struct ArchiveWriter<W: Write> {
    to: W,
    frame: Vec<u8>,
}

impl<W: Write> ArchiveWriter<W> {
    /// A writer of one archive.
    pub fn new(to: W) -> Self {
        Self {
            to,
            frame: Vec::with_capacity(MAX_FRAME),
        }
    }

    /// Ends the archive, whole or not.
    ///
    /// # Errors
    /// What writing has met.
    pub fn end(mut self) -> io::Result<()> {
        self.flush()?;
        write_frame(&mut self.to, &[])
    }
}

impl<W: Write> Write for ArchiveWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.frame.len() == MAX_FRAME {
            self.flush()?;
        }
        let count = bytes.len().min(MAX_FRAME - self.frame.len());
        self.frame.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        // An empty frame would be the end.
        if !self.frame.is_empty() {
            write_frame(&mut self.to, &self.frame)?;
            self.frame.clear();
        }
        self.to.flush()
    }
}

/// Receives an archive.
#[derive(Debug)]
pub struct ArchiveReader<R: Read> {
    from: R,
    left: usize,
    is_over: bool,
}

impl<R: Read> ArchiveReader<R> {
    /// A reader of one archive.
    pub fn new(from: R) -> Self {
        Self {
            from,
            left: 0,
            is_over: false,
        }
    }

    /// Whether its end has been read.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Passes over what is left of the archive, so that what comes behind it can be read.
    ///
    /// # Errors
    /// What reading has met.
    pub fn end(mut self) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink()).map(drop)
    }
}

impl<R: Read> Read for ArchiveReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.is_over {
            return Ok(0);
        }
        if self.left == 0 {
            self.left = read_length(&mut self.from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            self.is_over = self.left == 0;
        }
        let most = self.left.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.from.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::FileRequest;

    #[test]
    fn messages_and_archives_take_turns() {
        let mut wire = Vec::new();
        let request = FileRequest {
            path: b"/etc".to_vec(),
            ..FileRequest::default()
        };
        let contents: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        send(&mut wire, &request).unwrap();
        let mut archive = ArchiveWriter::new(&mut wire);
        archive.write_all(&contents).unwrap();
        archive.end().unwrap();
        send(&mut wire, &request).unwrap();
        let mut rest = &wire[..];
        assert_eq!(receive::<FileRequest>(&mut rest).unwrap(), Some(request.clone()));
        let mut archive = ArchiveReader::new(&mut rest);
        let mut read = vec![0; 100_000];
        archive.read_exact(&mut read).unwrap();
        assert!(read == contents[..100_000]);
        archive.end().unwrap();
        assert_eq!(receive::<FileRequest>(&mut rest).unwrap(), Some(request));
        assert_eq!(receive::<FileRequest>(&mut rest).unwrap(), None);
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_an_error() {
        for wire in [&b"\0\0\0\x05ab"[..], b"\0\0", b"\xff\xff\xff\xff", b"\0\x01\0\x01"] {
            assert!(receive::<FileRequest>(&mut &wire[..]).is_err(), "{wire:?}");
            assert!(ArchiveReader::new(wire).end().is_err(), "{wire:?}");
        }
        assert!(ArchiveReader::new(&b""[..]).end().is_err(), "an archive has its end");
    }
}
