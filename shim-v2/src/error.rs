//! What goes wrong, and by which of containerd's codes it is told.

use std::io;
use std::path::PathBuf;

use containerd_shim_protos::ttrpc::{self, Code, get_status};
use husk_sandbox::bundle::BundleError;
use husk_sandbox::guest::GuestError;
use husk_sandbox::host_cgroup::HostCgroupError;
use husk_sandbox::image::ImageError;
use husk_sandbox::keeper::KeeperError;
use husk_sandbox::sandbox::SandboxError;
use thiserror::Error;

use crate::config::ConfigError;

/// Why a call is not done.
#[derive(Debug, Error)]
pub(crate) enum ShimError {
    #[error("container {0} does not exist")]
    NoContainer(String),
    #[error("container {container} has no process {exec}")]
    NoProcess { container: String, exec: String },
    #[error("{0} exists already")]
    Exists(String),
    // The texts of these are what callers of runc's shim look for.
    #[error("process already finished")]
    Finished,
    #[error("cannot delete a running process")]
    DeleteRunning,
    #[error("cannot exec in a {0} state")]
    ExecIn(&'static str),
    #[error("process {0} is not created and cannot be started")]
    NotCreated(String),
    #[error("process {0} does not run")]
    NotRunning(String),
    #[error("{0} is not implemented by husk")]
    Unimplemented(&'static str),
    #[error("the container is to have the host's network, which a virtual machine cannot share")]
    HostNetwork,
    #[error("{what} is missing in the request")]
    Missing { what: &'static str },
    #[error("the sandbox has not been created")]
    NoSandbox,
    #[error("the sandbox could not be started: {0}")]
    Boot(String),
    #[error("{what} {} cannot be used", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the root file system cannot be mounted: {what}")]
    Mount {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the root file system cannot be the guest's: {0}")]
    Snapshot(String),
    #[error("{0:?} is no place for output: a FIFO, or a file:// or binary:// URI is")]
    Output(String),
    #[error("the streams cannot be passed on")]
    Streams(#[source] io::Error),
    #[error("the container was made later than its caller waited for")]
    TooLate,
    #[error("the caller has gone")]
    Deserted,
    #[error("a thread cannot be started")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Cgroup(#[from] HostCgroupError),
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Sandbox(Box<SandboxError>),
    #[error(transparent)]
    Guest(#[from] GuestError),
}

impl From<SandboxError> for ShimError {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::Guest(error) => Self::Guest(error),
            error => Self::Sandbox(Box::new(error)),
        }
    }
}

impl ShimError {
    fn code(&self) -> Code {
        match self {
            Self::NoContainer(_) | Self::NoProcess { .. } | Self::Finished | Self::NoSandbox => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::DeleteRunning | Self::ExecIn(_) | Self::NotCreated(_) | Self::NotRunning(_) => {
                Code::FAILED_PRECONDITION
            }
            Self::TooLate => Code::DEADLINE_EXCEEDED,
            Self::Deserted => Code::CANCELLED,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::Missing { .. } | Self::HostNetwork | Self::Output(_) | Self::Bundle(_) => Code::INVALID_ARGUMENT,
            Self::Guest(error) => match error {
                GuestError::Absent(_) => Code::NOT_FOUND,
                GuestError::Exists(_) => Code::ALREADY_EXISTS,
                GuestError::State(_) => Code::FAILED_PRECONDITION,
                GuestError::Invalid(_) | GuestError::Update(_) => Code::INVALID_ARGUMENT,
                GuestError::Timeout(_) => Code::DEADLINE_EXCEEDED,
                GuestError::Refused { code, .. } => *code,
                _ => Code::UNKNOWN,
            },
            _ => Code::UNKNOWN,
        }
    }
}

/// An error and what has led to it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl From<ShimError> for ttrpc::Error {
    fn from(error: ShimError) -> Self {
        let text = chain(&error);
        tracing::debug!(error = text, "a call is refused");
        Self::RpcStatus(get_status(error.code(), text))
    }
}
