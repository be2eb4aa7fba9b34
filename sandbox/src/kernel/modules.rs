//! The modules of a kernel that was built for all machines: a distribution's has as modules what husk's own has built
//! in.
//!
//! `modules.dep`, `modules.softdep`, `modules.alias` and `modules.builtin` (written by depmod and the kernel's build)
//! say which files are needed and in which order they are loaded.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::KernelError;

/// What a guest needs, by the modules' names; which of them are modules depends on the kernel.
const WANTED: [&str; 7] = [
    "pvpanic_mmio",
    "virtio_mmio",
    "virtio_rng",
    "virtio_blk",
    "vmw_vsock_virtio_transport",
    "erofs",
    "overlay",
];

/// How compressed modules end, and what decompresses them.
const COMPRESSED: [(&str, &str); 3] = [(".xz", "xz"), (".zst", "zstd"), (".gz", "gzip")];

/// A module in the order of loading.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// Its file's name in the guest, `NAME.ko`.
    pub(super) name: String,
    /// Its file on the host.
    pub(super) path: PathBuf,
}

/// The directory that holds the modules of the kernel `version`, whose image is the file `kernel`.
pub(super) fn tree(kernel: &Path, version: &str) -> Option<PathBuf> {
    let beside = kernel.parent().map(|dir| dir.join("../lib/modules").join(version));
    [beside, Some(Path::new("/lib/modules").join(version))]
        .into_iter()
        .flatten()
        .find(|dir| dir.join("modules.dep").is_file())
}

/// The modules in `tree` that a guest needs, in the order of loading.
pub(super) fn needed(tree: &Path) -> Result<Vec<Module>, KernelError> {
    let index = Index::read(tree)?;
    let mut order = Order {
        index: &index,
        seen: HashSet::new(),
        files: Vec::new(),
    };
    for name in WANTED {
        order.add(name);
    }
    Ok(order
        .files
        .into_iter()
        .map(|file| Module {
            name: format!("{}.ko", module_name(file)),
            path: tree.join(file),
        })
        .collect())
}

/// A module's contents, decompressed.
pub(super) fn contents(module: &Module) -> Result<Vec<u8>, KernelError> {
    let failed = |source| KernelError::Read {
        what: "kernel module",
        path: module.path.clone(),
        source,
    };
    let name = module.path.to_string_lossy();
    let Some((_, program)) = COMPRESSED.iter().find(|(suffix, _)| name.ends_with(suffix)) else {
        return fs::read(&module.path).map_err(failed);
    };
    let output = Command::new(program)
        .arg("-dc")
        .arg(&module.path)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|source| KernelError::Decompressor { program, source })?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(failed(io::Error::from(io::ErrorKind::InvalidData)))
    }
}

/// `kernel/drivers/virtio/virtio-rng.ko.xz` is the module `virtio_rng`.
fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or_default();
    let stem = base.split_once(".ko").map_or(base, |(stem, _)| stem);
    stem.replace('-', "_")
}

/// What depmod knows.
#[derive(Debug, Default)]
struct Index {
    /// A module's file.
    files: HashMap<String, String>,
    /// The files that a file needs, in no particular order.
    needs: HashMap<String, Vec<String>>,
    /// The names that a module wants to be loaded before it, if they exist.
    before: HashMap<String, Vec<String>>,
    /// Modules by another name of theirs.
    aliases: HashMap<String, Vec<String>>,
}

impl Index {
    fn read(tree: &Path) -> Result<Self, KernelError> {
        let required = |name: &str| {
            let path = tree.join(name);
            fs::read_to_string(&path).map_err(|source| KernelError::Read {
                what: "module index",
                path,
                source,
            })
        };
        let optional = |name: &str| fs::read_to_string(tree.join(name)).unwrap_or_default();
        Ok(Self::parse(
            &required("modules.dep")?,
            &optional("modules.softdep"),
            &optional("modules.alias"),
        ))
    }

    fn parse(dep: &str, softdep: &str, alias: &str) -> Self {
        let mut index = Self::default();
        for line in dep.lines() {
            let Some((file, needs)) = line.split_once(':') else {
                continue;
            };
            index.files.insert(module_name(file), file.to_owned());
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            index.needs.insert(file.to_owned(), needs);
        }
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            let (Some("softdep"), Some(module)) = (words.next(), words.next()) else {
                continue;
            };
            let before = words.skip_while(|word| *word != "pre:").skip(1);
            let before = before.take_while(|word| *word != "post:").map(str::to_owned);
            index.before.entry(module.replace('-', "_")).or_default().extend(before);
        }
        for line in alias.lines() {
            if let ["alias", name, module] = line.split_whitespace().collect::<Vec<_>>()[..] {
                index
                    .aliases
                    .entry(name.to_owned())
                    .or_default()
                    .push(module.replace('-', "_"));
            }
        }
        index
    }
}

/// Collects files so that each comes after those that it needs.
struct Order<'a> {
    index: &'a Index,
    seen: HashSet<&'a str>,
    files: Vec<&'a str>,
}

impl<'a> Order<'a> {
    /// Adds a module by name or alias; one that is built in, or that the kernel has not, is no file.
    fn add(&mut self, name: &str) {
        if let Some(file) = self.index.files.get(&name.replace('-', "_")) {
            self.add_file(file);
        }
        for module in self.index.aliases.get(name).into_iter().flatten() {
            if let Some(file) = self.index.files.get(module) {
                self.add_file(file);
            }
        }
    }

    fn add_file(&mut self, file: &'a str) {
        if !self.seen.insert(file) {
            return;
        }
        for before in self.index.before.get(&module_name(file)).into_iter().flatten() {
            self.add(before);
        }
        for need in self.index.needs.get(file).into_iter().flatten() {
            self.add_file(need);
        }
        self.files.push(file);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(dep: &str, softdep: &str, alias: &str) -> Vec<String> {
        let index = Index::parse(dep, softdep, alias);
        let mut order = Order {
            index: &index,
            seen: HashSet::new(),
            files: Vec::new(),
        };
        WANTED.iter().for_each(|name| order.add(name));
        order.files.into_iter().map(module_name).collect()
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let dep = "\
            kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz kernel/fs/netfs/netfs.ko.xz\n\
            kernel/lib/libcrc32c.ko.xz:\n\
            kernel/fs/netfs/netfs.ko.xz: kernel/lib/libcrc32c.ko.xz\n\
            kernel/drivers/virtio/virtio.ko.xz:\n\
            kernel/drivers/virtio/virtio_mmio.ko.xz: kernel/drivers/virtio/virtio.ko.xz\n\
            kernel/drivers/unrelated.ko.xz:\n\
            kernel/crypto/crc32c_generic.ko.xz:\n";
        let softdep = "# comment\nsoftdep libcrc32c pre: crc32c post: unrelated\n";
        let alias = "alias crc32c crc32c_generic\nalias pci:v* unrelated\n";
        assert_eq!(
            order(dep, softdep, alias),
            ["virtio", "virtio_mmio", "crc32c_generic", "libcrc32c", "netfs", "erofs"]
        );
    }

    #[test]
    fn the_files_are_found_beside_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("lib/modules/6.1-x");
        fs::create_dir_all(modules.join("kernel")).unwrap();
        fs::create_dir(dir.path().join("boot")).unwrap();
        fs::write(modules.join("modules.dep"), "kernel/overlay.ko:\nkernel/erofs.ko.gz:\n").unwrap();
        fs::write(modules.join("kernel/overlay.ko"), "overlay's").unwrap();
        let zipped = Command::new("sh")
            .args(["-c", "printf \"erofs's\" | gzip"])
            .output()
            .unwrap()
            .stdout;
        fs::write(modules.join("kernel/erofs.ko.gz"), zipped).unwrap();
        let tree = tree(&dir.path().join("boot/vmlinuz-6.1-x"), "6.1-x").unwrap();
        let needed = needed(&tree).unwrap();
        let names: Vec<_> = needed.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["erofs.ko", "overlay.ko"]);
        assert_eq!(contents(&needed[0]).unwrap(), b"erofs's");
        assert_eq!(contents(&needed[1]).unwrap(), b"overlay's");
        assert!(super::tree(&dir.path().join("boot/vmlinuz"), "no such version").is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_indexes_never_panic(dep in "[a-c:/ \n]{0,60}", softdep in "\\PC{0,40}", alias in "\\PC{0,40}") {
            order(&dep, &softdep, &alias);
        }
    }
}
