//! `husk`: containers in microVMs of their own, from the shell.
//!
//! [`args`] says what can be asked for; each command has a module of its name. Exit codes are those of the container
//! tools: the container's own, 128 + n when signal n ended it, 127 and 126 when its command was not found or could not
//! be executed, 125 when husk itself failed.

#![deny(unsafe_code)]

mod args;
mod attach;
mod console;
mod doctor;
mod exec;
mod failure;
mod image;
mod images;
mod kill;
mod list;
mod overrides;
mod relay;
mod run;
mod signals;
mod terminal;
mod timings;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use husk_sandbox::timeline;
use tracing_subscriber::EnvFilter;

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
    start_logging(cli.global.verbose);
    let result = match &cli.command {
        Command::Run(args) => run::run(&cli.global, args, started),
        Command::Exec(args) => exec::exec(&cli.global, args),
        Command::List(args) => list::list(&cli.global, args),
        Command::Kill(args) => kill::kill(&cli.global, args),
        Command::Console(args) => console::console(&cli.global, args),
        Command::Images(args) => images::images(args),
        Command::Cache(CacheCommand::Prune(args)) => images::prune(args),
        Command::Doctor(args) => doctor::doctor(&cli.global, args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            failure::print(&error);
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

/// Traces to stderr what `-v` and `HUSK_LOG` ask for; warnings if they say nothing.
fn start_logging(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = match std::env::var("HUSK_LOG") {
        Ok(filter) if verbose == 0 => EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new(default)),
        _ => EnvFilter::new(default),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
