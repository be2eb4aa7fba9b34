//! Starts `husk-vmm` with everything that it needs, and speaks to it as its owner.

#![allow(dead_code, clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use husk_vmm_config::{
    Config, Console, Descriptor, Disk, ExitCounts, HostPort, Kernel, Report, Request, Response, Status, Topology, Vsock,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, bind, connect, listen,
    recv, sendmsg, shutdown, socket, socketpair,
};

/// No step of a test takes longer, even on a machine that emulates its host.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// The first number that the machine's descriptors get; far above what a test has open itself.
const FIRST_FD: RawFd = 300;

/// Says so and returns false where there is no KVM to test with.
pub(crate) fn kvm_is_there() -> bool {
    let there = std::path::Path::new("/dev/kvm").exists();
    if !there {
        eprintln!("SKIPPED: there is no /dev/kvm on this machine");
    }
    there
}

/// A machine to be started.
pub(crate) struct Setup {
    pub(crate) kernel: File,
    pub(crate) initramfs: Vec<File>,
    pub(crate) command_line: String,
    pub(crate) vcpus: Topology,
    pub(crate) memory_mib: u32,
    pub(crate) disks: Vec<(Disk, Option<File>)>,
    pub(crate) console: bool,
    /// Where the machine's log goes, unless to stderr.
    pub(crate) log: Option<File>,
}

impl Setup {
    pub(crate) fn new(kernel: &[u8]) -> Self {
        Self::with_kernel(file(kernel))
    }

    pub(crate) fn with_kernel(kernel: File) -> Self {
        Self {
            kernel,
            initramfs: Vec::new(),
            command_line: String::new(),
            vcpus: Topology {
                count: 1,
                threads_per_core: 1,
            },
            memory_mib: 32,
            disks: Vec::new(),
            console: false,
            log: None,
        }
    }

    pub(crate) fn disk(mut self, id: &str, read_only: bool, file: Option<File>) -> Self {
        let disk = Disk {
            id: id.into(),
            read_only,
            queues: 1,
            file: None,
        };
        self.disks.push((disk, file));
        self
    }

    pub(crate) fn start(self) -> Owned {
        self.start_changed(|_| {})
    }

    /// Starts the machine with a configuration that `change` has had in its hands.
    pub(crate) fn start_changed(self, change: impl FnOnce(&mut Config)) -> Owned {
        let directory = tempfile::tempdir().unwrap();
        let mut given: Vec<OwnedFd> = Vec::new();
        let mut give = |fd: OwnedFd| {
            given.push(fd);
            Descriptor(FIRST_FD + i32::try_from(given.len()).unwrap())
        };
        let (report, report_out) = std::io::pipe().unwrap();
        let (lifeline_in, lifeline) = std::io::pipe().unwrap();
        let (accept, acceptor) = pair();
        let console_path = directory.path().join("console");
        let vsock_path = directory.path().join("vsock");
        let control_path = directory.path().join("control");
        let mut disks = Vec::new();
        for (mut disk, file) in self.disks {
            disk.file = file.map(|file| give(file.into()));
            disks.push(disk);
        }
        let open = |path| File::options().read(true).write(true).open(path);
        // What is refused before KVM is asked is refused without it too.
        let kvm = open("/dev/kvm").or_else(|_| open("/dev/null")).unwrap();
        let mut config = Config {
            kvm: give(kvm.into()),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            kernel: Kernel {
                image: give(self.kernel.into()),
                initramfs: self.initramfs.into_iter().map(|file| give(file.into())).collect(),
                command_line: self.command_line,
            },
            disks,
            vsock: Vsock {
                cid: 3,
                listener: give(UnixListener::bind(&vsock_path).unwrap().into()),
                ports: vec![HostPort {
                    port: 1024,
                    acceptor: give(acceptor),
                }],
            },
            console: self.console.then(|| Console {
                listener: give(UnixListener::bind(&console_path).unwrap().into()),
            }),
            control: give(packet_listener(&control_path)),
            report: give(report_out.into()),
            lifeline: give(lifeline_in.into()),
            keep_network: false,
        };
        change(&mut config);
        let child = spawn(&config, given, self.log.map_or_else(Stdio::inherit, Stdio::from));
        Owned {
            child,
            report: Some(File::from(OwnedFd::from(report))),
            lifeline: Some(lifeline.into()),
            accept,
            console_path,
            vsock_path,
            control_path,
            _directory: directory,
        }
    }
}

/// Starts the program with the configuration and these descriptors in order of their numbers.
fn spawn(config: &Config, given: Vec<OwnedFd>, log: Stdio) -> Child {
    let config = file(&serde_json::to_vec(&config).unwrap());
    let mut given: Vec<OwnedFd> = given;
    given.insert(0, config.into());
    let mut command = Command::new(env!("CARGO_BIN_EXE_husk-vmm"));
    command.arg("--config-fd").arg(FIRST_FD.to_string());
    command.stdin(Stdio::null()).stderr(log);
    let numbers: Vec<RawFd> = given.iter().map(AsRawFd::as_raw_fd).collect();
    assert!(numbers.iter().all(|number| *number < FIRST_FD));
    let give = move || {
        for (number, target) in numbers.iter().zip(FIRST_FD..) {
            // SAFETY: the target is the child's to use: nothing else has numbers so high.
            if unsafe { libc::dup2(*number, target) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: dup2 may be called between fork and exec, and the list of numbers was made before.
    unsafe { command.pre_exec(give) };
    command.spawn().unwrap()
}

/// A started machine, seen by its owner. It ends when this goes, at the latest by its lifeline.
pub(crate) struct Owned {
    child: Child,
    report: Option<File>,
    lifeline: Option<OwnedFd>,
    pub(crate) accept: OwnedFd,
    pub(crate) console_path: PathBuf,
    pub(crate) vsock_path: PathBuf,
    control_path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Owned {
    /// A control connection.
    pub(crate) fn control(&self) -> Client {
        Client::connect(&self.control_path)
    }

    /// The process's number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the machine has said its last word, or has gone without one.
    pub(crate) fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.report.as_ref().unwrap().as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    }

    pub(crate) fn request(&self, request: &Request) -> Response {
        self.control().request(request)
    }

    pub(crate) fn status(&self) -> Status {
        self.control().status()
    }

    /// Waits until `what` holds of the machine's status.
    pub(crate) fn wait_for(&self, what: impl Fn(&Status) -> bool) -> Status {
        let client = self.control();
        let start = Instant::now();
        loop {
            let status = client.status();
            if what(&status) {
                return status;
            }
            assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn drop_lifeline(&mut self) {
        self.lifeline = None;
    }

    /// The report and the exit status.
    pub(crate) fn end(self) -> (Report, ExitStatus) {
        let (report, status) = self.end_or_nothing();
        (serde_json::from_str(&report).expect(&report), status)
    }

    /// What was written as the report, and the exit status.
    pub(crate) fn end_or_nothing(mut self) -> (String, ExitStatus) {
        let mut report = self.report.take().unwrap();
        wait_readable(&report);
        let mut text = String::new();
        report.read_to_string(&mut text).unwrap();
        (text, self.child.wait().unwrap())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A control connection.
pub(crate) struct Client(OwnedFd);

impl Client {
    fn connect(path: &std::path::Path) -> Self {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        Self(fd)
    }

    pub(crate) fn request(&self, request: &Request) -> Response {
        self.send(&serde_json::to_vec(request).unwrap(), &[])
    }

    pub(crate) fn attach(&self, disk: &str, file: &File) -> Response {
        let request = Request::Attach { disk: disk.into() };
        self.send(&serde_json::to_vec(&request).unwrap(), &[file.as_raw_fd()])
    }

    pub(crate) fn status(&self) -> Status {
        match self.request(&Request::Status) {
            Response::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn send(&self, text: &[u8], descriptors: &[RawFd]) -> Response {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        let parts = [std::io::IoSlice::new(text)];
        sendmsg::<()>(self.0.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None).unwrap();
        wait_readable(&self.0);
        let mut answer = vec![0; 64 << 10];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        serde_json::from_slice(&answer[..length]).unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A process that another test is just starting may hold a copy of the descriptor until its execve, and to close
        // this one would not hang up.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

pub(crate) fn wait_readable(fd: &impl std::os::fd::AsFd) {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(LIMIT).unwrap();
    assert!(poll(&mut fds, timeout).unwrap() > 0, "nothing within {LIMIT:?}");
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

fn packet_listener(path: &std::path::Path) -> OwnedFd {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&fd, Backlog::new(8).unwrap()).unwrap();
    fd
}

/// A file with this content, read from its start.
pub(crate) fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file
}

/// How often an exit happened.
pub(crate) fn exits(counts: &ExitCounts, kind: &str) -> u64 {
    counts.0.get(kind).copied().unwrap_or(0)
}

/// An ELF whose one segment at 2 MiB is `code`; entered at its start through PVH (32-bit protected mode without
/// paging), or in long mode.
pub(crate) fn elf(code: &[u8], pvh: bool) -> Vec<u8> {
    const ADDRESS: u64 = 0x20_0000;
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend(2u16.to_le_bytes());
    image.extend(62u16.to_le_bytes());
    image.extend(1u32.to_le_bytes());
    for word in [ADDRESS, 64, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    let note_at = 64 + 2 * 56;
    let code_at = note_at + 20;
    for (kind, offset, address, length) in [
        (1u32, code_at, ADDRESS, code.len() as u64),
        (if pvh { 4 } else { 0 }, note_at, 0, 20),
    ] {
        image.extend(kind.to_le_bytes());
        image.extend(7u32.to_le_bytes());
        for word in [offset, address, address, length, length, 4] {
            image.extend(word.to_le_bytes());
        }
    }
    for word in [4u32, 4, 18] {
        image.extend(word.to_le_bytes());
    }
    image.extend(b"Xen\0");
    image.extend(u32::try_from(ADDRESS).unwrap().to_le_bytes());
    image.extend(code);
    image
}

/// A bzImage of one setup sector, whose 64-bit entry is `code`.
pub(crate) fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut payload = vec![0; 0x200];
    payload.extend(code);
    payload.resize(payload.len().next_multiple_of(16), 0);
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &u32::try_from(payload.len() / 16).unwrap().to_le_bytes());
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    image.extend(payload);
    image
}
