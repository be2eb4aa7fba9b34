//! Bind mounts whose source is on the host.
//!
//! The guest sees no directory of the host. What can be had in it all the same is had:
//!
//! - something in the root directory is the same thing in the container's root;
//! - the kernel's own file systems are the guest's;
//! - the memory that container tools make for `/dev/shm` is memory in the guest, which all containers of the sandbox
//!   share that name the same directory;
//! - the small files that container tools write for each container (resolv.conf and its like) are copied, and what a
//!   kubelet writes for it of what the cluster says (ConfigMaps, Secrets, tokens).

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use husk_protocol::agent::File;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::FsFlags;

use super::super::BundleError;

/// The files of one mount together are not to be larger, in bytes.
const MAX_COPY: u64 = 1 << 20;
/// Nor are they to be more.
const MAX_FILES: usize = 512;
/// Nor are directories to lie deeper in each other.
const MAX_DEPTH: usize = 8;

/// What container tools put there is written once, before the container starts: names and addresses, podman's mark, and
/// the first process that docker's and podman's `--init` brings.
const COPIED: [&str; 8] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/hostname",
    "/run/.containerenv",
    "/sbin/docker-init",
    "/run/podman-init",
    "/dev/init",
    // A kubelet's empty file, for the container's last words.
    "/dev/termination-log",
];
/// The kinds of a pod's volumes that a kubelet fills, and has mounted read-only.
const KUBELETS: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];
/// Secrets of podman and docker: files in a directory, or single ones in it.
const SECRETS: &str = "/run/secrets";
const SHARED_MEMORY: &str = "/dev/shm";

/// The kernel's file systems by where every host has them.
const KERNEL: [(&str, &str); 4] = [
    ("/proc", "proc"),
    ("/sys", "sysfs"),
    ("/sys/fs/cgroup", "cgroup2"),
    ("/dev/mqueue", "mqueue"),
];

/// What a source on the host is in the guest.
#[derive(Debug, PartialEq)]
pub(super) enum Source {
    /// A path in the container's root.
    Inside(String),
    /// A file system of the guest's kernel.
    Kernel(&'static str),
    /// Memory with this name, these options, and the source's `MS_NOSUID`, `MS_NODEV` and `MS_NOEXEC`.
    Shared { name: String, data: String, flags: u64 },
    /// Files to be copied; a single one has no path.
    Copy(Vec<File>),
}

/// Finds out what the source of mount number `index` is. `destination` has no `.`, `..` or empty names.
pub(super) fn find(index: usize, source: &Path, destination: &str, root: &Path) -> Result<Source, BundleError> {
    let refused = || BundleError::UnsupportedValue {
        path: format!("mounts[{index}].source"),
        value: format!("{source:?} on the host"),
    };
    let unreadable = |error| BundleError::Source {
        path: format!("mounts[{index}].source"),
        file: source.to_owned(),
        source: error,
    };
    let real = fs::canonicalize(source).map_err(unreadable)?;
    if let Ok(root) = fs::canonicalize(root)
        && let Ok(inside) = real.strip_prefix(&root)
    {
        let inside = inside.to_str().ok_or_else(refused)?;
        return Ok(Source::Inside(format!("/{inside}")));
    }
    if let Some((_, kind)) = KERNEL.iter().find(|(path, _)| real == Path::new(path)) {
        return Ok(Source::Kernel(kind));
    }
    if destination == SHARED_MEMORY {
        return shared_memory(&real).ok_or_else(refused);
    }
    let is_kubelets = is_kubelets(&real);
    let is_secret = Path::new(destination).starts_with(SECRETS);
    if !is_kubelets && !is_secret && !COPIED.contains(&destination) {
        return Err(refused());
    }
    let mut copy = Copy::default();
    if is_kubelets && real.is_dir() {
        copy.top = Some(fs::File::open(&real).map_err(unreadable)?);
    }
    // A link in the place of the file itself is not followed: what is read is what the configuration names.
    copy.add(source, PathBuf::new(), is_kubelets || is_secret)
        .map_err(|fault| match fault {
            Fault::Read(error) => unreadable(error),
            Fault::Kind(fault) => BundleError::Invalid {
                path: format!("mounts[{index}].source"),
                fault,
            },
        })?;
    Ok(Source::Copy(copy.files))
}

/// Whether a path is one of a kubelet's own files for a pod (pkg/kubelet/config/defaults.go in Kubernetes' source):
///
/// - `pods/POD/volumes/KIND/NAME`, of the kinds that it fills itself, and a part of one that is mounted as
///   `pods/POD/volume-subpaths/NAME/CONTAINER/NUMBER`;
/// - `pods/POD/containers/CONTAINER/FILE`, for the termination message, wherever in the container that is to be.
fn is_kubelets(path: &Path) -> bool {
    let names: Vec<_> = path.iter().filter_map(|name| name.to_str()).collect();
    let pods = (0..names.len()).filter(|at| names[*at] == "pods");
    let mut those_of_pods = pods.map(|at| names.split_at(at + 1));
    those_of_pods.any(|(pods, names)| match *names {
        [_, "volumes", kind, _, ..] => KUBELETS.contains(&kind),
        [pod, "volume-subpaths", volume, _, _] => {
            let volumes = pods.iter().collect::<PathBuf>().join(pod).join("volumes");
            KUBELETS.iter().any(|kind| volumes.join(kind).join(volume).is_dir())
        }
        [_, "containers", _, _] => true,
        _ => false,
    })
}

/// A directory in memory, with its size.
fn shared_memory(path: &Path) -> Option<Source> {
    let status = statfs(path).ok()?;
    if status.filesystem_type() != TMPFS_MAGIC || !path.is_dir() {
        return None;
    }
    let size = u64::try_from(status.block_size()).ok()?.checked_mul(status.blocks())?;
    let restrictions = [
        (FsFlags::ST_NOSUID, libc::MS_NOSUID),
        (FsFlags::ST_NODEV, libc::MS_NODEV),
        (FsFlags::ST_NOEXEC, libc::MS_NOEXEC),
    ];
    let flags = restrictions
        .iter()
        .filter(|(status_flag, _)| status.flags().contains(*status_flag))
        .fold(0, |flags, (_, flag)| flags | flag);
    // A size of 0 is a tmpfs without a limit: so is it in the guest.
    Some(Source::Shared {
        name: path.to_str()?.to_owned(),
        data: format!("mode=1777,size={size}"),
        flags,
    })
}

/// Why something is not copied.
enum Fault {
    Read(std::io::Error),
    Kind(&'static str),
}

/// Files on their way into a message.
#[derive(Default)]
struct Copy {
    /// The directory whose links are followed as far as they stay in it. A kubelet changes its volumes by a link in them
    /// (`..data`, to a directory whose name tells the time), to which the names lead that a container is to see.
    top: Option<fs::File>,
    directories: usize,
    files: Vec<File>,
    bytes: u64,
}

impl Copy {
    fn add(&mut self, path: &Path, name: PathBuf, directories: bool) -> Result<(), Fault> {
        let mut file = self.open(path, &name)?;
        let metadata = file.metadata().map_err(Fault::Read)?;
        if metadata.is_dir() && directories {
            return self.add_directory(path, &name);
        }
        if !metadata.is_file() {
            return Err(Fault::Kind("is no regular file, and nothing else can be copied"));
        }
        let mut contents = Vec::new();
        let most = MAX_COPY - self.bytes + 1;
        Read::by_ref(&mut file)
            .take(most)
            .read_to_end(&mut contents)
            .map_err(Fault::Read)?;
        self.bytes += contents.len() as u64;
        if self.bytes > MAX_COPY || self.files.len() >= MAX_FILES {
            return Err(Fault::Kind("is more than can be copied (1 MiB in 512 files)"));
        }
        let path = name
            .to_str()
            .ok_or(Fault::Kind("holds a file whose name is not UTF-8"))?;
        self.files.push(File {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            contents,
            ..Default::default()
        });
        Ok(())
    }

    fn open(&self, path: &Path, name: &Path) -> Result<fs::File, Fault> {
        // A FIFO must not block the open.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let Some(top) = self.top.as_ref().filter(|_| !name.as_os_str().is_empty()) else {
            let mut options = OpenOptions::new();
            let options = options.read(true).custom_flags((flags | OFlag::O_NOFOLLOW).bits());
            return options.open(path).map_err(Fault::Read);
        };
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
        match openat2(top, name, how) {
            Ok(file) => Ok(file.into()),
            Err(Errno::EXDEV) => Err(Fault::Kind("holds a link that leads out of it")),
            Err(errno) => Err(Fault::Read(errno.into())),
        }
    }

    fn add_directory(&mut self, path: &Path, name: &Path) -> Result<(), Fault> {
        self.directories += 1;
        if name.components().count() >= MAX_DEPTH || self.directories > MAX_FILES {
            return Err(Fault::Kind("is a deeper tree than can be copied"));
        }
        let mut entries = fs::read_dir(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(Fault::Read)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            if self.top.is_some() && entry.file_name().as_bytes().starts_with(b"..") {
                // The kubelet's own: what the container is to see leads there.
                continue;
            }
            self.add(&entry.path(), name.join(entry.file_name()), true)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn found(source: &Path, destination: &str, root: &Path) -> Result<Source, String> {
        find(4, source, destination, root).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error} {}", cause.unwrap_or_default())
        })
    }

    #[test]
    fn what_lies_in_the_root_is_the_same_in_the_container() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("a/b", root.join("link")).unwrap();
        symlink("/etc", root.join("out")).unwrap();
        let inside = |path: &str| Ok(Source::Inside(path.to_owned()));
        assert_eq!(found(&root.join("a/b"), "/x", &root), inside("/a/b"));
        assert_eq!(found(&root.join("a/../link"), "/x", &root), inside("/a/b"));
        assert!(
            found(&root.join("out"), "/x", &root)
                .unwrap_err()
                .contains("mounts[4].source")
        );
        assert!(found(&root.join("a/../.."), "/x", &root).is_err());
    }

    #[test]
    fn small_files_are_copied_to_where_tools_put_them() {
        let directory = tempfile::tempdir().unwrap();
        let root = Path::new("/no/such/root");
        let hosts = directory.path().join("hosts");
        fs::write(&hosts, "127.0.0.1 box\n").unwrap();
        fs::set_permissions(&hosts, fs::Permissions::from_mode(0o644)).unwrap();
        let Ok(Source::Copy(files)) = found(&hosts, "/etc/hosts", root) else {
            panic!()
        };
        assert_eq!((files.len(), files[0].path.as_str(), files[0].mode), (1, "", 0o644));
        assert_eq!(files[0].contents, b"127.0.0.1 box\n");
        assert!(
            found(&hosts, "/etc/app.conf", root)
                .unwrap_err()
                .contains("mounts[4].source")
        );

        let link = directory.path().join("link");
        symlink(&hosts, &link).unwrap();
        assert!(found(&link, "/etc/hosts", root).unwrap_err().contains("symbolic"));
        assert!(
            found(directory.path(), "/etc/hosts", root)
                .unwrap_err()
                .contains("no regular file")
        );
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(
            found(&fifo, "/etc/hosts", root)
                .unwrap_err()
                .contains("no regular file")
        );
        assert!(
            found(&directory.path().join("none"), "/etc/hosts", root)
                .unwrap_err()
                .contains("none")
        );
        fs::write(&hosts, vec![0; 1 << 20]).unwrap();
        assert!(found(&hosts, "/etc/hosts", root).is_ok());
        fs::write(&hosts, vec![0; (1 << 20) + 1]).unwrap();
        assert!(found(&hosts, "/etc/hosts", root).unwrap_err().contains("1 MiB"));
    }

    #[test]
    fn secrets_are_copied_with_their_directories() {
        let directory = tempfile::tempdir().unwrap();
        let root = Path::new("/no/such/root");
        let at = |path: &str| directory.path().join(path);
        assert_eq!(
            found(directory.path(), "/run/secrets", root),
            Ok(Source::Copy(Vec::new()))
        );
        fs::create_dir_all(at("b/c")).unwrap();
        fs::write(at("b/c/two"), "2").unwrap();
        fs::write(at("one"), "1").unwrap();
        let Ok(Source::Copy(files)) = found(directory.path(), "/run/secrets", root) else {
            panic!()
        };
        let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["b/c/two", "one"]);
        let Ok(Source::Copy(files)) = found(&at("one"), "/run/secrets/name", root) else {
            panic!()
        };
        assert_eq!(files[0].path, "");
        symlink("/etc/shadow", at("b/link")).unwrap();
        assert!(found(directory.path(), "/run/secrets", root).is_err());
        fs::remove_file(at("b/link")).unwrap();
        fs::create_dir_all(at("1/2/3/4/5/6/7/8/9")).unwrap();
        assert!(
            found(directory.path(), "/run/secrets", root)
                .unwrap_err()
                .contains("deeper")
        );
    }

    #[test]
    fn what_a_kubelet_fills_is_copied() {
        let directory = tempfile::tempdir().unwrap();
        let root = Path::new("/no/such/root");
        let pod = directory.path().join("pods/1234");
        let volume = pod.join("volumes/kubernetes.io~projected/token");
        fs::create_dir_all(volume.join("..2026/deep")).unwrap();
        fs::write(volume.join("..2026/token"), "t").unwrap();
        fs::write(volume.join("..2026/deep/ca"), "c").unwrap();
        symlink("..2026", volume.join("..data")).unwrap();
        symlink("..data/token", volume.join("token")).unwrap();
        symlink("..data/deep", volume.join("deep")).unwrap();
        let names = |source: &Path| match found(source, "/anywhere", root) {
            Ok(Source::Copy(files)) => Ok(files
                .iter()
                .map(|file| format!("{}={}", file.path, String::from_utf8_lossy(&file.contents)))
                .collect::<Vec<_>>()),
            other => Err(format!("{other:?}")),
        };
        assert_eq!(names(&volume).unwrap(), ["deep/ca=c", "token=t"]);
        // A part of it, and of a volume that the kubelet does not fill.
        let part = pod.join("volume-subpaths/token/box/0");
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, "p").unwrap();
        assert_eq!(names(&part).unwrap(), ["=p"]);
        let other = pod.join("volume-subpaths/data/box/0");
        fs::create_dir_all(&other).unwrap();
        assert!(names(&other).unwrap_err().contains("mounts[4].source"));
        let data = pod.join("volumes/kubernetes.io~empty-dir/data");
        fs::create_dir_all(&data).unwrap();
        assert!(names(&data).unwrap_err().contains("mounts[4].source"));
        let words = pod.join("containers/box/5678");
        fs::create_dir_all(words.parent().unwrap()).unwrap();
        fs::write(&words, "").unwrap();
        assert_eq!(names(&words).unwrap(), ["="]);

        symlink("/etc/passwd", volume.join("out")).unwrap();
        assert!(names(&volume).unwrap_err().contains("leads out of it"));
        fs::remove_file(volume.join("out")).unwrap();
        for name in 0..4 {
            symlink(".", volume.join(format!("loop{name}"))).unwrap();
        }
        assert!(names(&volume).unwrap_err().contains("deeper"));
    }

    #[test]
    fn what_is_the_kernels_is_the_guests() {
        let root = Path::new("/no/such/root");
        assert_eq!(found(Path::new("/sys"), "/sys", root), Ok(Source::Kernel("sysfs")));
        assert!(found(Path::new("/sys/kernel"), "/sys/kernel", root).is_err());
        if statfs("/dev/shm").is_ok_and(|status| status.filesystem_type() == TMPFS_MAGIC) {
            let Ok(Source::Shared { name, data, flags }) = found(Path::new("/dev/shm"), "/dev/shm", root) else {
                panic!()
            };
            assert!(name == "/dev/shm" && data.starts_with("mode=1777,size="), "{data}");
            let is_nosuid = statfs("/dev/shm").unwrap().flags().contains(FsFlags::ST_NOSUID);
            assert_eq!(flags & libc::MS_NOSUID != 0, is_nosuid);
        }
        assert!(found(Path::new("/etc"), "/dev/shm", root).is_err());
    }
}
