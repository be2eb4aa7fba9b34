//! The emulated host's kernel: Debian's own 6.12 for clouds, unpacked from its package, not installed.
//!
//! What would take time in the emulated processor is done here: the kernel's image and its modules are uncompressed,
//! and the modules have no signatures to check.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cache, process, setup, step};

const PREFIX: &str = "linux-image-6.12.";
const SUFFIX: &str = "-cloud-amd64";

/// An unpacked kernel package: `<directory>/boot/vmlinuz-VERSION` and `<directory>/lib/modules/VERSION`, and the
/// uncompressed kernel as `<directory>/boot/vmlinux-VERSION`.
pub(crate) struct Kernel {
    directory: PathBuf,
    version: String,
}

impl Kernel {
    /// Debian's boot image, a bzImage.
    pub(crate) fn compressed_image(&self) -> PathBuf {
        self.directory.join("boot").join(format!("vmlinuz-{}", self.version))
    }

    /// The uncompressed kernel, an ELF file.
    pub(crate) fn image(&self) -> PathBuf {
        self.directory.join("boot").join(format!("vmlinux-{}", self.version))
    }

    /// The directory with `modules.dep`.
    pub(crate) fn modules(&self) -> PathBuf {
        self.directory.join("lib/modules").join(&self.version)
    }

    /// The newest kernel in the cache. When there is none, the newest that apt offers, downloaded and unpacked.
    pub(crate) fn ensure() -> Result<Self> {
        let parent = cache::directory()?.join("host-kernel");
        if let Some(kernel) = Self::newest_cached(&parent)? {
            return Ok(kernel);
        }
        let _lock = cache::lock("host-kernel")?;
        if let Some(kernel) = Self::newest_cached(&parent)? {
            return Ok(kernel);
        }
        let package = newest_package()?;
        let version = package.trim_start_matches("linux-image-").to_owned();
        let directory = parent.join(&version);
        step(&format!("downloading {package}, unpacked into {}", directory.display()));
        cache::build_directory(&directory, |partial| {
            unpack(&package, partial)?;
            Self {
                directory: partial.to_owned(),
                version: version.clone(),
            }
            .prepare()
        })?;
        Ok(Self { directory, version })
    }

    fn newest_cached(parent: &Path) -> Result<Option<Self>> {
        let Ok(entries) = fs::read_dir(parent) else {
            return Ok(None);
        };
        let mut versions = Vec::new();
        for entry in entries {
            let name = entry
                .with_context(|| format!("listing {}", parent.display()))?
                .file_name();
            versions.extend(name.into_string().ok().filter(|name| name.ends_with(SUFFIX)));
        }
        versions.sort_by_key(|version| ordinal(version));
        let kernels = versions.into_iter().map(|version| Self {
            directory: parent.join(&version),
            version,
        });
        Ok(kernels.rev().find(|kernel| kernel.image().exists()))
    }

    /// Uncompresses what the emulated processor should not have to.
    fn prepare(&self) -> Result<()> {
        let compressed = self.compressed_image();
        let bytes = fs::read(&compressed).with_context(|| format!("reading {}", compressed.display()))?;
        let payload = payload(&bytes).with_context(|| format!("{} is no bzImage with zstd", compressed.display()))?;
        let packed = self.directory.join("vmlinux.zst");
        fs::write(&packed, payload).with_context(|| format!("writing {}", packed.display()))?;
        process::output(
            Command::new("zstd")
                .args(["-q", "-d", "--rm"])
                .arg(&packed)
                .arg("-o")
                .arg(self.image()),
        )?;

        let mut modules = Vec::new();
        find_modules(&self.modules(), &mut modules)?;
        let compressed: Vec<_> = modules
            .iter()
            .filter(|path| path.extension().is_some_and(|end| end == "xz"))
            .collect();
        for batch in compressed.chunks(500) {
            process::output(Command::new("xz").args(["--decompress", "--"]).args(batch))?;
        }
        for module in modules {
            let compressed = module.extension().is_some_and(|end| end == "xz");
            drop_signature(&if compressed { module.with_extension("") } else { module })?;
        }
        process::output(
            Command::new("/sbin/depmod")
                .arg("-b")
                .arg(&self.directory)
                .arg(&self.version),
        )
        .map(drop)
    }
}

/// The compressed kernel in a bzImage: offsets of Documentation/arch/x86/boot.rst in the kernel's source. Behind it lie
/// four bytes that tell its uncompressed size.
fn payload(image: &[u8]) -> Option<&[u8]> {
    const SETUP_SECTORS: usize = 0x1f1;
    const PAYLOAD_OFFSET: usize = 0x248;
    const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    let field = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    let protected_mode = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * 512;
    let payload = image.get(protected_mode + field(PAYLOAD_OFFSET)?..)?;
    let payload = payload.get(..field(PAYLOAD_OFFSET + 4)?.checked_sub(4)?)?;
    payload.starts_with(ZSTD).then_some(payload)
}

/// Cuts off a module's signature: its length in four bytes, and a text, stand at the file's end
/// (include/linux/module_signature.h in the kernel's source).
fn drop_signature(module: &Path) -> Result<()> {
    let bytes = fs::read(module).with_context(|| format!("reading {}", module.display()))?;
    if let Some(length) = unsigned_length(&bytes) {
        let file = fs::File::options().write(true).open(module);
        let cut = file.and_then(|file| file.set_len(length as u64));
        cut.with_context(|| format!("truncating {}", module.display()))?;
    }
    Ok(())
}

fn unsigned_length(module: &[u8]) -> Option<usize> {
    let (information, length) = module
        .strip_suffix(b"~Module signature appended~\n")?
        .split_last_chunk()?;
    information
        .len()
        .checked_sub(8)?
        .checked_sub(u32::from_be_bytes(*length) as usize)
}

/// All numbers of a version, which order it: `6.12.117+deb12-cloud-amd64` is 6, 12, 117, 12, 64.
fn ordinal(version: &str) -> Vec<u32> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn newest_package() -> Result<String> {
    let names = setup::package_names("^linux-image-6[.]12[.]")?;
    names
        .into_iter()
        .filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX) && !name.contains("unsigned"))
        .max_by_key(|name| ordinal(name))
        .with_context(|| format!("apt offers no {PREFIX}*{SUFFIX}; Debian 12 and 13 do"))
}

/// Downloads the package (apt checks its signature) and leaves its contents in `directory`.
fn unpack(package: &str, directory: &Path) -> Result<()> {
    process::output(
        // apt's own user could not write here: no sandbox for the download.
        Command::new("apt-get")
            .args(["-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(directory),
    )?;
    let archive = fs::read_dir(directory)?
        .next()
        .context("apt-get download left no file")??
        .path();
    process::output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(directory))?;
    fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))?;
    // Debian 13's packages have the modules below usr/ only.
    if !directory.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", directory.join("lib")).context("linking lib to usr/lib")?;
    }
    Ok(())
}

fn find_modules(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find_modules(&path, found)?;
        } else if path.to_string_lossy().ends_with(".ko.xz") || path.extension().is_some_and(|end| end == "ko") {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number_not_by_letter() {
        let mut versions = [
            "6.12.117+deb12-cloud-amd64",
            "6.12.9+deb12-cloud-amd64",
            "6.12.43+deb13.1-cloud-amd64",
        ];
        versions.sort_by_key(|version| ordinal(version));
        assert_eq!(
            versions,
            [
                "6.12.9+deb12-cloud-amd64",
                "6.12.43+deb13.1-cloud-amd64",
                "6.12.117+deb12-cloud-amd64"
            ]
        );
    }

    #[test]
    fn the_payload_is_found_where_the_header_says() {
        let mut image = vec![0; 2000];
        image[0x1f1] = 1;
        image[0x248..0x250].copy_from_slice(&[16, 0, 0, 0, 12, 0, 0, 0]);
        image[1040..1048].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4]);
        assert_eq!(payload(&image), Some(&[0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4][..]));
        image[1040] = 0;
        assert_eq!(payload(&image), None, "not zstd");
        assert_eq!(payload(&image[..1045]), None, "truncated");
        assert_eq!(payload(&[]), None);
    }

    #[test]
    fn a_signature_is_cut_off_where_there_is_one() {
        let mut module = b"ELF and so on".to_vec();
        assert_eq!(unsigned_length(&module), None);
        module.extend(b"signature");
        module.extend([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        module.extend(b"~Module signature appended~\n");
        assert_eq!(unsigned_length(&module), Some(13));
        assert_eq!(unsigned_length(&module[20..]), None, "longer than the file");
    }
}
