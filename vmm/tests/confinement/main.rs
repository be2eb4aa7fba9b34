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

mod attempts;
mod works;

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use attempts::{ATTEMPTS, OUTSIDE, PARENT};
use husk_vmm::confinement::filters::{self, Kind};
use husk_vmm::confinement::{self, violation};
use husk_vmm::report::Reporter;
use husk_vmm_config::{Effect, End, Measure, Part, Report};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use works::{ENDS, WORKS};

/// Where a process that made its attempt tells what came of it.
const REPORT: RawFd = 10;
/// /dev/kvm, open.
const KVM: RawFd = 11;
/// The exit code of a violation.
const VIOLATION: i32 = 16;

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
        let measures = confinement::enter(&kept, 512, false).unwrap();
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
