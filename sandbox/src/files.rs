//! A running container's files: looked at, read and written as archives, without any program of the container's.
//!
//! The agent starts a process for it (`agent/src/files.rs`) that speaks over a connection of its own. What comes from the
//! guest is not trusted: its archives are unpacked below one directory and under one name.

use std::ffi::OsString;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use husk_archive::{ArchiveError, Found, Kind, Root, Unpacking, pack, unpack};
use husk_protocol::agent::{FileAnswer, FileRequest, file_answer, file_request};
use husk_protocol::frames::{ArchiveReader, ArchiveWriter, receive, send};
use thiserror::Error;

use crate::guest::{Guest, GuestError};

/// What may stand behind an archive's end, in bytes: archives are filled up to full blocks.
const MAX_FILLING: u64 = 1 << 20;

/// A way to a container's files.
#[derive(Debug)]
pub struct Files {
    container: String,
    connection: UnixStream,
}

/// Why files cannot be copied.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum FilesError {
    #[error("container {container}: {reason}")]
    Container { container: String, reason: String },
    #[error("container {container}: its answer makes no sense")]
    Answer { container: String },
    #[error("container {container} has ended, or its guest has, while files were copied")]
    Lost { container: String },
    #[error("the connection to container {container} has failed")]
    Connection {
        container: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("the archive cannot be copied")]
    Stream(#[source] io::Error),
    #[error(transparent)]
    Guest(#[from] GuestError),
}

impl Files {
    /// Opens a way to a container's files.
    ///
    /// # Errors
    /// It does not run, or the guest does not answer.
    pub fn open(guest: &Guest, container: &str) -> Result<Self, FilesError> {
        let connection = guest.files(container)?;
        let patience = Some(guest.link().patience());
        let timed = connection
            .set_read_timeout(patience)
            .and_then(|()| connection.set_write_timeout(patience));
        let files = Self {
            container: container.into(),
            connection,
        };
        timed.map_err(|source| files.failed(source))?;
        Ok(files)
    }

    /// What lies at a path of the container; `follow` says whether a symbolic link at its end is followed.
    ///
    /// # Errors
    /// The way there is not passable; the container has ended.
    pub fn look(&mut self, path: &Path, follow: bool) -> Result<Found, FilesError> {
        let request = FileRequest {
            follow,
            ..request(file_request::Kind::LOOK, path)
        };
        self.ask(&request)?;
        let answer = self.answer()?;
        Ok(Found {
            path: OsString::from_vec(answer.path).into(),
            kind: match answer.kind.enum_value_or_default() {
                file_answer::Kind::NOTHING => None,
                file_answer::Kind::DIRECTORY => Some(Kind::Directory),
                file_answer::Kind::FILE => Some(Kind::File),
                file_answer::Kind::SYMLINK => Some(Kind::Symlink),
                file_answer::Kind::OTHER => Some(Kind::Other),
            },
        })
    }

    /// Writes what lies at a path as an archive in which it is called `name`.
    ///
    /// # Errors
    /// What cannot be read or written; the container has ended.
    pub fn read(&mut self, path: &Path, follow: bool, name: &[u8], out: &mut impl Write) -> Result<(), FilesError> {
        self.receive(path, follow, name, |archive| {
            io::copy(archive, out)
                .and_then(|_| out.flush())
                .map_err(FilesError::Stream)
        })
    }

    /// Copies what lies at a path into a directory of the host, under `name`, or its contents if that is empty. With
    /// `owners` they belong to whom they belong in the container.
    ///
    /// # Errors
    /// What cannot be read or made; the container has ended.
    pub fn fetch(
        &mut self,
        path: &Path,
        follow: bool,
        to: &Root,
        directory: &Path,
        how: Unpacking<'_>,
    ) -> Result<(), FilesError> {
        self.receive(path, follow, called(how.name), |archive| {
            Ok(unpack(to, directory, how, BufReader::new(archive))?)
        })
    }

    /// Unpacks an archive in a directory of the container.
    ///
    /// # Errors
    /// What cannot be read or made; the container has ended.
    pub fn write(&mut self, directory: &Path, how: Unpacking<'_>, archive: &mut impl Read) -> Result<(), FilesError> {
        self.send(directory, how, |out| {
            io::copy(archive, out).map(drop).map_err(FilesError::Stream)
        })
    }

    /// Copies what lies at a path of the host into a directory of the container, as [`fetch`](Self::fetch) does.
    ///
    /// # Errors
    /// What cannot be read or made; the container has ended.
    pub fn put(
        &mut self,
        from: &Root,
        path: &Path,
        follow: bool,
        directory: &Path,
        how: Unpacking<'_>,
    ) -> Result<(), FilesError> {
        self.send(directory, how, |out| {
            Ok(pack(from, path, follow, called(how.name), out)?)
        })
    }

    /// Asks for an archive and gives it to `take`.
    fn receive(
        &mut self,
        path: &Path,
        follow: bool,
        name: &[u8],
        take: impl FnOnce(&mut ArchiveReader<&UnixStream>) -> Result<(), FilesError>,
    ) -> Result<(), FilesError> {
        let request = FileRequest {
            follow,
            name: name.to_vec(),
            ..request(file_request::Kind::READ, path)
        };
        self.ask(&request)?;
        let mut archive = ArchiveReader::new(&self.connection);
        let taken = take(&mut archive);
        // Nobody waits for the end of what is not taken, which the guest may send for ever.
        let rest = match taken {
            Ok(()) => MAX_FILLING,
            Err(_) => 0,
        };
        let passed = io::copy(&mut archive.by_ref().take(rest), &mut io::sink());
        let is_over = archive.is_over() || archive.read(&mut [0]).is_ok_and(|count| count == 0);
        match (taken, is_over) {
            // The guest says what it could not read behind an archive that is not whole.
            (taken, true) => self.answer().and(taken),
            (Err(error), false) => Err(error),
            (Ok(()), false) => match passed {
                Err(source) => Err(self.failed(source)),
                Ok(_) => Err(self.nonsense()),
            },
        }
    }

    /// Sends the archive that `give` writes.
    fn send(
        &mut self,
        directory: &Path,
        how: Unpacking<'_>,
        give: impl FnOnce(&mut ArchiveWriter<&UnixStream>) -> Result<(), FilesError>,
    ) -> Result<(), FilesError> {
        let request = FileRequest {
            name: how.name.to_vec(),
            owners: how.owners,
            ..request(file_request::Kind::WRITE, directory)
        };
        self.ask(&request)?;
        let mut archive = ArchiveWriter::new(&self.connection);
        // What is cut off is refused as it is: the connection ends with this value.
        give(&mut archive)?;
        archive.end().map_err(|source| self.failed(source))?;
        self.answer().map(drop)
    }

    fn ask(&mut self, request: &FileRequest) -> Result<(), FilesError> {
        send(&mut &self.connection, request).map_err(|source| self.failed(source))
    }

    fn answer(&mut self) -> Result<FileAnswer, FilesError> {
        let answer = receive::<FileAnswer>(&mut &self.connection).map_err(|source| self.failed(source))?;
        let answer = answer.ok_or_else(|| FilesError::Lost {
            container: self.container.clone(),
        })?;
        match answer.error.as_str() {
            "" => Ok(answer),
            reason => Err(FilesError::Container {
                container: self.container.clone(),
                reason: reason
                    .escape_debug()
                    .to_string()
                    .replace("\\'", "'")
                    .replace("\\\"", "\""),
            }),
        }
    }

    fn nonsense(&self) -> FilesError {
        FilesError::Answer {
            container: self.container.clone(),
        }
    }

    fn failed(&self, source: io::Error) -> FilesError {
        let container = self.container.clone();
        match source.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                FilesError::Lost { container }
            }
            _ => FilesError::Connection { container, source },
        }
    }
}

/// What an archive calls a thing whose contents are meant.
fn called(name: &[u8]) -> &[u8] {
    match name {
        b"" => b".",
        name => name,
    }
}

fn request(kind: file_request::Kind, path: &Path) -> FileRequest {
    FileRequest {
        kind: kind.into(),
        path: path.as_os_str().as_bytes().to_vec(),
        ..FileRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;

    /// A way to a guest that says `answer` to the first request.
    fn guest_that_says(answer: impl FnOnce(&mut UnixStream) + Send + 'static) -> Files {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            receive::<FileRequest>(&mut theirs).unwrap();
            answer(&mut theirs);
        });
        Files {
            container: "box".into(),
            connection: ours,
        }
    }

    fn fetch(files: &mut Files, directory: &Path) -> Result<(), FilesError> {
        let how = Unpacking {
            name: b"file",
            owners: false,
        };
        let root = Root::open(Path::new("/")).unwrap();
        files.fetch(Path::new("/file"), false, &root, directory, how)
    }

    fn answer(error: &str) -> FileAnswer {
        FileAnswer {
            error: error.into(),
            ..FileAnswer::default()
        }
    }

    #[test]
    fn a_guest_that_sends_something_else_writes_nothing() {
        let source = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        fs::write(source.path().join("file"), "x").unwrap();
        let from = Root::open(source.path()).unwrap();
        let mut files = guest_that_says(move |stream| {
            let mut archive = ArchiveWriter::new(&*stream);
            pack(&from, Path::new("file"), false, b"other", &mut archive).unwrap();
            archive.end().unwrap();
            send(stream, &answer("")).unwrap();
        });
        let error = fetch(&mut files, target.path()).unwrap_err();
        assert!(error.to_string().contains("\"other\" lies outside"), "{error}");
        assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_guests_reason_is_told_and_cannot_play_with_a_terminal() {
        let target = tempfile::tempdir().unwrap();
        let mut files = guest_that_says(|stream| {
            ArchiveWriter::new(&*stream).end().unwrap();
            send(stream, &answer("/x\u{1b}[2J cannot be read: it's \"gone\"")).unwrap();
        });
        let error = fetch(&mut files, target.path()).unwrap_err().to_string();
        assert_eq!(error, "container box: /x\\u{1b}[2J cannot be read: it's \"gone\"");
    }

    #[test]
    fn an_endless_archive_and_a_lost_guest_are_errors() {
        let mut files = guest_that_says(|stream| {
            let mut archive = ArchiveWriter::new(&*stream);
            while archive.write_all(&[0; 4096]).is_ok() {}
        });
        let target = tempfile::tempdir().unwrap();
        let error = fetch(&mut files, target.path()).unwrap_err();
        assert!(matches!(error, FilesError::Answer { .. }), "{error}");
        let mut files = guest_that_says(|_| ());
        let error = fetch(&mut files, target.path()).unwrap_err();
        let is_cut_off = matches!(error, FilesError::Archive(ArchiveError::Tar(_)));
        assert!(is_cut_off || matches!(error, FilesError::Lost { .. }), "{error}");
    }
}
