//! The kernel: found in the cache by what went into it, else built.
//!
//! An entry of the cache is a directory `guest-kernel/KEY` with the stripped ELF, the
//! symbols' addresses, the configuration, the log of its build and `kernel.json`. It
//! appears by a rename when it is complete, so whoever sees it may use it without a
//! lock. Only building takes the lock.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::Progress;
use crate::elf::{self, ElfError};
use crate::fragment::{self, Config, FragmentError};
use crate::lock;
use crate::make::{MakeError, Step};
use crate::source::{self, Patch, Source};
use crate::toolchain::Toolchain;

/// Changes when the same inputs shall give another kernel: another way to call make,
/// to strip, or another layout of the cache.
const BUILDER: u32 = 1;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file or directory of the cache fails.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A step of the build failed.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// The configuration is not what the fragments ask for.
    #[error(transparent)]
    Fragment(#[from] FragmentError),
    /// The ELF cannot be booted.
    #[error("the kernel that was built is of no use")]
    Elf(#[from] ElfError),
}

/// What a kernel is and what it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfo {
    /// Name of its entry in the cache.
    pub key: String,
    /// What `uname -r` prints.
    pub release: String,
    /// Version of the source package; absent for a tarball of the user's own.
    pub source_version: Option<String>,
    /// SHA-256 of the source's tarball.
    pub source_sha256: String,
    /// SHA-256 of the final `.config`.
    pub config_sha256: String,
    /// Options that are `=y`.
    pub options_yes: usize,
    /// The compiler.
    pub compiler: String,
    /// The linker.
    pub linker: String,
    /// SHA-256 of the ELF.
    pub elf_sha256: String,
    /// Size of the ELF in bytes.
    pub elf_size: u64,
}

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The directory of the entry.
    pub directory: PathBuf,
    /// Its description.
    pub info: KernelInfo,
}

impl Kernel {
    /// The ELF.
    pub fn elf(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    fn cached(directory: &Path) -> Option<Self> {
        let text = fs::read(directory.join("kernel.json")).ok()?;
        let info = serde_json::from_slice(&text).ok()?;
        Some(Self {
            directory: directory.to_owned(),
            info,
        })
    }
}

/// Everything that decides about a kernel, and where to build it.
#[derive(Debug)]
pub struct Recipe<'a> {
    /// The developer cache.
    pub cache: &'a Path,
    /// The source.
    pub source: &'a Source,
    /// What is changed in the source.
    pub patches: &'a [Patch],
    /// The merged fragments.
    pub config: &'a Config,
    /// Compiler and linker.
    pub toolchain: &'a Toolchain,
    /// Jobs of make.
    pub jobs: usize,
    /// Keep the unpacked source and the objects, for a next build with a changed
    /// configuration that compiles only what changed.
    pub keep: bool,
}

impl Recipe<'_> {
    /// The cache key: equal if and only if the kernel would be the same. Comments and
    /// order of the fragments, the number of jobs and all paths are not in it.
    pub fn key(&self) -> String {
        let canonical = self.config.canonical();
        key_of(&[
            &format!("builder {BUILDER}"),
            &self.tree(),
            &self.toolchain.compiler,
            &self.toolchain.linker,
            &canonical,
        ])
    }

    /// Name of the directory with this source, patched.
    fn tree(&self) -> String {
        let texts = self.patches.iter().map(|patch| patch.text);
        let parts: Vec<&str> = std::iter::once(self.source.sha256.as_str()).chain(texts).collect();
        format!("tree-{}", key_of(&parts))
    }

    /// The kernel from the cache, or built into it. Of several callers at once one
    /// builds and the others wait for it: as long as it works, but not longer than it
    /// lives, for the lock is the operating system's.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn obtain(&self, progress: Progress<'_>) -> Result<Kernel, KernelError> {
        let kernels = self.cache.join("guest-kernel");
        let directory = kernels.join(self.key());
        if let Some(kernel) = Kernel::cached(&directory) {
            return Ok(kernel);
        }
        fs::create_dir_all(&kernels).map_err(on("create", &kernels))?;
        let path = kernels.join("lock");
        let lock = lock::exclusive(&path, progress).map_err(on("lock", &path))?;
        if let Some(kernel) = Kernel::cached(&directory) {
            return Ok(kernel);
        }
        self.build(&kernels, &directory, &lock, progress)?;
        Kernel::cached(&directory).ok_or_else(|| KernelError::File {
            action: "read back",
            path: directory.join("kernel.json"),
            source: io::ErrorKind::InvalidData.into(),
        })
    }

    fn build(&self, kernels: &Path, directory: &Path, lock: &File, progress: Progress<'_>) -> Result<(), KernelError> {
        let tree = kernels.join(self.tree());
        let log = kernels.join(format!("{}.log", self.key()));
        progress(&format!(
            "kernel: not in the cache; building it ({} jobs) takes minutes; log: {}",
            self.jobs,
            log.display()
        ));
        let _ = fs::remove_file(&log);
        let step = |what| Step {
            what,
            log: &log,
            lock,
            progress,
        };
        self.unpack(&tree, &step("unpacking and patching the kernel's source"))?;
        self.configure(&tree, &step("configuring the kernel"))?;
        step("compiling the kernel").run(self.make(&tree).arg(format!("--jobs={}", self.jobs)).arg("vmlinux"))?;
        self.store(&tree, &log, directory, &step("stripping the kernel"))?;
        if !self.keep {
            progress("kernel: removing the unpacked source and the objects");
            remove(&tree)?;
        }
        Ok(())
    }

    fn unpack(&self, tree: &Path, step: &Step<'_>) -> Result<(), KernelError> {
        let (source, build) = (tree.join("source"), tree.join("build"));
        fs::create_dir_all(&build).map_err(on("create", &build))?;
        if source.exists() {
            return Ok(());
        }
        (step.progress)(&format!("{} to {}", step.what, tree.display()));
        let partial = tree.join("partial");
        remove(&partial)?;
        fs::create_dir_all(&partial).map_err(on("create", &partial))?;
        step.run(
            Command::new("tar")
                .args(["--extract", "--strip-components=1", "--no-same-owner"])
                .arg("--file")
                .arg(&self.source.tarball)
                .arg("--directory")
                .arg(&partial),
        )?;
        for patch in self.patches {
            apply(patch, tree, &partial, step)?;
        }
        fs::rename(&partial, &source).map_err(on("create", &source))
    }

    fn configure(&self, tree: &Path, step: &Step<'_>) -> Result<(), KernelError> {
        let wanted = tree.join("fragments.config");
        fs::write(&wanted, self.config.text()).map_err(on("write", &wanted))?;
        step.run(self.make(tree).env("KCONFIG_ALLCONFIG", &wanted).arg("allnoconfig"))?;
        let built = tree.join("build/.config");
        let text = fs::read_to_string(&built).map_err(on("read", &built))?;
        Ok(self.config.check(&text)?)
    }

    /// make with nothing of the caller's environment that could change the outcome.
    fn make(&self, tree: &Path) -> Command {
        let mut make = Command::new("make");
        make.env_clear();
        for inherited in ["PATH", "HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(inherited) {
                make.env(inherited, value);
            }
        }
        make.env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
            .env("KBUILD_BUILD_USER", "husk")
            .env("KBUILD_BUILD_HOST", "husk")
            .env("KBUILD_BUILD_VERSION", "1")
            .arg("--directory")
            .arg(tree.join("source"))
            .arg(format!("O={}", tree.join("build").display()))
            .arg("ARCH=x86_64");
        make
    }

    /// Puts the finished kernel into the cache.
    fn store(&self, tree: &Path, log: &Path, directory: &Path, step: &Step<'_>) -> Result<(), KernelError> {
        let build = tree.join("build");
        let entry = tree.join("entry");
        remove(&entry)?;
        fs::create_dir(&entry).map_err(on("create", &entry))?;
        let vmlinux = entry.join("vmlinux");
        step.run(
            Command::new("strip")
                .args(["--strip-all", "--remove-section=.comment", "-o"])
                .arg(&vmlinux)
                .arg(build.join("vmlinux")),
        )?;
        let elf = fs::read(&vmlinux).map_err(on("read", &vmlinux))?;
        elf::pvh_entry(&elf)?;
        for (from, to) in [("System.map", "System.map"), (".config", "config")] {
            let from = build.join(from);
            fs::copy(&from, entry.join(to)).map_err(on("copy", &from))?;
        }
        let read = |path: PathBuf| fs::read_to_string(&path).map_err(on("read", &path));
        let config = read(build.join(".config"))?;
        let info = KernelInfo {
            key: self.key(),
            release: read(build.join("include/config/kernel.release"))?.trim().to_owned(),
            source_version: self.source.version.clone(),
            source_sha256: self.source.sha256.clone(),
            config_sha256: source::hash(config.as_bytes()),
            options_yes: fragment::count_yes(&config),
            compiler: self.toolchain.compiler.clone(),
            linker: self.toolchain.linker.clone(),
            elf_sha256: source::hash(&elf),
            elf_size: elf.len() as u64,
        };
        let description = entry.join("kernel.json");
        let text = serde_json::to_vec_pretty(&info).map_err(io::Error::from);
        text.and_then(|text| fs::write(&description, text))
            .map_err(on("write", &description))?;
        fs::rename(log, entry.join("build.log")).map_err(on("move", log))?;
        // Only there if it has no readable kernel.json, or it would have been used.
        remove(directory)?;
        fs::rename(&entry, directory).map_err(on("create", directory))
    }
}

/// Applies a patch to the source in `partial`.
fn apply(patch: &Patch, tree: &Path, partial: &Path, step: &Step<'_>) -> Result<(), KernelError> {
    let file = tree.join(patch.name);
    fs::write(&file, patch.text).map_err(on("write", &file))?;
    let run = |options: &[&str]| {
        step.run(
            Command::new("patch")
                .args(["--strip=1", "--forward", "--batch", "--fuzz=0"])
                .args(options)
                .arg("--directory")
                .arg(partial)
                .arg("--input")
                .arg(&file),
        )
    };
    // Tried first, so that a patch is applied as a whole or not at all.
    match run(&["--dry-run"]) {
        Ok(()) => Ok(run(&[])?),
        Err(MakeError::Failed { .. }) if !patch.needed => {
            (step.progress)(&format!("kernel: {} no longer applies; going without", patch.name));
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Hashes parts to a name, such that no two lists of parts are the same text.
fn key_of(parts: &[&str]) -> String {
    let mut key = source::hash(parts.join("\0").as_bytes());
    key.truncate(16);
    key
}

/// Removes a directory, should there be one.
fn remove(directory: &Path) -> Result<(), KernelError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(on("remove", directory)(error)),
        _ => Ok(()),
    }
}

fn on<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> KernelError + 'a {
    move |source| KernelError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
