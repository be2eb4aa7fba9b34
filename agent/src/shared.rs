//! Memory that containers share: what the mounts with the same name show.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use husk_protocol::agent::CreateRequest;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::refusal::Refusal;

/// Names of shared memory at a time.
const MAX_SHARED: usize = 256;

/// The directories that are shared, each for as long as a container uses it.
#[derive(Debug)]
pub(crate) struct Shared {
    directory: PathBuf,
    /// What names what, and how many containers use it.
    used: BTreeMap<String, (PathBuf, usize)>,
    next: u64,
}

impl Shared {
    /// They are mounted below `directory`.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            used: BTreeMap::new(),
            next: 0,
        }
    }

    /// Gives what a container's mounts name, making what is not there; one user more of each.
    pub(crate) fn take(&mut self, request: &CreateRequest) -> Result<BTreeMap<String, PathBuf>, Refusal> {
        let mut taken = BTreeMap::new();
        for wanted in request.mounts.iter().filter(|wanted| !wanted.shared.is_empty()) {
            if taken.contains_key(&wanted.shared) {
                continue;
            }
            match self.take_one(&wanted.shared, &wanted.data) {
                Ok(path) => taken.insert(wanted.shared.clone(), path),
                Err(refusal) => {
                    self.give_back(taken.keys());
                    return Err(refusal);
                }
            };
        }
        Ok(taken)
    }

    fn take_one(&mut self, name: &str, data: &str) -> Result<PathBuf, Refusal> {
        if let Some((path, users)) = self.used.get_mut(name) {
            *users += 1;
            return Ok(path.clone());
        }
        if self.used.len() >= MAX_SHARED {
            return Err(Refusal::Full {
                what: "pieces of shared memory",
                limit: MAX_SHARED,
            });
        }
        let path = self.directory.join(self.next.to_string());
        self.next += 1;
        fs::create_dir_all(&path).map_err(Refusal::file("making a place for shared memory"))?;
        let mounted = mount(Some("shm"), &path, Some("tmpfs"), MsFlags::empty(), Some(data));
        if let Err(source) = mounted {
            let _ = fs::remove_dir(&path);
            return Err(Refusal::system("mounting shared memory")(source));
        }
        self.used.insert(name.to_owned(), (path.clone(), 1));
        Ok(path)
    }

    /// One user less of each; what nobody uses is gone.
    pub(crate) fn give_back<'a>(&mut self, names: impl IntoIterator<Item = &'a String>) {
        for name in names {
            let Some((path, users)) = self.used.get_mut(name) else {
                continue;
            };
            *users -= 1;
            if *users == 0 {
                // A process that is just being made may still have a copy of it, for a moment.
                let _ = umount2(path.as_path(), MntFlags::MNT_DETACH);
                let _ = fs::remove_dir(&path);
                self.used.remove(name);
            }
        }
    }
}
