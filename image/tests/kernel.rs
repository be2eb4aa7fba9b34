//! Disks against the kernel: what a layer's archive holds and what Linux finds on the disk are the same.
//!
//! They need root, a loop device and EROFS in the kernel; without them they say so and pass.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use husk_image::tree::Tree;
use husk_image::{Limits, directory, erofs, layer};

/// Runs a command and gives what it prints.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn shell(script: &str, directory: &Path) -> String {
    let output = Command::new("bash")
        .args(["-euc", script])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A mounted disk, unmounted when it is dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// The layer files of these archives and the image over them, put together as the guest sees them.
fn disk(archives: &[PathBuf], directory: &Path) -> PathBuf {
    let limits = Limits::DEFAULT;
    let mut tree = Tree::new(&limits);
    let mut files = Vec::new();
    for archive in archives {
        let file = tempfile::tempfile_in(directory).unwrap();
        layer::convert(File::open(archive).unwrap(), &file, &limits).unwrap();
        tree.apply(layer::read_index(&file).unwrap()).unwrap();
        files.push(file);
    }
    let lengths: Vec<u64> = files.iter().map(|file| file.metadata().unwrap().len()).collect();
    let path = directory.join("disk");
    let disk = File::create(&path).unwrap();
    erofs::write(&tree, &lengths, [7; 16], &disk).unwrap();
    for mut file in files {
        use std::io::{Seek, SeekFrom};
        file.seek(SeekFrom::Start(0)).unwrap();
        std::io::copy(&mut file, &mut fs::OpenOptions::new().append(true).open(&path).unwrap()).unwrap();
    }
    path
}

fn mounted(disk: &Path, directory: &Path) -> Option<Mounted> {
    let point = directory.join("mounted");
    fs::create_dir(&point).unwrap();
    let output = Command::new("mount")
        .args(["-t", "erofs", "-o", "loop,ro"])
        .arg(disk)
        .arg(&point)
        .output()
        .unwrap();
    if output.status.success() {
        return Some(Mounted(point));
    }
    eprintln!("not mounted: {}", String::from_utf8_lossy(&output.stderr));
    assert!(!nix::unistd::geteuid().is_root(), "root can mount EROFS");
    None
}

/// The image of a directory alone.
fn image(root: &Path, directory: &Path) -> PathBuf {
    let path = directory.join("disk");
    directory::convert(
        root,
        directory::Role::Root,
        [7; 16],
        &File::create(&path).unwrap(),
        &Limits::DEFAULT,
    )
    .unwrap();
    path
}

/// Everything that can be known of a tree, a line for each name.
fn listing(root: &Path) -> String {
    // Type, mode, owner, links, size of files, time with nanoseconds, name and target; inodes by their first name.
    let names = shell("find . -printf '%P\\t%y %m %U:%G %n %T@ %l\\n' | LC_ALL=C sort", root);
    let devices = shell(
        "find . \\( -type c -o -type b \\) -exec stat -c '%n %t:%T' {} + | LC_ALL=C sort",
        root,
    );
    let links = shell(
        "find . ! -type d -links +1 -printf '%i %P\\n' | LC_ALL=C sort -k2 | awk '{if (!($1 in f)) f[$1]=$2; print $2, f[$1]}'",
        root,
    );
    let sums = shell(
        "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum",
        root,
    );
    let sizes = shell("find . ! -type d -printf '%P %s\\n' | LC_ALL=C sort", root);
    let attributes = attributes(root);
    [names, devices, links, sums, sizes, attributes].join("\n---\n")
}

/// The extended attributes of everything but symbolic links.
fn attributes(root: &Path) -> String {
    let mut text = String::new();
    for name in shell("find . ! -type l -print0 | LC_ALL=C sort -z", root).split_terminator('\0') {
        let path = root.join(name);
        let mut names: Vec<_> = xattr::list(&path).unwrap().collect();
        names.sort();
        for attribute in names {
            let value = xattr::get(&path, &attribute).unwrap();
            text += &format!("{name} {attribute:?} {value:?}\n");
        }
    }
    text
}

/// A tree with one of everything; `extra` says what is in it beside that.
fn everything(directory: &Path) {
    shell(
        "mkdir -p d/e/f empty long many; echo hello > d/file; ln d/file d/e/second; ln -s ../file d/e/link
         ln -s $(head -c 4000 /dev/zero | tr '\\0' x) d/longlink
         head -c 4096 /dev/urandom > block; head -c 4097 /dev/urandom > block1; : > nothing
         head -c 3000000 /dev/urandom > big
         mkfifo fifo; mknod null c 1 3; mknod disk b 259 70000; mknod -m 600 one c 4095 1048575
         chmod 4755 d/file; chmod 1777 empty; chown 4294967294:70000 block; chown -h 100000:200000 d/e/link
         touch -d '1901-01-01 00:00:00.25 UTC' nothing; touch -d '2200-02-03 04:05:06.123456789 UTC' block
         truncate -s 300M sparse; printf start | dd of=sparse conv=notrunc status=none
         printf middle | dd of=sparse bs=1 seek=147480000 conv=notrunc status=none
         printf end | dd of=sparse bs=1 seek=314572797 conv=notrunc status=none
         truncate -s 100000 hole; truncate -s 12288 sparse2; printf x | dd of=sparse2 bs=1 seek=4096 conv=notrunc status=none
         n=$(printf 'n%.0s' {1..250}); mkdir -p long/$n/$n/$n; echo deep > long/$n/$n/$n/$n
         for i in $(seq 1 2000); do echo $i > many/file-with-a-rather-long-name-$i; done
         touch 'many/!first' 'many/-dash' 'many/~last' $'many/\\xc3\\xa4' $'many/new\\nline' 'many/.hidden'",
        directory,
    );
    // struct vfs_cap_data, version 2, effective: permitted is CAP_NET_RAW.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // struct posix_acl_xattr_header and five entries: user::rw-, user:1000:r--, group::r--, mask::r--, other::r--.
    let acl = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4,
        0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
    ];
    for (path, name, value) in [
        ("d/file", "user.text", &b"value"[..]),
        ("d/e", "user.empty", b""),
        ("d", "user.lines", b"\n\n=\n"),
        ("block", "trusted.bytes", b"\n=\n\0\xff"),
        ("big", "user.long", &[b'y'; 3000]),
        ("block1", "security.capability", &capability),
        ("block1", "system.posix_acl_access", &acl),
    ] {
        xattr::set(directory.join(path), name, value).unwrap();
    }
}

#[test]
fn the_kernel_finds_what_the_archive_holds() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: skipped");
        return;
    }
    // Extended attributes of all kinds, and sparse files, need a file system that has them.
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    everything(&tree);
    let tree_text = tree.to_str().unwrap();
    let expected = listing(&tree);
    for (name, options) in [
        ("pax", &["--format=pax", "--xattrs", "--xattrs-include=*"][..]),
        (
            "sparse00",
            &[
                "--format=pax",
                "--xattrs",
                "--xattrs-include=*",
                "--sparse",
                "--sparse-version=0.0",
            ],
        ),
        (
            "sparse01",
            &[
                "--format=pax",
                "--xattrs",
                "--xattrs-include=*",
                "--sparse",
                "--sparse-version=0.1",
            ],
        ),
        (
            "sparse10",
            &[
                "--format=pax",
                "--xattrs",
                "--xattrs-include=*",
                "--sparse",
                "--sparse-version=1.0",
            ],
        ),
        ("gnu", &["--format=gnu", "--sparse"]),
    ] {
        // The 300 MiB of zeros are for those that know holes.
        let exclude = if options.contains(&"--sparse") {
            "--exclude=./none"
        } else {
            "--exclude=./sparse"
        };
        let archive = directory.path().join(format!("{name}.tar"));
        let mut arguments = options.to_vec();
        arguments.extend([exclude, "-C", tree_text, "-cf", archive.to_str().unwrap(), "."]);
        run("tar", &arguments);
        let place = directory.path().join(name);
        fs::create_dir(&place).unwrap();
        let disk = disk(&[archive], &place);
        run("fsck.erofs", &[disk.to_str().unwrap()]);
        let Some(mounted) = mounted(&disk, &place) else { return };
        let found = listing(&mounted.0);
        for (found, expected) in found.lines().zip(expected.lines()) {
            if name == "pax" && expected.contains("sparse") {
                break;
            }
            if name == "gnu" {
                // This format has neither attributes nor fractions of seconds.
                let cut = |line: &str| line.split('.').next().unwrap_or_default().to_owned();
                if expected.contains("---") || expected.starts_with("# file") {
                    break;
                }
                assert_eq!(cut(found), cut(expected), "{name}");
                continue;
            }
            assert_eq!(found, expected, "{name}");
        }
        if name.starts_with("sparse") {
            same(&found, &expected, name);
        }
        drop(mounted);
        fs::remove_dir_all(&place).unwrap();
    }
}

#[test]
fn the_kernel_finds_what_the_directory_holds() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: skipped");
        return;
    }
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    everything(&tree);
    let disk = image(&tree, directory.path());
    run("fsck.erofs", &[disk.to_str().unwrap()]);
    let Some(mounted) = mounted(&disk, directory.path()) else {
        return;
    };
    let (found, expected) = (listing(&mounted.0), listing(&tree));
    same(&found, &expected, "directory");
}

/// Compares two listings, and shows no more than the first line that differs.
fn same(found: &str, expected: &str, name: &str) {
    let (mut found, mut expected) = (found.lines(), expected.lines());
    loop {
        match (found.next(), expected.next()) {
            (None, None) => break,
            (found, expected) => assert_eq!(found, expected, "{name}"),
        }
    }
}
