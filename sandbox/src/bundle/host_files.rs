//! Bind mounts of files of the host, which container engines make of `/etc/hosts` and the like: their contents go along
//! with the container's definition, so that the guest has copies of them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use husk_protocol::agent;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use oci_spec::runtime::Mount;

use super::{BundleError, mounts};

/// The most that all files of a container may hold, in bytes: the message with the definition has to hold them too.
const MAX_TOTAL: u64 = 2 << 20;
/// Where engines bind a tmpfs that several containers may share.
const SHM: &str = "/dev/shm";

/// The files of one container.
#[derive(Debug)]
pub(super) struct HostFiles<'b> {
    /// The bundle's directory, from which relative sources start.
    dir: &'b Path,
    /// The directory of the root file system, whose files are the container's own.
    root: &'b Path,
    /// How much more may be taken, in bytes.
    left: u64,
}

impl<'b> HostFiles<'b> {
    pub(super) fn new(dir: &'b Path, root: &'b Path) -> Self {
        Self {
            dir,
            root,
            left: MAX_TOTAL,
        }
    }

    /// Translates the mount at `mounts[index]` if it is one of a file of the host's, or of memory on `/dev/shm`.
    pub(super) fn mount(&mut self, index: usize, mount: &Mount) -> Result<Option<agent::Mount>, BundleError> {
        let options = mount.options().as_deref().unwrap_or_default();
        let is_bind = |option: &String| option == "bind" || option == "rbind";
        let (true, Some(source)) = (options.iter().any(is_bind), mount.source()) else {
            return Ok(None);
        };
        let source = self.dir.join(source);
        if source.starts_with(self.root) {
            return Ok(None);
        }
        let field = || format!("mounts[{index}].source");
        let failed = |source: PathBuf| {
            move |error: io::Error| BundleError::Source {
                field: format!("mounts[{index}].source"),
                path: source,
                source: error,
            }
        };
        // A FIFO in the place of the file must not block the open.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&source);
        let file = file.map_err(failed(source.clone()))?;
        let meta = file.metadata().map_err(failed(source.clone()))?;
        let mut translated = mounts::translate(index, &plain(mount, options))?;
        if !translated.data.is_empty() {
            return Err(BundleError::UnsupportedValue {
                path: format!("mounts[{index}].options"),
                value: format!("{:?}", translated.data),
            });
        }
        if meta.is_file() {
            translated.flags |= libc::MS_BIND;
            translated.type_.clear();
            translated.source = source.to_string_lossy().into_owned();
            let mut content = Vec::new();
            let limited = (&file).take(self.left + 1).read_to_end(&mut content);
            limited.map_err(failed(source))?;
            self.left = self
                .left
                .checked_sub(content.len() as u64)
                .ok_or(BundleError::Invalid {
                    path: field(),
                    fault: "is too long: the host's files that a container is given may hold 2 MiB together",
                })?;
            translated.file = Some(agent::HostFile {
                content,
                mode: meta.mode() & 0o7777,
                uid: meta.uid(),
                gid: meta.gid(),
                ..Default::default()
            })
            .into();
            return Ok(Some(translated));
        }
        if mount.destination() == Path::new(SHM)
            && let Some(size) = size_of_memory(&file)
        {
            translated.source = "shm".into();
            translated.data = format!("mode={:o},size={size}", meta.mode() & 0o7777);
            return Ok(Some(translated));
        }
        Err(BundleError::Invalid {
            path: field(),
            fault: "is no file: husk has no volumes from the host yet",
        })
    }
}

/// The same mount as one that needs nothing of the host, for its options.
fn plain(mount: &Mount, options: &[String]) -> Mount {
    let mut plain = mount.clone();
    let rest = options
        .iter()
        .filter(|option| !["bind", "rbind"].contains(&option.as_str()));
    plain.set_options(Some(rest.cloned().collect()));
    plain.set_typ(Some("tmpfs".into()));
    plain
}

/// The size in bytes of the tmpfs that a directory is in.
fn size_of_memory(directory: &File) -> Option<u64> {
    let status = fstatfs(directory).ok()?;
    let block = u64::try_from(status.block_size()).ok()?;
    (status.filesystem_type() == TMPFS_MAGIC).then(|| status.blocks().saturating_mul(block))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn translated(files: &mut HostFiles<'_>, mount: serde_json::Value) -> Result<Option<agent::Mount>, BundleError> {
        files.mount(3, &serde_json::from_value(mount).unwrap())
    }

    #[test]
    fn a_file_goes_along_with_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
        let root = dir.path().join("rootfs");
        let mut files = HostFiles::new(dir.path(), &root);
        let mount = json!({"destination": "/etc/hosts", "type": "bind", "source": "hosts",
                           "options": ["rbind", "rprivate", "ro", "nosuid"]});
        let mount = translated(&mut files, mount).unwrap().unwrap();
        assert_eq!(mount.file.content, b"127.0.0.1 localhost\n");
        assert_eq!(mount.flags, libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID);
        assert_eq!(mount.propagation, libc::MS_PRIVATE | libc::MS_REC);
        assert!(mount.type_.is_empty());
        // What is below the root is the container's own, and other mounts are none of the host's.
        for other in [
            json!({"destination": "/x", "type": "bind", "source": "rootfs/x", "options": ["bind"]}),
            json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs"}),
        ] {
            assert!(translated(&mut files, other).unwrap().is_none());
        }
    }

    #[test]
    fn what_cannot_go_along_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("long"), vec![0; 3 << 20]).unwrap();
        std::fs::write(dir.path().join("short"), "").unwrap();
        let root = dir.path().join("rootfs");
        let mut files = HostFiles::new(dir.path(), &root);
        for (source, options) in [
            ("long", "ro"),
            (".", "ro"),
            ("none", "ro"),
            ("short", "idmap"),
            ("short", "x=y"),
        ] {
            let mount = json!({"destination": "/x", "type": "bind", "source": source, "options": ["bind", options]});
            let error = translated(&mut files, mount).unwrap_err().to_string();
            assert!(error.contains("mounts[3]"), "{error}");
        }
    }

    #[test]
    fn memory_on_dev_shm_is_memory_of_the_same_size() {
        let shm = Path::new(SHM);
        if !File::open(shm).is_ok_and(|shm| size_of_memory(&shm).is_some()) {
            eprintln!("skipped: this machine has no memory on {SHM}");
            return;
        }
        let mut files = HostFiles::new(Path::new("/"), Path::new("/rootfs"));
        let mount = json!({"destination": SHM, "type": "bind", "source": SHM, "options": ["bind", "nodev"]});
        let mount = translated(&mut files, mount).unwrap().unwrap();
        assert_eq!((mount.type_.as_str(), mount.flags), ("tmpfs", libc::MS_NODEV));
        assert!(mount.data.starts_with("mode=1777,size="), "{}", mount.data);
    }
}
