//! containerd's shim for containers in microVMs: the runtime `io.containerd.husk.v2`.
//!
//! The way of a call, in the order of the modules:
//!
//! 1. [`start`]: containerd runs this program ([`args`]), which answers as that containerd expects ([`bootstrap`]) and
//!    leaves a fork of itself that listens on the group's socket ([`place`]), with the operator's [`config`];
//! 2. [`serve`]: the fork owns the sandbox, and serves [`task`] and [`sandbox`], containerd's two services, whose calls
//!    come to the one [`pod`];
//! 3. [`pod`]: a [`container`]'s [`rootfs`] becomes an image, its [`process`]es are created, started and deleted, and
//!    their streams go where [`stdio`] says;
//! 4. [`exits`]: the guest says that a process has ended, containerd gets [`events`], and asks for [`stats`];
//! 5. [`delete`]: containerd runs this program once more, to take down what is left.
//!
//! The shim knows nothing of KVM and of guests: that is `husk-sandbox`.

#![deny(unsafe_code)]

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::too_many_lines
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

mod args;
mod bootstrap;
mod config;
mod container;
mod delete;
mod ended;
mod error;
mod events;
mod exits;
mod farewell;
mod info;
mod log;
mod place;
mod pod;
mod process;
mod rootfs;
mod sandbox;
mod serve;
mod snapshots;
mod start;
mod stats;
mod stdio;
mod task;

use std::process::ExitCode;

use anyhow::Result;

use crate::args::Task;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows it to whoever has asked for the container.
            eprintln!("containerd-shim-husk-v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match args::parse(std::env::args_os().skip(1))? {
        Task::Start(flags) => start::start(&flags),
        Task::Delete(flags) => delete::delete(&flags),
        Task::Info => info::info(),
        Task::Version => {
            println!("containerd-shim-husk-v2 {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Task::Help => {
            println!("{}", args::HELP);
            Ok(())
        }
    }
}
