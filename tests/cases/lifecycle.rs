//! The OCI runtime's commands, as conmon and containerd's shims call them.

use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use husk_tests::{Bundle, Container, Host, busybox, read_pid, wait_for};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::Winsize;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

/// Says that it runs, and ends with code 9 when it is told to.
const WAITER: &str = "trap 'exit 9' TERM; echo up; while :; do sleep 1000 & wait; done";

#[test]
fn a_container_goes_through_its_life() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), "read word; echo got $word; echo bad >&2; exit 7")
        .with("/annotations", json!({"org.example.key": "value"}));
    let mut container = Container::create(&host, &bundle, "life");
    let state = container.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], "life");
    assert_eq!(state["pid"], container.process().pid);
    assert_eq!(state["bundle"], bundle.path().to_str().unwrap());
    assert_eq!(state["annotations"]["org.example.key"], "value");
    assert!(state["ociVersion"].as_str().unwrap().starts_with("1."));
    container.husk("start").exits(0).is_quiet();
    container.is("running");
    container
        .streams()
        .send("hello\n")
        .await_output("got hello\n")
        .await_complaint("bad\n");
    assert_eq!(container.wait(), 7);
    let state = container.state();
    assert_eq!((&state["status"], &state["pid"]), (&"stopped".into(), &0.into()));
    container.husk("delete").exits(0).is_quiet();
    container.husk("state").fails(125, &["life", "does not exist"]);
}

#[test]
fn signals_for_the_process_that_stands_for_it_are_passed_on() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), WAITER);
    let mut container = Container::create(&host, &bundle, "signals");
    container.husk("start").exits(0);
    container.streams().await_output("up\n");
    container.signal(Signal::SIGTERM);
    assert_eq!(container.wait(), 9);
    container.delete();
}

#[test]
fn what_the_status_does_not_allow_is_refused() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), WAITER);
    let mut container = Container::create(&host, &bundle, "rules");
    let again = host.husk().bundle(&bundle).option("rules").command(["create"]);
    again.fails(125, &["rules", "exists"]);
    container.husk("start").exits(0);
    container.streams().await_output("up\n");
    container.husk("start").fails(125, &["rules", "running"]);
    container.husk("delete").fails(125, &["rules", "running"]);
    container.is("running");
    host.husk().command(["kill", "rules", "KILL"]).exits(0).is_quiet();
    assert_eq!(container.wait(), 137);
    container.is("stopped");
    container.husk("start").fails(125, &["rules", "stopped"]);
    host.husk()
        .command(["kill", "rules", "TERM"])
        .fails(125, &["container not running", "rules"]);
    host.husk()
        .exec("rules", ["true"])
        .fails(125, &["container not running", "rules"]);
    container.delete();
}

#[test]
fn a_created_container_can_be_killed_and_deleted() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), "echo it ran");
    let killed = Container::create(&host, &bundle, "killed");
    host.husk().command(["kill", "killed", "TERM"]).exits(0);
    assert_eq!(killed.wait(), 143);
    killed.delete();
    Container::create(&host, &bundle, "deleted").delete();
    let forced = Container::create(&host, &bundle, "forced");
    forced.husk("start").exits(0);
    host.husk().command(["delete", "--force", "forced"]).exits(0).is_quiet();
    host.husk().command(["delete", "--force", "forced"]).exits(0).is_quiet();
}

#[test]
fn a_name_that_cannot_be_one_is_one_clear_error() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), "true");
    let long = "x".repeat(5000);
    for name in ["../x", "", "a/b", ".hidden", &long] {
        let create = host.husk().bundle(&bundle).option(name).command(["create"]);
        create.fails(125, &["cannot name a container"]);
        for verb in ["start", "state", "delete", "kill", "wait", "rm", "inspect", "logs"] {
            host.husk()
                .command([verb, name])
                .fails(125, &["cannot name a container"]);
        }
    }
    for verb in ["start", "state", "delete", "kill", "wait", "rm", "inspect", "logs"] {
        host.husk()
            .command([verb, "nobody"])
            .fails(125, &["nobody", "does not exist"]);
    }
}

#[test]
fn a_container_that_cannot_be_created_leaves_nothing_and_says_why() {
    let host = Host::new();
    let log = host.scratch().join("log.json");
    let bundle = Bundle::of_script(&host, busybox(), "").with("/process/args", json!(["no-such-command"]));
    let husk = host.husk().option("--log").option(&log).option("--log-format=json");
    let failed = husk.bundle(&bundle).option("broken").command(["create"]);
    failed.fails(127, &["executable file not found in $PATH", "no-such-command"]);
    let text = fs::read_to_string(&log).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().unwrap().contains("no-such-command") && last["time"].is_string());
    host.husk().command(["state", "broken"]).fails(125, &["does not exist"]);
    // A terminal needs somebody who takes it, and descriptors cannot go into another kernel.
    let terminal = Bundle::as_runc_writes_it(&host, busybox());
    let create = |option: &str| {
        host.husk()
            .bundle(&terminal)
            .option(option)
            .option("broken")
            .command(["create"])
    };
    create("--no-pivot").fails(125, &["--console-socket"]);
    create("--preserve-fds=2").fails(125, &["--preserve-fds"]);
    create("--console-socket=/nowhere").fails(125, &["/nowhere"]);
    create("--pid-file=/nowhere/pid").exits(125);
    host.is_clean();
}

#[test]
fn a_killed_monitor_takes_its_machine_along_and_leaves_a_stopped_container() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), WAITER);
    let container = Container::create(&host, &bundle, "orphan");
    container.husk("start").exits(0);
    container.signal(Signal::SIGKILL);
    assert_eq!(container.wait(), -9);
    container.is("stopped");
    container.delete();
}

#[test]
fn the_hosts_cgroup_holds_the_machine_and_goes_with_the_container() {
    let host = Host::new();
    let parent = Path::new("/sys/fs/cgroup/husk-e2e");
    let bundle = Bundle::of_script(&host, busybox(), WAITER).with("/linux/cgroupsPath", "/husk-e2e/box");
    let container = Container::create(&host, &bundle, "accounted");
    let inside = fs::read_to_string(parent.join("box/cgroup.procs")).unwrap();
    assert!(
        inside.lines().any(|pid| pid == container.process().pid.to_string()),
        "{inside}"
    );
    assert!(inside.lines().count() >= 2, "the monitor and the machine in {inside:?}");
    container.delete();
    assert!(!parent.join("box").exists());
    let broken = bundle.with("/process/args", json!(["no-such-command"]));
    host.husk()
        .bundle(&broken)
        .option("broken")
        .command(["create"])
        .exits(127);
    // The keeper removes it when the machine has ended.
    host.leftovers();
    assert!(!parent.join("box").exists());
    fs::remove_dir(parent).unwrap();
}

/// Takes the terminal that comes over a console socket.
fn accept_terminal(listener: &UnixListener) -> fs::File {
    let asked = poll(
        &mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)],
        PollTimeout::from(60_000u16),
    );
    assert_eq!(asked, Ok(1), "nobody connects to the console socket");
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0; 4096];
    let mut buffers = [IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::empty()).unwrap();
    assert!(message.bytes > 0, "the terminal's name");
    let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
        panic!("no descriptor came")
    };
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fds[0]) }.into()
}

/// Reads from a terminal until it has said `text`.
fn read_until(terminal: &mut fs::File, text: &str) -> String {
    let mut said = String::new();
    let mut bytes = [0; 1024];
    let minute = PollTimeout::from(60_000u16);
    while !said.contains(text) {
        let ready = poll(&mut [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)], minute);
        assert_eq!(ready, Ok(1), "the terminal never says {text:?}: {said:?}");
        match terminal.read(&mut bytes) {
            Ok(count @ 1..) => said.push_str(&String::from_utf8_lossy(&bytes[..count])),
            // The other side has closed it.
            Ok(_) | Err(_) => panic!("the terminal ended before {text:?}: {said:?}"),
        }
    }
    said
}

#[test]
fn a_terminal_goes_over_the_console_socket() {
    let host = Host::new();
    let script = "trap 'stty size' WINCH; stty size; read word; echo said $word; while :; do sleep 1; done";
    let bundle = Bundle::of_script(&host, busybox(), script)
        .with("/process/terminal", true)
        .with("/process/consoleSize", json!({"height": 20, "width": 70}));
    let socket = host.scratch().join("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let husk = host.husk().option("--console-socket").option(&socket);
    let container = Container::create_with(husk, &host, &bundle, "console");
    let mut terminal = accept_terminal(&listener);
    container.husk("start").exits(0);
    read_until(&mut terminal, "20 70\r\n");
    terminal.write_all(b"hello\r").unwrap();
    let said = read_until(&mut terminal, "said hello\r\n");
    assert_eq!(said.matches("hello").count(), 2, "one echo and one answer in {said:?}");
    let size = Winsize {
        ws_row: 30,
        ws_col: 90,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request reads a window size, to which the pointer leads.
    unsafe { set_window_size(terminal.as_raw_fd(), &raw const size) }.unwrap();
    read_until(&mut terminal, "30 90\r\n");
    host.husk().command(["kill", "console", "KILL"]).exits(0);
    assert_eq!(container.wait(), 137);
    container.delete();
}

#[test]
fn a_further_process_cannot_choose_how_the_host_confines_it() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), WAITER);
    let mut container = Container::create(&host, &bundle, "confined");
    container.husk("start").exits(0);
    container.streams().await_output("up\n");
    let exec = |profile: &str, label: &str| {
        let path = host.scratch().join("confined.json");
        let process = json!({
            "cwd": "/", "args": ["/bin/echo", "runs"], "user": {"uid": 0, "gid": 0},
            "apparmorProfile": profile, "selinuxLabel": label,
        });
        fs::write(&path, process.to_string()).unwrap();
        let husk = host.husk().option("--process").option(&path);
        husk.option("confined").command(["exec"])
    };
    exec("unconfined", "").exits(0).prints("runs\n");
    exec("other", "").fails(125, &["process.apparmorProfile", "other", "sandbox"]);
    exec("", "u:r:t:s0").fails(125, &["process.selinuxLabel", "u:r:t:s0", "sandbox"]);
    host.husk().command(["kill", "confined", "KILL"]).exits(0);
    assert_eq!(container.wait(), 137);
    container.delete();
}

/// A process object for `husk exec --process`.
fn process_file(directory: &Path, script: &str) -> std::path::PathBuf {
    let path = directory.join("process.json");
    let process = json!({
        "cwd": "/tmp", "args": ["/bin/sh", "-c", script], "user": {"uid": 1234, "gid": 1235},
        "env": ["PATH=/bin", "A=from the file"],
    });
    fs::write(&path, process.to_string()).unwrap();
    path
}

#[test]
fn further_processes_have_processes_that_stand_for_them() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), WAITER);
    let mut container = Container::create(&host, &bundle, "execs");
    container.husk("start").exits(0);
    container.streams().await_output("up\n");
    let pid_file = host.scratch().join("exec.pid");
    let exec = |script: &str| {
        let file = process_file(host.scratch(), script);
        let husk = host
            .husk()
            .open_input()
            .option("--process")
            .option(&file)
            .option("--detach");
        let mut exec = husk
            .option("--pid-file")
            .option(&pid_file)
            .option("execs")
            .start_command(["exec"]);
        exec.succeeds();
        exec
    };
    let mut first = exec("read word; echo $word $A $(id -u) $(pwd); exit 5");
    let pid = read_pid(&pid_file);
    first.send("heard\n").await_output("heard from the file 1234 /tmp\n");
    assert_eq!(wait_for(pid), 5);
    // Killing the process that stands for it kills it.
    let mut second = exec("echo begun; exec sleep 4321");
    second.await_output("begun\n");
    let pid = read_pid(&pid_file);
    let monitor = husk_tests::Process::find(pid).unwrap();
    monitor.kill();
    assert_eq!(wait_for(pid), -9);
    let look = host
        .husk()
        .exec("execs", ["sh", "-c", "while pidof sleep | grep -q ' '; do :; done"]);
    look.exits(0);
    // With the container all of its processes end.
    let mut third = exec("echo begun; exec sleep 4321");
    third.await_output("begun\n");
    let pid = read_pid(&pid_file);
    container.signal(Signal::SIGTERM);
    assert_eq!(wait_for(pid), 137);
    assert_eq!(container.wait(), 9);
    container.delete();
}

#[test]
fn what_husk_spec_writes_runs() {
    let host = Host::new();
    let directory = host.scratch().join("bundle");
    fs::create_dir(&directory).unwrap();
    std::os::unix::fs::symlink(busybox(), directory.join("rootfs")).unwrap();
    let spec = || host.husk().option("--bundle").option(&directory).command(["spec"]);
    spec().exits(0).prints("").is_quiet();
    spec().fails(125, &["config.json", "exists"]);
    let mut terminal = host
        .husk()
        .option("--bundle")
        .option(&directory)
        .option("-i")
        .bundle_on_terminal();
    terminal
        .shows("#")
        .types("echo $(hostname)-$((6*7))\n")
        .shows("husk-42")
        .types("exit 3\n");
    terminal.finish().exits(3);
    let features = host.husk().command(["features"]);
    features.exits(0).is_quiet();
    let document: Value = serde_json::from_str(features.stdout()).unwrap();
    assert_eq!(document["ociVersionMin"], "1.0.0");
}

#[test]
fn a_running_container_is_controlled_and_measured() {
    let host = Host::new();
    let script = "echo up; while :; do echo tick; sleep 0.1; done";
    let bundle = Bundle::of_script(&host, busybox(), script).with("/linux/resources/pids", json!({"limit": 50}));
    let mut container = Container::create(&host, &bundle, "measured");
    container.husk("resume").fails(125, &["measured", "created"]);
    container.husk("start").exits(0);
    container.streams().await_output("tick\n");
    container.husk("pause").exits(0).is_quiet();
    container.is("paused");
    container.husk("pause").fails(125, &["measured", "paused"]);
    host.husk()
        .exec("measured", ["true"])
        .fails(125, &["measured", "paused"]);
    container.husk("resume").exits(0).is_quiet();
    container.is("running");
    container.streams().forget_output().await_output("tick\n");
    container.husk("ps").exits(0).says("echo tick");
    let pids = host.husk().command(["ps", "--format", "json", "measured"]);
    let pids: Vec<u32> = serde_json::from_str(pids.exits(0).stdout()).unwrap();
    assert!(!pids.is_empty());
    let update = ["update", "--pids-limit", "20", "--memory", "64M", "measured"];
    host.husk().command(update).exits(0).is_quiet();
    let stats = host.husk().command(["events", "--stats", "measured"]);
    let stats: Value = serde_json::from_str(stats.exits(0).stdout()).unwrap();
    assert_eq!((&stats["type"], &stats["id"]), (&"stats".into(), &"measured".into()));
    assert_eq!(stats["data"]["pids"]["limit"], 20);
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 64 << 20);
    assert!(stats["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    let table = host.husk().command(["stats", "--interval", "100ms"]);
    table.exits(0).says("measured").says("64.0M");
    let mut events = host.husk().start_command(["events", "--interval", "100ms", "measured"]);
    events.await_output("stats").forget_output().await_output("stats");
    host.husk().command(["kill", "measured", "KILL"]).exits(0);
    events.finish().exits(0);
    assert_eq!(container.wait(), 137);
    container.husk("ps").fails(125, &["container not running"]);
    container.husk("update").exits(125);
    container.delete();
}

#[test]
fn hooks_follow_a_container_from_creation_to_deletion() {
    let host = Host::new();
    let log = host.scratch().join("hooks");
    let hook = |name: &str| {
        let script = format!("echo {name} $(grep -o '\"status\":\"[a-z]*\"') >> {}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    let bundle = Bundle::of_script(&host, busybox(), "exit 0").with(
        "/hooks",
        json!({"createRuntime": hook("create"), "poststart": hook("start"), "poststop": hook("stop")}),
    );
    let container = Container::create(&host, &bundle, "hooked");
    let told = || fs::read_to_string(&log).unwrap();
    assert_eq!(told(), "create \"status\":\"creating\"\n");
    container.husk("start").exits(0);
    container.wait();
    assert!(told().ends_with("start \"status\":\"running\"\n"), "{}", told());
    container.delete();
    assert!(told().ends_with("stop \"status\":\"stopped\"\n"), "{}", told());
}

#[test]
fn what_brings_a_network_by_the_pid_does_not_reach_the_hosts() {
    let host = Host::new();
    let log = host.scratch().join("namespaces");
    // As docker's daemon does in its hook: the process of the state, and the namespace that it stands for.
    let script = format!(
        "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); readlink /proc/self/ns/net /proc/$pid/ns/net > {0}; \
         nsenter --net=/proc/$pid/ns/net ip link add husk-e2e-dummy type veth >> {0} 2>&1",
        log.display()
    );
    let hook =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}]);
    let bundle = Bundle::of_script(&host, busybox(), "exit 0").with("/hooks", json!({"prestart": hook}));
    let container = Container::create(&host, &bundle, "apart");
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let told = fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 2, "{told}");
    assert_eq!(lines[0], own.to_str().unwrap(), "a hook is in the host's namespace");
    assert_ne!(lines[1], lines[0], "the container's process is not");
    container.husk("start").exits(0);
    assert_eq!(container.wait(), 0);
    // The test's own check finds a link that has come to the host.
    container.delete();
}

#[test]
fn a_memory_limit_below_what_is_in_use_is_refused() {
    let host = Host::new();
    // What a tmpfs holds has no other place (there is no swap), and cannot be reclaimed.
    let script = format!("dd if=/dev/zero of=/dev/shm/fill bs=1M count=40 2>/dev/null; {WAITER}");
    let bundle = Bundle::of_script(&host, busybox(), &script);
    let mut container = Container::create(&host, &bundle, "full");
    container.husk("start").exits(0);
    container.streams().await_output("up\n");
    let update = |memory: &str| host.husk().command(["update", "--memory", memory, "full"]);
    update("16M").fails(125, &["memory.max", "in use"]);
    container.is("running");
    update("128M").exits(0).is_quiet();
    container.signal(Signal::SIGTERM);
    assert_eq!(container.wait(), 9);
    container.delete();
}
