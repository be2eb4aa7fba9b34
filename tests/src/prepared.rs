//! What `cargo xtask test` builds beforehand and names in the environment.

use std::path::PathBuf;

/// The directory of `husk`, `husk-vmm` and `guest/`.
///
/// # Panics
/// `HUSK_TEST_BIN` is not set.
pub fn bin() -> PathBuf {
    directory("HUSK_TEST_BIN")
}

/// A root file system of busybox.
///
/// # Panics
/// `HUSK_TEST_BUSYBOX` is not set.
pub fn busybox() -> PathBuf {
    directory("HUSK_TEST_BUSYBOX")
}

/// A root file system of Debian (minbase) with python3.
///
/// # Panics
/// `HUSK_TEST_DEBIAN` is not set.
pub fn debian() -> PathBuf {
    directory("HUSK_TEST_DEBIAN")
}

/// Debian's own kernel image: a bzImage.
///
/// # Panics
/// `HUSK_TEST_DEBIAN_KERNEL` is not set.
pub fn debian_kernel() -> PathBuf {
    directory("HUSK_TEST_DEBIAN_KERNEL")
}

/// The directory of `containerd`, `ctr` and `containerd-shim-runc-v2`.
///
/// # Panics
/// `HUSK_TEST_CONTAINERD` is not set.
pub fn containerd() -> PathBuf {
    directory("HUSK_TEST_CONTAINERD")
}

/// The client of the CRI.
///
/// # Panics
/// `HUSK_TEST_CRI` is not set.
pub fn cri() -> PathBuf {
    directory("HUSK_TEST_CRI")
}

/// The directory of `docker` and `dockerd`.
///
/// # Panics
/// `HUSK_TEST_DOCKER` is not set.
pub fn docker() -> PathBuf {
    directory("HUSK_TEST_DOCKER")
}

/// A newer runc than Debian's, where what husk does is to be compared with runc's.
pub fn runc() -> Option<PathBuf> {
    let path = std::env::var_os("HUSK_TEST_RUNC").filter(|value| !value.is_empty());
    path.map(PathBuf::from)
}

fn directory(name: &str) -> PathBuf {
    let path = std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    let path = path.unwrap_or_else(|| panic!("{name} is not set: run the end-to-end tests with `cargo xtask test`"));
    assert!(
        path.exists(),
        "{name} names {}, which does not exist: run `cargo xtask test`",
        path.display()
    );
    path
}
