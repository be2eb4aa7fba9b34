//! The descriptors that a machine is started with, each checked to be what the configuration says it is.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use husk_vmm_config::{Config, Descriptor};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat};
use thiserror::Error;

/// Everything that a machine is given, open.
#[derive(Debug)]
pub struct Resources {
    /// What the machine is made of.
    pub parts: Parts,
    /// Where clients ask for control connections, a listening `SOCK_SEQPACKET` socket.
    pub control: OwnedFd,
    /// The owner's end hangs up when the owner is gone.
    pub lifeline: OwnedFd,
}

/// What a machine is made of.
#[derive(Debug)]
pub struct Parts {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// What the guest boots.
    pub boot: BootFiles,
    /// What its devices need.
    pub devices: DeviceFiles,
}

/// What a machine's devices need.
#[derive(Debug)]
pub struct DeviceFiles {
    /// For each disk slot its file, if it begins with one.
    pub disks: Vec<Option<File>>,
    /// Where clients ask for connections into the guest.
    pub vsock: OwnedFd,
    /// The host's ports that the guest may connect to, with the sockets to which their connections go.
    pub vsock_ports: Vec<(u32, OwnedFd)>,
    /// Where clients ask for the console.
    pub console: Option<UnixListener>,
}

/// What is wrong with a descriptor.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ResourceError {
    #[error("descriptor {fd} for the {what} is not open")]
    NotOpen { fd: i32, what: String },
    #[error("descriptor {fd} for the {what} cannot be examined")]
    Examine { fd: i32, what: String, source: io::Error },
    #[error("descriptor {fd} for the {what} is not {expected}")]
    Kind {
        fd: i32,
        what: String,
        expected: &'static str,
    },
}

/// What a guest boots.
#[derive(Debug)]
pub struct BootFiles {
    /// The kernel image, a regular file.
    pub kernel: File,
    /// The initramfs archives, regular files.
    pub initramfs: Vec<File>,
}

impl Resources {
    /// Takes ownership of the descriptors that `config` names, all but the report's.
    ///
    /// # Errors
    /// The first descriptor that is not open or not of the right kind.
    ///
    /// # Safety
    /// The descriptors belong to nobody else in this process.
    #[allow(unsafe_code)]
    pub unsafe fn take(config: &Config) -> Result<Self, ResourceError> {
        let take = |fd: Descriptor, what: &str, kind: Kind| {
            // SAFETY: passed on to the caller, and the configuration names none twice.
            let owned = unsafe { take(fd, what) }?;
            kind.check(&owned, what)?;
            Ok(owned)
        };
        let file = |fd, what: &str| take(fd, what, Kind::File).map(File::from);
        let mut initramfs = Vec::new();
        for (index, archive) in config.kernel.initramfs.iter().enumerate() {
            initramfs.push(file(*archive, &format!("initramfs archive {index}"))?);
        }
        let mut disks = Vec::new();
        for disk in &config.disks {
            let what = format!("disk {:?}", disk.id);
            disks.push(
                disk.file
                    .map(|fd| take(fd, &what, Kind::Disk))
                    .transpose()?
                    .map(File::from),
            );
        }
        let mut vsock_ports = Vec::new();
        for port in &config.vsock.ports {
            let what = format!("connections to host port {}", port.port);
            vsock_ports.push((port.port, take(port.acceptor, &what, Kind::Packets)?));
        }
        let console = config.console.map(|console| console.listener);
        let parts = Parts {
            kvm: take(config.kvm, "KVM device", Kind::Device)?,
            boot: BootFiles {
                kernel: file(config.kernel.image, "kernel image")?,
                initramfs,
            },
            devices: DeviceFiles {
                disks,
                vsock: take(config.vsock.listener, "vsock listener", Kind::StreamListener)?,
                vsock_ports,
                console: console
                    .map(|fd| take(fd, "console listener", Kind::StreamListener))
                    .transpose()?
                    .map(UnixListener::from),
            },
        };
        Ok(Self {
            parts,
            control: take(config.control, "control listener", Kind::PacketListener)?,
            lifeline: take(config.lifeline, "lifeline", Kind::Lifeline)?,
        })
    }
}

/// Takes ownership of one descriptor and keeps it from being inherited.
///
/// # Errors
/// The descriptor is not open.
///
/// # Safety
/// The descriptor belongs to nobody else in this process.
#[allow(unsafe_code)]
pub unsafe fn take(fd: Descriptor, what: &str) -> Result<OwnedFd, ResourceError> {
    let Descriptor(fd) = fd;
    let not_open = || ResourceError::NotOpen {
        fd,
        what: what.to_owned(),
    };
    if fd < 0 {
        return Err(not_open());
    }
    // SAFETY: F_GETFD touches no memory, and asking about a closed descriptor is an error like any other.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(not_open());
    }
    // SAFETY: it is open, and the caller says that it is nobody else's.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| examine(&owned, what, errno))?;
    Ok(owned)
}

#[derive(Clone, Copy)]
enum Kind {
    Device,
    File,
    Disk,
    Lifeline,
    Packets,
    PacketListener,
    StreamListener,
}

impl Kind {
    fn expected(self) -> &'static str {
        match self {
            Self::Device => "a character device",
            Self::File => "a regular file",
            Self::Disk => "a regular file or a block device",
            Self::Lifeline => "a pipe or a socket",
            Self::Packets => "a SOCK_SEQPACKET unix socket",
            Self::PacketListener => "a listening SOCK_SEQPACKET unix socket",
            Self::StreamListener => "a listening SOCK_STREAM unix socket",
        }
    }

    fn check(self, fd: &OwnedFd, what: &str) -> Result<(), ResourceError> {
        let mode = fstat(fd).map_err(|errno| examine(fd, what, errno))?.st_mode;
        let kind = SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits());
        let right = match self {
            Self::Device => kind == SFlag::S_IFCHR,
            Self::File => kind == SFlag::S_IFREG,
            Self::Disk => kind == SFlag::S_IFREG || kind == SFlag::S_IFBLK,
            Self::Lifeline => kind == SFlag::S_IFIFO || kind == SFlag::S_IFSOCK,
            Self::Packets => is_socket(fd, SockType::SeqPacket, false),
            Self::PacketListener => is_socket(fd, SockType::SeqPacket, true),
            Self::StreamListener => is_socket(fd, SockType::Stream, true),
        };
        if right {
            return Ok(());
        }
        Err(ResourceError::Kind {
            fd: fd.as_raw_fd(),
            what: what.to_owned(),
            expected: self.expected(),
        })
    }
}

fn is_socket(fd: &impl AsFd, kind: SockType, listening: bool) -> bool {
    getsockopt(fd, sockopt::SockType) == Ok(kind) && getsockopt(fd, sockopt::AcceptConn) == Ok(listening)
}

fn examine(fd: &OwnedFd, what: &str, errno: Errno) -> ResourceError {
    ResourceError::Examine {
        fd: fd.as_raw_fd(),
        what: what.to_owned(),
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    fn check(fd: impl Into<OwnedFd>, kind: Kind) -> Result<(), String> {
        kind.check(&fd.into(), "thing").map_err(|error| error.to_string())
    }

    #[test]
    fn a_closed_descriptor_is_told_by_its_number() {
        // A number that no test's descriptor reaches.
        for number in [-1, 1 << 20] {
            // SAFETY: the descriptor is not open.
            #[allow(unsafe_code)]
            let result = unsafe { take(Descriptor(number), "kernel image") };
            let error = result.unwrap_err().to_string();
            assert_eq!(error, format!("descriptor {number} for the kernel image is not open"));
        }
    }

    #[test]
    fn a_taken_descriptor_is_not_inherited() {
        let fd = tempfile::tempfile().unwrap().into_raw_fd();
        // SAFETY: the file gave its descriptor away.
        #[allow(unsafe_code)]
        let owned = unsafe { take(Descriptor(fd), "file") }.unwrap();
        assert_eq!(fcntl(&owned, FcntlArg::F_GETFD), Ok(libc::FD_CLOEXEC));
    }

    #[test]
    fn each_kind_is_told_from_the_others() {
        let file = || tempfile::tempfile().unwrap();
        let stream = || UnixStream::pair().unwrap().0;
        let listener = || {
            let directory = tempfile::tempdir().unwrap();
            UnixListener::bind(directory.path().join("socket")).unwrap()
        };
        let null = File::open("/dev/null").unwrap();
        assert_eq!(check(null, Kind::Device), Ok(()));
        assert!(check(file(), Kind::Device).unwrap_err().contains("a character device"));
        assert_eq!(check(file(), Kind::File), Ok(()));
        assert_eq!(check(file(), Kind::Disk), Ok(()));
        assert_eq!(check(stream(), Kind::Lifeline), Ok(()));
        assert_eq!(check(listener(), Kind::StreamListener), Ok(()));
        assert!(check(stream(), Kind::StreamListener).unwrap_err().contains("listening"));
        assert!(check(listener(), Kind::PacketListener).is_err());
        assert!(check(stream(), Kind::Packets).is_err());
        assert!(
            check(file(), Kind::Lifeline)
                .unwrap_err()
                .ends_with("a pipe or a socket")
        );
        assert!(check(stream(), Kind::File).is_err());
    }
}
