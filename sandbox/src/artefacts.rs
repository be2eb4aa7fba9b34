//! Where the programs and files are that husk was installed with.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use thiserror::Error;

/// The guest's kernel and the archive that holds its agent.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The directory of both.
    pub dir: PathBuf,
    /// The kernel, an ELF file.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
}

/// What is missing.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ArtefactError {
    #[error("the guest (vmlinux and initramfs.cpio) is in none of {}; set HUSK_GUEST_DIR to the directory that holds them", list(.0))]
    Guest(Vec<PathBuf>),
    #[error("husk-vmm is in none of {}; set HUSK_VMM to its path", list(.0))]
    Vmm(Vec<PathBuf>),
}

fn list(places: &[PathBuf]) -> String {
    let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    places.join(", ")
}

/// The directory of the running program.
fn own_dir() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.parent().map(Path::to_owned).unwrap_or_default()
}

/// Finds the guest: `$HUSK_GUEST_DIR`, or beside the program, or where it is installed.
///
/// # Errors
/// All places that were looked at.
pub fn guest() -> Result<Guest, ArtefactError> {
    let places = match std::env::var_os("HUSK_GUEST_DIR") {
        Some(dir) => vec![dir.into()],
        None => vec![
            own_dir().join("guest"),
            own_dir().join("../lib/husk"),
            "/usr/local/lib/husk".into(),
            "/usr/lib/husk".into(),
        ],
    };
    let complete = |dir: &&PathBuf| dir.join("vmlinux").exists() && dir.join("initramfs.cpio").exists();
    match places.iter().find(complete) {
        Some(dir) => Ok(Guest {
            kernel: dir.join("vmlinux"),
            initramfs: dir.join("initramfs.cpio"),
            dir: dir.clone(),
        }),
        None => Err(ArtefactError::Guest(places)),
    }
}

/// Finds `husk-vmm`: `$HUSK_VMM`, or beside the program, or where it is installed, or in `PATH`.
///
/// # Errors
/// All places that were looked at.
pub fn vmm() -> Result<PathBuf, ArtefactError> {
    let places = match std::env::var_os("HUSK_VMM") {
        Some(program) => vec![program.into()],
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let mut places = vec![
                own_dir().join("husk-vmm"),
                own_dir().join("../libexec/husk-vmm"),
                "/usr/local/libexec/husk-vmm".into(),
                "/usr/libexec/husk-vmm".into(),
            ];
            places.extend(std::env::split_paths(&path).map(|dir| dir.join("husk-vmm")));
            places
        }
    };
    let executable = |program: &&PathBuf| program.is_file() && access(*program, AccessFlags::X_OK).is_ok();
    match places.iter().find(executable) {
        Some(program) => Ok(program.clone()),
        None => Err(ArtefactError::Vmm(places)),
    }
}

/// Where images are cached by default: `/var/cache/husk` for root, the user's cache directory for others.
#[must_use]
pub fn default_image_cache() -> PathBuf {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if nix::unistd::geteuid().is_root() {
        "/var/cache/husk".into()
    } else if let Some(cache) = absolute("XDG_CACHE_HOME") {
        cache.join("husk/images")
    } else if let Some(home) = absolute("HOME") {
        home.join(".cache/husk/images")
    } else {
        format!("/tmp/husk-{}/images", nix::unistd::geteuid()).into()
    }
}
