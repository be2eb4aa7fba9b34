//! Why a call is refused.

use ttrpc::Code;

use crate::cgroup::CgroupError;
use crate::child::ChildError;
use crate::disk::DiskError;
use crate::sys::errno;

/// A call's failure, as the host sees it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("there is no container {0:?}")]
    NoContainer(String),
    #[error("container {container:?} has no process {exec:?}")]
    NoProcess { container: String, exec: String },
    #[error("container {0:?} exists already")]
    ContainerExists(String),
    #[error("container {container:?} has a process {exec:?} already")]
    ProcessExists { container: String, exec: String },
    #[error("{field}: {reason}")]
    Invalid { field: String, reason: &'static str },
    #[error("container {container:?}, process {exec:?}: {state}")]
    State {
        container: String,
        exec: String,
        state: &'static str,
    },
    #[error("container {container:?} is {status}; it must be {needed}")]
    Status {
        container: String,
        status: &'static str,
        needed: &'static str,
    },
    #[error("the processes of container {0:?} have not stopped in time, and go on")]
    NotStopping(String),
    #[error("disk {0:?} has not appeared in time")]
    NoDisk(String),
    #[error("a stdio connection that the request names has not been made in time")]
    NoStream,
    #[error("there are {limit} {what} already")]
    Full { what: &'static str, limit: usize },
    #[error("the service has no method {0:?}")]
    NoMethod(String),
    #[error("the request cannot be decoded: {0}")]
    Undecodable(protobuf::Error),
    #[error("the answer cannot be encoded: {0}")]
    Unencodable(protobuf::Error),
    #[error("{what}: {source}")]
    System { what: String, source: nix::Error },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("making the container's root: {0}")]
    Root(ChildError),
    #[error("the process has been deleted")]
    Deleted,
    #[error("the processes of container {0:?} have not ended in time")]
    StillAlive(String),
}

impl Refusal {
    /// A field that is not valid.
    pub(crate) fn invalid(field: impl Into<String>, reason: &'static str) -> Self {
        Self::Invalid {
            field: field.into(),
            reason,
        }
    }

    /// What the kernel has refused.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(nix::Error) -> Self {
        move |source| Self::System {
            what: what.into(),
            source,
        }
    }

    /// What reading or writing a file has met.
    pub(crate) fn file(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::System {
            what: what.into(),
            source: errno(&error),
        }
    }

    /// The status with which ttrpc reports it.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NoContainer(_) | Self::NoProcess { .. } | Self::Deleted => Code::NOT_FOUND,
            Self::ContainerExists(_) | Self::ProcessExists { .. } => Code::ALREADY_EXISTS,
            Self::Invalid { .. }
            | Self::Undecodable(_)
            | Self::Cgroup(CgroupError::Set { .. } | CgroupError::InUse { .. } | CgroupError::NoDisk(_)) => {
                Code::INVALID_ARGUMENT
            }
            Self::State { .. }
            | Self::Status { .. }
            | Self::NotStopping(_)
            | Self::NoDisk(_)
            | Self::NoStream
            | Self::StillAlive(_) => Code::FAILED_PRECONDITION,
            Self::Full { .. } => Code::RESOURCE_EXHAUSTED,
            Self::NoMethod(_) => Code::UNIMPLEMENTED,
            Self::Unencodable(_) | Self::System { .. } | Self::Cgroup(_) | Self::Disk(_) | Self::Root(_) => {
                Code::INTERNAL
            }
        }
    }
}
