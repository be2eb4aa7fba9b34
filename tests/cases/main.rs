//! husk's promises, each with its test: `cargo xtask test` runs them, one at a time.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod badinput;
mod bundle;
mod cli;
mod confinement;
mod containerd;
mod cp;
mod debian;
mod detached;
mod docker;
mod exec;
mod faults;
mod harness;
mod hooks;
mod images;
mod install;
mod kernel;
mod lifecycle;
mod limits;
mod machines;
mod mounts;
mod namespaces;
mod nonroot;
mod phases;
mod podman;
mod pods;
mod probe;
mod resources;
mod run;
mod seccomp;
mod stdio;
mod stop;
mod tty;
