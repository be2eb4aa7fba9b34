//! What can be asked of husk.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Run containers, each in a virtual machine of its own
#[derive(Debug, Parser)]
#[command(name = "husk", version, styles = STYLES, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args, Debug)]
pub(crate) struct Global {
    /// Keep running sandboxes' directories below DIR [default: /run/husk for root, $XDG_RUNTIME_DIR/husk or
    /// /tmp/husk-UID for others]
    #[arg(long, global = true, env = "HUSK_ROOT", value_name = "DIR", hide_env_values = true)]
    pub(crate) root: Option<PathBuf>,
    /// Say more on stderr; twice or three times for even more (or set HUSK_LOG to a filter such as "debug")
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// How long a guest may take to boot and to answer
    #[arg(long, global = true, env = "HUSK_TIMEOUT", value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=86_400), hide = true)]
    pub(crate) timeout: u32,
}

impl Global {
    pub(crate) fn root(&self) -> PathBuf {
        self.root.clone().unwrap_or_else(husk_sandbox::rundir::default_root)
    }

    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    Exec(ExecArgs),
    #[command(visible_alias = "ls", alias = "ps")]
    List(ListArgs),
    Kill(KillArgs),
    Console(ConsoleArgs),
    Doctor(DoctorArgs),
}

/// Run a container in a new virtual machine
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk run --rootfs ./alpine -- uname -r        run a command in a root directory
  husk run -it --rootfs ./alpine -- sh          an interactive shell
  husk run --bundle ./bundle                    run an OCI bundle
  echo hi | husk run -i --rootfs ./alpine -- cat

The exit code is the container's, or 128 + n when signal n ended it; 127 when the
command was not found, 126 when it could not be executed, 125 when husk itself
failed. Signals are passed on to the container; a third interrupt ends it.")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Name the sandbox [default: twelve random digits]
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// Host name in the container [default: the sandbox's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Virtual processors [default: 1, or what the bundle's annotation dev.husk.cpus says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) cpus: Option<u32>,
    /// Guest memory, such as 512M or 2G; taken from the host only as it is used [default: 512M, or what the bundle's
    /// annotation dev.husk.memory says]
    #[arg(short, long, value_name = "SIZE", value_parser = memory)]
    pub(crate) memory: Option<u32>,
    /// Let the container not write to its root file system
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Boot a kernel of your own, an uncompressed ELF file or a bzImage
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// Give the guest a serial console and copy what it says to stderr
    #[arg(long)]
    pub(crate) console: bool,
    /// Print on stderr where the time went
    #[arg(long)]
    pub(crate) timings: bool,
    /// Keep root file systems' images in DIR [default: /var/cache/husk for root, ~/.cache/husk/images for others]
    #[arg(long, env = "HUSK_IMAGE_CACHE", value_name = "DIR", hide_env_values = true)]
    pub(crate) image_cache: Option<PathBuf>,
    /// Command and arguments [default: the bundle's, or sh]
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// What is run: one of them.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Source {
    /// Run the OCI bundle in DIR: a config.json and a root file system
    #[arg(short, long, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,
    /// Run a command in the root file system DIR, with the usual defaults
    #[arg(long, value_name = "DIR")]
    pub(crate) rootfs: Option<PathBuf>,
}

/// What can be chosen for a container's first process and for further ones.
#[derive(Args, Debug)]
pub(crate) struct ProcessArgs {
    /// Pass stdin on; without it the process reads from /dev/null
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set an environment variable; without a value it is passed on from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Run as this user, each a name or a number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
}

/// Run a further process in a running sandbox
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk exec box -- ps
  husk exec -it box -- sh
  husk exec -u nobody -e DEBUG=1 box -- id")]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// The sandbox's name
    pub(crate) name: String,
    /// Command and arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// List running sandboxes
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk list                 a table
  husk list -q              names alone, for scripts
  husk list --json          everything")]
pub(crate) struct ListArgs {
    /// Print everything as JSON
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,
    /// Print names alone
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Send a signal to a sandbox's container
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk kill box             end it
  husk kill box TERM        ask it to end")]
pub(crate) struct KillArgs {
    /// The sandbox's name
    pub(crate) name: String,
    /// The signal's name or number
    #[arg(default_value = "KILL", value_parser = crate::signals::parse)]
    pub(crate) signal: i32,
}

/// Attach to the console of a sandbox that was started with --console
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  husk console box          what the guest's kernel says; Ctrl-] detaches a terminal")]
pub(crate) struct ConsoleArgs {
    /// The sandbox's name
    pub(crate) name: String,
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

/// A size of guest memory, to whole MiB.
fn memory(text: &str) -> Result<u32, String> {
    husk_sandbox::size::memory_mib(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, mib) in [
            ("512M", 512),
            ("2g", 2048),
            ("2GiB", 2048),
            ("65536K", 64),
            ("134217728", 128),
            ("33000K", 33),
        ] {
            assert_eq!(memory(text), Ok(mib), "{text}");
        }
        for text in [
            "0",
            "",
            "M",
            "16M",
            "31M",
            "-1G",
            "1.5G",
            "2T",
            "99999999999999999999",
            "18446744073709551615G",
            "1X",
            "1é",
        ] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn commands_stand_behind_two_dashes() {
        let cli = Cli::try_parse_from(["husk", "run", "-it", "--rootfs", "/r", "--", "sh", "-c", "exit 3"]).unwrap();
        let Command::Run(run) = cli.command else { panic!() };
        assert_eq!(run.command, ["sh", "-c", "exit 3"]);
        assert!(run.process.interactive && run.process.tty);
        for wrong in [
            &["husk", "run"][..],
            &["husk", "run", "--rootfs", "/r", "--bundle", "/b"],
            &["husk", "run", "--rootfs", "/r", "--cpus", "0"],
            &["husk", "run", "--rootfs", "/r", "--cpus", "65"],
            &["husk", "run", "--rootfs", "/r", "--memory", "0"],
            &["husk", "exec", "box"],
            &["husk", "kill", "box", "NONSENSE"],
        ] {
            assert!(Cli::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }
}
