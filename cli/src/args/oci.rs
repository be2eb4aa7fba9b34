//! The commands of an OCI runtime, with the options that runc has.

use std::path::PathBuf;
use std::time::Duration;

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

/// Show a container's processes; husk list shows containers
#[derive(Args, Debug)]
pub(crate) struct PsArgs {
    /// The form of the list; as JSON it is their ids in the guest alone
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) format: TableFormat,
    /// The container's name
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// Change a container's limits
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk update --memory 128M --pids-limit 50 box
  echo '{\"cpu\": {\"shares\": 512}}' | husk update --resources - box")]
pub(crate) struct UpdateArgs {
    /// Read them from FILE, an object of the form of linux.resources; - is stdin
    #[arg(short, long, value_name = "FILE")]
    pub(crate) resources: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// The container's name
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// The limits that have an option of their own.
#[derive(Args, Debug)]
#[group(multiple = true, conflicts_with = "resources")]
pub(crate) struct Limits {
    /// Weight of its I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub(crate) blkio_weight: Option<u16>,
    /// Period of the quota in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_period: Option<u64>,
    /// Processor time in a period, in microseconds; -1 is no limit
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Processor time that can be saved for a burst, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_burst: Option<u64>,
    /// Weight of its processor time, 2 to 262144
    #[arg(long, value_name = "SHARES")]
    pub(crate) cpu_share: Option<u64>,
    /// 1 lets it run only when nobody else wants to
    #[arg(long, value_name = "0|1")]
    pub(crate) cpu_idle: Option<i64>,
    /// Processors that it may use, such as 0-2,4
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes that it may use
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// Memory, such as 64M; -1 is no limit
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) memory: Option<i64>,
    /// Memory that is left to it when there is little
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<i64>,
    /// Memory and swap space together; -1 is no limit
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<i64>,
    /// Processes; -1 is no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) pids_limit: Option<i64>,
}

/// Show what happens to a container, and now and then what it uses
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk events box
  husk events --stats box              what it uses now, once")]
pub(crate) struct EventsArgs {
    /// Show what it uses once
    #[arg(long)]
    pub(crate) stats: bool,
    /// How often to show what it uses
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = interval)]
    pub(crate) interval: Duration,
    /// The container's name
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// A time with a unit, such as 500ms or 1m30s; not none.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) | Err(_) => Err("use a time such as 5s or 500ms".into()),
        Ok(time) => Ok(time),
    }
}

/// A size in bytes with an optional unit, or -1.
fn size(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    let bytes = husk_sandbox::size::bytes(text)
        .ok()
        .and_then(|bytes| i64::try_from(bytes).ok());
    bytes.ok_or_else(|| "use a number with K, M or G, such as 64M, or -1".into())
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
