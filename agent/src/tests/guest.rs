//! An agent that runs as the first process of its own pid and mount namespaces, with a busybox as every image. What it
//! lacks of a guest are the disks and vsock, in whose place are a directory and Unix sockets.

#![allow(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use husk_protocol::agent::namespace::Kind;
use husk_protocol::agent::{
    Capabilities, CreateRequest, DeleteRequest, DeleteResponse, Failure, Mount, Namespace, Process, Root, StartRequest,
    Stdio, User, WaitRequest, WaitResponse,
};
use husk_protocol::agent_ttrpc::AgentClient;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use ttrpc::context::{Context, with_duration};

use crate::agent::{Agent, Surroundings};
use crate::sys::{self, Forked};

pub(super) const DISK: &str = "husk-0";
const BUSYBOX: &str = "/bin/busybox";

/// A running agent; it and all that it has made end with this.
pub(super) struct Guest {
    pub(super) client: AgentClient,
    directory: tempfile::TempDir,
    cgroups: PathBuf,
    keeper: Pid,
}

/// Calls are not to take longer than this.
pub(super) fn context() -> Context {
    with_duration(Duration::from_secs(30))
}

impl Guest {
    /// Starts one; none where the tests do not run as root, who alone can.
    pub(super) fn start() -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        make_image(&directory.path().join("run/images").join(DISK));
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroups = cgroup_root().join(format!("husk-agent-test-{}-{number}", std::process::id()));
        fs::create_dir(&cgroups).unwrap();
        enable_controllers(&cgroups);
        let [calls, streams] = ["calls", "streams"].map(|name| {
            let listener = UnixListener::bind(directory.path().join(name)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener.into()
        });
        let surroundings = Surroundings {
            calls,
            streams,
            admit: |_| true,
            cgroups: cgroups.clone(),
            run: directory.path().join("run"),
            block_devices: directory.path().join("no-devices"),
        };
        // SAFETY: the C library's fork leaves its locks usable in the child, which goes on with this one thread.
        let keeper = match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => child,
            ForkResult::Child => keep(surroundings),
        };
        let address = format!("unix://{}", directory.path().join("calls").display());
        let client = AgentClient::new(ttrpc::Client::connect(&address).unwrap());
        Some(Self {
            client,
            directory,
            cgroups,
            keeper,
        })
    }

    /// A further connection to the service.
    pub(super) fn another_client(&self) -> AgentClient {
        let address = format!("unix://{}", self.directory.path().join("calls").display());
        AgentClient::new(ttrpc::Client::connect(&address).unwrap())
    }

    /// A stdio connection and its token.
    pub(super) fn stream(&self) -> (UnixStream, Vec<u8>) {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let token = u128::from(NUMBER.fetch_add(1, Ordering::Relaxed)).to_le_bytes();
        (self.connect(&token), token.to_vec())
    }

    /// The stdio connection with this token.
    pub(super) fn connect(&self, token: &[u8; 16]) -> UnixStream {
        let mut stream = UnixStream::connect(self.directory.path().join("streams")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(token).unwrap();
        stream
    }

    /// Whether limits can be tested here.
    pub(super) fn has_controllers(&self) -> bool {
        let enabled = fs::read_to_string(self.cgroups.join("cgroup.subtree_control")).unwrap();
        let has = enabled.contains("memory") && enabled.contains("pids");
        if !has {
            eprintln!("skipped: the cgroup controllers of this machine are bound to version 1");
        }
        has
    }

    /// Gives all of the image to this user and group, as an engine does that maps a container's ids.
    pub(super) fn give_image(&self, id: u32) {
        fn give(path: &Path, id: u32) {
            std::os::unix::fs::lchown(path, Some(id), Some(id)).unwrap();
            if path.symlink_metadata().unwrap().is_dir() {
                fs::read_dir(path)
                    .unwrap()
                    .for_each(|entry| give(&entry.unwrap().path(), id));
            }
        }
        give(&self.directory.path().join("run/images").join(DISK), id);
    }

    /// Waits for the agent to end by itself.
    pub(super) fn join(&mut self) {
        waitpid(self.keeper, None).unwrap();
        // Its number may be another's from now on.
        self.keeper = Pid::from_raw(i32::MAX);
    }

    pub(super) fn start_process(&self, container: &str, exec: &str) {
        let request = StartRequest {
            container: container.to_owned(),
            exec: exec.to_owned(),
            ..StartRequest::default()
        };
        let response = self.client.start(context(), &request).unwrap();
        assert!(response.failure.is_none(), "{:?}", response.failure);
    }

    pub(super) fn wait(&self, container: &str, exec: &str) -> WaitResponse {
        let request = WaitRequest {
            container: container.to_owned(),
            exec: exec.to_owned(),
            ..WaitRequest::default()
        };
        self.client.wait(context(), &request).unwrap()
    }

    /// The directory that is every container's image.
    pub(super) fn image(&self) -> PathBuf {
        self.directory.path().join("run/images").join(DISK)
    }

    /// The cgroups that containers have.
    pub(super) fn cgroups(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.cgroups).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = sys::kill(self.keeper, libc::SIGKILL);
        let _ = waitpid(self.keeper, None);
        // The last of its processes may be dying still.
        let _ = fs::write(self.cgroups.join("cgroup.kill"), "1");
        for path in self.cgroups().into_iter().chain([self.cgroups.clone()]) {
            for _ in 0..100 {
                match fs::remove_dir(&path) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    _ => break,
                }
            }
        }
    }
}

/// Runs the agent as a child in new namespaces, which dies with this process.
fn keep(surroundings: Surroundings) -> ! {
    die_with_parent();
    // What other tests have open at this moment is to be closed when they close it.
    let keep = [
        0,
        1,
        2,
        surroundings.calls.as_raw_fd(),
        surroundings.streams.as_raw_fd(),
    ];
    sys::close_all_but(&keep).unwrap();
    let cgroup = fs::File::open(surroundings.cgroups.parent().unwrap_or(Path::new("/"))).unwrap();
    let (alive, here) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    let namespaces = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
    match sys::fork_into(cgroup.as_fd(), namespaces.bits()) {
        Ok(Forked::Parent { child, .. }) => {
            let _ = waitpid(child, None);
            sys::exit_now(0)
        }
        Ok(Forked::Child) => {
            drop(here);
            die_with_parent();
            // It may have died before; its pid cannot be asked for from inside the new namespace.
            let mut alive = [PollFd::new(alive.as_fd(), PollFlags::POLLHUP)];
            if poll(&mut alive, PollTimeout::ZERO) != Ok(0) {
                sys::exit_now(1);
            }
            let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).unwrap();
            let mut agent = Agent::new(surroundings).unwrap();
            agent.images.pretend(DISK);
            let Err(error) = agent.run();
            eprintln!("the agent has ended: {error}");
            sys::exit_now(1)
        }
        Err(error) => {
            eprintln!("the agent's namespaces cannot be made: {error}");
            sys::exit_now(1)
        }
    }
}

fn die_with_parent() {
    // SAFETY: this prctl takes a number.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

fn make_image(path: &Path) {
    for directory in ["bin", "etc", "tmp", "home/user"] {
        fs::create_dir_all(path.join(directory)).unwrap();
    }
    fs::copy(BUSYBOX, path.join("bin/busybox")).unwrap();
    for tool in [
        "sh", "cat", "id", "sleep", "stty", "ls", "stat", "hostname", "pwd", "readlink", "mount", "head", "wc",
    ] {
        symlink("busybox", path.join("bin").join(tool)).unwrap();
    }
    fs::write(
        path.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )
    .unwrap();
    fs::write(path.join("etc/not-executable"), "x").unwrap();
}

fn cgroup_root() -> PathBuf {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if unified.join("cgroup.procs").exists() {
        unified.to_owned()
    } else {
        "/sys/fs/cgroup".into()
    }
}

/// A machine whose controllers are bound to version 1 has none to enable; limits are not tested there.
fn enable_controllers(cgroups: &Path) {
    for directory in [cgroup_root().as_path(), cgroups] {
        for controller in ["+memory", "+pids", "+cpu"] {
            let _ = fs::write(directory.join("cgroup.subtree_control"), controller);
        }
    }
}

/// What a shell is to run.
pub(super) fn shell(script: &str) -> Process {
    Process {
        args: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".to_owned(),
        user: Some(User::default()).into(),
        capabilities: Some(all_capabilities()).into(),
        ..Process::default()
    }
}

/// All that this machine's root has.
pub(super) fn all_capabilities() -> Capabilities {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let all = status.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap();
    let all = u64::from_str_radix(all.trim(), 16).unwrap();
    Capabilities {
        bounding: all,
        effective: all,
        inheritable: 0,
        permitted: all,
        ..Capabilities::default()
    }
}

/// A container with its own namespaces and the mounts that containers have.
pub(super) fn container(id: &str, process: Process) -> CreateRequest {
    let kinds = [
        Kind::MOUNT,
        Kind::PID,
        Kind::IPC,
        Kind::UTS,
        Kind::NETWORK,
        Kind::CGROUP,
    ];
    let namespace = |kind: Kind| Namespace {
        kind: kind.into(),
        ..Namespace::default()
    };
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    CreateRequest {
        container: id.to_owned(),
        process: Some(process).into(),
        root: Some(Root {
            disk: DISK.to_owned(),
            ..Root::default()
        })
        .into(),
        mounts: vec![
            file_system("/proc", "proc", plain, ""),
            file_system("/dev", "tmpfs", MsFlags::MS_NOSUID, "mode=755,size=65536k"),
            file_system(
                "/dev/pts",
                "devpts",
                MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
                "newinstance,ptmxmode=0666",
            ),
            file_system("/dev/shm", "tmpfs", plain, "mode=1777"),
            file_system("/dev/mqueue", "mqueue", plain, ""),
            file_system("/sys", "sysfs", plain | MsFlags::MS_RDONLY, ""),
            file_system("/sys/fs/cgroup", "cgroup", plain | MsFlags::MS_RDONLY, ""),
        ],
        namespaces: kinds.into_iter().map(namespace).collect(),
        hostname: "box".to_owned(),
        ..CreateRequest::default()
    }
}

pub(super) fn file_system(destination: &str, kind: &str, flags: MsFlags, data: &str) -> Mount {
    Mount {
        destination: destination.to_owned(),
        type_: kind.to_owned(),
        flags: flags.bits(),
        data: data.to_owned(),
        ..Mount::default()
    }
}

/// Names the connections of a process's streams.
pub(super) fn with_streams(mut process: Process, tokens: [&[u8]; 3]) -> Process {
    let [stdin, stdout, stderr] = tokens.map(<[u8]>::to_vec);
    let stdio = Stdio {
        stdin,
        stdout,
        stderr,
        ..Stdio::default()
    };
    process.stdio = Some(stdio).into();
    process
}

/// Reads a stream to its end.
pub(super) fn read(mut stream: UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

pub(super) fn create(guest: &Guest, request: &CreateRequest) -> Option<Failure> {
    guest.client.create(context(), request).unwrap().failure.into_option()
}

pub(super) fn delete(guest: &Guest, container: &str, exec: &str) -> DeleteResponse {
    let request = DeleteRequest {
        container: container.to_owned(),
        exec: exec.to_owned(),
        ..DeleteRequest::default()
    };
    guest.client.delete(context(), &request).unwrap()
}

/// Runs a container to its end and gives what it wrote.
pub(super) fn run(guest: &Guest, request: CreateRequest) -> (WaitResponse, String) {
    let (stdout, token) = guest.stream();
    let mut request = request;
    let process = request.process.take().unwrap();
    request.process = Some(with_streams(process, [&[], &token, &token[..0]])).into();
    let failure = create(guest, &request);
    assert!(failure.is_none(), "{failure:?}");
    guest.start_process(&request.container, "");
    let text = read(stdout);
    let exit = guest.wait(&request.container, "");
    delete(guest, &request.container, "");
    (exit, text)
}

pub(super) fn run_shell(guest: &Guest, script: &str) -> (u32, String) {
    let (exit, text) = run(guest, container("shell", shell(script)));
    (exit.status, text)
}
