//! The files that an image consists of: in a directory, or members of an archive.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::SourceError;
use crate::decompress::Decompressed;
use crate::limits::Limits;
use crate::tar::{RECORD, Reader, Type};

/// Links that lead to links in an archive.
const MAX_LINKS: usize = 8;

/// Where the files are.
#[derive(Debug)]
pub(super) enum Files {
    Directory(PathBuf),
    Archive(Archive),
}

/// An archive with its members found.
#[derive(Debug)]
pub(super) struct Archive {
    file: File,
    members: HashMap<String, Place>,
}

#[derive(Debug)]
enum Place {
    /// Contents: from this byte on, so many.
    At(u64, u64),
    /// The same as the member of this name.
    Link(String),
}

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Contents {
    file: File,
    position: u64,
    end: u64,
}

impl Contents {
    pub(super) fn len(&self) -> u64 {
        self.end - self.position
    }
}

impl Read for Contents {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.position)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Files {
    /// Opens a directory or an archive; `scratch` is where a compressed archive is uncompressed, in a file without a
    /// name.
    pub(super) fn open(path: &Path, scratch: &Path, limits: &Limits) -> Result<Self, SourceError> {
        let meta = std::fs::metadata(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SourceError::Missing(path.into()),
            _ => SourceError::Read(path.into(), source),
        })?;
        if meta.is_dir() {
            return Ok(Self::Directory(path.into()));
        }
        if !meta.is_file() {
            return Err(SourceError::Kind(path.into()));
        }
        Archive::open(path, scratch, limits).map(Self::Archive)
    }

    /// A file by its path; none if it is not there.
    pub(super) fn file(&self, name: &str) -> Result<Option<Contents>, SourceError> {
        match self {
            Self::Directory(directory) => open_regular(&directory.join(normal(name.as_bytes()))),
            Self::Archive(archive) => archive.member(name),
        }
    }
}

fn open_regular(path: &Path) -> Result<Option<Contents>, SourceError> {
    let failed = |source| SourceError::Read(path.into(), source);
    // A FIFO in the place of the file must not block the open.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    Ok(Some(Contents {
        file,
        position: 0,
        end: meta.len(),
    }))
}

impl Archive {
    fn open(path: &Path, scratch: &Path, limits: &Limits) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Read(path.into(), source);
        let mut file = File::open(path).map_err(failed)?;
        let mut stream = Decompressed::new(&file).map_err(failed)?;
        if stream.is_compressed() {
            let mut plain = scratch_file(scratch)?;
            let most = limits.archive_bytes;
            let copied = io::copy(&mut stream.by_ref().take(most + 1), &mut plain);
            let length = copied.map_err(|source| SourceError::Uncompress(path.into(), source))?;
            if length > most {
                return Err(SourceError::LongArchive(path.into(), most));
            }
            drop(stream);
            file = plain;
        } else {
            drop(stream);
        }
        let members = members(&mut file, path, limits)?;
        Ok(Self { file, members })
    }

    fn member(&self, name: &str) -> Result<Option<Contents>, SourceError> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.members.get(name) {
                None => return Ok(None),
                Some(Place::Link(target)) => name = target,
                Some(Place::At(offset, size)) => {
                    let file = self
                        .file
                        .try_clone()
                        .map_err(|source| SourceError::Read(name.into(), source))?;
                    return Ok(Some(Contents {
                        file,
                        position: *offset,
                        end: offset + size,
                    }));
                }
            }
        }
        Ok(None)
    }
}

/// A file without a name.
fn scratch_file(directory: &Path) -> Result<File, SourceError> {
    let failed = |source| SourceError::Read(directory.into(), source);
    tempfile::tempfile_in(directory).map_err(failed)
}

/// Goes from header to header, without reading what is between them.
fn members(file: &mut File, path: &Path, limits: &Limits) -> Result<HashMap<String, Place>, SourceError> {
    let failed = |source| SourceError::Read(path.into(), source);
    let length = file.metadata().map_err(failed)?.len();
    let mut members = HashMap::new();
    let mut start = 0;
    while start < length {
        if members.len() > limits.archive_members {
            return Err(SourceError::Members(path.into(), limits.archive_members));
        }
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        let mut reader = Reader::new(&*file);
        let member = reader
            .next()
            .map_err(|error| SourceError::Archive(path.into(), error))?;
        let Some(member) = member else { break };
        let offset = start + reader.position();
        let name = normal(&member.path);
        let size = match member.kind {
            Type::File => member.size,
            _ => 0,
        };
        let place = match member.kind {
            // Nothing that an image consists of is sparse.
            Type::File if member.sparse.is_none() => Place::At(offset, size),
            // `docker save` wrote links between layers that are the same.
            Type::Link => Place::Link(normal(&member.link)),
            Type::Symlink => Place::Link(beside(&name, &member.link)),
            _ => {
                start = next(offset, size);
                continue;
            }
        };
        if offset.saturating_add(size) > length {
            return Err(SourceError::Archive(path.into(), crate::tar::TarError::Truncated));
        }
        members.insert(name, place);
        start = next(offset, size);
    }
    Ok(members)
}

fn next(offset: u64, size: u64) -> u64 {
    offset
        .saturating_add(size)
        .div_ceil(RECORD as u64)
        .saturating_mul(RECORD as u64)
}

/// A path as names in images are: without dots and slashes at its beginning.
fn normal(path: &[u8]) -> String {
    join(&[], path)
}

/// The target of a symbolic link, from the directory in which the link is.
fn beside(link: &str, target: &[u8]) -> String {
    let directory: Vec<&str> = link.split('/').collect();
    join(&directory[..directory.len() - 1], target)
}

fn join(directory: &[&str], path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let mut components: Vec<&str> = directory.to_vec();
    for component in text.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()),
            _ => components.push(component),
        }
    }
    components.join("/")
}
