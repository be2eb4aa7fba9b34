//! The container's root file system on the host: containerd's snapshotter says what to mount, and the image for the
//! guest is made from that, unless the guest can mount it itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use containerd_shim_protos::types::mount::Mount;
use husk_sandbox::image::{Cache, Image, ImageError, Layers};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::error::ShimError;
use crate::snapshots::{self, Stack};

/// The longest options that mount(2) takes, in bytes: a page less its end.
const MAX_DATA: usize = 4095;

/// A mounted root file system. Dropping it unmounts it.
#[derive(Debug)]
pub(crate) struct RootFs {
    path: PathBuf,
    /// How many mounts lie there.
    mounts: usize,
    source: Source,
}

/// What the guest's disk is made from.
#[derive(Clone, Debug)]
enum Source {
    /// What is mounted.
    Directory,
    /// The same, and what it is made of.
    Overlay(Overlay),
    /// Files and devices with file systems, which are not mounted.
    Stack(Arc<Stack>),
}

/// Directories of an overlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Overlay {
    lower: Vec<PathBuf>,
    upper: Option<PathBuf>,
}

impl RootFs {
    /// Mounts a container's root file system at `path`, one mount over the other.
    pub(crate) fn mount(path: &Path, mounts: &[Mount]) -> Result<Self, ShimError> {
        let mut root = Self {
            path: path.to_owned(),
            mounts: 0,
            source: Source::of(mounts)?,
        };
        if let Source::Stack(_) = root.source {
            return Ok(root);
        }
        if !mounts.is_empty() {
            fs::create_dir_all(path).map_err(|source| ShimError::File {
                what: "the directory",
                path: path.into(),
                source,
            })?;
        }
        for mount in mounts {
            mount_one(mount, path).map_err(|source| ShimError::Mount {
                what: format!("{} {} at {}", mount.type_, mount.source, path.display()),
                source,
            })?;
            root.mounts += 1;
        }
        Ok(root)
    }

    /// What makes the guest's image of the root file system at `root`, or finds the one that was made before.
    pub(crate) fn image(
        &self,
        cache: Cache,
        root: &Path,
    ) -> impl FnOnce() -> Result<Image, ImageError> + Send + 'static {
        let source = self.source.clone();
        let root = root.to_owned();
        move || match source {
            Source::Overlay(layers) => {
                let lower: Vec<_> = layers.lower.iter().map(PathBuf::as_path).collect();
                let layers = Layers {
                    lower: &lower,
                    upper: layers.upper.as_deref(),
                };
                cache.overlay(&root, layers)
            }
            Source::Directory => cache.image(&root),
            Source::Stack(stack) => cache.snapshots(&stack.snapshots, stack.upper.as_deref()),
        }
    }
}

impl Source {
    fn of(mounts: &[Mount]) -> Result<Self, ShimError> {
        if let Some(mount) = mounts.iter().find(|mount| !mount.target.is_empty()) {
            let what = format!("{} {} below the root, at {}", mount.type_, mount.source, mount.target);
            return Err(ShimError::Snapshot(what));
        }
        if let Some(stack) = snapshots::stack(mounts)? {
            return Ok(Self::Stack(Arc::new(stack)));
        }
        let overlay = match mounts {
            [mount] if mount.type_ == "overlay" => Overlay::parse(mount),
            _ => None,
        };
        Ok(overlay.map_or(Self::Directory, Self::Overlay))
    }
}

impl Drop for RootFs {
    fn drop(&mut self) {
        for _ in 0..self.mounts {
            unmount(&self.path);
        }
    }
}

/// Unmounts whatever is mounted at a path, once; says whether there was anything.
pub(crate) fn unmount(path: &Path) -> bool {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => true,
        // Nothing is mounted there, or there is nothing.
        Err(Errno::EINVAL | Errno::ENOENT) => false,
        Err(errno) => {
            tracing::warn!(path = %path.display(), %errno, "the root file system is not unmounted");
            false
        }
    }
}

impl Overlay {
    /// The directories that an overlay's options name, if these can be read off them: a colon can stand in a name.
    fn parse(mount: &Mount) -> Option<Self> {
        let mut overlay = Self::default();
        for option in &mount.options {
            match option.split_once('=') {
                Some(("lowerdir", _)) if option.contains('\\') => return None,
                Some(("lowerdir", paths)) => overlay.lower = paths.split(':').map(PathBuf::from).collect(),
                Some(("upperdir", path)) => overlay.upper = Some(path.into()),
                _ => {}
            }
        }
        let absolute = overlay.lower.iter().all(|path| path.is_absolute());
        (absolute && !overlay.lower.is_empty()).then_some(overlay)
    }
}

/// What a mount's options say.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MsFlags,
    data: Vec<String>,
    is_loop: bool,
}

impl Options {
    fn parse(options: &[String]) -> Self {
        let mut parsed = Self {
            flags: MsFlags::empty(),
            data: Vec::new(),
            is_loop: false,
        };
        for option in options {
            let (set, clear) = match option.as_str() {
                "ro" => (MsFlags::MS_RDONLY, MsFlags::empty()),
                "rw" => (MsFlags::empty(), MsFlags::MS_RDONLY),
                "nosuid" => (MsFlags::MS_NOSUID, MsFlags::empty()),
                "suid" => (MsFlags::empty(), MsFlags::MS_NOSUID),
                "nodev" => (MsFlags::MS_NODEV, MsFlags::empty()),
                "dev" => (MsFlags::empty(), MsFlags::MS_NODEV),
                "noexec" => (MsFlags::MS_NOEXEC, MsFlags::empty()),
                "exec" => (MsFlags::empty(), MsFlags::MS_NOEXEC),
                "noatime" => (MsFlags::MS_NOATIME, MsFlags::empty()),
                "relatime" => (MsFlags::MS_RELATIME, MsFlags::empty()),
                "bind" => (MsFlags::MS_BIND, MsFlags::empty()),
                "rbind" => (MsFlags::MS_BIND | MsFlags::MS_REC, MsFlags::empty()),
                "defaults" => (MsFlags::empty(), MsFlags::empty()),
                "loop" => {
                    parsed.is_loop = true;
                    continue;
                }
                _ => {
                    parsed.data.push(option.clone());
                    continue;
                }
            };
            parsed.flags = (parsed.flags | set) - clear;
        }
        parsed
    }
}

fn mount_one(mount: &Mount, target: &Path) -> io::Result<()> {
    let options = Options::parse(&mount.options);
    if options.is_loop {
        return Err(io::Error::other(
            "husk does not set up loop devices; of files with a file system in them its guests mount ext4 and EROFS",
        ));
    }
    if mount.type_ == "overlay" && options.data.join(",").len() > MAX_DATA {
        return mount_long_overlay(mount, &options, target);
    }
    mount_with(mount, &options, target)
}

/// mount(2), with a second call for a bind mount, which takes its flags only then.
fn mount_with(mount: &Mount, options: &Options, target: &Path) -> io::Result<()> {
    let data = options.data.join(",");
    let (source, kind) = (mount.source.as_str(), mount.type_.as_str());
    nix::mount::mount(Some(source), target, Some(kind), options.flags, Some(data.as_str()))?;
    let restrictions = options.flags - (MsFlags::MS_BIND | MsFlags::MS_REC);
    if options.flags.contains(MsFlags::MS_BIND) && !restrictions.is_empty() {
        let none = None::<&str>;
        let flags = restrictions | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        if let Err(errno) = nix::mount::mount(none, target, none, flags, none) {
            unmount(target);
            return Err(errno.into());
        }
    }
    Ok(())
}

/// Mounts an overlay of so many layers that their paths do not fit, from the directory that they have in common.
fn mount_long_overlay(mount: &Mount, options: &Options, target: &Path) -> io::Result<()> {
    let common = common_directory(&options.data).ok_or(Errno::ENAMETOOLONG)?;
    let prefix = format!("{}/", common.display());
    let shorter = Options {
        data: options.data.iter().map(|option| option.replace(&prefix, "")).collect(),
        flags: options.flags,
        is_loop: false,
    };
    let target = std::path::absolute(target)?;
    // A thread may have a working directory of its own, which goes with it.
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            nix::unistd::chdir(&common)?;
            mount_with(mount, &shorter, &target)
        });
        work.join()
            .unwrap_or_else(|_| Err(io::Error::other("the mounting thread has panicked")))
    })
}

/// The deepest directory that is above all layers.
fn common_directory(data: &[String]) -> Option<PathBuf> {
    let values = data.iter().filter_map(|option| match option.split_once('=')? {
        ("lowerdir" | "upperdir" | "workdir", paths) => Some(paths),
        _ => None,
    });
    let mut common: Option<PathBuf> = None;
    for path in values.flat_map(|paths| paths.split(':')) {
        let path = Path::new(path).parent()?;
        common = Some(match common {
            None => path.to_owned(),
            Some(common) => common.ancestors().find(|above| path.starts_with(above))?.to_owned(),
        });
    }
    common.filter(|common| common.parent().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[&str]) -> Vec<String> {
        list.iter().map(|option| (*option).to_owned()).collect()
    }

    #[test]
    fn options_are_flags_or_the_file_systems_own() {
        let parsed = Options::parse(&options(&["rbind", "ro", "nosuid", "index=off", "rw"]));
        assert_eq!(parsed.flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_NOSUID);
        assert_eq!(parsed.data, ["index=off"]);
        assert!(Options::parse(&options(&["loop"])).is_loop);
    }

    #[test]
    fn an_overlays_layers_are_read_off_its_options() {
        let mount = |list| Mount {
            options: options(list),
            ..Default::default()
        };
        let overlay = Overlay::parse(&mount(&[
            "index=off",
            "lowerdir=/a/2:/a/1",
            "upperdir=/a/3",
            "workdir=/a/w",
        ]));
        let expected = Overlay {
            lower: vec!["/a/2".into(), "/a/1".into()],
            upper: Some("/a/3".into()),
        };
        assert_eq!(overlay, Some(expected));
        assert_eq!(
            Overlay::parse(&mount(&["lowerdir=2:1"])),
            None,
            "from an unknown directory"
        );
        assert_eq!(Overlay::parse(&mount(&["lowerdir=/a\\:b"])), None);
        assert_eq!(Overlay::parse(&mount(&[])), None);
    }

    #[test]
    fn layers_have_a_directory_in_common() {
        let common = |list| common_directory(&options(list));
        let list = [
            "index=off",
            "lowerdir=/s/2/fs:/s/1/fs",
            "upperdir=/s/3/fs",
            "workdir=/s/3/work",
        ];
        assert_eq!(common(&list), Some("/s".into()));
        assert_eq!(
            common(&["lowerdir=/a/1:/b/1"]),
            None,
            "the root itself shortens nothing"
        );
        assert_eq!(common(&[]), None);
    }
}
