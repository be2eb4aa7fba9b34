//! The programs of the machine that build a kernel.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What keeps this machine from building a kernel.
#[derive(Debug, thiserror::Error)]
pub enum ToolchainError {
    /// Programs or headers are missing.
    #[error(
        "missing to build the kernel: {}\n  remedy: apt-get install {}",
        names(.0), packages(.0)
    )]
    Missing(Vec<Tool>),
    /// A program does not tell its version.
    #[error("`{program} --version` failed: {reason}")]
    Version {
        /// The program.
        program: &'static str,
        /// What it said, or why it did not start.
        reason: String,
    },
}

/// A program or header that a kernel build needs, and Debian's package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// The program's name, or the header's absolute path.
    pub name: &'static str,
    /// The package.
    pub package: &'static str,
}

const fn tool(name: &'static str, package: &'static str) -> Tool {
    Tool { name, package }
}

/// Everything that is needed. objtool links libelf, the configuration needs flex and
/// bison, the timer constants bc; xz and tar unpack the source.
pub const TOOLS: [Tool; 11] = [
    tool("make", "make"),
    tool("gcc", "gcc"),
    tool("ld", "binutils"),
    tool("strip", "binutils"),
    tool("bc", "bc"),
    tool("flex", "flex"),
    tool("bison", "bison"),
    tool("tar", "tar"),
    tool("patch", "patch"),
    tool("xz", "xz-utils"),
    tool("/usr/include/gelf.h", "libelf-dev"),
];

fn names(missing: &[Tool]) -> String {
    missing.iter().map(|tool| tool.name).collect::<Vec<_>>().join(", ")
}

fn packages(missing: &[Tool]) -> String {
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages.join(" ")
}

/// The compiler and the linker as they introduce themselves: a kernel built by others
/// has other bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// First line of `gcc --version`.
    pub compiler: String,
    /// First line of `ld --version`.
    pub linker: String,
}

impl Toolchain {
    /// Looks for all tools and asks the versions of those that decide the outcome.
    ///
    /// # Errors
    /// Something is missing, all of it named at once, or gives no version.
    pub fn find() -> Result<Self, ToolchainError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let missing = missing_in(&std::env::split_paths(&path).collect::<Vec<_>>());
        if !missing.is_empty() {
            return Err(ToolchainError::Missing(missing));
        }
        Ok(Self {
            compiler: version("gcc")?,
            linker: version("ld")?,
        })
    }
}

fn missing_in(directories: &[PathBuf]) -> Vec<Tool> {
    TOOLS
        .into_iter()
        .filter(|tool| {
            if tool.name.starts_with('/') {
                !Path::new(tool.name).exists()
            } else {
                !directories.iter().any(|directory| directory.join(tool.name).is_file())
            }
        })
        .collect()
}

fn version(program: &'static str) -> Result<String, ToolchainError> {
    let failed = |reason: String| ToolchainError::Version { program, reason };
    let output = Command::new(program)
        .arg("--version")
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.to_owned()),
        _ => Err(failed(output.status.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_packages_once() {
        let directory = tempfile::tempdir().unwrap();
        for present in ["make", "gcc", "flex", "bison", "tar", "patch", "xz"] {
            std::fs::write(directory.path().join(present), "").unwrap();
        }
        let missing: Vec<Tool> = missing_in(&[directory.path().to_owned()])
            .into_iter()
            .filter(|tool| !tool.name.starts_with('/'))
            .collect();
        let error = ToolchainError::Missing(missing).to_string();
        assert_eq!(
            error,
            "missing to build the kernel: ld, strip, bc\n  remedy: apt-get install bc binutils"
        );
    }
}
