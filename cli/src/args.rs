//! What can be asked of husk.

mod oci;
mod people;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand};
use husk_sandbox::lifecycle::{Container, LifecycleError};
use husk_sandbox::rundir::{self, RunRoot};

use crate::log::Format;
use crate::timings;
pub(crate) use oci::{
    CreateArgs, DeleteArgs, EventsArgs, IdArgs, Limits, PidArgs, PsArgs, SpecArgs, TableFormat, UpdateArgs,
};
pub(crate) use people::{
    CacheCommand, ConsoleArgs, CopyArgs, DoctorArgs, ImagesArgs, InspectArgs, InstallArgs, KillArgs, ListArgs,
    LogsArgs, PruneArgs, RemoveArgs, StatsArgs, StopArgs, WaitArgs,
};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Printed behind the program's name, in the form that callers of OCI runtimes read.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.3.0");

/// Run containers, each in a virtual machine of its own
#[derive(Debug, Parser)]
#[command(name = "husk", version = VERSION, styles = STYLES, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Keep containers' directories below DIR [default: /run/husk for root, $XDG_RUNTIME_DIR/husk or
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
    /// Write messages to FILE instead of stderr; errors go to both
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// The form of the messages in that file
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) log_format: Format,
    /// Say everything that helps to find a fault
    #[arg(long, global = true)]
    pub(crate) debug: bool,
    /// Accepted as other runtimes accept it: a cgroupsPath tells by itself whether it is systemd's
    #[arg(long, global = true, hide = true)]
    pub(crate) systemd_cgroup: bool,
    /// Accepted as other runtimes accept it
    #[arg(long, global = true, hide = true, value_name = "NAME")]
    pub(crate) cgroup_manager: Option<String>,
    /// Accepted as other runtimes accept it: husk needs no privileges that it does not have
    #[arg(long, global = true, hide = true, value_name = "CHOICE")]
    pub(crate) rootless: Option<String>,
}

impl Global {
    pub(crate) fn root(&self) -> PathBuf {
        self.root.clone().unwrap_or_else(rundir::default_root)
    }

    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }

    /// The container of this name.
    pub(crate) fn container(&self, name: &str) -> Result<Container, LifecycleError> {
        Container::find(&RunRoot::open(&self.root())?, name, self.patience())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    Exec(ExecArgs),
    #[command(visible_alias = "ls")]
    List(ListArgs),
    Stop(StopArgs),
    Kill(KillArgs),
    #[command(name = "cp")]
    Copy(CopyArgs),
    Logs(LogsArgs),
    Wait(WaitArgs),
    Stats(StatsArgs),
    Inspect(InspectArgs),
    #[command(name = "rm")]
    Remove(RemoveArgs),
    Console(ConsoleArgs),
    Images(ImagesArgs),
    #[command(subcommand)]
    Cache(CacheCommand),
    Doctor(DoctorArgs),
    Install(InstallArgs),
    Create(CreateArgs),
    /// Start the process of a created container
    Start(IdArgs),
    /// Print a container's state (the OCI runtime specification's document)
    State(IdArgs),
    Delete(DeleteArgs),
    Ps(PsArgs),
    /// Freeze a container's processes
    Pause(IdArgs),
    /// Let a paused container's processes go on
    Resume(IdArgs),
    Update(UpdateArgs),
    Events(EventsArgs),
    Spec(SpecArgs),
    /// Print what this runtime supports (the OCI runtime specification's features document)
    Features,
    /// Write manual pages and shell completions below DIR
    #[command(hide = true)]
    Documentation {
        /// Where to write them
        dir: PathBuf,
    },
}

/// Run a container in a new virtual machine
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk run --rootfs ./alpine -- uname -r        run a command in a root directory
  husk run -it --rootfs ./alpine -- sh          an interactive shell
  husk run --image ./busybox.tar                run an image, as docker save or skopeo writes it
  husk run --image ./layout:1.36 -- ls          another command in one of a layout's images
  husk run --bundle ./bundle                    run an OCI bundle
  husk run -d --name web --rootfs ./web -- httpd -f
  echo hi | husk run -i --rootfs ./alpine -- cat

The exit code is the container's, or 128 + n when signal n ended it; 127 when the
command was not found, 126 when it could not be executed, 125 when husk itself
failed. Signals are passed on to the container; a third interrupt ends it.")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Name the container [default: twelve random digits]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Name the container, as other OCI runtimes are told
    #[arg(value_name = "ID", conflicts_with = "name")]
    pub(crate) id: Option<String>,
    /// Leave it running and print its name; husk logs shows what it writes, and husk rm removes it
    #[arg(short, long, conflicts_with_all = ["timings", "console"])]
    pub(crate) detach: bool,
    /// Remove a detached container when it ends; any other is removed in any case
    #[arg(long)]
    pub(crate) rm: bool,
    /// Write the id of the process that stands for the container to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// Host name in the container [default: the sandbox's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Virtual processors [default: what the bundle's annotation dev.husk.cpus says, else 1 or what its limits can use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) cpus: Option<u32>,
    /// Guest memory, such as 512M or 2G; taken from the host only as it is used [default: what the bundle's
    /// annotation dev.husk.memory says, else 512M or what its limits need]
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
    /// Print on stderr where the time went, as a table or as a line of JSON
    #[arg(long, value_enum, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    pub(crate) timings: Option<timings::Format>,
    /// Keep root file systems' images in DIR [default: /var/cache/husk for root, ~/.cache/husk/images for others]
    #[arg(long, env = "HUSK_IMAGE_CACHE", value_name = "DIR", hide_env_values = true)]
    pub(crate) image_cache: Option<PathBuf>,
    /// Run this instead of the image's entry point, with the arguments that are given and without the image's
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["bundle", "rootfs"])]
    pub(crate) entrypoint: Option<String>,
    /// Command and arguments [default: the bundle's or the image's, or sh]
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
    /// Run an image: an OCI layout or archive, or an archive of docker save; a tag says which of several
    #[arg(long, value_name = "PATH[:TAG]")]
    pub(crate) image: Option<OsString>,
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
    #[arg(short, long, visible_alias = "cwd", value_name = "DIR")]
    pub(crate) workdir: Option<String>,
}

/// Run a further process in a running container
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  husk exec box -- ps
  husk exec -it box -- sh
  husk exec -u nobody -e DEBUG=1 box -- id
  husk exec --process process.json --detach --pid-file pid box")]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// Take everything from FILE, a process object of the OCI runtime specification
    #[arg(short, long = "process", value_name = "FILE", conflicts_with_all = ["command", "env", "user", "workdir"])]
    pub(crate) spec: Option<PathBuf>,
    /// Leave it running; its streams are those of this command
    #[arg(short, long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) pid: PidArgs,
    /// Add a capability
    #[arg(short, long = "cap", value_name = "CAPABILITY")]
    pub(crate) capabilities: Vec<String>,
    /// Add a supplementary group
    #[arg(short = 'g', long, value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,
    /// Let the process gain no privileges
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Run it in a paused container too, where it waits
    #[arg(long, hide = true)]
    pub(crate) ignore_paused: bool,
    /// The container's name
    pub(crate) name: String,
    /// Command and arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "spec",
        value_name = "COMMAND"
    )]
    pub(crate) command: Vec<String>,
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
        let spec = format!("spec: {}", husk_sandbox::bundle::SPEC_VERSION);
        assert!(VERSION.lines().any(|line| line == spec), "{VERSION}");
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
    fn further_commands_stand_with_or_without_two_dashes() {
        for words in [
            &["husk", "exec", "-t", "box", "--", "sh", "-c", "-x"][..],
            &["husk", "exec", "-t", "box", "sh", "-c", "-x"],
        ] {
            let cli = Cli::try_parse_from(words).unwrap();
            let Command::Exec(exec) = cli.command else { panic!() };
            assert_eq!((exec.name.as_str(), exec.process.tty), ("box", true));
            assert_eq!(exec.command, ["sh", "-c", "-x"]);
            assert!(exec.capabilities.is_empty());
        }
    }

    #[test]
    fn what_callers_of_runtimes_write_is_understood() {
        for words in [
            "husk --root /r --log /l --log-format json create --bundle /b --pid-file /p --console-socket /c box",
            "husk --log-format=json --log=/l --systemd-cgroup create --bundle /b --pid-file /p --no-pivot box",
            "husk --root /r start box",
            "husk --root /r state box",
            "husk kill --all box 9",
            "husk kill box TERM",
            "husk kill box",
            "husk kill --signal TERM box",
            "husk stop --time -1 box other",
            "husk delete --force box",
            "husk exec --pid-file /p --process /s --detach --console-socket /c box",
            "husk exec --process /s --detach --pid-file /p --tty box",
            "husk exec --user 0:0 --cwd / --env A=1 --cap CAP_KILL box id",
            "husk list --format json",
            "husk run --bundle /b box",
            "husk features",
            "husk ps --format json box",
            "husk ps -f json box",
            "husk update --resources - box",
            "husk update --cpu-quota -1 --memory 64M --memory-swap -1 --pids-limit 5 box",
            "husk events --stats box",
            "husk events --interval 1s box",
            "husk pause box",
            "husk resume box",
            "husk spec --bundle /b",
            "husk install --undo --docker --config /d --yes",
        ] {
            assert!(Cli::try_parse_from(words.split(' ')).is_ok(), "{words}");
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
            &["husk", "run", "--rootfs", "/r", "--image", "/i"],
            &["husk", "run", "--rootfs", "/r", "--entrypoint", "sh"],
            &["husk", "run", "--rootfs", "/r", "--cpus", "0"],
            &["husk", "run", "--rootfs", "/r", "--cpus", "65"],
            &["husk", "run", "--rootfs", "/r", "--memory", "0"],
            &["husk", "exec", "box"],
            &["husk", "kill", "box", "NONSENSE"],
            &["husk", "install", "--config", "/c"],
            &["husk", "install", "--docker", "--containerd"],
        ] {
            assert!(Cli::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }
}
