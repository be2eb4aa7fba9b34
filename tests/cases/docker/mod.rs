//! docker: its daemon and its command line over containerd, with husk's shim.
//!
//! Each case is a function of a runtime and states what runc does, which is the measure. Where husk does otherwise, the case
//! says so. A case makes many statements, since a daemon for each would take long.

mod files;
mod life;
mod once;

use std::time::{Duration, Instant};

use husk_tests::{Docker, Host, Outcome, Terminal};

/// For what docker does by itself, such as starting a container again.
const LIMIT: Duration = Duration::from_secs(120);

/// Tells that it is ready by a file; `HUP` makes it talk, `TERM` ends it, and it is never quite idle.
const WAITS: &str = "trap 'echo hangup' HUP; trap 'exit 9' TERM; echo started; touch /ready; \
                     while :; do sleep 0.3 & wait; done";

/// A docker and one of the runtimes.
struct Peer<'h> {
    docker: Docker<'h>,
    runtime: &'static str,
}

/// Runs a case with each of the runtimes on one docker, which must have forgotten everything each time.
fn each(case: fn(&Peer<'_>)) {
    let host = Host::new();
    let mut peer = Peer {
        docker: Docker::start(&host),
        runtime: "",
    };
    for runtime in Docker::runtimes() {
        eprintln!("with {runtime}:");
        peer.runtime = runtime;
        case(&peer);
        peer.docker.run(["ps", "--all", "--quiet"]).exits(0).prints("");
    }
}

impl<'h> Peer<'h> {
    fn is_husk(&self) -> bool {
        self.runtime == Docker::HUSK
    }

    /// The words of `docker run OPTIONS IMAGE COMMAND`.
    fn words(&self, options: &[&str], command: &[&str]) -> Vec<String> {
        let (first, image) = (["run", "--runtime", self.runtime], [self.docker.image()]);
        let words = first.iter().chain(options).chain(&image).chain(command);
        words.map(|word| (*word).to_owned()).collect()
    }

    /// `docker run --network none --rm OPTIONS IMAGE COMMAND`, to its end.
    #[track_caller]
    fn once(&self, options: &[&str], command: &[&str]) -> Outcome {
        let options = [&["--network", "none", "--rm"], options].concat();
        self.docker.run(self.words(&options, command))
    }

    /// `docker run --detach` with a name and a script; gives the container's id.
    #[track_caller]
    fn detached(&self, options: &[&str], name: &str, script: &str) -> String {
        let options = [&["--network", "none", "--detach", "--name", name], options].concat();
        let told = self.docker.run(self.words(&options, &["sh", "-c", script]));
        told.exits(0).stdout().trim().to_owned()
    }

    /// `docker exec`, to its end.
    #[track_caller]
    fn exec(&self, name: &str, script: &str) -> Outcome {
        self.docker.run(["exec", name, "sh", "-c", script])
    }

    /// `docker WORDS` on a terminal.
    #[track_caller]
    fn on_terminal<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Terminal<'h> {
        let (husk, words) = self.docker.command(words);
        husk.command_on_terminal(words)
    }

    /// What `docker inspect` says of a container, in the form of a template.
    #[track_caller]
    fn inspect(&self, name: &str, template: &str) -> String {
        let told = self.docker.run(["inspect", "--format", template, name]);
        told.exits(0).stdout().trim().to_owned()
    }

    /// Asks until the answer is as it should be: docker tells nobody when it has started a container again.
    #[track_caller]
    fn await_inspection(&self, name: &str, template: &str, is_it: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.inspect(name, template);
            if is_it(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{template} of {name} is {answer}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// `docker rm --force`.
    #[track_caller]
    fn remove(&self, names: &[&str]) {
        self.docker.run([&["rm", "--force"], names].concat()).exits(0);
    }
}
