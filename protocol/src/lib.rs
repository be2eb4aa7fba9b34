//! The messages between the sandbox's owner on the host and the agent in the guest, and the few numbers that both
//! must agree on. `proto/agent.proto` says what each message means.
//!
//! The way between them is vsock:
//!
//! - the agent listens on [`AGENT_PORT`] (the ttrpc service) and on [`STDIO_PORT`];
//! - when both listen, it connects to [`HOST_CID`]'s [`READY_PORT`] and writes one [`agent::Ready`], as a
//!   little-endian `u32` length and the message;
//! - a process's stream is a connection to [`STDIO_PORT`] that begins with a token of [`TOKEN_LEN`] random bytes, which
//!   [`agent::Stdio`] names;
//! - files go over such a connection too, which [`agent::FilesRequest`] names, in [`frames`].

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

pub mod frames;

pub use generated::{agent, agent_ttrpc};

/// The agent's ttrpc service.
pub const AGENT_PORT: u32 = 1024;
/// The agent's stdio connections.
pub const STDIO_PORT: u32 = 1025;
/// The host's port on which the agent says that it is ready.
pub const READY_PORT: u32 = 1024;
/// The guest's context id.
pub const GUEST_CID: u32 = 3;
/// The host's context id (`VMADDR_CID_HOST`).
pub const HOST_CID: u32 = 2;
/// The length of a stdio token in bytes.
pub const TOKEN_LEN: usize = 16;
/// The longest [`agent::Ready`] that the host reads, in bytes.
pub const MAX_READY: usize = 4096;
