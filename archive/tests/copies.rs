//! Files into an archive and out of it, and what archives and directories of others try.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use husk_archive::tar::{Reader, Type};
use husk_archive::{ArchiveError, Kind, Root, Unpacking, pack, unpack};
use husk_tests::Tar;
use nix::sys::stat::Mode;

const ALL: Unpacking<'_> = Unpacking {
    name: b"",
    owners: false,
};

fn packed(directory: &Path, path: &str, follow: bool, name: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let root = Root::open(directory).unwrap();
    pack(&root, Path::new(path), follow, name, &mut archive).unwrap();
    archive
}

fn unpacked(directory: &Path, how: Unpacking<'_>, archive: &[u8]) -> Result<(), ArchiveError> {
    unpack(&Root::open(directory).unwrap(), Path::new("/"), how, archive)
}

#[test]
fn a_tree_arrives_as_it_was() {
    let from = tempfile::tempdir().unwrap();
    let tree = from.path().join("tree");
    let long = "n".repeat(200);
    fs::create_dir_all(tree.join("locked/inner")).unwrap();
    fs::write(tree.join("locked/file"), vec![7; 100_001]).unwrap();
    fs::hard_link(tree.join("locked/file"), tree.join("twin")).unwrap();
    fs::write(tree.join(&long), "long").unwrap();
    symlink("/etc/passwd", tree.join("link")).unwrap();
    symlink(&long, tree.join("long link")).unwrap();
    nix::unistd::mkfifo(&tree.join("pipe"), Mode::S_IRWXU).unwrap();
    fs::set_permissions(tree.join("locked/file"), Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(tree.join("locked"), Permissions::from_mode(0o555)).unwrap();
    let archive = packed(from.path(), "tree", false, b"copy");
    // Another implementation reads it too.
    let mut listed = std::process::Command::new("tar");
    let listed = listed.args(["t", "-f", "-"]).stdin(spooled(&archive));
    let listed = String::from_utf8(listed.output().unwrap().stdout).unwrap();
    assert!(
        listed.contains(&format!("copy/{long}\n")) && listed.contains("copy/pipe\n"),
        "{listed}"
    );

    let to = tempfile::tempdir().unwrap();
    let how = Unpacking {
        name: b"copy",
        owners: false,
    };
    unpacked(to.path(), how, &archive).unwrap();
    let copy = to.path().join("copy");
    assert_eq!(fs::read(copy.join("locked/file")).unwrap(), vec![7; 100_001]);
    let meta = |path: &str| copy.join(path).symlink_metadata().unwrap();
    assert_eq!(meta("locked/file").ino(), meta("twin").ino());
    // Nobody gains rights that somebody else's file had.
    assert_eq!(meta("twin").mode() & 0o7777, 0o751);
    assert_eq!(meta("locked").mode() & 0o7777, 0o555);
    let original = tree.join("locked").metadata().unwrap();
    assert_eq!(meta("locked").mtime(), original.mtime());
    assert_eq!(fs::read_to_string(copy.join(&long)).unwrap(), "long");
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::read_to_string(copy.join("long link")).unwrap(), "long");
    assert!(meta("locked/inner").is_dir());
    for directory in [copy.join("locked"), tree.join("locked")] {
        fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    }
}

fn spooled(bytes: &[u8]) -> fs::File {
    use std::io::{Seek, Write};
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

#[test]
fn paths_and_links_do_not_lead_out_of_the_root() {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("root");
    fs::create_dir_all(inner.join("etc")).unwrap();
    fs::write(outer.path().join("secret"), "outside").unwrap();
    fs::write(inner.join("secret"), "inside").unwrap();
    symlink("/secret", inner.join("absolute")).unwrap();
    symlink("../../../secret", inner.join("etc/climbing")).unwrap();
    symlink("/nowhere/new", inner.join("dangling")).unwrap();
    symlink("itself", inner.join("itself")).unwrap();
    let root = Root::open(&inner).unwrap();
    for path in ["/absolute", "etc/climbing", "../secret", "/etc/../../secret"] {
        let archive = packed(&inner, path, true, b"x");
        let mut reader = Reader::new(&archive[..]);
        assert_eq!(reader.next().unwrap().unwrap().size, 6, "{path}");
    }
    let archive = packed(&inner, "absolute", false, b"x");
    assert_eq!(Reader::new(&archive[..]).next().unwrap().unwrap().kind, Type::Symlink);
    let look = |path: &str, follow| root.look(Path::new(path), follow);
    assert_eq!(look("/absolute", false).unwrap().kind, Some(Kind::Symlink));
    let found = look("etc/climbing", true).unwrap();
    assert_eq!(found.kind, Some(Kind::File));
    let found = look("dangling", true).unwrap();
    assert_eq!((found.kind, found.path.as_path()), (None, Path::new("/nowhere/new")));
    assert!(look("itself", true).is_err());
}

#[test]
fn an_archive_writes_nothing_outside_of_its_destination() {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("to");
    fs::create_dir(&inner).unwrap();
    fs::write(outer.path().join("victim"), "whole").unwrap();
    symlink("..", inner.join("up")).unwrap();
    symlink("../victim", inner.join("file")).unwrap();
    for (archive, named) in [
        (Tar::new().file("../victim", 0o644, "x"), "lies outside"),
        (Tar::new().file("a/../../victim", 0o644, "x"), "lies outside"),
        (Tar::new().file("up/victim", 0o644, "x"), "not a directory"),
        (Tar::new().directory("up/", 0o755), "not a directory"),
        (
            Tar::new().symlink("new", "..").file("new/victim", 0o644, "x"),
            "not a directory",
        ),
        (Tar::new().link("stolen", "../victim"), "lies outside"),
        (Tar::new().link("stolen", "up/victim"), "not a directory"),
    ] {
        let error = unpacked(&inner, ALL, &archive.finish()).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    // What stands in the place of a file is replaced, and not written through.
    unpacked(&inner, ALL, &Tar::new().file("/file", 0o644, "x").finish()).unwrap();
    assert_eq!(fs::read_to_string(inner.join("file")).unwrap(), "x");
    assert_eq!(fs::read_to_string(outer.path().join("victim")).unwrap(), "whole");
    let how = Unpacking {
        name: b"mine",
        owners: false,
    };
    for archive in [
        Tar::new().file("other", 0o644, "x"),
        Tar::new().file("mine", 0o644, "x").link("mine", "file"),
    ] {
        let error = unpacked(&inner, how, &archive.finish()).unwrap_err().to_string();
        assert!(error.contains("lies outside"), "{error}");
    }
}

#[test]
fn directories_and_other_things_do_not_replace_each_other() {
    let to = tempfile::tempdir().unwrap();
    fs::create_dir(to.path().join("directory")).unwrap();
    fs::write(to.path().join("directory/kept"), "x").unwrap();
    fs::write(to.path().join("file"), "x").unwrap();
    let error = unpacked(to.path(), ALL, &Tar::new().file("directory", 0o644, "y").finish()).unwrap_err();
    assert!(matches!(error, ArchiveError::Directory(_)), "{error}");
    let error = unpacked(to.path(), ALL, &Tar::new().directory("file/", 0o755).finish()).unwrap_err();
    assert!(matches!(error, ArchiveError::NotADirectory(_)), "{error}");
    unpacked(to.path(), ALL, &Tar::new().directory("directory/", 0o700).finish()).unwrap();
    assert!(to.path().join("directory/kept").exists());
    let error = unpacked(to.path(), ALL, &[7; 512]).unwrap_err();
    assert!(matches!(error, ArchiveError::Tar(_)), "{error}");
}
