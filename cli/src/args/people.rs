//! The commands for people.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};

use super::TableFormat;

/// List containers
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk list                 a table
  husk list -q              names alone, for scripts
  husk list -f json         everything")]
pub(crate) struct ListArgs {
    /// Print everything as JSON
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,
    /// The form of the list
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        conflicts_with = "quiet"
    )]
    pub(crate) format: TableFormat,
    /// Print names alone
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Ask containers to end, and end those that have not when the time is over
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk stop box
  husk stop --time 60 db web

They are asked with the stop signal of their image, or with TERM.")]
pub(crate) struct StopArgs {
    /// How long to wait before they are killed; -1 is for ever
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i64).range(-1..=31_536_000))]
    pub(crate) time: i64,
    /// The containers' names
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Send a signal to a container
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk kill box             ask it to end: TERM
  husk kill box KILL        end it

husk stop asks, waits, and ends what does not listen.")]
pub(crate) struct KillArgs {
    /// Send it to all of the container's processes
    #[arg(short, long)]
    pub(crate) all: bool,
    /// The container's name
    pub(crate) name: String,
    /// The signal's name or number
    #[arg(default_value = "TERM", value_parser = crate::signals::parse)]
    pub(crate) signal: i32,
    /// The same as an option, as docker and podman take it
    #[arg(short, long = "signal", value_name = "SIGNAL", conflicts_with = "signal", value_parser = crate::signals::parse)]
    pub(crate) option: Option<i32>,
}

/// Copy files between a running container and the host
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk cp box:/etc/passwd .              a file from the container
  husk cp ./site box:/srv                a directory into one: /srv/site
  husk cp ./site/. box:/srv              what is in a directory
  husk cp box:/var/log - | tar t         an archive on stdout; from stdin likewise

A destination that is a directory takes the source under its own name; one that
does not exist becomes the source's new name. A local path with a colon begins
with / or ./ . Nothing is needed inside the container. Files belong to whoever
copies them: to the user here, to root in the container.")]
pub(crate) struct CopyArgs {
    /// Keep owners, and with them the set-user-id bits
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Follow a symbolic link that is the source itself
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// Accepted as other tools accept it: nothing is said anyway
    #[arg(short, long, hide = true)]
    pub(crate) quiet: bool,
    /// What is copied: NAME:PATH, a local path, or - for an archive on stdin
    #[arg(value_name = "SOURCE")]
    pub(crate) source: OsString,
    /// Where to: NAME:PATH, a local path, or - for an archive on stdout
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: OsString,
}

/// Show what a detached container has written
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk logs box
  husk logs -f --tail 10 box
  husk logs --timestamps box")]
pub(crate) struct LogsArgs {
    /// Go on until the container ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin with the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) tail: Option<usize>,
    /// Put the time before each line
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// The container's name
    pub(crate) name: String,
}

/// Wait until containers have ended and print their exit codes
#[derive(Args, Debug)]
pub(crate) struct WaitArgs {
    /// The containers' names
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Show what containers use
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk stats                 all that run, once
  husk stats --follow box    again and again, until an interrupt
  husk stats --json box      every figure, for programs")]
pub(crate) struct StatsArgs {
    /// Show it again and again
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) follow: bool,
    /// The time over which processor time is measured
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = super::oci::interval)]
    pub(crate) interval: Duration,
    /// Print every figure as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The containers' names [default: all that run]
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Print everything that is known of containers, as JSON
#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// The containers' names
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Remove containers that have ended
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk rm box
  husk rm -f box             even if it runs")]
pub(crate) struct RemoveArgs {
    /// End them first if they run
    #[arg(short, long)]
    pub(crate) force: bool,
    /// The containers' names
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Attach to the console of a container that was started with --console
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  husk console box          what the guest's kernel says; Ctrl-] detaches a terminal

What is typed goes into the guest's serial port. husk's own guest reads nothing
there and echoes it; husk exec -it runs a shell in the container.")]
pub(crate) struct ConsoleArgs {
    /// The container's name
    pub(crate) name: String,
}

/// List what is in the image cache
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk images               images and root directories that start without being converted
  husk images --json        the same with their layers, for programs")]
pub(crate) struct ImagesArgs {
    /// Print everything as JSON, layers too
    #[arg(long)]
    pub(crate) json: bool,
    /// The image cache [default: /var/cache/husk for root, ~/.cache/husk/images for others]
    #[arg(long, env = "HUSK_IMAGE_CACHE", value_name = "DIR", hide_env_values = true)]
    pub(crate) image_cache: Option<PathBuf>,
}

/// Make room in the image cache
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    Prune(PruneArgs),
}

/// Remove everything from the image cache that no running sandbox uses
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  husk cache prune          what is needed again is converted again")]
pub(crate) struct PruneArgs {
    /// Print what was removed as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The image cache [default: /var/cache/husk for root, ~/.cache/husk/images for others]
    #[arg(long, env = "HUSK_IMAGE_CACHE", value_name = "DIR", hide_env_values = true)]
    pub(crate) image_cache: Option<PathBuf>,
}

/// Check what this host has and what it lacks
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk doctor               what is there, what is missing, and what to do
  husk doctor --json        the same for programs

The exit code is 1 when something is missing without which nothing runs.")]
pub(crate) struct DoctorArgs {
    /// Print the checks as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The image cache to check
    #[arg(long, env = "HUSK_IMAGE_CACHE", value_name = "DIR", hide = true)]
    pub(crate) image_cache: Option<PathBuf>,
}

/// Put husk's programs in place, and make it a runtime of containerd or docker
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("engine").args(["containerd", "docker"]))]
#[command(after_help = "\
Examples:
  husk install                          into /usr/local
  husk install --prefix ~/.local        for one user, without root
  husk install --containerd             and as a runtime of Kubernetes' CRI
  husk install --docker --yes           and as a runtime of docker, without a question
  husk install --undo --containerd      takes all of it back

It is run from where cargo xtask build puts it. A configuration is changed only
after the change was shown, and nothing else in it changes; --undo takes out the
runtime, with settings that somebody gave it. A second run changes nothing. The
exit code is 1 when the answer is no.")]
pub(crate) struct InstallArgs {
    /// Install below DIR: in bin, libexec and lib/husk
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    pub(crate) prefix: PathBuf,
    /// Add the runtime to containerd's configuration, for Kubernetes' CRI
    #[arg(long)]
    pub(crate) containerd: bool,
    /// Add the runtime to docker's configuration
    #[arg(long)]
    pub(crate) docker: bool,
    /// The configuration [default: /etc/containerd/config.toml or /etc/docker/daemon.json]
    #[arg(long, value_name = "FILE", requires = "engine")]
    pub(crate) config: Option<PathBuf>,
    /// Take the runtime out of the configuration, and remove what was installed
    #[arg(long)]
    pub(crate) undo: bool,
    /// Change the configuration without asking
    #[arg(short, long)]
    pub(crate) yes: bool,
}
