//! The emulated host: a whole machine with hardware virtualization, in software.
//!
//! QEMU emulates an AMD processor with SVM, and Debian's own kernel runs on it, so that /dev/kvm inside is the real
//! thing where this machine has none (or another kind). The machine's root file system is visible read-only with a
//! layer in memory over it; the checkout and the build output are writable. The first process in it is the program of
//! the crate xtask-init, which tells in its documentation what it assembles.

mod clock;
mod initramfs;
mod kernel;
mod machine;
mod session;
mod terminal;
mod tools;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask_init::channel::{Share, Start};

pub(crate) use self::kernel::Kernel;
use self::machine::{Machine, Parts};
use self::session::{End, Session};
use crate::{cache, workspace};

/// Exit code of everything that is not the command's own, as with container tools.
pub(crate) const OWN_FAILURE: i32 = 125;
/// Exit code when the time is over, as with timeout(1).
const TIMED_OUT: i32 = 124;

/// A boot takes about 6 s on a quiet machine, and minutes on one with ten times more to do than it can.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// Counting instructions takes one thread for everything.
const BOOT_LIMIT_ICOUNT: Duration = Duration::from_secs(600);

/// File systems in memory in the emulated host: what lies below them on this machine is hidden there.
const HIDDEN: &[&str] = &["/tmp", "/run", "/dev/shm"];

/// What the caller asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Virtual processors, 1 to 64. With several, QEMU 10.0 loses the state of a nested guest now and then that leaves it
    /// often and moves between them: one of three boots with a console then hung or ended in a triple fault, none of
    /// forty with one.
    pub(crate) cpus: u32,
    /// In bytes.
    pub(crate) memory: u64,
    /// For all of it, from the start on.
    pub(crate) timeout: Option<Duration>,
    /// Virtual time counts instructions; one processor.
    pub(crate) icount: bool,
    /// TCP port for a debugger.
    pub(crate) gdb: Option<u16>,
    /// Give the command a pty.
    pub(crate) tty: bool,
    /// Empty: a shell.
    pub(crate) command: Vec<OsString>,
    /// Added to the caller's environment.
    pub(crate) environment: Vec<(&'static str, OsString)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: 4 << 30,
            timeout: None,
            icount: false,
            gdb: None,
            tty: false,
            command: Vec::new(),
            environment: Vec::new(),
        }
    }
}

/// Finds, installs or downloads what the emulated host is made of.
pub(crate) fn ensure() -> Result<()> {
    tools::ensure()?;
    Kernel::ensure()?;
    Ok(())
}

/// Boots the emulated host, runs the command in it and gives the exit code.
pub(crate) fn run(options: &Options) -> Result<i32> {
    check_memory(options.memory)?;
    let calibration = clock::Calibration::begin();
    let tools = tools::ensure()?;
    let kernel = Kernel::ensure()?;
    let initramfs = initramfs::with_init(&tools::build_init()?);
    let writable = writable_directories()?;
    let start = start_frame(options, &kernel, &writable)?;

    session::block_signals()?;
    let parts = Parts {
        qemu: &tools.qemu,
        virtiofsd: &tools.virtiofsd,
        kernel: &kernel,
        initramfs: &initramfs,
        cpus: if options.icount { 1 } else { options.cpus },
        memory: options.memory,
        icount: options.icount,
        tsc_khz: if options.icount {
            clock::ICOUNT_KHZ
        } else {
            calibration.khz()
        },
        gdb: options.gdb,
        writable: &writable,
    };
    let stdin = std::io::stdin();
    let raw_mode = match start.terminal {
        Some(_) if stdin.is_terminal() => Some(terminal::RawMode::enter(stdin.as_fd())?),
        _ => None,
    };
    let (mut machine, channel) = Machine::start(&parts)?;
    let boot_limit = if options.icount { BOOT_LIMIT_ICOUNT } else { BOOT_LIMIT };
    let end = Session::start(channel, start)?.run(&mut machine, boot_limit, options.timeout);
    drop(raw_mode);
    Ok(match end {
        End::Exit(code) => code,
        End::Interrupted(signal) => 128 + signal as i32,
        End::Failed(reason) => {
            eprintln!("xtask host: the emulated host failed: {reason}{}", machine.last_words());
            OWN_FAILURE
        }
        End::TimedOut => {
            let limit = options.timeout.unwrap_or_default().as_secs_f64();
            eprintln!(
                "xtask host: ended after the {limit} s of --timeout{}",
                machine.last_words()
            );
            TIMED_OUT
        }
    })
}

fn check_memory(memory: u64) -> Result<()> {
    const LEAST: u64 = 512 << 20;
    let listed = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let total = listed
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let total = total
        .and_then(|kib| kib.parse::<u64>().ok())
        .context("no MemTotal in /proc/meminfo")?
        << 10;
    ensure!(
        memory >= LEAST,
        "--memory is {} MiB, the emulated host needs {} at least",
        memory >> 20,
        LEAST >> 20
    );
    ensure!(
        memory <= total,
        "--memory is {} MiB, this machine has {}",
        memory >> 20,
        total >> 20
    );
    Ok(())
}

/// The checkout and the build output, outer ones first, each with a tag.
fn writable_directories() -> Result<Vec<(String, PathBuf)>> {
    let checkout = workspace::checkout()?;
    let output = workspace::target_directory()?;
    let mut directories = vec![checkout];
    if !output.starts_with(&directories[0]) {
        directories.push(output);
    }
    Ok(directories
        .into_iter()
        .enumerate()
        .map(|(index, path)| (format!("share{index}"), path))
        .collect())
}

fn start_frame(options: &Options, kernel: &Kernel, writable: &[(String, PathBuf)]) -> Result<Start> {
    let directory = std::env::current_dir().context("the current directory")?;
    let mut shares = Vec::new();
    for path in [&directory, &cache::directory()?] {
        if is_hidden(path) && !writable.iter().any(|(_, share)| path.starts_with(share)) {
            shares.push(Share {
                tag: None,
                path: path.as_os_str().as_bytes().to_vec(),
            });
        }
    }
    for (tag, path) in writable {
        shares.push(Share {
            tag: Some(tag.clone()),
            path: path.as_os_str().as_bytes().to_vec(),
        });
    }
    let mut environment = Vec::new();
    let added = options
        .environment
        .iter()
        .map(|(name, value)| (OsString::from(name), value.clone()));
    // There is no udevd to make devices' nodes: libdevmapper does it.
    let own = [
        ("HUSK_EMULATED_HOST".into(), "1".into()),
        ("DM_DISABLE_UDEV".into(), "1".into()),
    ];
    for (name, value) in std::env::vars_os().chain(added).chain(own) {
        environment.push([name.into_vec(), value.into_vec()].join(&b'='));
    }
    let shell = std::env::var_os("SHELL").filter(|shell| Path::new(shell).exists());
    let interactive = options.command.is_empty() && std::io::stdin().is_terminal();
    let command = match options.command.as_slice() {
        [] => vec![shell.unwrap_or_else(|| "/bin/sh".into())],
        words => words.to_vec(),
    };
    Ok(Start {
        command: command.into_iter().map(OsStringExt::into_vec).collect(),
        environment,
        directory: directory.into_os_string().into_vec(),
        modules: kernel.modules().into_os_string().into_vec(),
        shares,
        terminal: (options.tty || interactive).then(|| terminal::window_size(std::io::stdin())),
    })
}

fn is_hidden(path: &Path) -> bool {
    HIDDEN
        .iter()
        .any(|hidden| path.starts_with(hidden) && path != Path::new(hidden))
}
