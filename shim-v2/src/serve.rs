//! The shim's life: from a listening socket to the end of its sandbox.

use std::fs;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use containerd_shim_protos::ttrpc::Server;
use husk_sandbox::bundle::Bundle;
use husk_sandbox::keeper::Keeper;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::setsid;

use crate::bootstrap::Options;
use crate::error::chain;
use crate::events::Publisher;
use crate::pod::Pod;
use crate::{log, place, sandbox, task};

/// What a shim is for.
#[derive(Debug)]
pub(crate) struct Charge {
    pub(crate) namespace: String,
    /// Its sandbox's name: that of the group that it serves.
    pub(crate) name: String,
    pub(crate) bundle: PathBuf,
    /// Where containerd takes events.
    pub(crate) events: Option<String>,
    pub(crate) options: Options,
    pub(crate) debug: bool,
    pub(crate) socket: PathBuf,
}

/// The life of the forked process.
pub(crate) fn live(listener: UnixListener, charge: Charge) -> ! {
    let socket = charge.socket.clone();
    let code = match settle().and_then(|()| serve(listener, charge)) {
        Ok(()) => 0,
        Err(error) => {
            let _ = fs::remove_file(&socket);
            tracing::error!("{error:#}");
            1
        }
    };
    // Threads that still wait for somebody do not matter any more.
    std::process::exit(code)
}

/// Where the standard library looks for the size of threads' stacks (<https://doc.rust-lang.org/std/thread/>, "Stack size").
pub(crate) const STACK_VARIABLE: &str = "RUST_MIN_STACK";
/// The stack of a thread, in bytes: less than a huge page, which the kernel would give to a thread that uses a few KiB of it.
const STACK: &str = "1048576";

/// Lets go of what `start` has: its session and its streams, whose end containerd waits for.
#[allow(unsafe_code)]
fn settle() -> Result<()> {
    // SAFETY: there is one thread, so that nobody reads the environment meanwhile.
    unsafe { std::env::set_var(STACK_VARIABLE, STACK) };
    setsid().context("a session cannot be made")?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).context("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    nix::unistd::chdir("/")?;
    Ok(())
}

fn serve(listener: UnixListener, charge: Charge) -> Result<()> {
    log::start(&charge.bundle, charge.debug);
    let socket = charge.socket;
    let root = place::root(&charge.namespace)?;
    // A pod's sandbox has none when containerd speaks to its sandbox first.
    let bundle = Bundle::load(&charge.bundle);
    // Before the first thread, and before there is anything to clean up.
    let keeper = Keeper::start(root.path(), &charge.name)?;
    let place = root.create(&charge.name)?;
    let events = charge.events.as_deref().unwrap_or_default();
    let events = Publisher::start(events, &charge.namespace).context("events cannot be forwarded")?;
    let pod = Arc::new(Pod::new(charge.namespace, events, charge.options, place, keeper));
    if let Ok(bundle) = bundle {
        let pod = Arc::clone(&pod);
        let boot = move || {
            if let Err(error) = pod.boot(&bundle) {
                tracing::error!(error = chain(&error), "the machine cannot be started");
            }
        };
        thread::Builder::new().name("boot".into()).spawn(boot)?;
    }
    let mut server = Server::new()
        .add_listener(listener.into_raw_fd())
        .context("the socket cannot be used")?
        .register_service(task::methods(&pod))
        .register_service(sandbox::methods(&pod));
    server.start().context("the socket cannot be served")?;
    pod.wait_for_end();
    // Nobody is to find a shim that ends. While it takes down what is left another may listen there already.
    let _ = fs::remove_file(&socket);
    pod.take_down();
    Ok(())
}
