//! `husk-guest`: builds the guest's kernel and initramfs, and tells about them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use husk_guest::fragment::{self, Config};
use husk_guest::guest::{self, GuestInfo};
use husk_guest::kernel::Recipe;
use husk_guest::source::{PATCHES, Source};
use husk_guest::toolchain::Toolchain;

/// Builds the kernel and the initramfs that husk boots.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build DIR/vmlinux, DIR/initramfs.cpio and DIR/guest.json
    ///
    /// The kernel is built once and cached by its source, configuration and compiler;
    /// with a cached kernel this takes less than a second.
    #[command(
        after_help = "Example:\n  husk-guest build --agent target/x86_64-unknown-linux-musl/\
        release-small/husk-agent \\\n      --out target/x86_64-unknown-linux-musl/release/guest"
    )]
    Build(Build),
    /// Print what a guest directory holds
    Info {
        /// The directory that `build` wrote
        directory: PathBuf,
    },
    /// Print the merged configuration fragments
    Config,
}

#[derive(clap::Args)]
struct Build {
    /// The agent, a static program; it becomes /init
    #[arg(long, value_name = "PATH")]
    agent: PathBuf,
    /// Where the guest is written to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Developer cache [default: $XDG_CACHE_HOME/husk or ~/.cache/husk]
    #[arg(long, value_name = "DIR", env = "HUSK_CACHE")]
    cache: Option<PathBuf>,
    /// Jobs of make [default: one a processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// A tarball of Linux 6.12's source, instead of Debian's package
    #[arg(long, value_name = "TARBALL", conflicts_with = "update")]
    source: Option<PathBuf>,
    /// Ask apt for the newest source, instead of taking the cached one
    #[arg(long)]
    update: bool,
    /// Keep source and objects: the next build compiles only what changed
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Build(arguments) => build(&arguments),
        Command::Info { directory } => info(&directory),
        Command::Config => config(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("husk-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build(arguments: &Build) -> anyhow::Result<()> {
    let progress = |line: &str| eprintln!("husk-guest: {line}");
    let cache = cache_directory(arguments.cache.as_deref())?;
    let config = Config::merge(&fragment::embedded())?;
    let toolchain = Toolchain::find()?;
    let source = match &arguments.source {
        Some(tarball) => Source::of_tarball(tarball, None)?,
        None => Source::obtain(&cache, arguments.update, &progress)?,
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let recipe = Recipe {
        cache: &cache,
        source: &source,
        patches: &PATCHES,
        config: &config,
        toolchain: &toolchain,
        jobs: arguments.jobs.map_or(processors, usize::from),
        keep: arguments.keep,
    };
    let kernel = recipe.obtain(&progress)?;
    let info = guest::write(&arguments.out, &kernel, &arguments.agent)?;
    progress(&format!(
        "{}: Linux {} ({}), initramfs {}",
        arguments.out.display(),
        info.kernel.release,
        mebibytes(info.kernel.elf_size),
        mebibytes(info.initramfs.size),
    ));
    Ok(())
}

/// An absolute path, for make runs elsewhere.
fn cache_directory(chosen: Option<&Path>) -> anyhow::Result<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = match chosen {
        Some(cache) => cache.to_owned(),
        None => match (set("XDG_CACHE_HOME"), set("HOME")) {
            (Some(cache), _) => cache.join("husk"),
            (None, Some(home)) => home.join(".cache/husk"),
            (None, None) => bail!("neither HUSK_CACHE nor HOME is set; give --cache DIR"),
        },
    };
    std::path::absolute(&cache).with_context(|| format!("cannot use {}", cache.display()))
}

fn info(directory: &Path) -> anyhow::Result<()> {
    let GuestInfo {
        kernel,
        agent,
        initramfs,
    } = GuestInfo::read(directory)?;
    let source = kernel.source_version.as_deref().unwrap_or("a tarball");
    print(&format!(
        "kernel      Linux {}\n\
         \x20 ELF       {} ({} bytes), sha256 {}\n\
         \x20 options   {} are =y, .config sha256 {}\n\
         \x20 source    {source}, sha256 {}\n\
         \x20 compiler  {}\n\
         \x20 linker    {}\n\
         \x20 cache     guest-kernel/{}\n\
         initramfs   {} bytes, sha256 {}\n\
         \x20 agent     {} bytes, sha256 {}\n",
        kernel.release,
        mebibytes(kernel.elf_size),
        kernel.elf_size,
        kernel.elf_sha256,
        kernel.options_yes,
        kernel.config_sha256,
        kernel.source_sha256,
        kernel.compiler,
        kernel.linker,
        kernel.key,
        initramfs.size,
        initramfs.sha256,
        agent.size,
        agent.sha256,
    ))
}

fn config() -> anyhow::Result<()> {
    let fragments = fragment::embedded();
    Config::merge(&fragments)?;
    let texts: Vec<String> = fragments
        .iter()
        .map(|f| format!("# ==== {} ====\n{}", f.name, f.text))
        .collect();
    print(&texts.join("\n"))
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to standard output")
}

/// Sizes for people; no file here is large enough for the rounding to matter.
fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
