//! husk's promises, each with its test: `cargo xtask test` runs them, one at a time.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod badinput;
mod bundle;
mod cli;
mod debian;
mod exec;
mod faults;
mod harness;
mod hooks;
mod kernel;
mod limits;
mod machines;
mod namespaces;
mod nonroot;
mod run;
mod seccomp;
mod stdio;
mod tty;
