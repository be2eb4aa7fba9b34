//! `husk`: containers in microVMs of their own, from the shell.
//!
//! [`args`] says what can be asked for; each command has a module of its name. Exit codes are those of the container
//! tools: the container's own, 128 + n when signal n ended it, 127 and 126 when its command was not found or could not
//! be executed, 125 when husk itself failed.

#![deny(unsafe_code)]

mod answer;
mod args;
mod attach;
mod console;
mod cp;
mod create;
mod delete;
mod doctor;
mod documentation;
mod events;
mod exec;
mod failure;
mod features;
mod image;
mod images;
mod inspect;
mod install;
mod kill;
mod list;
mod log;
mod logs;
mod monitor;
mod output;
mod overrides;
mod own;
mod pause;
mod ps;
mod pty;
mod run;
mod signals;
mod spec;
mod start;
mod state;
mod stats;
mod stop;
mod table;
mod terminal;
mod timings;
mod update;
mod wait;

use std::process::ExitCode;

use clap::Parser;
use husk_sandbox::timeline;

use args::{CacheCommand, Cli, Command};

fn main() -> ExitCode {
    let started = timeline::now();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; where they cannot be printed nobody waits for them.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::OWN } else { 0 });
        }
    };
    let result = log::start(&cli.global).and_then(|()| dispatch(&cli, started));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            failure::print(&error);
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn dispatch(cli: &Cli, started: u64) -> anyhow::Result<u8> {
    let global = &cli.global;
    match &cli.command {
        Command::Run(args) => run::run(global, args, started),
        Command::Exec(args) => exec::exec(global, args),
        Command::List(args) => list::list(global, args),
        Command::Stop(args) => stop::stop(global, args),
        Command::Kill(args) => kill::kill(global, args),
        Command::Copy(args) => cp::cp(global, args),
        Command::Logs(args) => logs::logs(global, args),
        Command::Wait(args) => wait::wait(global, args),
        Command::Inspect(args) => inspect::inspect(global, args),
        Command::Remove(args) => delete::rm(global, args),
        Command::Console(args) => console::console(global, args),
        Command::Images(args) => images::images(args),
        Command::Cache(CacheCommand::Prune(args)) => images::prune(args),
        Command::Doctor(args) => doctor::doctor(global, args),
        Command::Install(args) => install::install(args),
        Command::Create(args) => create::create(global, args),
        Command::Start(args) => start::start(global, args),
        Command::State(args) => state::state(global, args),
        Command::Delete(args) => delete::delete(global, args),
        Command::Ps(args) => ps::ps(global, args),
        Command::Pause(args) => pause::pause(global, args),
        Command::Resume(args) => pause::resume(global, args),
        Command::Update(args) => update::update(global, args),
        Command::Events(args) => events::events(global, args),
        Command::Stats(args) => stats::stats(global, args),
        Command::Spec(args) => spec::spec(args),
        Command::Documentation { dir } => documentation::write(dir),
        Command::Features => features::features(),
    }
}
