//! What a program in husk-vmm's place can no longer do.
//!
//! Each attempt is made by a process of its own that has confined itself as husk-vmm does, with the same functions: once
//! without filters of system calls, to see that the rest holds by itself, and once as each kind of thread. A process
//! whose filter is in the way has ended with a report that names the call.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "system calls in a process that exists to make them"
)]

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use husk_vmm::confinement::filters::{self, Kind};
use husk_vmm::confinement::{self, violation};
use husk_vmm::report::Reporter;
use husk_vmm_config::{Effect, End, Measure, Part, Report};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};

/// Where a process that made its attempt tells what came of it.
const REPORT: RawFd = 10;
/// /dev/kvm, open.
const KVM: RawFd = 11;
/// The exit code of a violation.
const VIOLATION: i32 = 16;

/// What is tried, with the errors that may come of it without a filter, and the system call that a filter names.
struct Attempt {
    name: &'static str,
    /// `None` where only a filter stands against it.
    errors: Option<&'static [Errno]>,
    /// The calls that a C library may make for it.
    calls: &'static [&'static str],
    make: fn() -> nix::Result<()>,
}

const ATTEMPTS: &[Attempt] = &[
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

static PARENT: AtomicI32 = AtomicI32::new(0);

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
const OUTSIDE: &str = "husk-confinement-test";

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

/// What each kind of thread can do all the same: it is what the C library and the standard library do when they must.
const WORKS: &[(&str, fn())] = &[
    ("use memory of all sizes", use_memory),
    ("wait with a limit", || {
        let (_sender, receiver) = std::sync::mpsc::channel::<()>();
        assert!(receiver.recv_timeout(std::time::Duration::from_millis(5)).is_err());
    }),
    ("make hash tables", || {
        let table: std::collections::HashMap<u32, u32> = (0..1000).map(|n| (n, n)).collect();
        assert_eq!(table.len(), 1000);
    }),
    ("tell the time without the kernel's page for it", || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let told = unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut time) };
        assert_eq!(told, 0);
    }),
    ("panic and go on", || {
        std::panic::set_hook(Box::new(|panic| eprintln!("a panic as it should be: {panic}")));
        assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
    }),
    ("write to the log", || eprintln!("a line in the log")),
];

fn use_memory() {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for round in 0..4 {
        for shift in 3..25 {
            let mut piece = vec![1u8; 1 << shift];
            piece.reserve_exact((1 << shift) + round);
            piece.shrink_to_fit();
            if shift % 2 == round % 2 {
                kept.push(piece);
            }
        }
        if kept.len() > 30 {
            kept.clear();
        }
    }
}

/// How a process can end itself, and the signals by which it does.
const ENDS: &[(&str, fn(), &[i32])] = &[
    ("abort", || std::process::abort(), &[libc::SIGABRT]),
    (
        "overflow its stack",
        || {
            std::hint::black_box(deep(1));
        },
        // The second where the C library does not tell where the stack ends.
        &[libc::SIGABRT, libc::SIGSEGV],
    ),
    (
        "read where no memory is",
        || {
            let nowhere = std::hint::black_box(8 as *const u8);
            unsafe { nowhere.read_volatile() };
        },
        &[libc::SIGSEGV],
    ),
];

#[allow(unconditional_recursion)]
fn deep(n: u64) -> u64 {
    let frame = std::hint::black_box([n; 64]);
    deep(frame[0] + 1) + frame[1]
}

/// What a process of this program does in husk-vmm's place.
#[derive(Clone, Copy)]
enum Task {
    /// Prints how far the confinement goes here.
    Measure,
    Attempt(usize),
    Work(usize),
    End(usize),
}

impl Task {
    fn words(self) -> [String; 2] {
        let (verb, index) = match self {
            Self::Measure => ("measure", 0),
            Self::Attempt(index) => ("attempt", index),
            Self::Work(index) => ("work", index),
            Self::End(index) => ("end", index),
        };
        [verb.to_owned(), index.to_string()]
    }

    /// `IN-PLACE VERB INDEX KIND`, in the child.
    fn perform(words: &[String]) {
        let [verb, index, kind] = words else {
            panic!("{words:?}");
        };
        let index: usize = index.parse().unwrap();
        PARENT.store(nix::unistd::getppid().as_raw(), Ordering::SeqCst);
        // SAFETY: the descriptor was made for this process by the one that started it.
        let report = unsafe { OwnedFd::from_raw_fd(REPORT) };
        let copy = report.try_clone().unwrap();
        let kept = [REPORT, KVM, copy.as_raw_fd()];
        violation::report_to(&Arc::new(Reporter::new(copy))).unwrap();
        let mut outcome = File::from(report);
        let measures = confinement::enter(&kept, 512).unwrap();
        if let Some(kind) = Kind::ALL.into_iter().find(|known| known.name() == kind) {
            filters::enter(kind).unwrap();
        }
        let text = match verb.as_str() {
            "measure" => serde_json::to_string(&measures).unwrap(),
            "attempt" => match (ATTEMPTS[index].make)() {
                Ok(()) => "made".into(),
                Err(errno) => format!("{errno:?}"),
            },
            "work" => {
                (WORKS[index].1)();
                "done".into()
            }
            "end" => {
                (ENDS[index].1)();
                "not ended".into()
            }
            _ => panic!("{words:?}"),
        };
        outcome.write_all(text.as_bytes()).unwrap();
        std::process::exit(0);
    }
}

/// A process in husk-vmm's place, which has ended: what it told and how it ended.
struct Outcome {
    told: String,
    status: ExitStatus,
}

/// Runs a task as a kind of thread, or without a filter, as this user or as another.
fn run(task: Task, kind: Option<Kind>, user: Option<u32>) -> Outcome {
    let (mut told, report) = io::pipe().unwrap();
    let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
    let program = File::open("/proc/self/exe").unwrap();
    let [verb, index] = task.words();
    let kind = kind.map_or("none", Kind::name);
    let words = ["confinement", IN_PLACE, &verb, &index, kind].map(|word| CString::new(word).unwrap());
    let given = [
        (OwnedFd::from(report), REPORT),
        (kvm.into(), KVM),
        (program.into(), PROGRAM),
    ];
    let mut command = Command::new("/proc/self/exe");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let execute = move || {
        for (fd, number) in &given {
            Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), *number) })?;
        }
        let mut arguments = [std::ptr::null(); 6];
        for (argument, word) in arguments.iter_mut().zip(&words) {
            *argument = word.as_ptr();
        }
        let none = [std::ptr::null::<libc::c_char>()];
        // By descriptor: another user may not come to where this program lies.
        let flags = libc::AT_EMPTY_PATH;
        let (name, arguments) = (c"".as_ptr(), arguments.as_ptr());
        unsafe { libc::syscall(libc::SYS_execveat, PROGRAM, name, arguments, none.as_ptr(), flags) };
        Err(io::Error::last_os_error())
    };
    // SAFETY: between fork and exec there are system calls alone.
    unsafe { command.pre_exec(execute) };
    let mut child = command.spawn().expect("a process in husk-vmm's place");
    // The closure holds this process's copies of what was given.
    drop(command);
    let mut text = String::new();
    told.read_to_string(&mut text).unwrap();
    Outcome {
        told: text,
        status: child.wait().unwrap(),
    }
}

/// The program itself, open.
const PROGRAM: RawFd = 12;
/// The first argument of a process in husk-vmm's place.
const IN_PLACE: &str = "--in-place";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == IN_PLACE) {
        Task::perform(&words[1..]);
    }
    // The one test here is not among those that were asked for by name.
    let asked = words.iter().find(|word| !word.starts_with('-'));
    let listed = words.iter().any(|word| word == "--list" || word == "--ignored");
    if listed || asked.is_some_and(|name| !"confinement".contains(name.as_str())) {
        return ExitCode::SUCCESS;
    }
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: there is no /dev/kvm on this machine");
        return ExitCode::SUCCESS;
    }
    // What is outside.
    let name = UnixAddr::new_abstract(OUTSIDE.as_bytes()).unwrap();
    let outside = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(outside.as_raw_fd(), &name).unwrap();
    listen(&outside, Backlog::new(1).unwrap()).unwrap();
    let mut users = vec![None];
    // SAFETY: the call takes nothing.
    if unsafe { libc::geteuid() } == 0 {
        users.push(Some(65534));
    }
    let failures: usize = users.into_iter().map(as_user).sum();
    if failures > 0 {
        eprintln!("{failures} failures");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Tries everything as a user; gives the number of failures.
fn as_user(user: Option<u32>) -> usize {
    let who = user.map_or("this user".into(), |user| format!("user {user}"));
    let mut failures = 0;
    let mut check = |what: String, result: Result<String, String>| match result {
        Ok(how) => println!("ok      {who}: {what}: {how}"),
        Err(why) => {
            failures += 1;
            println!("FAILED  {who}: {what}: {why}");
        }
    };
    let outcome = run(Task::Measure, None, user);
    let measures: Vec<Measure> = serde_json::from_str(&outcome.told).expect(&outcome.told);
    let full = |part| {
        measures
            .iter()
            .any(|measure| measure.part == part && measure.effect == Effect::Full)
    };
    for Measure { part, effect, detail } in &measures {
        println!("        {who}: {part:?}: {effect:?}: {detail}");
    }
    let whole = full(Part::Root) && full(Part::Namespaces) && full(Part::Landlock);
    if !whole {
        eprintln!("SKIPPED: this host does not have everything that stands against an attempt beside the filters");
    }
    for (index, attempt) in ATTEMPTS.iter().enumerate() {
        if let Some(errors) = attempt.errors.filter(|_| whole) {
            let outcome = run(Task::Attempt(index), None, user);
            check(format!("{} without a filter", attempt.name), fails(&outcome, errors));
        }
        for kind in Kind::ALL {
            let outcome = run(Task::Attempt(index), Some(kind), user);
            check(
                format!("{} in a {kind} thread", attempt.name),
                is_ended(&outcome, kind, attempt.calls),
            );
        }
    }
    for kind in Kind::ALL {
        for (index, (name, _)) in WORKS.iter().enumerate() {
            let outcome = run(Task::Work(index), Some(kind), user);
            check(format!("{name} in a {kind} thread"), works(&outcome));
        }
        for (index, (name, _, signals)) in ENDS.iter().enumerate() {
            let outcome = run(Task::End(index), Some(kind), user);
            check(format!("{name} in a {kind} thread"), dies(&outcome, signals));
        }
    }
    failures
}

/// The attempt has come back with one of these errors.
fn fails(outcome: &Outcome, errors: &[Errno]) -> Result<String, String> {
    if errors.iter().any(|errno| format!("{errno:?}") == outcome.told) {
        Ok(outcome.told.clone())
    } else {
        Err(outcome.to_string())
    }
}

/// The attempt has ended the process, with a report that names the thread and the call.
fn is_ended(outcome: &Outcome, kind: Kind, calls: &[&str]) -> Result<String, String> {
    let report: Report = serde_json::from_str(&outcome.told).map_err(|_| outcome.to_string())?;
    match report.end {
        End::Violation { thread, system_call }
            if thread == kind.name()
                && calls.contains(&system_call.as_str())
                && outcome.status.code() == Some(VIOLATION) =>
        {
            Ok(system_call)
        }
        _ => Err(outcome.to_string()),
    }
}

fn works(outcome: &Outcome) -> Result<String, String> {
    match (outcome.told.as_str(), outcome.status.code()) {
        ("done", Some(0)) => Ok("done".into()),
        _ => Err(outcome.to_string()),
    }
}

/// The process has died of one of the signals and told nothing: it is no violation.
fn dies(outcome: &Outcome, signals: &[i32]) -> Result<String, String> {
    match outcome.status.signal() {
        Some(signal) if signals.contains(&signal) && outcome.told.is_empty() => Ok(outcome.status.to_string()),
        _ => Err(outcome.to_string()),
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {}", self.told, self.status)
    }
}
