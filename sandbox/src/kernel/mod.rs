//! What a guest boots: husk's own kernel, or one of the user's.
//!
//! husk's own kernel has everything built in that a guest needs. A distribution's has most of it as modules: where
//! the directory of the modules is found that belong to the image's [version], a second archive behind the
//! agent's brings those that are needed, and the agent loads them. Without that directory the kernel is booted as
//! it is.

mod archive;
mod modules;
mod version;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::artefacts::Guest;

/// A kernel with everything that it is given.
#[derive(Debug)]
pub struct Boot {
    /// The kernel image.
    pub kernel: File,
    /// The archives of its initramfs.
    pub initramfs: Vec<File>,
    /// Its command line.
    pub command_line: String,
}

/// What is wrong with a kernel.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum KernelError {
    #[error("the {what} {} cannot be read", path.display())]
    Read {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the {what} {} is not a regular file", path.display())]
    NotAFile { what: &'static str, path: PathBuf },
    #[error("{program}, which the kernel's modules are compressed with, cannot be run")]
    Decompressor {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the archive with the kernel's modules cannot be made")]
    Archive(#[source] io::Error),
}

/// What every kernel is told: a panic ends the machine; nobody waits for entropy or for self-tests; and no timer compares
/// the processor's time stamp counter with another clock twice a second. Where the counter may not be relied on, the guest
/// takes the time from KVM and not from it.
const COMMON: &str = "panic=-1 random.trust_cpu=on cryptomgr.notests tsc=nowatchdog";
const QUIET: &str = "quiet 8250.nr_uarts=0";
const CONSOLE: &str = "console=ttyS0 8250.nr_uarts=1";

/// Opens what the guest boots: `own`, or husk's kernel.
///
/// # Errors
/// What is missing or unusable.
pub fn boot(guest: &Guest, own: Option<&Path>, console: bool) -> Result<Boot, KernelError> {
    let kernel = open("kernel", own.unwrap_or(&guest.kernel))?;
    let mut initramfs = vec![open("initramfs", &guest.initramfs)?];
    if let Some(own) = own {
        initramfs.extend(own_modules(own, &kernel)?);
    }
    let command_line = format!("{COMMON} {}", if console { CONSOLE } else { QUIET });
    Ok(Boot {
        kernel,
        initramfs,
        command_line,
    })
}

/// The archive with the modules of a user's own kernel, if it has any that are needed.
fn own_modules(path: &Path, kernel: &File) -> Result<Option<File>, KernelError> {
    let version = version::of(kernel).map_err(|source| KernelError::Read {
        what: "kernel",
        path: path.into(),
        source,
    })?;
    let Some(version) = version else { return Ok(None) };
    // A link such as /vmlinuz leads to the directory beside which the modules are.
    let path = path.canonicalize().unwrap_or_else(|_| path.into());
    let Some(tree) = modules::tree(&path, &version) else {
        tracing::info!(
            version,
            "no directory of the kernel's modules is found; it is booted without any"
        );
        return Ok(None);
    };
    let mut files = Vec::new();
    for module in modules::needed(&tree)? {
        let contents = modules::contents(&module)?;
        files.push((module.name, contents));
    }
    if files.is_empty() {
        return Ok(None);
    }
    archive::modules(&files).map(Some).map_err(KernelError::Archive)
}

/// Opens a regular file; a FIFO in its place does not block.
fn open(what: &'static str, path: &Path) -> Result<File, KernelError> {
    let failed = |source| KernelError::Read {
        what,
        path: path.into(),
        source,
    };
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(KernelError::NotAFile {
            what,
            path: path.into(),
        });
    }
    Ok(file)
}
