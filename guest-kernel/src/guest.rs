//! The guest's directory: `vmlinux`, `initramfs.cpio` and `guest.json`, which says
//! what they are.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cpio::{self, CpioError};
use crate::kernel::{Kernel, KernelInfo};
use crate::source;

/// Name of the kernel's file.
pub const KERNEL: &str = "vmlinux";
/// Name of the initramfs' file.
pub const INITRAMFS: &str = "initramfs.cpio";
/// Name of the description's file.
pub const DESCRIPTION: &str = "guest.json";

/// Why the guest's directory cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A file fails.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The agent is no static ELF, so the kernel could not start it.
    #[error(
        "{} is not a static x86-64 program; the guest has no dynamic linker \
         (remedy: build it for x86_64-unknown-linux-musl)", path.display()
    )]
    NotStatic {
        /// The agent.
        path: PathBuf,
    },
    /// The agent does not fit an archive.
    #[error(transparent)]
    Cpio(#[from] CpioError),
    /// `guest.json` is damaged or of another version.
    #[error("{} is not what husk-guest writes; build the guest again", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: serde_json::Error,
    },
}

/// A file of the guest's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// SHA-256, in hex.
    pub sha256: String,
    /// Size in bytes.
    pub size: u64,
}

impl FileInfo {
    fn of(bytes: &[u8]) -> Self {
        Self {
            sha256: source::hash(bytes),
            size: bytes.len() as u64,
        }
    }
}

/// The content of `guest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestInfo {
    /// The kernel.
    pub kernel: KernelInfo,
    /// The agent in the initramfs.
    pub agent: FileInfo,
    /// The initramfs.
    pub initramfs: FileInfo,
}

impl GuestInfo {
    /// Reads the description in a guest's directory.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn read(directory: &Path) -> Result<Self, GuestError> {
        let path = directory.join(DESCRIPTION);
        let text = fs::read(&path).map_err(on("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| GuestError::Description { path, source })
    }
}

/// Writes the guest's directory: each file appears complete, and the description last.
/// Files that are as they should be are left alone.
///
/// # Errors
/// See [`GuestError`].
pub fn write(out: &Path, kernel: &Kernel, agent: &Path) -> Result<GuestInfo, GuestError> {
    let program = fs::read(agent).map_err(on("read", agent))?;
    if !is_static_program(&program) {
        return Err(GuestError::NotStatic { path: agent.to_owned() });
    }
    let mut archive = Vec::with_capacity(program.len() + 1024);
    cpio::write_initramfs(&mut archive, &program)?;
    let info = GuestInfo {
        kernel: kernel.info.clone(),
        agent: FileInfo::of(&program),
        initramfs: FileInfo::of(&archive),
    };
    fs::create_dir_all(out).map_err(on("create", out))?;

    let elf = out.join(KERNEL);
    if !holds(&elf, &info.kernel.elf_sha256, info.kernel.elf_size) {
        let from = kernel.elf();
        let mut source = File::open(&from).map_err(on("read", &from))?;
        replace(&elf, |file| io::copy(&mut source, file).map(drop))?;
    }
    let initramfs = out.join(INITRAMFS);
    if !holds(&initramfs, &info.initramfs.sha256, info.initramfs.size) {
        replace(&initramfs, |file| file.write_all(&archive))?;
    }
    replace(&out.join(DESCRIPTION), |file| {
        serde_json::to_writer_pretty(&mut *file, &info)?;
        file.write_all(b"\n")
    })?;
    Ok(info)
}

fn holds(path: &Path, sha256: &str, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() == size)
        && source::hash_file(path).is_ok_and(|hash| hash == sha256)
}

fn replace(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), GuestError> {
    let write = || {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(directory)?;
        fill(file.as_file_mut())?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(on("write", path))
}

/// Whether bytes are an x86-64 executable without an interpreter. A static
/// position-independent one is of type `ET_DYN` like a library, but has an entry.
fn is_static_program(elf: &[u8]) -> bool {
    const INTERPRETER: [u8; 4] = 3_u32.to_le_bytes();
    let header = elf.get(..64).filter(|header| {
        header.starts_with(b"\x7fELF\x02\x01")
            && matches!(header[16], 2 | 3)
            && header[18..20] == [62, 0]
            && header[24..32] != [0; 8]
    });
    let Some(header) = header else { return false };
    let offset = u64::from_le_bytes(header[32..40].try_into().unwrap_or_default());
    let count = usize::from(u16::from_le_bytes([header[56], header[57]]));
    let table = usize::try_from(offset).ok().and_then(|offset| elf.get(offset..));
    let Some(segments) = table.and_then(|table| table.get(..count * 56)) else {
        return false;
    };
    segments.chunks_exact(56).all(|segment| segment[..4] != INTERPRETER)
}

fn on<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> GuestError + 'a {
    move |source| GuestError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn program(segment_kind: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[16], elf[18], elf[24], elf[32], elf[56]) = (3, 62, 1, 64, 1);
        elf[64..68].copy_from_slice(&segment_kind.to_le_bytes());
        elf
    }

    fn kernel(directory: &Path) -> Kernel {
        fs::write(directory.join(KERNEL), "kernel").unwrap();
        let elf = FileInfo::of(b"kernel");
        let info = KernelInfo {
            key: "k".to_owned(),
            release: "6.12.1-husk".to_owned(),
            source_version: None,
            source_sha256: "s".to_owned(),
            config_sha256: "c".to_owned(),
            options_yes: 2,
            compiler: "gcc".to_owned(),
            linker: "ld".to_owned(),
            elf_sha256: elf.sha256,
            elf_size: elf.size,
        };
        Kernel {
            directory: directory.to_owned(),
            info,
        }
    }

    #[test]
    fn the_directory_is_complete_readable_and_describes_itself() {
        let (cache, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (agent, guest) = (out.path().join("agent"), out.path().join("new/guest"));
        fs::write(&agent, program(1)).unwrap();
        let info = write(&guest, &kernel(cache.path()), &agent).unwrap();
        assert_eq!(GuestInfo::read(&guest).unwrap(), info);
        assert_eq!(fs::read(guest.join(KERNEL)).unwrap(), b"kernel");
        assert_eq!(info.agent, FileInfo::of(&program(1)));
        assert_eq!(info.initramfs, FileInfo::of(&fs::read(guest.join(INITRAMFS)).unwrap()));
        let mut names = Vec::new();
        for entry in fs::read_dir(&guest).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o644);
            names.push(entry.file_name().into_string().unwrap());
        }
        names.sort();
        assert_eq!(names, [DESCRIPTION, INITRAMFS, KERNEL]);
    }

    #[test]
    fn a_new_agent_leaves_the_kernel_alone_and_damage_is_repaired() {
        let (cache, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (kernel, agent) = (kernel(cache.path()), out.path().join("agent"));
        let inode = |name| fs::metadata(out.path().join(name)).unwrap().ino();
        fs::write(&agent, program(1)).unwrap();
        let first = write(out.path(), &kernel, &agent).unwrap();
        let (elf, initramfs) = (inode(KERNEL), inode(INITRAMFS));
        fs::write(&agent, program(6)).unwrap();
        let second = write(out.path(), &kernel, &agent).unwrap();
        assert_ne!(first.initramfs, second.initramfs);
        assert_eq!(inode(KERNEL), elf);
        assert_ne!(inode(INITRAMFS), initramfs);
        fs::write(out.path().join(KERNEL), "kernex").unwrap();
        write(out.path(), &kernel, &agent).unwrap();
        assert_eq!(fs::read(out.path().join(KERNEL)).unwrap(), b"kernel");
    }

    #[test]
    fn an_agent_that_cannot_be_init_is_refused() {
        let (cache, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let agent = out.path().join("agent");
        let mut library = program(1);
        library[24] = 0;
        let mut cut = program(1);
        cut.pop();
        for wrong in [program(3), library, cut, b"#!/bin/sh\n".to_vec(), Vec::new()] {
            fs::write(&agent, wrong).unwrap();
            let error = write(out.path(), &kernel(cache.path()), &agent).unwrap_err();
            assert!(matches!(error, GuestError::NotStatic { .. }), "{error}");
        }
        fs::remove_file(&agent).unwrap();
        let error = write(out.path(), &kernel(cache.path()), &agent).unwrap_err();
        assert!(error.to_string().starts_with("cannot read /"), "{error}");
    }

    #[test]
    fn a_missing_and_a_damaged_description_are_told_apart() {
        let out = tempfile::tempdir().unwrap();
        assert!(matches!(GuestInfo::read(out.path()), Err(GuestError::File { .. })));
        fs::write(out.path().join(DESCRIPTION), "{}").unwrap();
        assert!(matches!(
            GuestInfo::read(out.path()),
            Err(GuestError::Description { .. })
        ));
    }
}
