//! The file of a configuration: read whole, replaced whole.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, fchown};
use thiserror::Error;

/// Why a configuration could not be read or changed.
#[derive(Debug, Error)]
pub(super) enum ConfigurationError {
    #[error("{} cannot be read{}", path.display(), remedy(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be changed{}", path.display(), remedy(source))]
    Write { path: PathBuf, source: io::Error },
    #[error("{} was changed by somebody else meanwhile: run the command once more", .0.display())]
    Changed(PathBuf),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (run it as root, or name another file with --config)",
        _ => "",
    }
}

/// A configuration's text; that of a missing file is empty.
pub(super) fn read(path: &Path) -> Result<String, ConfigurationError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(ConfigurationError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Puts `after` in the place of a text that is still `before`. A file of which nothing is left is removed.
pub(super) fn replace(path: &Path, before: &str, after: &str) -> Result<(), ConfigurationError> {
    if read(path)? != before {
        return Err(ConfigurationError::Changed(path.to_owned()));
    }
    write(path, after).map_err(|source| ConfigurationError::Write {
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // A link stays, and its target changes.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if text.is_empty() {
        return fs::remove_file(&path);
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(text.as_bytes())?;
    match fs::metadata(&path) {
        Ok(old) => {
            fchown(
                file.as_fd(),
                Some(Uid::from_raw(old.uid())),
                Some(Gid::from_raw(old.gid())),
            )?;
            file.as_file()
                .set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
        }
        Err(_) => file.as_file().set_permissions(Permissions::from_mode(0o644))?,
    }
    file.persist(&path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_made_with_its_directory_and_removed_when_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("containerd/config.toml");
        assert_eq!(read(&path).unwrap(), "");
        replace(&path, "", "a = 1\n").unwrap();
        assert_eq!(read(&path).unwrap(), "a = 1\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        replace(&path, "a = 1\n", "").unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn mode_and_links_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("real.toml"), dir.path().join("config.toml"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real.toml", &link).unwrap();
        let owner = fs::metadata(&file).unwrap().uid();
        replace(&link, "old", "new").unwrap();
        assert!(link.is_symlink());
        let new = fs::metadata(&file).unwrap();
        assert_eq!((new.mode() & 0o7777, new.uid()), (0o640, owner));
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    }

    #[test]
    fn what_changed_meanwhile_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "theirs").unwrap();
        let error = replace(&path, "mine", "new").unwrap_err().to_string();
        assert!(error.contains("once more") && error.contains("config.toml"), "{error}");
        assert_eq!(read(&path).unwrap(), "theirs");
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("cannot be read"), "{error}");
    }
}
