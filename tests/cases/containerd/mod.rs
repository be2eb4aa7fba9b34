//! containerd: its shim for runc with husk in runc's place, and its shims side by side.
//!
//! Each case of `tasks` and `faults` is a function of a runtime and states what runc's shim does, which is the measure.
//! Where versions of containerd differ, or runc's shim does what nobody would want, the case says so.

mod faults;
mod pods;
mod snapshots;
mod tasks;

use husk_tests::{Containerd, Host, Outcome, Release, Terminal, busybox, prepared};

const RUNC: &str = "io.containerd.runc.v2";

const HUSK: &str = "io.containerd.husk.v2";

/// The runtimes with which each case runs, one after the other: runc's where it is asked for, to measure the cases by.
fn runtimes() -> &'static [&'static str] {
    match prepared::runc().is_some() {
        true => &[RUNC, HUSK],
        false => &[HUSK],
    }
}

/// A containerd, one of the runtimes, and the tests' image.
struct Peer<'h> {
    containerd: Containerd<'h>,
    release: Release,
    runtime: &'static str,
    image: String,
}

/// Runs a case with each of the runtimes on one containerd, which must have forgotten everything each time.
fn each(release: Release, case: fn(&mut Peer<'_>)) {
    let host = Host::new();
    let containerd = Containerd::start(&host, release);
    let image = containerd.import();
    let mut peer = Peer {
        containerd,
        release,
        runtime: "",
        image,
    };
    for runtime in runtimes() {
        eprintln!("with {runtime}:");
        peer.runtime = runtime;
        case(&mut peer);
        peer.containerd.run(["tasks", "list", "-q"]).exits(0).prints("");
        peer.containerd.run(["containers", "list", "-q"]).exits(0).prints("");
        let snapshots = peer.containerd.run(["snapshots", "list"]);
        assert!(!snapshots.exits(0).stdout().contains("Active"), "{snapshots}");
    }
}

/// Tests of cases: each on Debian's containerd and on the one that was built.
macro_rules! cases {
    ($($case:ident),* $(,)?) => {$(
        mod $case {
            use super::super::{Release, each};

            #[test]
            fn debian() {
                each(Release::Debian, super::$case);
            }

            #[test]
            fn built() {
                each(Release::Built, super::$case);
            }
        }
    )*};
}
use cases;

impl<'h> Peer<'h> {
    fn is_runc(&self) -> bool {
        self.runtime == RUNC
    }

    /// The words of `ctr run OPTIONS IMAGE ID COMMAND`.
    fn words(&self, options: &[&str], id: &str, command: &[&str]) -> Vec<String> {
        let (first, image) = (["run", "--runtime", self.runtime], [&*self.image, id]);
        let words = first.iter().chain(options).chain(&image).chain(command);
        words.map(|word| (*word).to_owned()).collect()
    }

    /// `ctr run --rm`, to its end.
    #[track_caller]
    fn once(&self, id: &str, command: &[&str]) -> Outcome {
        self.containerd.run(self.words(&["--rm"], id, command))
    }

    /// `ctr run --detach`.
    #[track_caller]
    fn detached(&self, id: &str, script: &str) {
        let words = self.words(&["--detach"], id, &["sh", "-c", script]);
        self.containerd.run(words).exits(0);
    }

    /// The words of `ctr tasks exec`.
    fn exec_words<'a>(id: &'a str, exec: &'a str, command: &[&'a str]) -> Vec<&'a str> {
        [&["tasks", "exec", "--exec-id", exec, id], command].concat()
    }

    /// `ctr tasks exec`, to its end.
    #[track_caller]
    fn exec(&self, id: &str, exec: &str, command: &[&str]) -> Outcome {
        self.containerd.run(Self::exec_words(id, exec, command))
    }

    /// Waits until a container's file is there.
    #[track_caller]
    fn await_file(&self, id: &str, file: &str) {
        let script = format!("until [ -e {file} ]; do sleep 0.1; done");
        self.exec(id, "wait", &["sh", "-c", &script]).exits(0);
    }

    /// `ctr tasks WORDS`, to its end.
    #[track_caller]
    fn task(&self, words: &[&str]) -> Outcome {
        self.containerd.run([&["tasks"], words].concat())
    }

    /// The process that stands for a task.
    #[track_caller]
    fn pid(&self, id: &str) -> u32 {
        let listed = self.task(&["list"]);
        let mut lines = listed.exits(0).stdout().lines().map(str::split_whitespace);
        let mut line = lines.find(|line| line.clone().next() == Some(id)).expect("the task");
        line.nth(1).and_then(|pid| pid.parse().ok()).expect("a process id")
    }

    /// `ctr WORDS` on a terminal.
    #[track_caller]
    fn on_terminal<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Terminal<'h> {
        let (husk, words) = self.containerd.ctr(words);
        husk.command_on_terminal(words)
    }

    /// Ends a container however it is, and deletes it.
    #[track_caller]
    fn remove(&self, id: &str) {
        self.task(&["delete", "--force", id]).exits(0);
        self.containerd.run(["containers", "delete", id]).exits(0);
    }
}

#[test]
fn the_runtime_says_what_it_supports() {
    let host = Host::new();
    let containerd = Containerd::start(&host, Release::Built);
    for runtime in runtimes() {
        let told = containerd.run(["plugins", "inspect-runtime", "--runtime", runtime]);
        let told: serde_json::Value = serde_json::from_str(told.exits(0).stdout()).unwrap();
        assert_eq!(told["Name"], *runtime, "{told}");
        let features = &told["Features"];
        let has =
            |list: &serde_json::Value, what: &str| list.as_array().is_some_and(|list| list.contains(&what.into()));
        assert!(has(&features["mountOptions"], "rro"), "{told}");
        assert!(has(&features["linux"]["namespaces"], "user"), "{told}");
    }
}

#[test]
fn runcs_shim_runs_containers() {
    let host = Host::new();
    let containerd = Containerd::start(&host, Release::Debian);
    let options = containerd.options();
    let run = |more: &[&str]| {
        let fixed = ["run".to_owned()].into_iter().chain(options.clone());
        fixed
            .chain(more.iter().map(|word| (*word).to_owned()))
            .collect::<Vec<_>>()
    };
    let root = busybox().to_str().unwrap();
    let once = run(&["--rm", "--rootfs", root, "once", "/bin/sh", "-c", "echo out; exit 7"]);
    containerd.run(once).exits(7).prints("out\n");
    let (husk, words) = containerd.ctr(run(&["--rm", "-t", "--rootfs", root, "tty", "/bin/sh"]));
    let mut terminal = husk.command_on_terminal(words);
    terminal
        .shows("#")
        .types("echo $((6*7))\n")
        .shows("42")
        .shows("#")
        .types("exit 3\n");
    terminal.finish().exits(3);
    let script = "trap 'exit 9' TERM; while :; do sleep 1000 & wait; done";
    containerd
        .run(run(&["-d", "--rootfs", root, "box", "/bin/sh", "-c", script]))
        .exits(0);
    let exec = [
        "tasks",
        "exec",
        "--exec-id",
        "e",
        "box",
        "/bin/sh",
        "-c",
        "echo inside; exit 5",
    ];
    containerd.run(exec).exits(5).prints("inside\n");
    containerd.run(["tasks", "ps", "box"]).exits(0);
    containerd.run(["tasks", "pause", "box"]).exits(0);
    containerd.run(["tasks", "list"]).exits(0).says("PAUSED");
    containerd.run(["tasks", "resume", "box"]).exits(0);
    let mut events = containerd.events();
    containerd.run(["tasks", "kill", "--signal", "TERM", "box"]).exits(0);
    assert_eq!(events.until_end("box"), 9);
    containerd
        .run(["tasks", "delete", "box"])
        .exits(0)
        .mentions(&["exit code 9"]);
    containerd.run(["containers", "delete", "box"]).exits(0);
}
