//! Starts `husk-vmm` as its owner does, without anything else of husk.

use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use husk_test_guest::layout::SHARED_PAGE;
use husk_test_guest::report::{GO, MAGIC, Page, WORDS, state};
use husk_vmm_config::{Config, Descriptor, Disk, HostPort, Kernel, Report, Topology, Vsock};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, recvmsg,
    setsockopt, socket, socketpair, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::time::{ClockId, clock_gettime};

use crate::Plan;
use crate::bounded::{self, LIMIT};

/// The first number that the program's descriptors get, far above what this one has open.
const FIRST_FD: RawFd = 300;
/// Of each machine, in MiB.
pub(crate) const MEMORY_MIB: u32 = 128;

/// A machine to start: a kernel and its command line, an initramfs if it has one, and its disk slots, empty or not.
pub(crate) struct Setup {
    pub(crate) kernel: File,
    pub(crate) command_line: String,
    pub(crate) initramfs: Option<File>,
    pub(crate) disks: Vec<Option<File>>,
}

impl Setup {
    /// The bare-metal test guest with these orders.
    pub(crate) fn bare(plan: &Plan, orders: &str) -> Result<Self> {
        let path = &plan.test_guest;
        Ok(Self {
            kernel: File::open(path).with_context(|| format!("opening {}", path.display()))?,
            command_line: orders.to_owned(),
            initramfs: None,
            disks: Vec::new(),
        })
    }
}

/// A running machine. It ends when this goes.
pub(crate) struct Monitor {
    child: Child,
    report: File,
    lifeline: Option<OwnedFd>,
    acceptor: OwnedFd,
    exec: File,
    _directory: tempfile::TempDir,
}

impl Monitor {
    pub(crate) fn start(plan: &Plan, setup: Setup) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut given: Vec<OwnedFd> = Vec::new();
        let mut give = |fd: OwnedFd| {
            given.push(fd);
            // The configuration itself has the first number.
            Descriptor(FIRST_FD + i32::try_from(given.len()).unwrap_or(RawFd::MAX - FIRST_FD))
        };
        let (report, report_out) = io::pipe()?;
        let (lifeline_in, lifeline) = io::pipe()?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (acceptor, given_acceptor) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        setsockopt(
            &acceptor,
            ReceiveTimeout,
            &TimeVal::seconds(LIMIT.as_secs().cast_signed()),
        )?;
        let control = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        bind(control.as_raw_fd(), &UnixAddr::new(&directory.path().join("control"))?)?;
        listen(&control, Backlog::new(8)?)?;
        let disk = |(index, file): (usize, Option<File>), give: &mut dyn FnMut(OwnedFd) -> Descriptor| Disk {
            id: format!("disk{index}"),
            read_only: true,
            queues: 1,
            file: file.map(|file| give(file.into())),
        };
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        let config = Config {
            kvm: give(kvm.context("/dev/kvm cannot be opened")?.into()),
            vcpus: Topology {
                count: 1,
                threads_per_core: 1,
            },
            memory_mib: MEMORY_MIB,
            kernel: Kernel {
                image: give(setup.kernel.into()),
                initramfs: setup.initramfs.into_iter().map(|file| give(file.into())).collect(),
                command_line: setup.command_line,
            },
            disks: setup
                .disks
                .into_iter()
                .enumerate()
                .map(|slot| disk(slot, &mut give))
                .collect(),
            vsock: Vsock {
                cid: 3,
                listener: give(UnixListener::bind(directory.path().join("vsock"))?.into()),
                ports: vec![HostPort {
                    port: 1024,
                    acceptor: give(given_acceptor),
                }],
            },
            console: None,
            control: give(control),
            report: give(report_out.into()),
            lifeline: give(lifeline_in.into()),
            keep_network: false,
        };
        let mut text = tempfile::tempfile()?;
        text.write_all(&serde_json::to_vec(&config)?)?;
        text.rewind()?;
        given.insert(0, text.into());
        let (exec, exec_out) = io::pipe()?;
        let child = spawn(plan, &given, &exec_out.into())?;
        Ok(Self {
            child,
            report: OwnedFd::from(report).into(),
            lifeline: Some(lifeline.into()),
            acceptor,
            exec: OwnedFd::from(exec).into(),
            _directory: directory,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When the program was executed, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(crate) fn executed_ns(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.exec
            .read_exact(&mut bytes)
            .context("the program was not executed")?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Ends the machine, if it has not ended, and gives its report and the time from the report to the process's end.
    pub(crate) fn end(mut self, by_itself: bool) -> Result<(Report, Duration)> {
        if !by_itself {
            self.lifeline = None;
        }
        let handle = bounded::handle(self.child.id())?;
        let text = bounded::read_to_end(&mut self.report)?;
        let reported = Instant::now();
        bounded::ends(&[handle])?;
        self.child.wait()?;
        let report = serde_json::from_str(&text).with_context(|| format!("the report {text:?}"))?;
        Ok((report, reported.elapsed()))
    }

    /// The host's end of the next connection that the guest opens.
    pub(crate) fn accept(&self) -> Result<UnixStream> {
        let mut byte = [0];
        let mut parts = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let message = recvmsg::<()>(
            self.acceptor.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        )?;
        match message.cmsgs()?.next() {
            Some(ControlMessageOwned::ScmRights(descriptors)) if !descriptors.is_empty() => {
                // SAFETY: the descriptor was just received, and nobody else has it.
                Ok(UnixStream::from(unsafe { OwnedFd::from_raw_fd(descriptors[0]) }))
            }
            _ => bail!("no connection came"),
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // One that has ended cannot be killed, which is all right.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Executes the program with these descriptors; when, is written to `exec`.
fn spawn(plan: &Plan, given: &[OwnedFd], exec: &OwnedFd) -> Result<Child> {
    let mut command = Command::new(plan.bin.join("husk-vmm"));
    command
        .arg("--config-fd")
        .arg(FIRST_FD.to_string())
        .stdin(Stdio::null());
    let numbers: Vec<RawFd> = given.iter().map(AsRawFd::as_raw_fd).collect();
    let exec = exec.as_raw_fd();
    ensure!(numbers.iter().all(|number| *number < FIRST_FD), "too many open files");
    let prepare = move || {
        for (number, target) in numbers.iter().zip(FIRST_FD..) {
            // SAFETY: the target is the child's to use: nothing else has numbers so high.
            if unsafe { libc::dup2(*number, target) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        let now = now_ns().to_ne_bytes();
        // SAFETY: the pipe is open until execve closes it, and the bytes are this function's.
        unsafe { libc::write(exec, now.as_ptr().cast(), now.len()) };
        Ok(())
    };
    // SAFETY: between fork and exec there are only dup2, clock_gettime and write.
    unsafe { command.pre_exec(prepare) };
    command.spawn().context("starting husk-vmm")
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The test guest's shared page in the memory of a machine.
pub(crate) struct Shared(File);

impl Shared {
    /// Waits until the guest in the machine has begun.
    pub(crate) fn of(monitor: &Monitor) -> Result<Self> {
        let start = Instant::now();
        loop {
            if let Some(memory) = memory_of(monitor.pid()) {
                let shared = Self(memory);
                shared.wait_for(|page| page.magic == MAGIC && page.state != state::RUNNING)?;
                return Ok(shared);
            }
            ensure!(start.elapsed() < LIMIT, "husk-vmm has no guest memory");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The page in a file of the machine's memory.
    pub(crate) fn of_file(memory: File) -> Self {
        Self(memory)
    }

    pub(crate) fn go(&self) -> Result<()> {
        Ok(self.0.write_all_at(&1u64.to_le_bytes(), SHARED_PAGE + GO)?)
    }

    /// Waits until all orders are done.
    pub(crate) fn done(&self) -> Result<Page> {
        let page = self.wait_for(|page| matches!(page.state, state::DONE | state::FAILED))?;
        ensure!(page.state == state::DONE, "the test guest failed: {page:?}");
        Ok(page)
    }

    /// Looks every millisecond: nothing can be waited for in another machine's memory.
    fn wait_for(&self, what: impl Fn(&Page) -> bool) -> Result<Page> {
        let start = Instant::now();
        loop {
            let mut bytes = [0; 8 * WORDS];
            let page = match self.0.read_exact_at(&mut bytes, SHARED_PAGE) {
                // The memory is there before it has its size.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Page::from_bytes(&[0; 8 * WORDS]),
                result => result.map(|()| Page::from_bytes(&bytes))?,
            };
            if what(&page) {
                return Ok(page);
            }
            ensure!(start.elapsed() < LIMIT, "the test guest does not come so far: {page:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn memory_of(pid: u32) -> Option<File> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let mut paths = descriptors.filter_map(|entry| Some(entry.ok()?.path()));
    let path = paths.find(|path| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:husk-guest"))
    })?;
    File::options().read(true).write(true).open(path).ok()
}
