//! `husk install`: the programs in their places, and husk as a runtime of containerd or docker.
//!
//! What is to change in a configuration is worked out on its text ([`containerd`], [`docker`]), shown, agreed to and only
//! then written ([`configuration`]); nothing is done before the answer.

mod configuration;
mod containerd;
mod docker;
mod files;
mod text;

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::args::InstallArgs;
use crate::{answer, terminal};

/// The runtime's name in configurations: the handler of a `RuntimeClass`, the `--runtime` of docker.
const NAME: &str = "husk";
/// What containerd finds the shim by.
const RUNTIME_TYPE: &str = "io.containerd.husk.v2";
/// Where services look for programs: systemd's own default.
const USUAL_PATH: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

/// Whose runtime husk becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Containerd,
    Docker,
}

impl Engine {
    fn chosen(args: &InstallArgs) -> Option<Self> {
        match (args.containerd, args.docker) {
            (true, _) => Some(Self::Containerd),
            (_, true) => Some(Self::Docker),
            _ => None,
        }
    }

    fn configuration(self) -> &'static str {
        match self {
            Self::Containerd => "/etc/containerd/config.toml",
            Self::Docker => "/etc/docker/daemon.json",
        }
    }

    fn service(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Docker => "docker",
        }
    }

    /// The configuration's text with the runtime or without it.
    fn changed(self, text: &str, undo: bool) -> Result<String> {
        Ok(match (self, undo) {
            (Self::Containerd, false) => containerd::add(text, containerd_version)?,
            (Self::Containerd, true) => containerd::remove(text)?,
            (Self::Docker, false) => docker::add(text)?,
            (Self::Docker, true) => docker::remove(text)?,
        })
    }
}

/// A change of a configuration that has been worked out.
struct Change {
    engine: Engine,
    path: PathBuf,
    before: String,
    after: String,
}

impl Change {
    /// What is to be changed in the configuration that was chosen, if anything is.
    fn plan(args: &InstallArgs) -> Result<Option<Self>> {
        let Some(engine) = Engine::chosen(args) else {
            return Ok(None);
        };
        let path = args.config.clone().unwrap_or_else(|| engine.configuration().into());
        let before = configuration::read(&path)?;
        let after = engine
            .changed(&before, args.undo)
            .with_context(|| format!("{} is left as it is", path.display()))?;
        Ok((before != after).then_some(Self {
            engine,
            path,
            before,
            after,
        }))
    }

    /// Shows the change and asks whether it is to be made.
    fn agreed(&self, yes: bool) -> Result<bool> {
        let lines = text::changed_lines(&self.before, &self.after);
        answer::text(&format!("{}:\n{lines}", self.path.display()))?;
        if yes {
            return Ok(true);
        }
        if !terminal::on_stdin() {
            bail!(
                "{} is not changed without being asked for it: there is no terminal here, so pass --yes",
                self.path.display()
            );
        }
        answer::text("Apply? [y/N] ")?;
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).context("no answer")?;
        Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
    }

    fn make(&self) -> Result<()> {
        configuration::replace(&self.path, &self.before, &self.after)?;
        answer::text(&format!("changed {}\n", self.path.display()))
    }
}

pub(crate) fn install(args: &InstallArgs) -> Result<u8> {
    let prefix = std::path::absolute(&args.prefix).context("the prefix")?;
    let copies = match args.undo {
        true => Vec::new(),
        false => files::find(&own_dir()?, &prefix)?,
    };
    let change = Change::plan(args)?;
    if let Some(change) = &change
        && !change.agreed(args.yes)?
    {
        answer::text("nothing was changed\n")?;
        return Ok(1);
    }
    let mut done = change.is_some();
    if args.undo {
        // The runtime first: nothing is to name a program that is gone.
        change.as_ref().map_or(Ok(()), Change::make)?;
        for path in files::remove(&prefix)? {
            done = true;
            answer::text(&format!("removed {}\n", path.display()))?;
        }
    } else {
        for copy in &copies {
            if let Some(path) = copy.make()? {
                done = true;
                answer::text(&format!("installed {}\n", path.display()))?;
            }
        }
        change.as_ref().map_or(Ok(()), Change::make)?;
    }
    match done {
        true => answer::text(&advice(args, &prefix, change.as_ref()))?,
        false => answer::text(match args.undo {
            true => "nothing of husk was there: nothing was changed\n",
            false => "everything was there already: nothing was changed\n",
        })?,
    }
    Ok(0)
}

/// What is left to do.
fn advice(args: &InstallArgs, prefix: &Path, change: Option<&Change>) -> String {
    let mut text = String::new();
    let bin = prefix.join("bin");
    if let Some(change) = change {
        let service = change.engine.service();
        text.push_str(&format!("it takes effect with: systemctl restart {service}\n"));
        if !args.undo && !USUAL_PATH.iter().any(|dir| bin == Path::new(dir)) {
            let dir = bin.display();
            text.push_str(&format!("the shim is found only if the service's PATH has {dir}\n"));
        }
    }
    if !args.undo {
        let program = bin.join("husk");
        text.push_str(&format!(
            "what this host lacks, if anything: {} doctor\n",
            program.display()
        ));
    }
    text
}

/// The directory of the running program.
fn own_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("the path of this program is not known")?;
    Ok(program.parent().map(Path::to_owned).unwrap_or_default())
}

/// The version of a new configuration of containerd: the newest that every containerd knows which may be installed here.
fn containerd_version() -> u32 {
    let output = Command::new("containerd").arg("--version").output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    match major(&String::from_utf8_lossy(&text)) {
        Some(2..) => 3,
        _ => 2,
    }
}

/// The major version in what `containerd --version` prints: a program, a package, a version.
fn major(text: &str) -> Option<u32> {
    let version = text.split_whitespace().nth(2)?.trim_start_matches('v');
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_containerd_prints_them() {
        for (text, expected) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1\n",
                Some(1),
            ),
            (
                "containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da\n",
                Some(1),
            ),
            (
                "containerd github.com/containerd/containerd/v2 2.4.2+unknown \n",
                Some(2),
            ),
            (
                "containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4\n",
                Some(2),
            ),
            ("", None),
        ] {
            assert_eq!(major(text), expected, "{text}");
        }
    }
}
