//! What a program in husk-vmm's place tries.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::KVM;

/// What is tried, with the errors that may come of it without a filter, and the system call that a filter names.
pub(crate) struct Attempt {
    pub(crate) name: &'static str,
    /// `None` where only a filter stands against it.
    pub(crate) errors: Option<&'static [Errno]>,
    /// The calls that a C library may make for it.
    pub(crate) calls: &'static [&'static str],
    pub(crate) make: fn() -> nix::Result<()>,
}

/// Everything that is tried.
pub(crate) const ATTEMPTS: &[Attempt] = &[
    Attempt {
        name: "open a file by its name",
        errors: Some(&[Errno::ENOENT, Errno::EACCES]),
        calls: &["open", "openat"],
        make: || open(c"/etc/passwd", libc::O_RDONLY),
    },
    Attempt {
        name: "open what is beside the root",
        errors: Some(&[Errno::ENOENT, Errno::EACCES]),
        calls: &["open", "openat"],
        make: || open(c"../../../../proc/self/status", libc::O_RDONLY),
    },
    Attempt {
        name: "read the root directory",
        errors: Some(&[Errno::EACCES]),
        calls: &["open", "openat"],
        make: || open(c"/", libc::O_RDONLY | libc::O_DIRECTORY),
    },
    Attempt {
        name: "make a file",
        errors: Some(&[Errno::ENOENT, Errno::EACCES, Errno::EROFS, Errno::ENOSPC]),
        calls: &["open", "openat"],
        make: || open(c"/tmp/husk-escape", libc::O_CREAT | libc::O_WRONLY),
    },
    Attempt {
        name: "make an internet socket that reaches anybody",
        errors: Some(&[Errno::ENETUNREACH, Errno::EACCES]),
        calls: &["socket"],
        make: reach_the_network,
    },
    Attempt {
        name: "make a unix socket that reaches anybody",
        errors: Some(&[Errno::ECONNREFUSED, Errno::EPERM, Errno::ENOENT, Errno::EACCES]),
        calls: &["socket"],
        make: reach_a_unix_socket,
    },
    Attempt {
        name: "make a packet socket",
        errors: Some(&[Errno::EPERM]),
        calls: &["socket"],
        make: || number(|| unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) }),
    },
    Attempt {
        name: "execute a program",
        errors: Some(&[Errno::ENOENT, Errno::EACCES]),
        calls: &["execve"],
        make: execute,
    },
    Attempt {
        name: "fork",
        // Root may, as far as limits go.
        errors: None,
        calls: &["clone"],
        // Without a C library's precautions: one that blocks all signals meanwhile dies without a word.
        make: || long(|| unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) }),
    },
    Attempt {
        name: "look into another process",
        errors: Some(&[Errno::EPERM, Errno::ESRCH]),
        calls: &["ptrace"],
        make: || long(|| unsafe { libc::ptrace(libc::PTRACE_ATTACH, parent(), 0, 0) }),
    },
    Attempt {
        name: "read another process's memory",
        errors: Some(&[Errno::EPERM, Errno::ESRCH]),
        calls: &["process_vm_readv"],
        make: read_the_parent,
    },
    Attempt {
        name: "signal another process",
        // Landlock keeps signals inside from Linux 6.12 on; before that, only the filter does.
        errors: None,
        calls: &["kill"],
        make: || number(|| unsafe { libc::kill(parent(), 0) }),
    },
    Attempt {
        name: "abort another process",
        errors: None,
        calls: &["tkill"],
        make: || long(|| unsafe { libc::syscall(libc::SYS_tkill, parent(), libc::SIGABRT) }),
    },
    Attempt {
        name: "mount",
        errors: Some(&[Errno::EPERM]),
        calls: &["mount"],
        make: || {
            let none = None::<&str>;
            nix::mount::mount(Some("none"), "/", Some("tmpfs"), nix::mount::MsFlags::empty(), none)
        },
    },
    Attempt {
        name: "leave the root",
        errors: Some(&[Errno::EPERM]),
        calls: &["chroot"],
        make: || nix::unistd::chroot("/.."),
    },
    Attempt {
        name: "make namespaces with new rights in them",
        // Nobody can be mapped in a root that is not the namespace's own.
        errors: None,
        calls: &["unshare"],
        make: || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER),
    },
    Attempt {
        name: "raise a limit",
        errors: Some(&[Errno::EPERM]),
        calls: &["prlimit64", "setrlimit"],
        make: || nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 1, 1),
    },
    Attempt {
        name: "become root",
        errors: Some(&[Errno::EPERM]),
        calls: &["setgroups"],
        make: || long(|| unsafe { libc::syscall(libc::SYS_setgroups, 0, 0) }),
    },
    Attempt {
        name: "be dumpable again",
        errors: None,
        calls: &["prctl"],
        make: || nix::sys::prctl::set_dumpable(true),
    },
    Attempt {
        name: "make memory executable",
        errors: None,
        calls: &["mprotect"],
        make: || protect(libc::PROT_READ | libc::PROT_EXEC),
    },
    Attempt {
        name: "map executable memory",
        errors: None,
        calls: &["mmap"],
        make: || {
            map(
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
            )
        },
    },
    Attempt {
        name: "map a file",
        errors: None,
        calls: &["mmap"],
        make: || map(libc::PROT_READ, libc::MAP_SHARED, KVM),
    },
    Attempt {
        name: "ask KVM for something unknown",
        errors: Some(&[Errno::ENOTTY, Errno::EINVAL]),
        calls: &["ioctl"],
        make: || number(|| unsafe { libc::ioctl(KVM, 0xaeff, 0) }),
    },
    Attempt {
        name: "make another machine",
        errors: None,
        calls: &["ioctl"],
        make: || number(|| unsafe { libc::ioctl(KVM, 0xae01, 0) }),
    },
    Attempt {
        name: "load a program into the kernel",
        errors: Some(&[Errno::EPERM, Errno::EFAULT, Errno::EINVAL]),
        calls: &["bpf"],
        make: || long(|| unsafe { libc::syscall(libc::SYS_bpf, 5, 0, 0) }),
    },
    Attempt {
        name: "make a ring of requests",
        errors: None,
        calls: &["io_uring_setup"],
        make: || long(|| unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) }),
    },
    Attempt {
        name: "handle page faults",
        errors: None,
        calls: &["userfaultfd"],
        make: || long(|| unsafe { libc::syscall(libc::SYS_userfaultfd, 0) }),
    },
    Attempt {
        name: "use a key of somebody's",
        errors: None,
        calls: &["keyctl"],
        make: || long(|| unsafe { libc::syscall(libc::SYS_keyctl, 0, -3, 0) }),
    },
    Attempt {
        name: "replace the handler that reports",
        errors: None,
        calls: &["rt_sigaction"],
        make: || {
            let ignore = nix::sys::signal::SigHandler::SigIgn;
            unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGSYS, ignore) }.map(drop)
        },
    },
];

fn number(call: impl FnOnce() -> libc::c_int) -> nix::Result<()> {
    Errno::result(call()).map(drop)
}

fn long(call: impl FnOnce() -> libc::c_long) -> nix::Result<()> {
    Errno::result(call()).map(drop)
}

/// The process that started this one, which is outside of its confinement.
fn parent() -> libc::pid_t {
    PARENT.load(Ordering::SeqCst)
}

pub(crate) static PARENT: AtomicI32 = AtomicI32::new(0);

fn open(path: &std::ffi::CStr, flags: libc::c_int) -> nix::Result<()> {
    number(|| unsafe { libc::open(path.as_ptr(), flags, 0o600) })
}

fn execute() -> nix::Result<()> {
    let program = c"/bin/su";
    let arguments = [program.as_ptr(), std::ptr::null()];
    number(|| unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) })
}

/// To an address that is only for documentation: nothing goes out even where this works.
fn reach_the_network() -> nix::Result<()> {
    let reach = || std::net::UdpSocket::bind("0.0.0.0:0")?.connect("192.0.2.1:9");
    reach().map_err(|error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))
}

fn reach_a_unix_socket() -> nix::Result<()> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new_abstract(OUTSIDE.as_bytes())?)
}

/// The abstract name of a socket on which this test listens.
pub(crate) const OUTSIDE: &str = "husk-confinement-test";

fn read_the_parent() -> nix::Result<()> {
    let mut byte = 0u8;
    let address = ATTEMPTS.as_ptr().cast_mut().cast();
    let here = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let there = libc::iovec {
        iov_base: address,
        iov_len: 1,
    };
    let read = unsafe { libc::process_vm_readv(parent(), &raw const here, 1, &raw const there, 1, 0) };
    Errno::result(read).map(drop)
}

fn map(protection: libc::c_int, flags: libc::c_int, fd: RawFd) -> nix::Result<()> {
    let start = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, fd, 0) };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    Ok(())
}

fn protect(protection: libc::c_int) -> nix::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0) };
    number(|| unsafe { libc::mprotect(page, 4096, protection) })
}
