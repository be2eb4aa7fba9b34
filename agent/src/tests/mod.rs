//! The agent as a whole, against this machine's kernel.

mod attributes;
mod control;
mod files;
mod filters;
mod guest;
mod hooks;
mod limits;
mod mounts;
mod processes;
mod surroundings;
mod terminals;
mod users;
