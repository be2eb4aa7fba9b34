//! The processes that are the emulated host: QEMU, and a virtiofsd for each directory that it sees.
//!
//! Nothing of them is a file: sockets are inherited or have no name in the file system, the initramfs, the kernel's
//! console and the processes' messages are in anonymous memory. So nothing can be left behind. Each process is killed
//! when this one ends, whatever it dies of.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockname, listen, socket,
};
use nix::unistd::{Pid, geteuid, getppid};

use crate::host::kernel::Kernel;

/// Lines of the console that an error shows.
const TAIL_LINES: usize = 25;

/// What to build the machine from.
pub(crate) struct Parts<'a> {
    pub(crate) qemu: &'a Path,
    pub(crate) virtiofsd: &'a Path,
    pub(crate) kernel: &'a Kernel,
    pub(crate) initramfs: &'a [u8],
    /// Virtual processors.
    pub(crate) cpus: u32,
    /// In bytes.
    pub(crate) memory: u64,
    /// Count instructions instead of following the clock.
    pub(crate) icount: bool,
    /// Rate of the time stamp counter.
    pub(crate) tsc_khz: u64,
    /// TCP port on the loopback interface for a debugger.
    pub(crate) gdb: Option<u16>,
    /// Directories that the emulated host may write to, with their tags.
    pub(crate) writable: &'a [(String, PathBuf)],
}

/// The running processes. Dropping it kills them.
pub(crate) struct Machine {
    children: Vec<(&'static str, Child)>,
    console: File,
    messages: File,
}

impl Machine {
    /// Starts the machine. What comes back beside it is this side of the channel.
    pub(crate) fn start(parts: &Parts<'_>) -> Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair().context("socketpair")?;
        let messages = memory_file(c"messages", &[])?;
        let mut machine = Self {
            children: Vec::new(),
            console: memory_file(c"console", &[])?,
            messages,
        };
        let initramfs = memory_file(c"initramfs", parts.initramfs)?;

        let mut qemu = Command::new(parts.qemu);
        qemu.args(arguments(parts));
        let mut connections = Vec::new();
        let mut shared = vec![("root", Path::new("/"), false)];
        shared.extend(
            parts
                .writable
                .iter()
                .map(|(tag, path)| (tag.as_str(), path.as_path(), true)),
        );
        for (tag, path, writable) in shared {
            let connection = machine.serve(parts.virtiofsd, path, writable)?;
            let fd = connection.as_raw_fd();
            qemu.args(["-chardev", &format!("socket,id={tag},fd={fd}")]);
            qemu.args(["-device", &format!("vhost-user-fs-pci,chardev={tag},tag={tag}")]);
            connections.push(connection);
        }
        qemu.args(["-chardev", &format!("socket,id=channel,fd={}", theirs.as_raw_fd())]);
        qemu.args([
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtserialport,chardev=channel,name=xtask",
        ]);
        qemu.args([
            "-chardev",
            &format!("file,id=console,path=/proc/self/fd/{}", machine.console.as_raw_fd()),
        ]);
        qemu.args(["-serial", "chardev:console"]);
        qemu.arg("-initrd")
            .arg(format!("/proc/self/fd/{}", initramfs.as_raw_fd()));
        let mut fds = vec![theirs.as_raw_fd(), initramfs.as_raw_fd(), machine.console.as_raw_fd()];
        fds.extend(connections.iter().map(AsRawFd::as_raw_fd));
        machine.spawn("qemu", &mut qemu, fds)?;
        Ok((machine, ours))
    }

    /// Starts a virtiofsd for a directory and gives the connection to it.
    fn serve(&mut self, program: &Path, directory: &Path, writable: bool) -> Result<OwnedFd> {
        let (listener, connection) = listener_and_connection().context("a socket for virtiofsd")?;
        let mut server = Command::new(program);
        server.arg(format!("--fd={}", listener.as_raw_fd()));
        server.arg("--shared-dir").arg(directory);
        // A directory below the root is followed through whatever is mounted there: an overlay cannot be laid over
        // announced mounts.
        server.args([
            "--no-announce-submounts",
            "--inode-file-handles=never",
            "--log-level=error",
        ]);
        // Other programs of the machine work on the writable directories too.
        server.args(if writable {
            ["--cache=auto"].as_slice()
        } else {
            &["--cache=always", "--readonly"]
        });
        server.arg(if geteuid().is_root() {
            "--sandbox=chroot"
        } else {
            "--sandbox=none"
        });
        self.spawn("virtiofsd", &mut server, vec![listener.as_raw_fd()])?;
        Ok(connection)
    }

    /// Starts a process that inherits `fds` and does not outlive this one.
    fn spawn(&mut self, name: &'static str, command: &mut Command, fds: Vec<RawFd>) -> Result<()> {
        let messages = self.messages.try_clone().context("duplicating a descriptor")?;
        // A process group of its own: Ctrl-C is for the command in the emulated host.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(messages)
            .process_group(0);
        let parent = Pid::this();
        let prepare = move || {
            set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before that.
            if getppid() != parent {
                return Err(nix::errno::Errno::ESRCH.into());
            }
            for fd in &fds {
                // SAFETY: the parent keeps these descriptors open until the process has started.
                let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls on plain values and nothing else: no allocation,
        // no lock.
        unsafe { command.pre_exec(prepare) };
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("starting {program}"))?;
        self.children.push((name, child));
        Ok(())
    }

    /// A process of the machine that has ended, and how.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.children.iter_mut().find_map(|(name, child)| {
            let status = child.try_wait().ok().flatten()?;
            Some(format!("{name} ended ({status})"))
        })
    }

    /// What the processes and the kernel said last, for an error.
    pub(crate) fn last_words(&mut self) -> String {
        let mut text = String::new();
        for (title, file) in [
            ("messages of qemu and virtiofsd", &mut self.messages),
            ("kernel console", &mut self.console),
        ] {
            let mut bytes = Vec::new();
            if file.rewind().and_then(|()| file.read_to_end(&mut bytes)).is_err() || bytes.is_empty() {
                continue;
            }
            let all = String::from_utf8_lossy(&bytes);
            let lines: Vec<_> = all.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
            text.push_str(&format!(
                "\n--- {title}, last {} lines ---\n{}",
                tail.len(),
                tail.join("\n")
            ));
        }
        text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for (_, child) in self.children.iter_mut().rev() {
            // That it has ended already is no failure.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn arguments(parts: &Parts<'_>) -> Vec<OsString> {
    let memory = parts.memory >> 20;
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
    add(&[
        "-M",
        "q35",
        "-nodefaults",
        "-no-reboot",
        "-no-user-config",
        "-display",
        "none",
        "-cpu",
        "EPYC,+svm",
    ]);
    add(&["-m", &format!("{memory}M"), "-numa", "node,memdev=memory"]);
    add(&[
        "-object",
        &format!("memory-backend-memfd,id=memory,size={memory}M,share=on"),
    ]);
    add(&["-smp", &parts.cpus.to_string()]);
    if parts.icount {
        add(&["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
    } else {
        add(&["-accel", "tcg,thread=multi"]);
    }
    if let Some(port) = parts.gdb {
        add(&["-gdb", &format!("tcp:127.0.0.1:{port}")]);
    }
    add(&["-append", &kernel_command_line(parts.tsc_khz)]);
    add(&["-kernel"]);
    arguments.push(parts.kernel.image().into());
    arguments
}

fn kernel_command_line(tsc_khz: u64) -> String {
    [
        "console=ttyS0 quiet psi=1",
        // A panic ends the machine, since QEMU was told not to reboot.
        "panic=-1",
        // The processor's flaws are not emulated.
        "mitigations=off",
        // Emulated timers fail the tests and comparisons that a kernel makes of them when QEMU gets too little time.
        &format!("no_timer_check tsc=reliable tsc_early_khz={tsc_khz}"),
        // What takes emulated instructions and gives a test machine nothing.
        "cryptomgr.notests random.trust_cpu=on",
        // virtiofsd writes files straight into memory, which QEMU's translator does not see: where a page held code
        // before, a nested guest's for instance, the translations of that would run on in place of the file's. A page
        // that the kernel clears when it is allocated loses them.
        "init_on_alloc=1",
    ]
    .join(" ")
}

/// A listening socket without a name in the file system, and a connection to it.
fn listener_and_connection() -> nix::Result<(OwnedFd, OwnedFd)> {
    let new = || socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    let listener = new()?;
    bind(listener.as_raw_fd(), &UnixAddr::new_unnamed())?;
    listen(&listener, Backlog::new(1)?)?;
    let address: UnixAddr = getsockname(listener.as_raw_fd())?;
    let connection = new()?;
    connect(connection.as_raw_fd(), &address)?;
    Ok((listener, connection))
}

fn memory_file(name: &std::ffi::CStr, contents: &[u8]) -> Result<File> {
    let mut file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).context("memfd_create")?);
    file.write_all(contents).context("writing to memory")?;
    Ok(file)
}
