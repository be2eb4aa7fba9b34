//! Containers through containerd and the shim: some with a machine of their own, some beside the one that stays.

use std::fs;

use husk_tests::{Containerd, Host, Outcome, Release, Running};

use super::{LONG, PATIENCE, STAYS, Way};

const RUNTIME: &str = "io.containerd.husk.v2";
/// Containers of one group have one shim and one machine.
const GROUP: &str = "io.containerd.runc.v2.group=long";

pub(crate) struct ThroughContainerd<'h> {
    containerd: Containerd<'h>,
    image: String,
    /// A configuration that lets guests take their time.
    config: String,
}

impl<'h> ThroughContainerd<'h> {
    pub(crate) fn start(host: &'h Host) -> Self {
        let containerd = Containerd::start(host, Release::Built);
        let image = containerd.import();
        let config = host.scratch().join("config.toml");
        fs::write(&config, format!("timeout = {}\n", PATIENCE.as_secs())).expect("write husk's configuration");
        Self {
            containerd,
            image,
            config: config.to_str().expect("UTF-8").to_owned(),
        }
    }

    /// The words of a `ctr` command that makes a container.
    fn words(&self, verb: &[&str], options: &[&str], id: &str, script: &str) -> Vec<String> {
        let tail = [self.image.as_str(), id, "sh", "-c", script];
        let runtime = ["--runtime", RUNTIME, "--runtime-config-path", &self.config];
        let words = [verb, &runtime, options, &tail].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    fn make(&self, verb: &[&str], options: &[&str], id: &str, script: &str) -> Outcome {
        self.containerd.run(self.words(verb, options, id, script))
    }
}

impl Way for ThroughContainerd<'_> {
    fn begin(&self) -> &'static [&'static str] {
        self.make(&["run", "--detach"], &["--annotation", GROUP], LONG, STAYS)
            .exits(0);
        &["containerd-shim", "husk-keeper", "husk-vmm"]
    }

    fn run(&self) {
        let run = ["run", "--rm"];
        self.make(&run, &[], "alone", "exit 5").exits(5).prints("");
        let beside = self.make(&run, &["--annotation", GROUP], "beside", "echo out; exit 6");
        beside.exits(6).prints("out\n");
    }

    fn create(&self) {
        self.make(&["containers", "create"], &[], "created", "exit 7").exits(0);
        self.containerd.run(["tasks", "start", "created"]).exits(7);
        self.containerd.run(["containers", "delete", "created"]).exits(0);
    }

    fn enter(&self) {
        let words = ["tasks", "exec", "--exec-id", "enter", LONG, "echo", "in"];
        self.containerd.run(words).exits(0).prints("in\n");
    }

    fn run_many(&self, number: u32) {
        let start = |code: u32| {
            let script = format!("exit {code}");
            let (husk, words) = self
                .containerd
                .ctr(self.words(&["run", "--rm"], &[], &format!("box-{code}"), &script));
            husk.within(PATIENCE).start_command(words)
        };
        let running: Vec<Running<'_>> = (1..=number).map(start).collect();
        for (running, code) in running.into_iter().zip(1..) {
            running.finish().exits(code).prints("");
        }
    }

    fn end(&self) {
        self.containerd.run(["tasks", "delete", "--force", LONG]).exits(0);
        self.containerd.run(["containers", "delete", LONG]).exits(0);
    }
}
