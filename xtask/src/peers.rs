//! Programs of other projects, of pinned versions, that the end-to-end tests run husk with: containerd in several, a
//! client of its CRI, docker, and a runc to measure docker's cases by.
//!
//! Each is a Go module below `tests/peers` that names the programs as its tools; its `go.sum` pins every source. Of packages
//! that a file [`TESTS`] of it imports the tests become programs too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{cache, go, process, setup, step, workspace};

/// Changes when the way of building changes: what is in the cache is then not used.
const RECIPE: u32 = 1;

/// The file of a module that imports packages: the tests of each become a program `NAME.test`.
const TESTS: &str = "tests.go";

/// The containerd of the tests, besides Debian's.
pub(crate) const NEWEST: &str = "containerd-2.4";
/// A client of the CRI, of the project's own.
pub(crate) const CRI: &str = "cri";
/// The test suites of the containerd that [`NEWEST`] is, and a registry with the images that they pull.
pub(crate) const SUITES: &str = "suites";
/// dockerd and its command line.
pub(crate) const DOCKER: &str = "docker";

/// A runc that knows the namespaces that dockerd asks for; Debian 12's does not.
pub(crate) const RUNC: &str = "runc";

/// Builds those that are named, or all; says where they are.
pub(crate) fn run(names: &[String]) -> Result<i32> {
    let all = names_of_all()?;
    for name in if names.is_empty() { &all } else { names } {
        println!("{}", build(name)?.display());
    }
    Ok(0)
}

/// The directory with a peer's programs, which are built when they are not in the cache.
pub(crate) fn build(name: &str) -> Result<PathBuf> {
    let all = names_of_all()?;
    ensure!(
        all.iter().any(|known| known == name),
        "there is no peer {name:?}; there are {}",
        all.join(", ")
    );
    let module = modules()?.join(name);
    let go = go::ensure_go()?;
    let key = format!("{RECIPE}-{}-{}", go.version, hash(&module)?);
    let directory = cache::directory()?.join("peers").join(name).join(key);
    let _lock = cache::lock(&format!("peer-{name}"))?;
    if !directory.exists() {
        step(&format!("building {name} (some minutes, once)"));
        cache::build_directory(&directory, |partial| {
            let kind = options(name)?;
            compile(&go.program, &module, kind, &["build"], partial, &["tool".to_owned()])?;
            let tests = named_tests(&module)?;
            if tests.is_empty() {
                return Ok(());
            }
            compile(&go.program, &module, kind, &["test", "-c"], partial, &tests)
        })?;
    }
    Ok(directory)
}

/// How a peer is built.
#[derive(Clone, Copy)]
struct Kind {
    options: &'static [&'static str],
    /// Programs without it are static.
    needs_c: bool,
}

fn options(name: &str) -> Result<Kind> {
    Ok(match name {
        // docker's command line has no go.mod, so that Go takes it for a program in an older Go than it is written in.
        DOCKER => Kind {
            options: &["-gcflags=github.com/docker/cli/cmd/docker=-lang=go1.26"],
            needs_c: false,
        },
        RUNC => {
            setup::ensure(setup::RUNC)?;
            Kind {
                options: &["-tags=seccomp"],
                needs_c: true,
            }
        }
        _ => Kind {
            options: &[],
            needs_c: false,
        },
    })
}

/// Lets Go compile packages into a directory.
fn compile(go: &Path, module: &Path, kind: Kind, how: &[&str], output: &Path, packages: &[String]) -> Result<()> {
    let mut build = Command::new(go);
    build
        .args(how)
        // A directory by its last slash, even for a single package.
        .args(["-trimpath", "-ldflags=-s -w"])
        .args(kind.options)
        .arg("-o")
        .arg(output.join(""))
        .args(packages)
        .current_dir(module)
        .env("CGO_ENABLED", if kind.needs_c { "1" } else { "0" })
        .env("GOFLAGS", "-mod=readonly")
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .stdout(std::io::stderr());
    process::run(&mut build).with_context(|| {
        format!(
            "building {}; its sources come from Go's module proxy (`go env GOPROXY`), pinned by go.sum there",
            module.display()
        )
    })
}

fn named_tests(module: &Path) -> Result<Vec<String>> {
    let path = module.join(TESTS);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let imports = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("_ \"")?.strip_suffix('"'));
    Ok(imports.map(str::to_owned).collect())
}

/// Of what decides what is built: all files of the module.
fn hash(module: &Path) -> Result<String> {
    let mut files: Vec<_> = fs::read_dir(module)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("listing {}", module.display()))?
        .iter()
        .map(fs::DirEntry::file_name)
        .collect();
    files.sort();
    let mut sums = Command::new("sha256sum");
    let told = process::output(sums.current_dir(module).args(&files))?;
    let sums: Vec<_> = told.lines().filter_map(|line| line.get(..16)).collect();
    ensure!(sums.len() == files.len(), "sha256sum says no sums: {told:?}");
    Ok(sums.join("-"))
}

fn names_of_all() -> Result<Vec<String>> {
    let modules = modules()?;
    let entries = fs::read_dir(&modules).with_context(|| format!("listing {}", modules.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn modules() -> Result<PathBuf> {
    Ok(workspace::checkout()?.join("tests/peers"))
}
