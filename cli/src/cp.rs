//! `husk cp`: files between a running container and the host, by docker's rules.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use husk_archive::{Found, Kind, Root, Unpacking};
use husk_sandbox::files::Files;
use husk_sandbox::lifecycle::Status;
use husk_sandbox::rundir::RunDirError;

use crate::args::{CopyArgs, Global};
use crate::run::absolute;

/// One side of the copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    /// An archive on stdin or stdout.
    Stream,
    Local(&'a Path),
    Container(&'a str, &'a Path),
}

pub(crate) fn cp(global: &Global, args: &CopyArgs) -> Result<u8> {
    let host = Root::open(Path::new("/"))?;
    match (side(&args.source)?, side(&args.destination)?) {
        (Side::Container(name, from), Side::Stream) => {
            ensure!(
                !io::stdout().is_terminal(),
                "an archive is nothing for a terminal: redirect stdout"
            );
            let mut files = open(global, name)?;
            let source = Source::of(from, args.follow_link, |path, follow| Ok(files.look(path, follow)?))?;
            let called = source.base.as_deref().map_or(&b"."[..], OsStr::as_bytes);
            files.read(from, source.follow, called, &mut io::stdout())?;
        }
        (Side::Container(name, from), Side::Local(to)) => {
            let mut files = open(global, name)?;
            let source = Source::of(from, args.follow_link, |path, follow| Ok(files.look(path, follow)?))?;
            let found = host.look(&absolute(to)?, true)?;
            let target = Target::of(&source, to, &found)?;
            files.fetch(from, source.follow, &host, &target.directory, target.unpacking(args))?;
        }
        (Side::Local(from), Side::Container(name, to)) => {
            let from_here = absolute(from)?;
            // Whether a path ends with a slash or a dot is a matter of how it is written.
            let source = Source::of(from, args.follow_link, |_, follow| Ok(host.look(&from_here, follow)?))?;
            let mut files = open(global, name)?;
            let found = files.look(to, true)?;
            let target = Target::of(&source, to, &found)?;
            files.put(
                &host,
                &from_here,
                source.follow,
                &target.directory,
                target.unpacking(args),
            )?;
        }
        (Side::Stream, Side::Container(name, to)) => {
            let mut files = open(global, name)?;
            let found = files.look(to, true)?;
            ensure!(
                found.kind == Some(Kind::Directory),
                "{} is no directory of container {name}: an archive is unpacked in one",
                to.display()
            );
            let how = Unpacking {
                name: b"",
                owners: args.archive,
            };
            files.write(&found.path, how, &mut io::stdin().lock())?;
        }
        (Side::Container(..), Side::Container(..)) => bail!("files cannot be copied from one container to another"),
        _ => bail!("name a container on one side, as NAME:PATH"),
    }
    Ok(0)
}

/// What an argument means. A colon parts a container from a path, unless the argument begins as a path does.
fn side(argument: &OsStr) -> Result<Side<'_>> {
    let bytes = argument.as_bytes();
    if bytes == b"-" {
        return Ok(Side::Stream);
    }
    let colon = bytes.iter().position(|byte| *byte == b':');
    let (Some(colon), false) = (colon, bytes.starts_with(b"/") || bytes.starts_with(b".")) else {
        ensure!(!bytes.is_empty(), "a path is missing");
        return Ok(Side::Local(Path::new(argument)));
    };
    let (name, path) = (&bytes[..colon], &bytes[colon + 1..]);
    let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty());
    let name = name.with_context(|| format!("{} names no container", argument.display()))?;
    ensure!(!path.is_empty(), "a path is missing behind {name}:");
    Ok(Side::Container(name, Path::new(OsStr::from_bytes(path))))
}

fn open(global: &Global, name: &str) -> Result<Files> {
    let container = global.container(name)?;
    if container.status()? == Status::Stopped {
        return Err(RunDirError::Stopped(name.into()).into());
    }
    Ok(Files::open(&container.guest()?, &container.definition()?.name)?)
}

/// Whether a path says by its end that it is a directory.
fn is_of_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") || means_contents(path) || bytes == b".." || bytes.ends_with(b"/..")
}

/// Whether a path means what is in a directory.
fn means_contents(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"." || bytes.ends_with(b"/.")
}

/// What is copied.
struct Source {
    is_directory: bool,
    follow: bool,
    /// Its name, unless only its contents are meant.
    base: Option<std::ffi::OsString>,
}

impl Source {
    fn of(path: &Path, follow: bool, look: impl FnOnce(&Path, bool) -> Result<Found>) -> Result<Self> {
        let follow = follow || is_of_directory(path);
        let kind = look(path, follow)?.kind;
        let kind = kind.with_context(|| format!("{} does not exist", path.display()))?;
        let is_directory = kind == Kind::Directory;
        ensure!(
            is_directory || !is_of_directory(path),
            "{} is not a directory",
            path.display()
        );
        let base = match means_contents(path) {
            true => None,
            false => path.file_name().map(OsStr::to_owned),
        };
        Ok(Self {
            is_directory,
            follow,
            base,
        })
    }
}

/// Where it is copied to.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    directory: PathBuf,
    /// The name there; empty: the contents are put into the directory itself.
    name: Vec<u8>,
}

impl Target {
    /// `path` is the destination as it is written, `found` what is there.
    fn of(source: &Source, path: &Path, found: &Found) -> Result<Self> {
        let shown = path.display();
        let name = match found.kind {
            Some(Kind::Directory) => {
                let name = source.base.as_deref().map_or(&b""[..], OsStr::as_bytes);
                return Ok(Self {
                    directory: found.path.clone(),
                    name: name.to_vec(),
                });
            }
            Some(_) if source.is_directory => bail!("{shown} is not a directory: a directory cannot be copied to it"),
            Some(_) if is_of_directory(path) => bail!("{shown} is not a directory"),
            None if is_of_directory(path) && !source.is_directory => bail!("the directory {shown} does not exist"),
            Some(_) | None => found.path.file_name(),
        };
        let name = name.with_context(|| format!("{shown} does not exist"))?;
        Ok(Self {
            directory: found.path.parent().unwrap_or(Path::new("/")).to_owned(),
            name: name.as_bytes().to_vec(),
        })
    }

    fn unpacking(&self, args: &CopyArgs) -> Unpacking<'_> {
        Unpacking {
            name: &self.name,
            owners: args.archive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_parts_a_container_from_a_path() {
        let container = |name, path| Side::Container(name, Path::new(path));
        let local = |path| Side::Local(Path::new(path));
        for (argument, expected) in [
            ("-", Side::Stream),
            ("box:/etc", container("box", "/etc")),
            ("box:a:b", container("box", "a:b")),
            ("file", local("file")),
            ("./a:b", local("./a:b")),
            ("/a:b", local("/a:b")),
            ("..", local("..")),
        ] {
            assert_eq!(side(OsStr::new(argument)).unwrap(), expected, "{argument}");
        }
        for wrong in ["", ":/etc", "box:"] {
            assert!(side(OsStr::new(wrong)).is_err(), "{wrong:?}");
        }
    }

    /// The directory and the name that a destination gets, or an error.
    fn target(from: &str, from_kind: Kind, to: &str, to_kind: Option<Kind>) -> Option<(String, String)> {
        let look = |path: &Path, _| {
            Ok(Found {
                path: path.into(),
                kind: Some(from_kind),
            })
        };
        let source = Source::of(Path::new(from), false, look).ok()?;
        let found = Found {
            path: to.into(),
            kind: to_kind,
        };
        let target = Target::of(&source, Path::new(to), &found).ok()?;
        let directory = target.directory.to_str()?.to_owned();
        Some((directory, String::from_utf8(target.name).ok()?))
    }

    #[test]
    fn destinations_are_dockers() {
        use Kind::{Directory, File};
        for (from, from_kind, to, to_kind, expected) in [
            // A file.
            ("/a/f", File, "/d", Some(Directory), Some(("/d", "f"))),
            ("/a/f", File, "/d/g", Some(File), Some(("/d", "g"))),
            ("/a/f", File, "/d/g", None, Some(("/d", "g"))),
            ("/a/f", File, "/d/g/", None, None),
            ("/a/f", File, "/d/g/", Some(File), None),
            ("/a/f/", File, "/d", Some(Directory), None),
            // A directory.
            ("/a/s", Directory, "/d", Some(Directory), Some(("/d", "s"))),
            ("/a/s/", Directory, "/d", Some(Directory), Some(("/d", "s"))),
            ("/a/s", Directory, "/d/n", None, Some(("/d", "n"))),
            ("/a/s", Directory, "/d/n/", None, Some(("/d", "n"))),
            ("/a/s", Directory, "/d/f", Some(File), None),
            // What is in a directory.
            ("/a/s/.", Directory, "/d", Some(Directory), Some(("/d", ""))),
            (".", Directory, "/d", Some(Directory), Some(("/d", ""))),
            ("/", Directory, "/d", Some(Directory), Some(("/d", ""))),
            ("/a/s/.", Directory, "/d/n", None, Some(("/d", "n"))),
            ("/a/s/.", Directory, "/d/f", Some(File), None),
        ] {
            let expected = expected.map(|(directory, name)| (directory.to_owned(), name.to_owned()));
            assert_eq!(target(from, from_kind, to, to_kind), expected, "{from} to {to}");
        }
    }
}
