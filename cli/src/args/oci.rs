//! The commands of an OCI runtime, with the options that runc has.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// A container's name.
#[derive(Args, Debug)]
pub(crate) struct IdArgs {
    /// The container's name
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// Where a caller finds the process that stands for the container's.
#[derive(Args, Debug)]
pub(crate) struct PidArgs {
    /// Write the id of the process that stands for it to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Send the terminal's master side to the unix socket PATH
    #[arg(long, value_name = "PATH")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Pass on so many descriptors beyond stderr; a virtual machine can take none
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    pub(crate) preserve_fds: u32,
}

/// Create a container from an OCI bundle, up to the point before its process executes
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk create --bundle ./bundle box
  husk create --bundle ./bundle --pid-file box.pid --console-socket tty.sock box

The process that is left running stands where the container's would: it can be
waited for, its exit code is the container's, and signals for it are passed on.")]
pub(crate) struct CreateArgs {
    /// The bundle's directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    #[command(flatten)]
    pub(crate) pid: PidArgs,
    /// Accepted as other runtimes accept it: the guest's root is never the host's
    #[arg(long, hide = true)]
    pub(crate) no_pivot: bool,
    /// Accepted as other runtimes accept it
    #[arg(long, hide = true)]
    pub(crate) no_new_keyring: bool,
    /// Keep root file systems' images in DIR
    #[arg(long, env = "HUSK_IMAGE_CACHE", value_name = "DIR", hide = true)]
    pub(crate) image_cache: Option<PathBuf>,
    /// The container's name
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// Remove what is left of a container
#[derive(Args, Debug)]
pub(crate) struct DeleteArgs {
    /// End it first if it runs; a container that does not exist is no error
    #[arg(short, long)]
    pub(crate) force: bool,
    /// The container's name
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// Write a config.json to begin with
#[derive(Args, Debug)]
pub(crate) struct SpecArgs {
    /// The bundle's directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
}

/// The form of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TableFormat {
    /// Aligned columns
    #[default]
    Table,
    /// For programs
    Json,
}
