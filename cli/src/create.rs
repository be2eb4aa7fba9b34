//! `husk create`: a container that waits for `husk start`, owned by a monitor.

use std::sync::Arc;

use anyhow::{Result, ensure};
use husk_sandbox::artefacts;
use husk_sandbox::bundle::{Bundle, Machine};
use husk_sandbox::host_cgroup;
use husk_sandbox::image::{Cache, DEFAULT_LIMIT};
use husk_sandbox::rundir;
use husk_sandbox::sandbox::{Options, Stands};

use crate::args::{CreateArgs, Global, PidArgs};
use crate::own::{self, Charge, Disk, StreamChoice};
use crate::run::absolute;
use crate::{doctor, monitor};

pub(crate) fn create(global: &Global, args: &CreateArgs) -> Result<u8> {
    rundir::check_name(&args.id)?;
    check_descriptors(&args.pid)?;
    let kvm = Arc::new(doctor::open_kvm()?);
    let bundle = Bundle::load(&absolute(&args.bundle)?)?;
    bundle.check_no_network()?;
    let machine = bundle.machine.at_least(Machine::default());
    let cache = args.image_cache.clone().unwrap_or_else(artefacts::default_image_cache);
    let charge = Charge {
        root: global.root(),
        name: args.id.clone(),
        disk: Disk::Directory(Cache::open(&cache, DEFAULT_LIMIT)?),
        options: Options {
            kvm,
            cpus: machine.cpus,
            memory_mib: machine.memory_mib,
            disks: 1,
            console: false,
            kernel: None,
            network: None,
            stands: Stands::Owner,
            cgroup: host_cgroup::directory(&bundle.request.cgroup_path),
            confinement: bundle.confinement.clone(),
            patience: global.patience(),
        },
        streams: match &args.pid.console_socket {
            Some(path) => StreamChoice::Console(path.clone()),
            None => StreamChoice::Caller,
        },
        pid_file: args.pid.pid_file.clone(),
        bundle,
        start: false,
        keep: true,
    };
    monitor::start(|stdio, report| own::own(charge, stdio, report))?;
    Ok(0)
}

/// A descriptor is an object of this host's kernel: no process of another kernel can have it.
pub(crate) fn check_descriptors(args: &PidArgs) -> Result<()> {
    ensure!(
        args.preserve_fds == 0,
        "--preserve-fds {}: descriptors of the host cannot be passed into a virtual machine",
        args.preserve_fds
    );
    Ok(())
}
