//! A file that is written block after block, with holes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use crate::entry::BLOCK;

/// How much is gathered before it is written, in bytes.
const BUFFER: usize = 1 << 20;

/// Appends to a file; gaps become holes.
#[derive(Debug)]
pub(crate) struct BlockWriter<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Where the buffer's first byte goes.
    start: u64,
}

impl<'a> BlockWriter<'a> {
    /// Writes from the beginning of an empty file on.
    pub(crate) fn new(file: &'a File) -> Self {
        Self {
            file,
            buffer: Vec::with_capacity(BUFFER),
            start: 0,
        }
    }

    /// Where the next byte goes.
    pub(crate) fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// The block at a position that is a block's start; none beyond what EROFS can address.
    pub(crate) fn block(&self) -> Option<u32> {
        // The last number means a hole.
        u32::try_from(self.position() / BLOCK)
            .ok()
            .filter(|block| *block < u32::MAX)
    }

    /// Leaves a gap up to `position`, which must not lie before what is there.
    pub(crate) fn skip_to(&mut self, position: u64) -> io::Result<()> {
        let gap = position - self.position();
        if gap >= BLOCK {
            self.write_out()?;
            self.start = position;
        } else {
            // A gap shorter than a block is no hole in any file system.
            self.buffer
                .extend(std::iter::repeat_n(0, usize::try_from(gap).unwrap_or(0)));
        }
        Ok(())
    }

    /// Writes into what was left free at the beginning.
    pub(crate) fn patch(&mut self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.write_out()?;
        self.file.write_all_at(bytes, position)
    }

    /// Fills the last block up.
    pub(crate) fn pad(&mut self) -> io::Result<()> {
        self.skip_to(self.position().next_multiple_of(BLOCK))
    }

    /// Copies as many bytes; an error if the source has fewer.
    pub(crate) fn copy(&mut self, source: &mut impl Read, length: u64) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.buffer.len() >= BUFFER {
                self.write_out()?;
            }
            let room = BUFFER.saturating_sub(self.buffer.len()).max(1) as u64;
            let part = left.min(room);
            let filled = self.buffer.len();
            let read = source.by_ref().take(part).read_to_end(&mut self.buffer);
            let count = (self.buffer.len() - filled) as u64;
            read?;
            if count < part {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= count;
        }
        Ok(())
    }

    /// Writes everything and gives the file its length.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        self.write_out()?;
        self.file.set_len(self.start)?;
        Ok(self.start)
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.start)?;
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Write for BlockWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.write_out()?;
        }
        if bytes.len() >= BUFFER {
            self.file.write_all_at(bytes, self.start)?;
            self.start += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_out()
    }
}
