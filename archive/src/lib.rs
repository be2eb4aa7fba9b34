//! Archives of files: [`tar`] as a format, and what a directory holds into an archive ([`pack()`]) and out of one
//! ([`unpack()`]).
//!
//! Host and guest copy files to each other with it. Neither trusts the other, so both work below a [`Root`]: paths are
//! resolved as if it were `/`, and what an archive names is made below one directory, through no symbolic link.

#![deny(unsafe_code)]

mod pack;
mod root;
pub mod tar;
mod unpack;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use thiserror::Error;

pub use pack::pack;
pub use root::{Found, Kind, Root};
pub use unpack::{Unpacking, unpack};

/// Why files cannot be copied.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ArchiveError {
    #[error("{} cannot be {action}: {}", path.display(), source.desc())]
    Path {
        action: &'static str,
        path: PathBuf,
        source: Errno,
    },
    #[error("{}: {source}", path.display())]
    Contents { path: PathBuf, source: io::Error },
    #[error("the archive's member {0:?} lies outside of the destination")]
    Outside(OsString),
    #[error("{} is a device, which is not copied", .0.display())]
    Device(PathBuf),
    #[error("{} is a directory and is not replaced by something else", .0.display())]
    Directory(PathBuf),
    #[error("{} is not a directory and is not replaced by one", .0.display())]
    NotADirectory(PathBuf),
    #[error("the archive cannot be read: {0}")]
    Tar(#[from] tar::TarError),
    #[error("the archive cannot be written: {0}")]
    Write(#[source] io::Error),
}

/// An error at a path.
fn at(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> ArchiveError {
    move |source| ArchiveError::Path {
        action,
        path: path.into(),
        source,
    }
}
