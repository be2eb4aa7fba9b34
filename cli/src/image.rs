//! `husk run --image`: an image becomes a bundle and a disk.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use husk_sandbox::agent::Mount;
use husk_sandbox::bundle::{Bundle, Standard, users};
use husk_sandbox::image::{Cache, Config, Image, Limits, Reference, Source, Step};

use crate::args::RunArgs;
use crate::{overrides, run, signals};

/// Gives the container that the image makes, as the command line changes it, and its disk.
pub(crate) fn prepare(image: &OsStr, cache: &Cache, args: &RunArgs, name: &str) -> Result<(Bundle, Image)> {
    let reference = Reference::find(image);
    let source = Source::open(&reference.path, cache.scratch(), &Limits::DEFAULT)?;
    let found = source.image(reference.tag.as_deref())?;
    let command = command(&found.config, args.entrypoint.as_deref(), &args.command)?;
    let mut progress = Progress::new();
    let shown = image.to_string_lossy();
    let prepared = cache.oci(&source, &found, &shown, &mut |step| progress.show(step))?;
    progress.clear();
    let choice = Standard {
        args: command,
        terminal: args.process.tty,
        hostname: run::hostname(name),
    };
    let mut bundle = Bundle::standard(&prepared.users, &choice)?;
    apply(&found.config, &mut bundle, args.process.user.is_none())?;
    run::apply(args, &mut bundle)?;
    bundle.annotations = annotations(found.config, &shown);
    Ok((bundle, prepared.image))
}

/// What the image says for whoever looks after the container (OCI image specification, "Conversion to OCI Runtime
/// Configuration"): its labels, and what has an annotation of its own.
fn annotations(config: Config, name: &str) -> BTreeMap<String, String> {
    let mut annotations = config.labels;
    annotations.insert("org.opencontainers.image.ref.name".into(), name.into());
    if !config.stop_signal.is_empty() {
        annotations.insert(signals::STOP_SIGNAL.into(), config.stop_signal);
    }
    annotations
}

/// Entry point and arguments: each of the command line's replaces the image's, and an entry point of the command line's
/// is not given the image's arguments.
fn command(config: &Config, entrypoint: Option<&str>, arguments: &[String]) -> Result<Vec<String>> {
    let mut command = match entrypoint {
        None => config.entrypoint.clone(),
        Some("") => Vec::new(),
        Some(entrypoint) => vec![entrypoint.to_owned()],
    };
    if !arguments.is_empty() {
        command.extend_from_slice(arguments);
    } else if entrypoint.is_none() {
        command.extend_from_slice(&config.cmd);
    }
    ensure!(
        !command.is_empty(),
        "the image names no command; give one after two dashes"
    );
    Ok(command)
}

/// What the image's configuration says of the first process and of mounts.
fn apply(config: &Config, bundle: &mut Bundle, own_user: bool) -> Result<()> {
    let request = &mut bundle.request;
    let process = request.process.mut_or_insert_default();
    for entry in &config.env {
        match entry.split_once('=') {
            Some((name, _)) if !name.is_empty() => overrides::set_env(&mut process.env, entry)?,
            _ => bail!("the image's variable {entry:?} is not of the form NAME=VALUE"),
        }
    }
    if !config.working_dir.is_empty() {
        // One that is not absolute begins at the root, as docker takes it.
        process.cwd = format!("/{}", config.working_dir.trim_start_matches('/'));
    }
    if own_user && !config.user.is_empty() {
        let identity = users::resolve(&bundle.root, &config.user).context("the image's user cannot be")?;
        users::become_user(process, identity);
    }
    if !config.stop_signal.is_empty() {
        signals::parse(&config.stop_signal)
            .map_err(|fault| anyhow::anyhow!("the image's stop signal {:?} is none: {fault}", config.stop_signal))?;
    }
    // Mounted on themselves volumes keep what the image has there and stay writable in a read-only root.
    for volume in &config.volumes {
        request.mounts.push(Mount {
            destination: volume.clone(),
            source: volume.clone(),
            flags: libc::MS_BIND,
            ..Default::default()
        });
    }
    Ok(())
}

/// What a person sees of a conversion: on a terminal a line that changes, elsewhere a line now and then when it takes
/// long.
struct Progress {
    is_terminal: bool,
    next: Instant,
    is_shown: bool,
}

/// When a person begins to wonder, and how often a line changes.
const SOON: Duration = Duration::from_millis(300);
const OFTEN: Duration = Duration::from_millis(100);
/// The same where lines stay.
const LATE: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_secs(10);

impl Progress {
    fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self {
            is_terminal,
            next: Instant::now() + if is_terminal { SOON } else { LATE },
            is_shown: false,
        }
    }

    fn show(&mut self, step: Step) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + if self.is_terminal { OFTEN } else { SELDOM };
        self.is_shown = true;
        let percent = (step.done.saturating_mul(100)).checked_div(step.total).unwrap_or(100);
        let text = format!("husk: converting layer {} of {}: {percent} %", step.layer, step.layers);
        let (start, end) = if self.is_terminal { ("\r", "\x1b[K") } else { ("", "\n") };
        // Who does not look at it misses nothing.
        let _ = write!(std::io::stderr(), "{start}{text}{end}");
    }

    /// Takes the line away.
    fn clear(&self) {
        if self.is_terminal && self.is_shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
        self.is_shown = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_point_and_arguments_replace_each_other_as_docker_does() {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let image = |entrypoint: &[&str], cmd: &[&str]| Config {
            entrypoint: texts(entrypoint),
            cmd: texts(cmd),
            ..Config::default()
        };
        for (config, entrypoint, arguments, expected) in [
            (image(&["e"], &["c"]), None, &[][..], &["e", "c"][..]),
            (image(&["e"], &["c"]), None, &["a", "b"], &["e", "a", "b"]),
            (image(&["e"], &["c"]), Some("x"), &[], &["x"]),
            (image(&["e"], &["c"]), Some("x"), &["a"], &["x", "a"]),
            (image(&["e"], &["c"]), Some(""), &["a"], &["a"]),
            (image(&[], &["c", "d"]), None, &[], &["c", "d"]),
            (image(&[], &["c"]), None, &["a"], &["a"]),
            (image(&["e"], &[]), None, &[], &["e"]),
        ] {
            assert_eq!(
                command(&config, entrypoint, &texts(arguments)).unwrap(),
                texts(expected)
            );
        }
        assert!(command(&image(&[], &[]), None, &[]).is_err());
        assert!(command(&image(&["e"], &["c"]), Some(""), &[]).is_err());
    }
}
