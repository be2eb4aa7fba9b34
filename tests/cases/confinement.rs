//! What the machine monitor's process has given up, looked at while a guest runs in it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;

use husk_tests::{Host, Husk, Process, Running, busybox, copy};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// The unprivileged user of the tests.
const NOBODY: u32 = 65534;

/// husk as nobody, with a root file system that nobody can read.
fn as_nobody(host: &Host) -> Husk<'_> {
    let home = host.scratch().join("home");
    let tree = host.scratch().join("tree");
    if !home.exists() {
        fs::create_dir(&home).unwrap();
        chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
        copy(busybox(), &tree);
        fs::remove_file(tree.join("opt/private")).unwrap();
    }
    host.husk()
        .as_nobody()
        .variable("HUSK_ROOT", home.join("run"))
        .variable("HUSK_IMAGE_CACHE", home.join("images"))
        .rootfs(&tree)
}

/// A sandbox that waits until it is told to end.
fn waiting(husk: Husk<'_>) -> Running<'_> {
    let script = "trap 'exit 9' TERM; echo up; while :; do sleep 1000 & wait; done";
    let mut running = husk.start(["sh", "-c", script]);
    running.await_output("up\n");
    running
}

fn end(mut sandbox: Running<'_>) {
    sandbox.signal(Signal::SIGTERM);
    sandbox.finish().exits(9);
}

/// The numbers of a process's threads by their names.
fn threads(process: &Process) -> Vec<(i32, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid)).unwrap();
    tasks
        .map(|task| {
            let path = task.unwrap().path();
            let name = fs::read_to_string(path.join("comm")).unwrap();
            (
                path.file_name().unwrap().to_str().unwrap().parse().unwrap(),
                name.trim().to_owned(),
            )
        })
        .collect()
}

/// A field of /proc/PID/status or a line of /proc/PID/limits, by the words that it begins with.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {path}:\n{text}"))
        .trim()
        .to_owned()
}

fn namespace(process: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap()
}

/// What a descriptor is, without the number that tells it from others of its kind.
fn kind_of(path: &PathBuf) -> String {
    let target = fs::read_link(path).unwrap().to_string_lossy().into_owned();
    match target.split_once(":[") {
        // "socket:[123]", but not "anon_inode:[eventfd]".
        Some((kind, number)) if number.starts_with(|digit: char| digit.is_ascii_digit()) => kind.to_owned(),
        _ => target,
    }
}

fn is_confined(vmm: &Process) {
    let pid = vmm.pid;
    // KVM's own thread runs nothing but the kernel.
    let threads: Vec<_> = threads(vmm)
        .into_iter()
        .filter(|(_, name)| !name.starts_with("kvm-"))
        .collect();
    let names: BTreeSet<&str> = threads.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(
        names,
        BTreeSet::from(["husk-vmm", "devices", "husk-0 q0", "vcpu0", "vcpu1"])
    );
    for (thread, name) in &threads {
        let status = format!("/proc/{pid}/task/{thread}/status");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(&status, set), "0000000000000000", "{set} of {name}");
        }
        assert_eq!(field(&status, "NoNewPrivs:"), "1", "of {name}");
        assert_eq!(field(&status, "Seccomp:"), "2", "of {name}");
        assert_eq!(field(&status, "Seccomp_filters:"), "1", "of {name}");
    }
    for kind in ["mnt", "net", "ipc", "uts", "cgroup"] {
        assert_ne!(namespace(&pid.to_string(), kind), namespace("self", kind), "{kind}");
    }
    let root: Vec<_> = fs::read_dir(format!("/proc/{pid}/root")).unwrap().collect();
    assert!(root.is_empty(), "{root:?} in the root");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let links = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert_eq!(
        links.lines().skip(2).count(),
        1,
        "more than a loopback interface: {links}"
    );
    let limits = format!("/proc/{pid}/limits");
    assert!(field(&limits, "Max core file size").starts_with("0 "));
    let size = field(&limits, "Max file size");
    let size: u64 = size.split_whitespace().next().unwrap().parse().expect(&size);
    assert!((1..16 << 20).contains(&size), "{size} bytes of a file");
    let open = field(&limits, "Max open files");
    let open: u64 = open.split_whitespace().next().unwrap().parse().expect(&open);
    assert!(open < 10_000, "{open} descriptors");
    // Who must not look into a process finds root as the owner of what tells of it.
    assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0);
}

/// Every descriptor is one that a machine has while it runs: kernel, initramfs and /dev/kvm have gone with its making.
fn has_nothing_else_open(vmm: &Process) {
    let expected = |what: &str| {
        let kinds = [
            "/dev/null",
            "socket",
            "pipe",
            "anon_inode:[eventfd]",
            "anon_inode:[eventpoll]",
            "anon_inode:[timerfd]",
            "anon_inode:kvm-vm",
            "/memfd:husk-guest (deleted)",
        ];
        // The log, and the image with its layers in the cache.
        let places = ["/vmm.log", "/images/"];
        kinds.contains(&what)
            || what.starts_with("anon_inode:kvm-vcpu:")
            || places.iter().any(|place| what.contains(place))
    };
    let descriptors = fs::read_dir(format!("/proc/{}/fd", vmm.pid)).unwrap();
    let descriptors: Vec<String> = descriptors.map(|entry| kind_of(&entry.unwrap().path())).collect();
    let others: Vec<_> = descriptors.iter().filter(|what| !expected(what)).collect();
    assert!(others.is_empty(), "{others:?} of {descriptors:?}");
}

#[test]
fn the_machine_monitor_has_nothing_but_its_descriptors() {
    let host = Host::new();
    let root = waiting(host.husk().rootfs(busybox()).cpus("2"));
    is_confined(&root.vmm());
    has_nothing_else_open(&root.vmm());
    end(root);
    let nobodys = waiting(as_nobody(&host).cpus("2"));
    is_confined(&nobodys.vmm());
    has_nothing_else_open(&nobodys.vmm());
    let pid = nobodys.vmm().pid.to_string();
    assert_ne!(namespace(&pid, "user"), namespace("self", "user"));
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    assert_eq!(map, "", "nobody is mapped into its user namespace");
    end(nobodys);
}

/// Makes a thread make a system call without arguments, as whoever had taken it over could.
fn inject(thread: i32, number: libc::c_long) {
    let none = std::ptr::null_mut::<libc::c_void>();
    let request = |request, data: *mut libc::c_void| {
        // SAFETY: the requests below read or write what `data` points to, if anything, and nothing else of this process.
        let result = unsafe { libc::ptrace(request, thread, none, data) };
        assert_eq!(result, 0, "ptrace {request}: {}", std::io::Error::last_os_error());
    };
    request(libc::PTRACE_SEIZE, none);
    request(libc::PTRACE_INTERRUPT, none);
    waitpid(Pid::from_raw(thread), Some(WaitPidFlag::__WALL)).unwrap();
    // SAFETY: all zeros is a value of this plain structure.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, (&raw mut registers).cast());
    // It waits in a system call: two bytes back is the instruction that made it, which now makes another one, and the
    // kernel shall not believe that the interrupted one has to be begun again.
    registers.rip -= 2;
    registers.rax = number.cast_unsigned();
    registers.orig_rax = u64::MAX;
    request(libc::PTRACE_SETREGS, (&raw mut registers).cast());
    request(libc::PTRACE_DETACH, none);
}

#[test]
fn a_system_call_that_is_never_made_ends_the_machine_and_is_named() {
    let host = Host::new();
    for (thread, kind, number, name) in [
        ("husk-vmm", "main", libc::SYS_socket, "socket"),
        ("devices", "devices", libc::SYS_execve, "execve"),
        ("husk-0 q0", "disk", libc::SYS_openat, "openat"),
        ("vcpu0", "vCPU", libc::SYS_ptrace, "ptrace"),
    ] {
        let sandbox = waiting(host.husk().rootfs(busybox()));
        let threads = threads(&sandbox.vmm());
        let (victim, _) = threads.iter().find(|(_, name)| name == thread).expect("the thread");
        inject(*victim, number);
        let outcome = sandbox.finish();
        outcome
            .exits(125)
            .reports(&["husk-vmm", &format!("its {kind} thread"), name]);
        host.is_clean();
    }
}

/// Forbids new user namespaces as long as it lives.
struct NoUserNamespaces(String);

const MOST_USER_NAMESPACES: &str = "/proc/sys/user/max_user_namespaces";

impl NoUserNamespaces {
    fn new() -> Self {
        let before = fs::read_to_string(MOST_USER_NAMESPACES).unwrap();
        fs::write(MOST_USER_NAMESPACES, "0").unwrap();
        Self(before)
    }
}

impl Drop for NoUserNamespaces {
    fn drop(&mut self) {
        let _ = fs::write(MOST_USER_NAMESPACES, &self.0);
    }
}

/// The outcome of each of the doctor's checks.
fn diagnosis(husk: Husk<'_>) -> serde_json::Value {
    let outcome = husk.command(["doctor", "--json"]);
    outcome.exits(0).is_quiet();
    let report: serde_json::Value = serde_json::from_str(outcome.stdout()).expect("JSON");
    let findings = report.as_array().expect("a list");
    findings
        .iter()
        .map(|finding| (finding["check"].as_str().unwrap().to_owned(), finding.clone()))
        .collect()
}

#[test]
fn a_host_without_user_namespaces_is_told_of_and_runs_husk_all_the_same() {
    let host = Host::new();
    let checks = ["seccomp", "capabilities", "namespaces", "empty root", "Landlock"];
    let doctor = || {
        let home = host.scratch().join("home");
        host.husk()
            .as_nobody()
            .variable("HUSK_ROOT", home.join("run"))
            .variable("HUSK_IMAGE_CACHE", home.join("images"))
    };
    as_nobody(&host).run(["true"]).exits(0);
    for findings in [diagnosis(host.husk()), diagnosis(doctor())] {
        for check in checks {
            assert_eq!(findings[check]["outcome"], "good", "{check} in {findings}");
        }
    }
    let without = NoUserNamespaces::new();
    let findings = diagnosis(doctor());
    for check in ["capabilities", "namespaces", "empty root"] {
        assert_eq!(findings[check]["outcome"], "warning", "{check} in {findings}");
        let remedy = findings[check]["remedy"].as_str().unwrap();
        assert!(remedy.contains("user.max_user_namespaces"), "{remedy}");
    }
    let sandbox = waiting(as_nobody(&host));
    let vmm = sandbox.vmm();
    assert_eq!(namespace(&vmm.pid.to_string(), "mnt"), namespace("self", "mnt"));
    for (thread, name) in threads(&vmm) {
        let status = format!("/proc/{}/task/{thread}/status", vmm.pid);
        assert_eq!(field(&status, "Seccomp:"), "2", "of {name}");
        assert_eq!(field(&status, "NoNewPrivs:"), "1", "of {name}");
        assert_eq!(field(&status, "CapEff:"), "0000000000000000", "of {name}");
    }
    end(sandbox);
    drop(without);
}
