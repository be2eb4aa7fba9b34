//! `husk run`: a container in a new sandbox, to its end.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use husk_sandbox::artefacts;
use husk_sandbox::bundle::{Bundle, Machine, Standard};
use husk_sandbox::guest::{ProcessId, Wanted};
use husk_sandbox::image::{Cache, DEFAULT_LIMIT};
use husk_sandbox::keeper::Keeper;
use husk_sandbox::relay::{Ends, Relay};
use husk_sandbox::rundir::{self, RunRoot};
use husk_sandbox::sandbox::{Options, Sandbox, Stands};
use husk_sandbox::timeline::Timeline;

use crate::args::{Global, RunArgs};
use crate::attach::{self, Progress, Session, Target};
use crate::own::{self, Charge, Disk, StreamChoice};
use crate::terminal::Raw;
use crate::timings::{Exits, Format, Timings};
use crate::{answer, console, doctor, image, monitor, overrides};

/// The longest host name (`__NEW_UTS_LEN`), in bytes.
const MAX_HOSTNAME: usize = 64;
/// How long the console may take to say its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(crate) fn run(global: &Global, args: &RunArgs, started: u64) -> Result<u8> {
    let timeline = Arc::new(Timeline::default());
    timeline.note("husk started", started);
    let kvm = Arc::new(doctor::open_kvm()?);
    if let (Some(word), None) = (&args.id, &args.source.bundle) {
        bail!("the command stands behind two dashes: -- {word}; a name is given with --name");
    }
    let name = match args.name.as_ref().or(args.id.as_ref()) {
        Some(name) => name.clone(),
        None => random_name()?,
    };
    rundir::check_name(&name)?;
    let cache = args.image_cache.clone().unwrap_or_else(artefacts::default_image_cache);
    let cache = Cache::open(&cache, DEFAULT_LIMIT)?;
    let (bundle, disk) = match &args.source.image {
        Some(image) => {
            let (bundle, image) = image::prepare(image, &cache, args, &name)?;
            (bundle, Disk::Image(image))
        }
        None => (bundle(args, &name)?, Disk::Directory(cache)),
    };
    timeline.reach("bundle read");
    let machine = bundle.machine.at_least(Machine::default());
    let options = Options {
        kvm,
        cpus: args.cpus.unwrap_or(machine.cpus),
        memory_mib: args.memory.unwrap_or(machine.memory_mib),
        disks: 1,
        console: args.console,
        kernel: args.kernel.clone(),
        patience: global.patience(),
        cgroup: None,
        network: None,
        stands: Stands::Owner,
        confinement: bundle.confinement.clone(),
    };
    if args.detach {
        return detach(Charge {
            root: global.root(),
            name,
            bundle,
            disk,
            options,
            streams: StreamChoice::Log,
            pid_file: args.pid_file.clone(),
            start: true,
            keep: !args.rm,
        });
    }
    let root = RunRoot::open(&global.root())?;
    // Before the first thread, and before there is anything to clean up.
    let _keeper = Keeper::start(root.path(), &name, None)?;
    let dir = root.create(&name)?;
    if let Some(path) = &args.pid_file {
        monitor::write_pid_file(path)?;
    }
    let session = Session::begin()?;
    let sandbox = Arc::new(Sandbox::spawn(dir, &options, Arc::clone(&timeline))?);
    let console = match args.console {
        true => Some(console::to_stderr(sandbox.link()?.console()?)?),
        false => None,
    };
    let work = Work {
        sandbox: Arc::clone(&sandbox),
        name,
        bundle,
        disk,
        interactive: args.process.interactive,
        timings: args.timings,
    };
    let result = session.drive(move |progress| work.run(progress));
    let removed = sandbox.remove();
    if let Some(console) = console {
        // The machine hangs up when it ends; a person waits for it no longer than this.
        join_within(console, LAST_WORDS);
    }
    let code = result?;
    removed?;
    Ok(code)
}

/// Leaves a running container to a monitor and says its name.
fn detach(charge: Charge) -> Result<u8> {
    let name = charge.name.clone();
    monitor::start(|stdio, report| own::own(charge, stdio, report))?;
    answer::text(&format!("{name}\n"))?;
    Ok(0)
}

/// Waits for a thread for a limited time.
fn join_within(thread: std::thread::JoinHandle<()>, limit: Duration) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let waiter = std::thread::Builder::new().spawn(move || {
        // How the thread ended does not matter, nor whether it is still waited for.
        let _ = thread.join();
        let _ = sender.send(());
    });
    if waiter.is_ok() {
        let _ = receiver.recv_timeout(limit);
    }
}

fn bundle(args: &RunArgs, name: &str) -> Result<Bundle> {
    let mut bundle = match (&args.source.bundle, &args.source.rootfs) {
        (Some(dir), _) => {
            let bundle = Bundle::load(&absolute(dir)?)?;
            bundle.check_no_network()?;
            bundle
        }
        (None, Some(rootfs)) => {
            let choice = Standard {
                args: vec!["sh".into()],
                terminal: args.process.tty,
                hostname: hostname(name),
            };
            Bundle::standard(&absolute(rootfs)?, &choice)?
        }
        (None, None) => bail!("name a --bundle, a --rootfs or an --image to run"),
    };
    let process = bundle.request.process.mut_or_insert_default();
    if !args.command.is_empty() {
        process.args.clone_from(&args.command);
    }
    apply(args, &mut bundle)?;
    Ok(bundle)
}

/// The host name of a sandbox for which none is chosen: its name, which may be longer than a host's.
pub(crate) fn hostname(name: &str) -> String {
    name.chars().take(MAX_HOSTNAME).collect()
}

/// What the command line changes, whatever is run.
pub(crate) fn apply(args: &RunArgs, bundle: &mut Bundle) -> Result<()> {
    let request = &mut bundle.request;
    if let Some(hostname) = &args.hostname {
        ensure!(
            hostname.len() <= MAX_HOSTNAME,
            "the host name {hostname:?} is longer than {MAX_HOSTNAME} bytes"
        );
        request.hostname.clone_from(hostname);
        overrides::set_env(
            &mut request.process.mut_or_insert_default().env,
            &format!("HOSTNAME={hostname}"),
        )?;
    }
    request.root.mut_or_insert_default().read_only |= args.read_only;
    let process = request.process.mut_or_insert_default();
    overrides::apply(&args.process, &bundle.root, process)
}

pub(crate) fn absolute(path: &std::path::Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
}

/// Twelve random hexadecimal digits.
pub(crate) fn random_name() -> Result<String> {
    let mut bytes = [0; 6];
    let mut source = File::open("/dev/urandom").context("/dev/urandom cannot be read")?;
    source.read_exact(&mut bytes).context("/dev/urandom cannot be read")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What a thread does while another hears signals.
struct Work {
    sandbox: Arc<Sandbox>,
    name: String,
    bundle: Bundle,
    disk: Disk,
    interactive: bool,
    timings: Option<Format>,
}

impl Work {
    fn run(self, progress: &Progress) -> Result<u8> {
        let root = self.bundle.root.clone();
        let disk = self.disk;
        let (ready, disk) = self.sandbox.prepare(move || disk.find(&root))?;
        let mut exits = Exits::default();
        if self.timings.is_some() {
            exits.push("agent ready", self.sandbox.link()?.status()?.exits);
        }
        let terminal = self.bundle.request.process.stdio.terminal;
        let wanted = Wanted::outputs_and(self.interactive);
        let streams = self.sandbox.create(&self.name, self.bundle, disk, wanted)?;
        let raw = match terminal && self.interactive && crate::terminal::on_stdin() {
            true => Some(Raw::new().context("the terminal cannot be made raw")?),
            false => None,
        };
        let process = ProcessId {
            container: self.name,
            exec: String::new(),
        };
        let relay = Relay::start(streams, terminal, Ends::standard(self.interactive)?).context(own::NO_RELAY)?;
        let started_ns = self.sandbox.start(&process)?;
        if self.timings.is_some() {
            exits.push("process started", self.sandbox.link()?.status()?.exits);
        }
        progress.started(Target {
            guest: self.sandbox.guest()?,
            process: process.clone(),
            terminal,
        });
        let exit = self.sandbox.wait(&process)?;
        relay.finish();
        drop(raw);
        if let Some(format) = self.timings {
            let status = self.sandbox.link()?.status()?;
            exits.push("process exited", status.exits);
            let mut timings = Timings::new(self.sandbox.timeline().phases(), exits);
            timings.vmm(status.phases);
            timings.guest(&ready, started_ns, exit.exited_ns);
            timings.print(format)?;
        }
        if exit.oom_killed {
            tracing::warn!("the container's memory limit has killed a process");
        }
        Ok(attach::status(exit.status))
    }
}
