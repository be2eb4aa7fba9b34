//! The Go toolchain, for peers that are written in Go: the one that is installed, else one from Go's module proxy.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{cache, process, setup, step};

/// What is downloaded, and the least that an installed Go must be: what the peers' go.mod ask for.
const VERSION: [u32; 3] = [1, 26, 8];
/// The SHA-256 of the module proxy's archive of it.
const ARCHIVE: &str = "30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7";

/// A toolchain: its program `go`, and what `go env GOVERSION` says.
pub(crate) struct Go {
    pub(crate) program: PathBuf,
    pub(crate) version: String,
}

/// Finds an installed Go that is new enough, or downloads one into the cache.
pub(crate) fn ensure_go() -> Result<Go> {
    let installed = [setup::find_program("go"), Some("/usr/local/go/bin/go".into())];
    for program in installed.into_iter().flatten().filter(|program| program.is_file()) {
        let version = version_of(&program)?;
        if parse(&version).is_some_and(|version| version >= VERSION) {
            return Ok(Go { program, version });
        }
    }
    let program = download()?.join("bin/go");
    let version = version_of(&program)?;
    Ok(Go { program, version })
}

fn version_of(program: &Path) -> Result<String> {
    let mut ask = Command::new(program);
    ask.args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local");
    Ok(process::output(&mut ask)?.trim().to_owned())
}

/// `go1.26.8`, or with something behind it as distributions have. One that is not released (`go1.27rc1`) has none.
fn parse(version: &str) -> Option<[u32; 3]> {
    let numbers = version.strip_prefix("go")?.split([' ', '-', '+']).next()?;
    let mut numbers = numbers.split('.').map(str::parse);
    let mut next = || numbers.next().unwrap_or(Ok(0)).ok();
    Some([next()?, next()?, next()?])
}

/// The toolchain as Go itself downloads it: a module's archive, in which nothing is executable.
fn download() -> Result<PathBuf> {
    let [major, minor, patch] = VERSION;
    let module = format!("v0.0.1-go{major}.{minor}.{patch}.linux-amd64");
    let directory = cache::directory()?.join("tools").join(format!("go-{module}"));
    let _lock = cache::lock("go")?;
    if directory.exists() {
        return Ok(directory);
    }
    setup::ensure(setup::GO)?;
    step(&format!("downloading Go {major}.{minor}.{patch} (70 MB, once)"));
    cache::build_directory(&directory, |partial| {
        let archive = partial.join("archive.zip");
        let url = format!("https://proxy.golang.org/golang.org/toolchain/@v/{module}.zip");
        let mut curl = Command::new("curl");
        process::run(curl.args(["-sSfL", "--retry", "3", "-o"]).arg(&archive).arg(&url)).with_context(|| {
            format!("Go cannot be downloaded; install Go {major}.{minor}.{patch} or newer as /usr/local/go")
        })?;
        let told = process::output(Command::new("sha256sum").arg(&archive))?;
        ensure!(
            told.starts_with(ARCHIVE),
            "{url} is not the archive whose SHA-256 is {ARCHIVE} but {}; whoever serves it has changed it",
            told.split(' ').next().unwrap_or_default()
        );
        process::run(Command::new("unzip").arg("-q").arg(&archive).arg("-d").arg(partial))?;
        fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))?;
        let module = partial.join(format!("golang.org/toolchain@{module}"));
        for entry in fs::read_dir(&module).with_context(|| format!("listing {}", module.display()))? {
            let entry = entry?;
            fs::rename(entry.path(), partial.join(entry.file_name())).context("moving a part of Go's toolchain")?;
        }
        fs::remove_dir_all(partial.join("golang.org")).context("removing an empty directory")?;
        for programs in ["bin", "pkg/tool/linux_amd64"] {
            make_executable(&partial.join(programs))?;
        }
        Ok(())
    })?;
    Ok(directory)
}

fn make_executable(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let path = entry?.path();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_compared_by_number() {
        assert_eq!(parse("go1.26.8"), Some([1, 26, 8]));
        assert_eq!(parse("go1.27"), Some([1, 27, 0]));
        assert_eq!(parse("go1.26.10-X:nodwarf5"), Some([1, 26, 10]));
        assert_eq!(parse("go1.27rc1"), None);
        assert_eq!(parse("devel +1234"), None);
    }
}
