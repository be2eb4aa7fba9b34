//! Layer files: a layer's contents as blocks, and behind them what is where.
//!
//! ```text
//! ┌────────────────────┬──────────────────┬─────────┬────────┐
//! │ contents, a file   │ index: Vec<Entry>│ padding │ footer │
//! │ after the other,   │ (postcard)       │         │ 64     │
//! │ each in own blocks │                  │         │ bytes  │
//! └────────────────────┴──────────────────┴─────────┴────────┘
//! 0                    footer.index                           a multiple of the block size
//! ```
//!
//! The file is a part of the disks of all images that have the layer, so contents are not compressed and the host's
//! page cache holds each of them once for all guests.

mod file;
mod names;

use std::fs::File;
use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::blocks::BlockWriter;
use crate::entry::{BLOCK, Content, Data, Entry, Kind, Meta, Xattr};
use crate::limits::{Limits, MAX_NAME, MAX_PATH, MAX_XATTR, MAX_XATTRS};
use crate::tar::{Member, Reader, Segment, TarError, Type};
use file::{FOOTER, MAGIC};
pub use file::{LayerFileError, is_whole, read, read_index};
pub(crate) use names::clean;
use names::{Name, check_path, whiteout};

/// The most chunks of a sparse file; longer files have longer chunks.
const MAX_CHUNKS: u64 = 1 << 15;
/// The greatest numbers of devices (`MINORBITS` of Linux is 20).
const MAX_MAJOR: u32 = 0xfff;
const MAX_MINOR: u32 = 0xf_ffff;

/// Why a layer cannot be converted.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum LayerError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("{0:?} leads out of the image")]
    Escape(String),
    #[error("the hard link {path:?} leads out of the image, to {target:?}")]
    LinkEscape { path: String, target: String },
    #[error("the name {0:?} is not possible")]
    Name(String),
    #[error("{path:?} is {size} bytes long; at most {limit} are possible")]
    LongFile { path: String, size: u64, limit: u64 },
    #[error("it has more than {0} entries")]
    Entries(usize),
    #[error("its names and attributes take more than {0} bytes")]
    Metadata(usize),
    #[error("the extended attributes of {0:?} are too long")]
    Xattrs(String),
    #[error("the symbolic link {0:?} leads nowhere or is too long")]
    Symlink(String),
    #[error("the device {0:?} has a number that Linux does not know")]
    Device(String),
    #[error("it is longer than a disk can be")]
    Full,
    #[error("it cannot be written")]
    Write(#[source] io::Error),
}

/// Converts an uncompressed archive. It is read to its end, which may lie behind the archive's own.
///
/// # Errors
/// What is wrong with the archive, and what it must not hold.
pub fn convert(archive: impl Read, file: &File, limits: &Limits) -> Result<(), LayerError> {
    let mut reader = Reader::new(archive);
    let mut writer = LayerWriter::new(file, limits);
    while let Some(member) = reader.next()? {
        writer.member(&member, &mut reader)?;
    }
    io::copy(&mut reader.into_source(), &mut io::sink()).map_err(TarError::from)?;
    writer.finish()
}

/// A layer file that is being written.
pub(crate) struct LayerWriter<'a> {
    blocks: BlockWriter<'a>,
    entries: Vec<Entry>,
    limits: &'a Limits,
    /// Bytes that the entries take beside their contents.
    metadata: usize,
}

impl<'a> LayerWriter<'a> {
    pub(crate) fn new(file: &'a File, limits: &'a Limits) -> Self {
        Self {
            blocks: BlockWriter::new(file),
            entries: Vec::new(),
            limits,
            metadata: 0,
        }
    }

    /// The same with a block left free at the beginning, for a superblock.
    pub(crate) fn behind_superblock(file: &'a File, limits: &'a Limits) -> Result<Self, LayerError> {
        let mut writer = Self::new(file, limits);
        writer.blocks.skip_to(BLOCK).map_err(LayerError::Write)?;
        Ok(writer)
    }

    /// What was added, and the file behind the contents.
    pub(crate) fn into_parts(self) -> (Vec<Entry>, BlockWriter<'a>) {
        (self.entries, self.blocks)
    }

    /// Adds a member of an archive, whose contents come next from `contents`.
    fn member(&mut self, member: &Member, contents: &mut impl Read) -> Result<(), LayerError> {
        let path = clean(&member.path).ok_or_else(|| LayerError::Escape(lossy(&member.path)))?;
        check_path(&path)?;
        let (path, special) = match whiteout(&path)? {
            Name::Plain => (path, None),
            Name::Ignored => return Ok(()),
            Name::Opaque(directory) => (directory, Some(Kind::Opaque)),
            Name::Whiteout(hidden) => (hidden, Some(Kind::Whiteout)),
        };
        let kind = match special {
            Some(kind) => kind,
            None => self.kind(member, contents)?,
        };
        let meta = match kind {
            Kind::Link(_) | Kind::Whiteout | Kind::Opaque => Meta::default(),
            _ => meta(member),
        };
        self.add(Entry { path, kind, meta })
    }

    fn kind(&mut self, member: &Member, contents: &mut impl Read) -> Result<Kind, LayerError> {
        Ok(match member.kind {
            Type::Directory => Kind::Directory,
            Type::Fifo => Kind::Fifo,
            Type::CharDevice | Type::BlockDevice if member.major > MAX_MAJOR || member.minor > MAX_MINOR => {
                return Err(LayerError::Device(lossy(&member.path)));
            }
            Type::CharDevice | Type::BlockDevice => Kind::Device {
                block: member.kind == Type::BlockDevice,
                major: member.major,
                minor: member.minor,
            },
            Type::Symlink => {
                let target = &member.link;
                if target.is_empty() || target.len() > MAX_PATH {
                    return Err(LayerError::Symlink(lossy(&member.path)));
                }
                Kind::Symlink(target.clone())
            }
            Type::Link => Kind::Link(clean(&member.link).ok_or_else(|| LayerError::LinkEscape {
                path: lossy(&member.path),
                target: lossy(&member.link),
            })?),
            Type::File => {
                if member.size > self.limits.layer_bytes {
                    return Err(LayerError::LongFile {
                        path: lossy(&member.path),
                        size: member.size,
                        limit: self.limits.layer_bytes,
                    });
                }
                Kind::File(self.file(member.size, member.sparse.as_deref(), contents)?)
            }
        })
    }

    /// Adds an entry whose contents, if it has any, are there.
    pub(crate) fn add(&mut self, entry: Entry) -> Result<(), LayerError> {
        if self.entries.len() >= self.limits.entries {
            return Err(LayerError::Entries(self.limits.entries));
        }
        check_xattrs(&entry)?;
        let mut size = entry.path.len() + size_of::<Entry>();
        size += match &entry.kind {
            Kind::Symlink(target) | Kind::Link(target) => target.len(),
            Kind::File(Content {
                data: Data::Chunks { blocks, .. },
                ..
            }) => size_of_val(blocks.as_slice()),
            _ => 0,
        };
        size += entry
            .meta
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>();
        self.metadata += size;
        if self.metadata > self.limits.metadata_bytes {
            return Err(LayerError::Metadata(self.limits.metadata_bytes));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Writes a file's contents.
    pub(crate) fn file(
        &mut self,
        size: u64,
        sparse: Option<&[Segment]>,
        contents: &mut impl Read,
    ) -> Result<Content, LayerError> {
        let data = match sparse {
            Some(segments) if size > 0 => self.chunks(size, segments, contents)?,
            _ => {
                let first = self.blocks.block().ok_or(LayerError::Full)?;
                self.copy(contents, size)?;
                self.blocks.pad().map_err(LayerError::Write)?;
                Data::Plain(first)
            }
        };
        Ok(Content { size, data })
    }

    /// Writes the chunks of a sparse file in which its segments are.
    fn chunks(&mut self, size: u64, segments: &[Segment], contents: &mut impl Read) -> Result<Data, LayerError> {
        let bits = (0..32)
            .find(|bits| size.div_ceil(BLOCK << bits) <= MAX_CHUNKS)
            .ok_or(LayerError::Full)?;
        let length = BLOCK << bits;
        let count = usize::try_from(size.div_ceil(length)).map_err(|_| LayerError::Full)?;
        let mut blocks = vec![None; count];
        // Where the last chunk begins and ends in the layer file.
        let mut chunk = (0, self.blocks.position());
        for segment in segments {
            let (mut offset, end) = (segment.offset, segment.offset + segment.length);
            while offset < end {
                let index = offset / length;
                let place = usize::try_from(index).ok().and_then(|index| blocks.get_mut(index));
                let place = place.ok_or(LayerError::Full)?;
                if place.is_none() {
                    self.blocks.skip_to(chunk.1).map_err(LayerError::Write)?;
                    let rest = (size - index * length).next_multiple_of(BLOCK);
                    chunk = (chunk.1, chunk.1 + rest.min(length));
                    *place = Some(self.blocks.block().ok_or(LayerError::Full)?);
                }
                let part = (end - offset).min(length - offset % length);
                self.blocks
                    .skip_to(chunk.0 + offset % length)
                    .map_err(LayerError::Write)?;
                self.copy(contents, part)?;
                offset += part;
            }
        }
        self.blocks.skip_to(chunk.1).map_err(LayerError::Write)?;
        let bits = u8::try_from(bits).map_err(|_| LayerError::Full)?;
        Ok(Data::Chunks { bits, blocks })
    }

    fn copy(&mut self, contents: &mut impl Read, length: u64) -> Result<(), LayerError> {
        let mut source = Source { contents, error: None };
        let copied = self.blocks.copy(&mut source, length);
        match (copied, source.error) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(error)) => Err(TarError::from(error).into()),
            (Err(error), None) if error.kind() == io::ErrorKind::UnexpectedEof => Err(TarError::Truncated.into()),
            (Err(error), None) => Err(LayerError::Write(error)),
        }
    }

    /// Writes the index.
    pub(crate) fn finish(mut self) -> Result<(), LayerError> {
        let index = self.blocks.position();
        if self.blocks.block().is_none() {
            return Err(LayerError::Full);
        }
        let mut hashing = Hashing {
            writer: &mut self.blocks,
            hash: Sha256::new(),
            error: None,
        };
        if let Err(error) = postcard::to_io(&self.entries, &mut hashing) {
            // It does not hand on what the file has said.
            let said = hashing.error.take();
            return Err(LayerError::Write(said.unwrap_or_else(|| io::Error::other(error))));
        }
        let hash = hashing.hash.finalize();
        let mut write = || {
            let end = (self.blocks.position() + FOOTER as u64).next_multiple_of(BLOCK);
            let length = self.blocks.position() - index;
            self.blocks.skip_to(end - FOOTER as u64)?;
            self.blocks.write_all(MAGIC)?;
            self.blocks.write_all(&index.to_le_bytes())?;
            self.blocks.write_all(&length.to_le_bytes())?;
            self.blocks.write_all(&hash)?;
            self.blocks.write_all(&[0; FOOTER - 56])
        };
        write().map_err(LayerError::Write)?;
        self.blocks.finish().map_err(LayerError::Write)?;
        Ok(())
    }
}

/// Remembers what the source has said, to tell it from what the file says.
struct Source<'a, R> {
    contents: &'a mut R,
    error: Option<io::Error>,
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.contents.read(buffer).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.error = Some(error);
            }
            kind.into()
        })
    }
}

struct Hashing<'a, 'b> {
    writer: &'a mut BlockWriter<'b>,
    hash: Sha256,
    error: Option<io::Error>,
}

impl Write for Hashing<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.writer.write(bytes) {
            Ok(count) => {
                self.hash.update(&bytes[..count]);
                Ok(count)
            }
            Err(error) => {
                let kind = error.kind();
                self.error = Some(error);
                Err(kind.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

fn meta(member: &Member) -> Meta {
    let mut xattrs: Vec<_> = member
        .xattrs
        .iter()
        .filter(|(name, _)| is_kept(name))
        .cloned()
        .collect();
    xattrs.sort();
    Meta {
        mode: member.mode,
        uid: member.uid,
        gid: member.gid,
        mtime: member.mtime,
        mtime_ns: member.mtime_ns,
        xattrs,
    }
}

/// Whether an extended attribute means something in the guest. Those of overlayfs are about the file system on which
/// the image was made; names outside of Linux's namespaces come from other systems.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    crate::erofs::xattr_index(name).is_some() && !name.starts_with(b"trusted.overlay.")
}

/// Whether EROFS can hold an entry's extended attributes.
fn check_xattrs(entry: &Entry) -> Result<(), LayerError> {
    let xattrs = &entry.meta.xattrs;
    let too_long = |(name, value): &Xattr| name.len() > MAX_NAME || value.len() > MAX_XATTR;
    let total: usize = xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    if total > MAX_XATTRS || xattrs.iter().any(too_long) {
        return Err(LayerError::Xattrs(lossy(&entry.path)));
    }
    Ok(())
}

pub(crate) fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests;
