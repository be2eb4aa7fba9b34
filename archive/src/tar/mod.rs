//! Archives as tar(5), ustar (POSIX.1-1988), pax (POSIX.1-2001) and GNU tar write them, read once from start to end.
//!
//! [`Reader::next`] gives one [`Member`] after the other, with all that extension headers say of it: long names,
//! large numbers, extended attributes (`SCHILY.xattr.*`), maps of sparse files (GNU's old format and all three of the
//! pax formats). A reader keeps no more of an archive in memory than one member's headers, which are limited.

mod header;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;
mod write;

use std::io::{self, Read};

use thiserror::Error;

use header::Header;
pub use header::Type;
use pax::Records;
pub use sparse::Segment;
pub use write::Writer;

/// Bytes in a record, the unit of the format.
pub const RECORD: usize = 512;
/// The longest extension header that is read, in bytes; the same as other readers take.
const MAX_EXTENSION: u64 = 1 << 20;

/// Why an archive cannot be read.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum TarError {
    #[error(transparent)]
    Read(io::Error),
    #[error("the archive ends within a member")]
    Truncated,
    #[error("at byte {0} there is no header: its checksum is wrong")]
    Checksum(u64),
    #[error("the {field} of the member at byte {at} is not a number")]
    Number { field: &'static str, at: u64 },
    #[error("the extension header at byte {at} is {size} bytes long; at most {MAX_EXTENSION} are possible")]
    LongExtension { at: u64, size: u64 },
    #[error("the extension header at byte {0} cannot be understood")]
    Extension(u64),
    #[error("the extension header at byte {0} belongs to no member")]
    Orphan(u64),
    #[error("the map of the sparse file at byte {0} makes no sense")]
    Sparse(u64),
    #[error("the member at byte {at} is of the unknown type {flag:?}")]
    Type { at: u64, flag: char },
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Truncated
        } else {
            Self::Read(error)
        }
    }
}

/// A member of an archive, without its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name as it stands in the archive.
    pub path: Vec<u8>,
    /// Where a link leads, as it stands in the archive.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Type,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Time of modification, seconds since the epoch.
    pub mtime: i64,
    /// And nanoseconds.
    pub mtime_ns: u32,
    /// A device's major number.
    pub major: u32,
    /// A device's minor number.
    pub minor: u32,
    /// A file's length in bytes, holes included.
    pub size: u64,
    /// Extended attributes by their full names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The parts of a sparse file that the archive holds, in order; the rest is zeros.
    pub sparse: Option<Vec<Segment>>,
}

/// An archive that is being read.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    /// Bytes that were taken from the source.
    position: u64,
    /// Bytes of the member's contents that are still to be read, and of what fills up its last record.
    remaining: u64,
    padding: u64,
}

/// What extension headers have said of the member that follows them.
#[derive(Debug, Default)]
struct Extensions {
    pax: Records,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// An archive's reader.
    pub fn new(source: R) -> Self {
        Self {
            source,
            position: 0,
            remaining: 0,
            padding: 0,
        }
    }

    /// Gives the source back: at the archive's end there may be more in it.
    pub fn into_source(self) -> R {
        self.source
    }

    /// How many bytes of the archive were read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next member; what was not read of the last one's contents is passed over.
    ///
    /// # Errors
    /// What is wrong with the archive, or why it cannot be read.
    #[allow(clippy::should_implement_trait, reason = "members are not independent of the reader")]
    pub fn next(&mut self) -> Result<Option<Member>, TarError> {
        let mut extensions = Extensions::default();
        let mut extended = false;
        loop {
            self.skip_contents()?;
            let at = self.position;
            let Some(header) = self.header()? else {
                return if extended { Err(TarError::Orphan(at)) } else { Ok(None) };
            };
            match header.flag() {
                b'x' | b'X' => {
                    extensions.pax = Records::parse(&self.extension(&header, at)?).ok_or(TarError::Extension(at))?
                }
                // What holds for the whole archive is a comment in practice; other readers of layers pass over it too.
                b'g' => {
                    self.extension(&header, at)?;
                    continue;
                }
                b'L' => extensions.path = Some(text(self.extension(&header, at)?)),
                b'K' => extensions.link = Some(text(self.extension(&header, at)?)),
                _ => return self.member(&header, extensions, at).map(Some),
            }
            extended = true;
        }
    }

    fn member(&mut self, header: &Header, extensions: Extensions, at: u64) -> Result<Member, TarError> {
        let Extensions { mut pax, path, link } = extensions;
        let number = |field| move || TarError::Number { field, at };
        let path = pax
            .sparse
            .name
            .take()
            .or(pax.path.take())
            .or(path)
            .unwrap_or_else(|| header.path());
        let kind = header.kind(&path).ok_or(TarError::Type {
            at,
            flag: char::from(header.flag()),
        })?;
        let stored = match pax.size {
            Some(size) => size,
            None => header.size().ok_or_else(number("size"))?,
        };
        // Whatever else their headers say, these have no contents.
        let has_contents = matches!(kind, Type::File);
        self.remaining = if has_contents { stored } else { 0 };
        self.padding = padding(self.remaining);
        let (sparse, size) = if has_contents {
            self.sparse(header, &pax, at)?
        } else {
            (None, 0)
        };
        let (mtime, mtime_ns) = match pax.mtime {
            Some(time) => time,
            None => (header.mtime().ok_or_else(number("time of modification"))?, 0),
        };
        let device = matches!(kind, Type::CharDevice | Type::BlockDevice);
        let device = |value: Option<u32>, field| match device {
            true => value.ok_or_else(number(field)),
            false => Ok(0),
        };
        Ok(Member {
            path,
            link: pax.link.take().or(link).unwrap_or_else(|| header.link()),
            kind,
            mode: header.mode().ok_or_else(number("mode"))?,
            uid: pax.uid.or_else(|| header.uid()).ok_or_else(number("owner"))?,
            gid: pax.gid.or_else(|| header.gid()).ok_or_else(number("group"))?,
            mtime,
            mtime_ns,
            major: device(header.major(), "major number")?,
            minor: device(header.minor(), "minor number")?,
            size,
            xattrs: pax.xattrs,
            sparse,
        })
    }

    /// A file's map, if it is sparse, and its length.
    fn sparse(&mut self, header: &Header, pax: &Records, at: u64) -> Result<(Option<Vec<Segment>>, u64), TarError> {
        let wrong = || TarError::Sparse(at);
        let (map, size) = if header.flag() == b'S' {
            let size = header.sparse_size().ok_or_else(wrong)?;
            let (mut map, mut more) = header.sparse_map().ok_or_else(wrong)?;
            while more {
                let block = self.record()?.ok_or(TarError::Truncated)?;
                more = sparse::extend(&mut map, &block).ok_or_else(wrong)?;
            }
            (map, size)
        } else if pax.sparse.is_1_0() {
            let size = pax.sparse.size.ok_or_else(wrong)?;
            (self.sparse_map_in_contents(at)?, size)
        } else if let (Some(map), Some(size)) = (&pax.sparse.map, pax.sparse.size) {
            (map.clone(), size)
        } else {
            return Ok((None, self.remaining));
        };
        sparse::check(&map, size, self.remaining).ok_or_else(wrong)?;
        Ok((Some(map), size))
    }

    /// The map of the pax format 1.0: decimal numbers, a line each, at the beginning of the contents.
    fn sparse_map_in_contents(&mut self, at: u64) -> Result<Vec<Segment>, TarError> {
        let wrong = || TarError::Sparse(at);
        let mut parser = sparse::Decimal::default();
        let mut block = [0; RECORD];
        while !parser.is_complete() {
            if self.remaining < RECORD as u64 {
                return Err(wrong());
            }
            self.read_exact(&mut block)?;
            parser.feed(&block).ok_or_else(wrong)?;
        }
        Ok(parser.into_map())
    }

    /// The contents of an extension header.
    fn extension(&mut self, header: &Header, at: u64) -> Result<Vec<u8>, TarError> {
        let size = header.size().ok_or(TarError::Number { field: "size", at })?;
        if size > MAX_EXTENSION {
            return Err(TarError::LongExtension { at, size });
        }
        self.remaining = size;
        self.padding = padding(size);
        let mut contents = Vec::new();
        self.read_to_end(&mut contents)?;
        Ok(contents)
    }

    /// The next header; none at the archive's end, which is a record of zeros, or the source's end.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let at = self.position;
        match self.record()? {
            Some(record) if record.iter().all(|byte| *byte == 0) => Ok(None),
            Some(record) => Header::new(record).map(Some).ok_or(TarError::Checksum(at)),
            None => Ok(None),
        }
    }

    /// The next record; none if the source ends before it.
    fn record(&mut self) -> Result<Option<[u8; RECORD]>, TarError> {
        let mut record = [0; RECORD];
        let mut filled = 0;
        while filled < RECORD {
            match self.source.read(&mut record[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position += RECORD as u64;
        Ok(Some(record))
    }

    fn skip_contents(&mut self) -> Result<(), TarError> {
        let rest = self.remaining.saturating_add(self.padding);
        (self.remaining, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.source.by_ref().take(rest), &mut io::sink())?;
        self.position += skipped;
        if skipped < rest {
            return Err(TarError::Truncated);
        }
        Ok(())
    }
}

/// Reads the contents of the member that was given last: of a sparse file, its segments one behind the other.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.source.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        self.remaining -= count as u64;
        Ok(count)
    }
}

/// What fills up the last record of so many bytes.
fn padding(size: u64) -> u64 {
    let record = RECORD as u64;
    (record - size % record) % record
}

/// What stands before the first zero byte.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}
