//! First process of the emulated host.
//!
//! It is the only file of the initramfs. It opens the [`channel`](xtask_init::channel) to `cargo xtask host`, is told
//! what to assemble ([`root`]), runs the command ([`command`]), carries its streams ([`relay`]) and powers off.

mod command;
mod link;
mod modules;
mod network;
mod relay;
mod root;

use std::fs::File;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::reboot::{RebootMode, reboot};
use xtask_init::channel::{Frame, Start};

use crate::link::Link;
use crate::modules::Modules;

/// Loaded at the start because a device node or a sysctl comes with them. The kernel asks for all others when they are
/// needed, and modprobe finds them.
const MODULES: &[&str] = &["kvm_amd", "tun", "loop", "vhost_net", "vhost_vsock", "br_netfilter"];

fn main() {
    if std::process::id() != 1 {
        eprintln!("xtask-init: this is the first process of the emulated host; run `cargo xtask host` instead");
        std::process::exit(125);
    }
    if let Err(error) = run() {
        eprintln!("xtask-init: {error:#}");
    }
    // Only a missing privilege makes this fail, and the first process has it.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn run() -> Result<()> {
    root::mount_early()?;
    let mut link = Link::open()?;
    let done = receive_start(&mut link).and_then(|start| {
        assemble(&start)?;
        let running = command::start(&start)?;
        link.send_blocking(&Frame::Started)?;
        relay::run(&mut link, running)
    });
    let last = match done {
        Ok(code) => Frame::Exit(code),
        Err(error) => match error.downcast_ref::<command::NotStarted>() {
            Some(reason) => {
                link.send_blocking(&reason.message())?;
                Frame::Exit(reason.exit_code())
            }
            None => Frame::Failed(format!("{error:#}")),
        },
    };
    // What the command wrote through mappings of shared files has to reach them before the machine ends.
    nix::unistd::sync();
    link.send_blocking(&last)
}

fn receive_start(link: &mut Link) -> Result<Start> {
    match link.receive_blocking()? {
        Frame::Start(start) => Ok(start),
        other => bail!("expected the start frame, got {other:?}"),
    }
}

/// Turns the bare kernel into a host: root file system, modules, devices, loopback, cgroups.
fn assemble(start: &Start) -> Result<()> {
    let modules = root::mount_lower(start)?;
    modules.load("overlay")?;
    root::assemble(start)?;
    let modules = Modules::read(&root::path(&start.modules))?;
    for name in MODULES {
        modules.load(name)?;
    }
    root::open_devices_to_all()?;
    root::delegate_cgroup_controllers()?;
    network::bring_loopback_up()?;
    nix::unistd::sethostname("emulated-host").context("sethostname")?;
    ensure!(
        File::open("/dev/kvm").is_ok(),
        "the emulated host has no usable /dev/kvm although kvm_amd is loaded"
    );
    Ok(())
}
