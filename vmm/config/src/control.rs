//! The messages of the control socket: one JSON value a packet, each [`Request`] answered by one [`Response`].

use serde::{Deserialize, Serialize};

use crate::{ExitCounts, Phase};

/// The longest control message in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// The largest number of files that make one disk (`SCM_MAX_FD` of Linux is 253).
pub const MAX_PARTS: usize = 250;

/// What the owner asks of a running machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Ask for the machine's [`Status`].
    Status,
    /// Stop all vCPUs; answered when none runs guest code any more. Pausing a paused machine changes nothing.
    Pause,
    /// Let the vCPUs go on. Resuming a running machine changes nothing.
    Resume,
    /// End the machine now, whatever the guest does; answered before it ends.
    Stop,
    /// Make every vCPU leave the guest once and every device look at its queues: mends a lost notification.
    Kick,
    /// Put the file whose descriptor comes with the packet (`SCM_RIGHTS`) into an empty disk slot. Up to [`MAX_PARTS`]
    /// descriptors are one disk for a read-only slot: the files one behind the other, each of whole sectors.
    Attach {
        /// The disk's id.
        disk: String,
    },
    /// Empty a disk slot again; the guest sees a disk of size zero.
    Detach {
        /// The disk's id.
        disk: String,
    },
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    /// Done.
    Done,
    /// The answer to [`Request::Status`].
    Status(Status),
    /// Not done, and why.
    Refused {
        /// A sentence for a person.
        reason: String,
    },
}

/// What a machine says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether the vCPUs run.
    pub state: State,
    /// Exits to user space by kind, over all vCPUs.
    pub exits: ExitCounts,
    /// The boot's phases so far.
    pub phases: Vec<Phase>,
}

/// Whether the vCPUs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still.
    Paused,
}
