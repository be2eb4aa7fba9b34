//! The programs and the guest, in their places.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use thiserror::Error;

/// A file that husk consists of.
struct Part {
    name: &'static str,
    /// Where it is, relative to the program that runs: as it is built, or as it is installed.
    sources: [&'static str; 2],
    /// Where it belongs, relative to the prefix.
    dir: &'static str,
    mode: u32,
}

const fn program(name: &'static str) -> Part {
    Part {
        name,
        sources: ["", ""],
        dir: "bin",
        mode: 0o755,
    }
}

const fn guest(name: &'static str) -> Part {
    Part {
        name,
        sources: ["guest", "../lib/husk"],
        dir: "lib/husk",
        mode: 0o644,
    }
}

const PARTS: [Part; 6] = [
    guest("vmlinux"),
    guest("initramfs.cpio"),
    guest("guest.json"),
    Part {
        name: "husk-vmm",
        sources: ["", "../libexec"],
        dir: "libexec",
        mode: 0o755,
    },
    program("containerd-shim-husk-v2"),
    // The last, so that whoever finds it finds everything.
    program("husk"),
];

/// Why a file is not where it should be.
#[derive(Debug, Error)]
pub(super) enum FilesError {
    #[error(
        "{} not beside this program in {}: run `cargo xtask build` and the husk that it makes",
        are(.missing),
        .dir.display()
    )]
    Missing { missing: Vec<&'static str>, dir: PathBuf },
    #[error("{} cannot be written{}", path.display(), remedy(source))]
    Write { path: PathBuf, source: io::Error },
    #[error("{} cannot be removed{}", path.display(), remedy(source))]
    Remove { path: PathBuf, source: io::Error },
    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
}

fn are(missing: &[&str]) -> String {
    let verb = if missing.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", missing.join(", "))
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (run it as root, or name a directory of your own with --prefix)",
        io::ErrorKind::ReadOnlyFilesystem => " (name a directory that is not read-only with --prefix)",
        _ => "",
    }
}

/// A file and where it belongs.
#[derive(Debug)]
pub(super) struct Copy {
    source: PathBuf,
    target: PathBuf,
    mode: u32,
}

/// Finds every part beside the program in `dir`, or where such a program was installed with them.
pub(super) fn find(dir: &Path, prefix: &Path) -> Result<Vec<Copy>, FilesError> {
    let (mut copies, mut missing) = (Vec::new(), Vec::new());
    for part in &PARTS {
        let places = part.sources.map(|source| dir.join(source).join(part.name));
        match places.into_iter().find(|place| place.is_file()) {
            Some(source) => copies.push(Copy {
                source,
                target: target(prefix, part),
                mode: part.mode,
            }),
            None => missing.push(part.name),
        }
    }
    match missing.is_empty() {
        true => Ok(copies),
        false => Err(FilesError::Missing {
            missing,
            dir: dir.to_owned(),
        }),
    }
}

fn target(prefix: &Path, part: &Part) -> PathBuf {
    prefix.join(part.dir).join(part.name)
}

impl Copy {
    /// Puts the file in its place, whole or not at all, unless the same is there. Gives the place if something changed.
    pub(super) fn make(&self) -> Result<Option<&Path>, FilesError> {
        if self.is_there() {
            return Ok(None);
        }
        let failed = |source| FilesError::Write {
            path: self.target.clone(),
            source,
        };
        let mut source = fs::File::open(&self.source).map_err(|source| FilesError::Read {
            path: self.source.clone(),
            source,
        })?;
        let dir = self.target.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).map_err(failed)?;
        let mut file = NamedTempFile::new_in(dir).map_err(failed)?;
        io::copy(&mut source, file.as_file_mut()).map_err(failed)?;
        file.as_file()
            .set_permissions(Permissions::from_mode(self.mode))
            .map_err(failed)?;
        file.persist(&self.target).map_err(|error| failed(error.error))?;
        Ok(Some(&self.target))
    }

    /// Whether it is its own place, or that holds the same.
    fn is_there(&self) -> bool {
        let (Ok(source), Ok(target)) = (fs::metadata(&self.source), fs::metadata(&self.target)) else {
            return false;
        };
        let same_file = (source.dev(), source.ino()) == (target.dev(), target.ino());
        let same_kind = source.len() == target.len() && target.mode() & 0o7777 == self.mode;
        same_file
            || same_kind
                && matches!((fs::read(&self.source), fs::read(&self.target)), (Ok(one), Ok(other)) if one == other)
    }
}

/// Removes what was installed, and gives what there was of it.
pub(super) fn remove(prefix: &Path) -> Result<Vec<PathBuf>, FilesError> {
    let mut removed = Vec::new();
    // The program itself last: as long as it is there it can be asked once more.
    for part in &PARTS {
        let path = target(prefix, part);
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if is_absent(&error) => {}
            Err(source) => return Err(FilesError::Remove { path, source }),
        }
    }
    // A directory that holds something else stays.
    let _ = fs::remove_dir(prefix.join("lib/husk"));
    Ok(removed)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory as `cargo xtask build` makes it.
    fn built() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("guest")).unwrap();
        for part in &PARTS {
            let path = dir.path().join(part.sources[0]).join(part.name);
            fs::write(&path, format!("this is {}", part.name)).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        }
        dir
    }

    fn install(dir: &Path, prefix: &Path) -> usize {
        let copies = find(dir, prefix).unwrap();
        copies.iter().filter(|copy| copy.make().unwrap().is_some()).count()
    }

    #[test]
    fn everything_gets_to_its_place_once() {
        let (built, prefix) = (built(), tempfile::tempdir().unwrap());
        let prefix = prefix.path().join("usr/local");
        assert_eq!(install(built.path(), &prefix), PARTS.len());
        for (path, mode) in [
            ("bin/husk", 0o755),
            ("bin/containerd-shim-husk-v2", 0o755),
            ("libexec/husk-vmm", 0o755),
            ("lib/husk/vmlinux", 0o644),
            ("lib/husk/initramfs.cpio", 0o644),
            ("lib/husk/guest.json", 0o644),
        ] {
            let path = prefix.join(path);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("this is {name}"));
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode, "{name}");
        }
        assert_eq!(install(built.path(), &prefix), 0);
        // The installed program finds itself and its parts, and has nothing to do.
        assert_eq!(install(&prefix.join("bin"), &prefix), 0);
        let names: Vec<_> = fs::read_dir(prefix.join("lib/husk")).unwrap().collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }

    #[test]
    fn another_version_replaces_a_file_and_a_link_to_the_source_stays() {
        let (built, prefix) = (built(), tempfile::tempdir().unwrap());
        fs::create_dir(prefix.path().join("bin")).unwrap();
        let link = prefix.path().join("bin/husk");
        std::os::unix::fs::symlink(built.path().join("husk"), &link).unwrap();
        assert_eq!(install(built.path(), prefix.path()), PARTS.len() - 1);
        assert!(link.is_symlink());
        fs::write(prefix.path().join("libexec/husk-vmm"), "this is husk-old").unwrap();
        assert_eq!(install(built.path(), prefix.path()), 1);
        let program = fs::read_to_string(prefix.path().join("libexec/husk-vmm")).unwrap();
        assert_eq!(program, "this is husk-vmm");
    }

    #[test]
    fn what_is_missing_is_named() {
        let (built, prefix) = (built(), tempfile::tempdir().unwrap());
        fs::remove_file(built.path().join("husk-vmm")).unwrap();
        fs::remove_file(built.path().join("guest/vmlinux")).unwrap();
        let error = find(built.path(), prefix.path()).unwrap_err().to_string();
        assert!(
            error.contains("vmlinux, husk-vmm are not beside") && error.contains("xtask build"),
            "{error}"
        );
    }

    #[test]
    fn removal_takes_what_there_is_and_nothing_else() {
        let (built, prefix) = (built(), tempfile::tempdir().unwrap());
        assert_eq!(remove(prefix.path()).unwrap(), Vec::<PathBuf>::new());
        install(built.path(), prefix.path());
        let own = prefix.path().join("lib/husk/vmlinux-own");
        fs::write(&own, "").unwrap();
        assert_eq!(remove(prefix.path()).unwrap().len(), PARTS.len());
        assert!(own.exists() && prefix.path().join("bin").exists());
        install(built.path(), prefix.path());
        fs::remove_file(own).unwrap();
        remove(prefix.path()).unwrap();
        assert!(!prefix.path().join("lib/husk").exists());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let (built, prefix) = (built(), tempfile::tempdir().unwrap());
        fs::write(prefix.path().join("bin"), "a file").unwrap();
        let copies = find(built.path(), prefix.path()).unwrap();
        let error = copies.last().unwrap().make().unwrap_err().to_string();
        assert!(error.contains("bin/husk cannot be written"), "{error}");
        let denied = FilesError::Write {
            path: "/usr/local/bin/husk".into(),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        assert!(denied.to_string().contains("as root"), "{denied}");
    }
}
