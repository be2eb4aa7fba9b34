//! Several containers in one virtual machine, as a pod has them: what the library does for those who make pods.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process;
use std::sync::Arc;
use std::time::Duration;

use husk_sandbox::bundle;
use husk_sandbox::confinement::Confinement;
use husk_sandbox::guest::{ProcessId, Wanted};
use husk_sandbox::image::{Cache, DEFAULT_LIMIT};
use husk_sandbox::rundir::RunRoot;
use husk_sandbox::sandbox::{Options, Sandbox, Stands};
use husk_sandbox::timeline::Timeline;
use husk_tests::{Bundle, Host, busybox, prepared};
use serde_json::{Value, json};

/// Says in which namespaces it is.
const SAY: &str = "hostname; for kind in pid ipc uts net; do readlink /proc/self/ns/$kind; done; echo end";
/// Lines of that before the end.
const LINES: usize = 5;

/// A pod's machine.
struct Pod<'h> {
    host: &'h Host,
    sandbox: Arc<Sandbox>,
}

impl<'h> Pod<'h> {
    fn start(host: &'h Host) -> Self {
        for (name, file) in [("HUSK_VMM", "husk-vmm"), ("HUSK_GUEST_DIR", "guest")] {
            // SAFETY: Rust's readers of the environment take a lock, and no C library's one runs beside this: all other
            // tests wait for their turn.
            unsafe { std::env::set_var(name, prepared::bin().join(file)) };
        }
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let options = Options {
            kvm: Arc::new(kvm),
            cpus: 1,
            memory_mib: 256,
            disks: 3,
            console: false,
            kernel: None,
            patience: Duration::from_secs(240),
            cgroup: None,
            network: None,
            stands: Stands::Owner,
            confinement: Confinement::default(),
        };
        let directory = RunRoot::open(&host.run_directory()).unwrap().create("pod").unwrap();
        let sandbox = Sandbox::spawn(directory, &options, Arc::new(Timeline::default())).unwrap();
        sandbox.ready().unwrap();
        Self {
            host,
            sandbox: Arc::new(sandbox),
        }
    }

    /// Runs a container until it says "end"; gives what it has said before.
    fn run(&self, name: &str, bundle: &Bundle) -> Result<Vec<String>, String> {
        let bundle = bundle::Bundle::load(bundle.path()).map_err(|error| error.to_string())?;
        let cache = Cache::open(self.host.image_cache(), DEFAULT_LIMIT).unwrap();
        let root = bundle.root.clone();
        let disk = self.sandbox.add_disk(|| cache.image(&root)).unwrap();
        let streams = self.sandbox.create(name, bundle, disk, Wanted::outputs_and(false));
        let streams = streams.map_err(|error| error.to_string())?;
        let process = ProcessId {
            container: name.into(),
            exec: String::new(),
        };
        self.sandbox.start(&process).unwrap();
        let said = BufReader::new(streams.stdout.unwrap()).lines().map(Result::unwrap);
        Ok(said.take_while(|line| line != "end").collect())
    }
}

/// The namespaces of a container that has these by path, and the others new.
fn namespaces(paths: &[(&str, String)]) -> Value {
    let one = |kind: &str| match paths.iter().find(|(joined, _)| *joined == kind) {
        Some((_, path)) => json!({"type": kind, "path": path}),
        None => json!({"type": kind}),
    };
    ["mount", "pid", "ipc", "uts", "network"].map(one).to_vec().into()
}

#[test]
fn a_container_joins_the_namespaces_of_its_pod() {
    let host = Host::new();
    let pod = Pod::start(&host);
    let script = format!("{SAY}; exec sleep 1000");
    let first = Bundle::of_script(&host, busybox(), &script).with("/hostname", "the-pod");
    let own = pod.run("first", &first).unwrap();
    assert_eq!((own.len(), own[0].as_str()), (LINES, "the-pod"));
    // The process that stands for the containers here is this one.
    let of = |kind: &str, file: &str| {
        let path = format!("/proc/{}/ns/{file}", process::id());
        (kind.to_owned(), path)
    };
    let all = [
        of("pid", "pid"),
        of("ipc", "ipc"),
        of("uts", "uts"),
        of("network", "net"),
    ];
    let joined: Vec<_> = all.iter().map(|(kind, path)| (kind.as_str(), path.clone())).collect();
    let plain = Bundle::of_script(&host, busybox(), SAY).with("/hostname", "");
    let second = plain.clone().with("/linux/namespaces", namespaces(&joined));
    assert_eq!(pod.run("second", &second).unwrap(), own);
    let other = plain.clone().with("/linux/namespaces", namespaces(&joined[..2]));
    let other = pod.run("third", &other).unwrap();
    assert_eq!(other[1..3], own[1..3], "those that are joined");
    assert!(
        other[3] != own[3] && other[4] != own[4],
        "the others: {other:?} and {own:?}"
    );
    pod.sandbox.remove().unwrap();
}

#[test]
fn a_namespace_of_anybody_else_is_refused_by_name() {
    let host = Host::new();
    let net = |path: &str| {
        let bundle = Bundle::of_script(&host, busybox(), "true");
        bundle.with("/linux/namespaces", namespaces(&[("network", path.to_owned())]))
    };
    for path in [
        "/proc/1/ns/net",
        "/run/netns/pod",
        "/proc/self/ns/net",
        // A path of another kind.
        &format!("/proc/{}/ns/pid", process::id()),
    ] {
        let run = host.husk().bundle(&net(path)).run_bundle();
        run.fails(125, &["linux.namespaces[4].path", path]);
    }
}

#[test]
fn a_deleted_container_leaves_its_place_to_others() {
    let host = Host::new();
    let pod = Pod::start(&host);
    // More than there are disk slots, here and below.
    for round in 0..5 {
        let name = format!("missing-{round}");
        let bundle = Bundle::of_script(&host, busybox(), "true").with("/process/args", json!(["/no/such"]));
        let error = pod.run(&name, &bundle).unwrap_err();
        assert!(error.contains("no such file or directory"), "{error}");
    }
    for round in 0..8 {
        let name = format!("round-{round}");
        let bundle = Bundle::of_script(&host, busybox(), "echo $0 is there; ls /bin/busybox; echo end");
        assert_eq!(pod.run(&name, &bundle).unwrap(), ["/bin/sh is there", "/bin/busybox"]);
        let process = ProcessId {
            container: name.clone(),
            exec: String::new(),
        };
        assert_eq!(pod.sandbox.wait(&process).unwrap().status, 0);
        pod.sandbox.delete(&name).unwrap();
        assert!(pod.sandbox.container(&name).is_none());
    }
    pod.sandbox.remove().unwrap();
}
