//! Users and groups by name, as the container's own `/etc/passwd` and `/etc/group` say.
//!
//! The files belong to the image and are not trusted: they are opened below the root directory whatever symlinks lead
//! out of it, only when they are regular files, and only their beginning is read.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use husk_protocol::agent;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use thiserror::Error;

/// How much of `/etc/passwd` and `/etc/group` is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// Why a user cannot be found.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum UserError {
    #[error("there is no user {name:?} in the container's /etc/passwd; name one that it has or a number")]
    NoUser { name: String },
    #[error("there is no group {name:?} in the container's /etc/group; name one that it has or a number")]
    NoGroup { name: String },
    #[error("{0:?} is not a user of the form USER[:GROUP]")]
    Form(String),
    #[error("{} cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Resolves `USER[:GROUP]`, each a name or a number, in the root file system `root`.
///
/// Without a group it is the user's own, with the supplementary groups that list the user; a number that `/etc/passwd`
/// does not have is taken as it is, with group 0.
///
/// # Errors
/// A name that the container does not know.
pub fn resolve(root: &Path, text: &str) -> Result<Identity, UserError> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if user.is_empty() || group.is_some_and(str::is_empty) || text.contains('\0') {
        return Err(UserError::Form(text.into()));
    }
    let entry = passwd(root)?.into_iter().find(|entry| entry.is(user));
    let uid = match (&entry, user.parse()) {
        (Some(entry), _) => entry.uid,
        (None, Ok(uid)) => uid,
        (None, Err(_)) => return Err(UserError::NoUser { name: user.into() }),
    };
    if let Some(group) = group {
        let gid = match (group_id(root, group)?, group.parse()) {
            (Some(gid), _) => gid,
            (None, Ok(gid)) => gid,
            (None, Err(_)) => return Err(UserError::NoGroup { name: group.into() }),
        };
        return Ok(Identity {
            uid,
            gid,
            additional_gids: Vec::new(),
        });
    }
    let Some(entry) = entry else {
        return Ok(Identity {
            uid,
            ..Identity::default()
        });
    };
    Ok(Identity {
        uid,
        gid: entry.gid,
        additional_gids: groups_of(root, &entry.name, entry.gid)?,
    })
}

/// Makes a process run as another user than the one that it was defined for: root has the capabilities that the
/// bounding set leaves, others have none.
pub fn become_user(process: &mut agent::Process, identity: Identity) {
    let user = process.user.mut_or_insert_default();
    user.uid = identity.uid;
    user.gid = identity.gid;
    user.additional_gids = identity.additional_gids;
    if let Some(sets) = process.capabilities.as_mut() {
        let held = if identity.uid == 0 { sets.bounding } else { 0 };
        (sets.effective, sets.permitted) = (held, held);
        (sets.inheritable, sets.ambient) = (0, 0);
    }
}

/// A line of `/etc/passwd`.
struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
}

impl Passwd {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Self {
            name: name.into(),
            uid,
            gid,
        })
    }

    /// Whether a person means this entry; a name comes before a number.
    fn is(&self, user: &str) -> bool {
        self.name == user || user.parse() == Ok(self.uid)
    }
}

fn passwd(root: &Path) -> Result<Vec<Passwd>, UserError> {
    let text = read(root, "etc/passwd")?;
    Ok(text.lines().filter_map(Passwd::parse).collect())
}

/// A line of `/etc/group`: name, id, members.
fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    let gid = fields.next()?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

fn group_id(root: &Path, group: &str) -> Result<Option<u32>, UserError> {
    let text = read(root, "etc/group")?;
    let found = text.lines().filter_map(parse_group).find(|(name, ..)| *name == group);
    Ok(found.map(|(_, gid, _)| gid))
}

fn groups_of(root: &Path, user: &str, primary: u32) -> Result<Vec<u32>, UserError> {
    let text = read(root, "etc/group")?;
    Ok(text
        .lines()
        .filter_map(parse_group)
        .filter(|(_, gid, members)| *gid != primary && members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
        .collect())
}

/// Reads a file below the root; a file that is missing or not regular is empty.
fn read(root: &Path, path: &str) -> Result<String, UserError> {
    let failed = |source: io::Error| UserError::Read {
        path: root.join(path),
        source,
    };
    let Some(file) = open_in_root(root, path).map_err(|errno| failed(errno.into()))? else {
        return Ok(String::new());
    };
    let file = File::from(file);
    if !file.metadata().map_err(failed)?.is_file() {
        return Ok(String::new());
    }
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn open_in_root(root: &Path, path: &str) -> Result<Option<OwnedFd>, Errno> {
    let missing = |errno| match errno {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP => Ok(None),
        errno => Err(errno),
    };
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let directory = match open(root, flags | OFlag::O_DIRECTORY, Mode::empty()) {
        Ok(directory) => directory,
        Err(errno) => return missing(errno),
    };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(&directory, path, how) {
        Ok(file) => Ok(Some(file)),
        Err(errno) => missing(errno),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn root(passwd: &str, group: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(root.path().join("etc/group"), group).unwrap();
        root
    }

    fn standard() -> tempfile::TempDir {
        root(
            "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001:,,,:/home/alice:/bin/sh\n1000:x:7:8::/:\nbroken\n",
            "root:x:0:\nalice:x:1001:\naudio:x:29:bob,alice\nvideo:x:44:alice\nbad:x:y:alice\n",
        )
    }

    #[test]
    fn names_and_numbers_are_resolved() {
        let root = standard();
        let alice = resolve(root.path(), "alice").unwrap();
        assert_eq!(
            (alice.uid, alice.gid, alice.additional_gids),
            (1000, 1001, vec![29, 44])
        );
        let grouped = resolve(root.path(), "alice:video").unwrap();
        assert_eq!((grouped.uid, grouped.gid, grouped.additional_gids), (1000, 44, vec![]));
        let numbers = resolve(root.path(), "12:34").unwrap();
        assert_eq!((numbers.uid, numbers.gid), (12, 34));
        let unknown = resolve(root.path(), "4242").unwrap();
        assert_eq!((unknown.uid, unknown.gid), (4242, 0));
    }

    #[test]
    fn unknown_names_are_named() {
        let root = standard();
        let error = resolve(root.path(), "mallory").unwrap_err();
        assert!(error.to_string().contains("\"mallory\""), "{error}");
        let error = resolve(root.path(), "alice:wheel").unwrap_err();
        assert!(error.to_string().contains("\"wheel\""), "{error}");
        assert!(matches!(resolve(root.path(), "alice:"), Err(UserError::Form(_))));
        assert!(matches!(resolve(root.path(), ""), Err(UserError::Form(_))));
        assert!(matches!(resolve(root.path(), "-1"), Err(UserError::NoUser { .. })));
        assert!(matches!(
            resolve(root.path(), "4294967296"),
            Err(UserError::NoUser { .. })
        ));
    }

    #[test]
    fn symlinks_stay_in_the_root() {
        let root = standard();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(outside.path(), "mallory:x:0:0::/:\n").unwrap();
        let passwd = root.path().join("etc/passwd");
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink(outside.path(), &passwd).unwrap();
        assert!(matches!(resolve(root.path(), "mallory"), Err(UserError::NoUser { .. })));
    }

    #[test]
    fn a_fifo_does_not_block() {
        let root = standard();
        let passwd = root.path().join("etc/passwd");
        std::fs::remove_file(&passwd).unwrap();
        nix::unistd::mkfifo(&passwd, Mode::S_IRUSR).unwrap();
        assert!(matches!(resolve(root.path(), "alice"), Err(UserError::NoUser { .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_files_never_panic(passwd in "[a-z0-9:,\n]{0,200}", group in "\\PC{0,100}", user in "\\PC{0,10}") {
            let root = root(&passwd, &group);
            let _ = resolve(root.path(), &user);
        }
    }
}
