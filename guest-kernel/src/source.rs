//! Where the kernel's source comes from: Debian's `linux-source-6.12`.
//!
//! The archive keeps only its newest 6.12.x, so no version is pinned: the first build
//! takes what apt offers (apt verifies the archive's signature) and the cache keeps it
//! until somebody asks for an update. Version and hash go into the kernel's cache key
//! and into `guest.json`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Progress, lock};

/// Debian's package with the source.
pub const PACKAGE: &str = "linux-source-6.12";

/// A correction of the source that Linux 6.12 has not got.
#[derive(Debug, Clone)]
pub struct Patch {
    /// Its file name.
    pub name: &'static str,
    /// A unified diff, applied with `-p1`; what precedes it says why it is needed.
    pub text: &'static str,
    /// Whether the kernel is of no use without it. One that only makes it faster is left
    /// out, with a word, when a newer 6.12.x no longer takes it.
    pub needed: bool,
}

/// The patches of the guest's kernel: as few as possible, for each may stop to apply.
pub const PATCHES: [Patch; 5] = [
    Patch {
        name: "acpi-without-pci.patch",
        text: include_str!("../patches/acpi-without-pci.patch"),
        needed: true,
    },
    Patch {
        name: "bpf-small-pack.patch",
        text: include_str!("../patches/bpf-small-pack.patch"),
        needed: false,
    },
    Patch {
        name: "ioapic-reset-state.patch",
        text: include_str!("../patches/ioapic-reset-state.patch"),
        needed: false,
    },
    Patch {
        name: "pvh-without-xen.patch",
        text: include_str!("../patches/pvh-without-xen.patch"),
        needed: false,
    },
    Patch {
        name: "return-sites.patch",
        text: include_str!("../patches/return-sites.patch"),
        needed: false,
    },
];

/// Why there is no source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file or directory of the cache, or the tarball that was named, fails.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A program does not start.
    #[error("cannot run {program} (remedy: apt-get install {package}, or give --source TARBALL)")]
    Start {
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// apt does not know the package or cannot fetch it.
    #[error(
        "apt-get cannot download {PACKAGE}: {message}\n  remedy: `apt-get update` as root; or take a \
         tarball of Linux 6.12 from elsewhere and give --source TARBALL"
    )]
    Download {
        /// The end of what apt-get said.
        message: String,
    },
    /// The downloaded package is not as expected.
    #[error("{} holds no usr/src/{PACKAGE}.tar.xz: {message}", path.display())]
    Package {
        /// The package's file.
        path: PathBuf,
        /// What the unpacking programs said.
        message: String,
    },
}

/// A tarball of the kernel's source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Where it lies.
    pub tarball: PathBuf,
    /// Debian's version of the package; absent for a tarball that the user named.
    pub version: Option<String>,
    /// SHA-256 of the tarball, in hex.
    pub sha256: String,
    /// The tarball's size in bytes and time of change in nanoseconds when it was
    /// hashed: what is unchanged is not read again.
    stamp: (u64, u128),
}

impl Source {
    /// Hashes a tarball.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_tarball(tarball: &Path, version: Option<String>) -> Result<Self, SourceError> {
        let sha256 = hash_file(tarball).map_err(on("read", tarball))?;
        let stamp = stamp(tarball).map_err(on("read", tarball))?;
        Ok(Self {
            tarball: tarball.to_owned(),
            version,
            sha256,
            stamp,
        })
    }

    /// The source that an earlier build left in the cache, if it is still there.
    fn cached(cache: &Path) -> Option<Self> {
        let text = fs::read(record(cache)).ok()?;
        let source: Self = serde_json::from_slice(&text).ok()?;
        (stamp(&source.tarball).ok()? == source.stamp).then_some(source)
    }

    /// The source that the cache has, or else, or with `update`, the one from apt: the
    /// installed package if there is one, else a download into the cache. Needs no root.
    ///
    /// # Errors
    /// No apt, no network, no such package; or the cache fails.
    pub fn obtain(cache: &Path, update: bool, progress: Progress<'_>) -> Result<Self, SourceError> {
        if let (false, Some(source)) = (update, Self::cached(cache)) {
            return Ok(source);
        }
        let directory = directory(cache);
        fs::create_dir_all(&directory).map_err(on("create", &directory))?;
        let path = directory.join("lock");
        let _lock = lock::exclusive(&path, progress).map_err(on("lock", &path))?;
        // Whoever held the lock may have fetched it.
        if let (false, Some(source)) = (update, Self::cached(cache)) {
            return Ok(source);
        }
        let installed = PathBuf::from(format!("/usr/src/{PACKAGE}.tar.xz"));
        let source = match installed_version().filter(|_| installed.is_file()) {
            Some(version) => {
                progress(&format!("source: {PACKAGE} {version}, installed"));
                Self::of_tarball(&installed, Some(version))?
            }
            None => download(&directory, progress)?,
        };
        let path = record(cache);
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&directory)?;
            serde_json::to_writer_pretty(&mut file, &source)?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(on("write", &path))?;
        Ok(source)
    }
}

fn directory(cache: &Path) -> PathBuf {
    cache.join("sources")
}

fn record(cache: &Path) -> PathBuf {
    directory(cache).join(format!("{PACKAGE}.json"))
}

fn on<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> SourceError + 'a {
    move |source| SourceError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

fn stamp(path: &Path) -> io::Result<(u64, u128)> {
    let metadata = fs::metadata(path)?;
    let changed = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((metadata.len(), changed.as_nanos()))
}

fn installed_version() -> Option<String> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status} ${Version}", PACKAGE])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.strip_prefix("installed ").map(str::to_owned)
}

fn download(directory: &Path, progress: Progress<'_>) -> Result<Source, SourceError> {
    // In the cache, so that moving the tarball into place is a rename.
    let work = tempfile::Builder::new()
        .prefix(".download-")
        .tempdir_in(directory)
        .map_err(on("create a directory in", directory))?;
    progress(&format!(
        "source: apt-get download {PACKAGE} (about 150 MB) to {}",
        directory.display()
    ));
    let output = Command::new("apt-get")
        // Without it apt, run by root, complains that its own user may not write here.
        .args(["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"])
        .args(["-o", "Acquire::http::Timeout=30", "-o", "Acquire::https::Timeout=30"])
        .args(["download", PACKAGE])
        .env("LC_ALL", "C")
        .current_dir(work.path())
        .stdin(Stdio::null())
        .output()
        .map_err(|source| SourceError::Start {
            program: "apt-get",
            package: "apt",
            source,
        })?;
    let package = fs::read_dir(work.path())
        .map_err(on("read", work.path()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let Some(package) = package.filter(|_| output.status.success()) else {
        let text = String::from_utf8_lossy(&output.stderr);
        let message = text.lines().rev().find(|line| !line.is_empty()).unwrap_or("no message");
        return Err(SourceError::Download {
            message: message.to_owned(),
        });
    };
    let version = package_version(&package)?;
    let unpacked = work.path().join("tarball");
    unpack_tarball(&package, &unpacked)?;
    let tarball = directory.join(format!("{PACKAGE}_{version}.tar.xz"));
    fs::rename(&unpacked, &tarball).map_err(on("write", &tarball))?;
    progress(&format!("source: {PACKAGE} {version}"));
    Source::of_tarball(&tarball, Some(version))
}

fn package_version(package: &Path) -> Result<String, SourceError> {
    let output = Command::new("dpkg-deb")
        .arg("--field")
        .arg(package)
        .arg("Version")
        .output()
        .map_err(|source| SourceError::Start {
            program: "dpkg-deb",
            package: "dpkg",
            source,
        })?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    // It becomes part of a file name. Debian's policy allows these characters only.
    let plain = |c: char| c.is_ascii_alphanumeric() || ".+-~:".contains(c);
    if output.status.success() && !version.is_empty() && version.chars().all(plain) {
        return Ok(version);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(SourceError::Package {
        path: package.to_owned(),
        message,
    })
}

/// Takes the one tarball out of the package, without unpacking the rest.
fn unpack_tarball(package: &Path, target: &Path) -> Result<(), SourceError> {
    let start = |program, package| {
        move |source| SourceError::Start {
            program,
            package,
            source,
        }
    };
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(start("dpkg-deb", "dpkg"))?;
    let archive = dpkg.stdout.take().map_or_else(Stdio::null, Stdio::from);
    let file = File::create(target).map_err(on("write", target))?;
    let tar = Command::new("tar")
        .args(["--extract", "--to-stdout", "--file=-"])
        .arg(format!("./usr/src/{PACKAGE}.tar.xz"))
        .stdin(archive)
        .stdout(file)
        .output()
        .map_err(start("tar", "tar"));
    // tar is gone and with it the pipe's reader: dpkg-deb ends too, whatever happened.
    let dpkg = dpkg.wait().map_err(start("dpkg-deb", "dpkg"))?;
    let tar = tar?;
    if tar.status.success() && dpkg.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&tar.stderr).trim().to_owned();
    Err(SourceError::Package {
        path: package.to_owned(),
        message,
    })
}

/// SHA-256 of a file, in hex.
pub(crate) fn hash_file(path: &Path) -> io::Result<String> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut hash = Sha256::new();
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(chunk);
        let length = chunk.len();
        reader.consume(length);
    }
}

/// SHA-256 of bytes, in hex.
pub(crate) fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to memory does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_patch_of_the_directory_is_applied() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("patches");
        let mut files: Vec<String> = fs::read_dir(here)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, PATCHES.map(|patch| patch.name));
    }

    fn in_cache(cache: &Path) -> Source {
        fs::create_dir_all(directory(cache)).unwrap();
        let tarball = directory(cache).join("linux.tar.xz");
        fs::write(&tarball, "abc").unwrap();
        let source = Source::of_tarball(&tarball, Some("6.12.1-1".to_owned())).unwrap();
        fs::write(record(cache), serde_json::to_vec(&source).unwrap()).unwrap();
        source
    }

    #[test]
    fn what_the_cache_has_is_used_without_asking_apt() {
        let cache = tempfile::tempdir().unwrap();
        let source = in_cache(cache.path());
        // The hash of "abc" in the standard, FIPS 180-4.
        assert!(source.sha256.starts_with("ba7816bf8f01cfea"));
        assert_eq!(Source::obtain(cache.path(), false, &|_| {}).unwrap(), source);
    }

    #[test]
    fn a_changed_or_lost_tarball_is_not_used() {
        let cache = tempfile::tempdir().unwrap();
        let source = in_cache(cache.path());
        fs::write(&source.tarball, "abcd").unwrap();
        assert_eq!(Source::cached(cache.path()), None);
        fs::remove_file(&source.tarball).unwrap();
        assert_eq!(Source::cached(cache.path()), None);
        fs::write(record(cache.path()), "{").unwrap();
        assert_eq!(Source::cached(cache.path()), None);
    }

    #[test]
    fn a_missing_tarball_is_named() {
        let error = Source::of_tarball(Path::new("/no/such.tar.xz"), None).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /no/such.tar.xz");
    }

    #[test]
    fn the_tarball_is_taken_out_of_a_package() {
        let work = tempfile::tempdir().unwrap();
        let root = work.path().join("root");
        fs::create_dir_all(root.join("DEBIAN")).unwrap();
        fs::write(
            root.join("DEBIAN/control"),
            "Package: t\nVersion: 6.12.1-1~deb12u1\nArchitecture: all\nMaintainer: t\nDescription: t\n",
        )
        .unwrap();
        let package = work.path().join("t.deb");
        let build = |root: &Path| {
            let status = Command::new("dpkg-deb")
                .args(["--root-owner-group", "--build"])
                .args([root, &package])
                .stdout(Stdio::null())
                .status();
            status.unwrap().success()
        };
        let target = work.path().join("out");
        assert!(build(&root));
        let error = unpack_tarball(&package, &target).unwrap_err().to_string();
        assert!(
            error.contains("t.deb holds no usr/src/linux-source-6.12.tar.xz"),
            "{error}"
        );

        fs::create_dir_all(root.join("usr/src")).unwrap();
        fs::write(root.join("usr/src/linux-source-6.12.tar.xz"), "tarball").unwrap();
        assert!(build(&root));
        assert_eq!(package_version(&package).unwrap(), "6.12.1-1~deb12u1");
        unpack_tarball(&package, &target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"tarball");
    }
}
