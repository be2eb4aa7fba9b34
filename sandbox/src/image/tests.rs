use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;
use std::time::SystemTime;

use super::*;

fn rootfs() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("bin/deep/er")).unwrap();
    fs::write(root.path().join("bin/sh"), vec![7; 10_000]).unwrap();
    fs::hard_link(root.path().join("bin/sh"), root.path().join("bin/ash")).unwrap();
    symlink("sh", root.path().join("bin/bash")).unwrap();
    settle();
    root
}

/// Waits until the file systems' clock has left the tick of the last change. That has the time of the fine clock if it
/// was looked at shortly before, which the coarse one may reach a tick later.
fn settle() {
    for _ in 0..2 {
        let now = tree::coarse_now().unwrap();
        while tree::coarse_now().unwrap() == now {
            thread::yield_now();
        }
    }
}

fn cache() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("images"), DEFAULT_LIMIT).unwrap();
    (dir, cache)
}

fn images(cache: &Cache) -> Vec<String> {
    let names = fs::read_dir(&cache.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "lock").collect()
}

#[test]
fn an_unchanged_tree_is_converted_once() {
    let (root, (_dir, cache)) = (rootfs(), cache());
    let first = cache.image(root.path()).unwrap();
    assert!(first.converted && is_whole(&first.parts[0]));
    let second = cache.image(root.path()).unwrap();
    assert!(!second.converted);
    assert_eq!(
        first.parts[0].metadata().unwrap().ino(),
        second.parts[0].metadata().unwrap().ino()
    );
    assert_eq!(images(&cache).len(), 1);
}

#[test]
fn every_kind_of_change_is_noticed() {
    let (root, path) = (rootfs(), |root: &tempfile::TempDir, name: &str| root.path().join(name));
    let mut seen = vec![Tree::read(root.path()).unwrap().key];
    let mut changed = |what: &str| {
        let key = Tree::read(root.path()).unwrap().key;
        assert!(!seen.contains(&key), "{what}");
        seen.push(key);
        settle();
    };
    fs::write(path(&root, "bin/sh"), vec![8; 10_000]).unwrap();
    changed("contents of the same size");
    fs::set_permissions(path(&root, "bin/sh"), fs::Permissions::from_mode(0o755)).unwrap();
    changed("mode");
    fs::remove_file(path(&root, "bin/bash")).unwrap();
    symlink("as", path(&root, "bin/bash")).unwrap();
    changed("link target");
    fs::write(path(&root, "bin/deep/er/new"), "").unwrap();
    changed("a new file");
    fs::rename(path(&root, "bin/deep/er/new"), path(&root, "bin/deep/er/newer")).unwrap();
    changed("a rename");
    File::open(path(&root, "bin/sh"))
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH)
        .unwrap();
    changed("a time");
}

#[test]
fn starts_at_once_convert_once() {
    let (root, (_dir, cache)) = (rootfs(), cache());
    let converted: usize = thread::scope(|scope| {
        let starts: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| cache.image(root.path()).unwrap().converted))
            .collect();
        starts.into_iter().map(|start| usize::from(start.join().unwrap())).sum()
    });
    assert_eq!(converted, 1);
}

#[test]
fn what_is_no_root_file_system_is_named() {
    let (root, (_dir, cache)) = (rootfs(), cache());
    let refusal = |path: &Path| match cache.image(path).unwrap_err() {
        ImageError::Tree(error) => error,
        error => panic!("{error}"),
    };
    assert!(matches!(refusal(&root.path().join("none")), TreeError::Missing(_)));
    assert!(matches!(
        refusal(&root.path().join("bin/sh")),
        TreeError::NotADirectory(_)
    ));
    assert!(matches!(refusal(&root.path().join("bin/deep/er")), TreeError::Empty(_)));
    assert!(matches!(refusal(Path::new("/")), TreeError::MountPoint(_)));
}

#[test]
fn a_damaged_image_is_made_anew() {
    let (root, (_dir, cache)) = (rootfs(), cache());
    cache.image(root.path()).unwrap();
    let path = cache.dir.join(&images(&cache)[0]);
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let again = cache.image(root.path()).unwrap();
    assert!(again.converted && is_whole(&again.parts[0]));
}

#[test]
fn an_unsettled_tree_is_not_kept() {
    let (root, (_dir, cache)) = (rootfs(), cache());
    let mut tree = Tree::read(root.path()).unwrap();
    tree.newest = (i64::MAX, 0);
    assert!(is_whole(
        &cache.convert(root.path(), Role::Root, &tree, || Ok(true)).unwrap()
    ));
    assert!(images(&cache).is_empty());
}

#[test]
fn a_failed_conversion_leaves_nothing() {
    let (root, (_dir, cache)) = (rootfs(), cache());
    let unfinished = Unfinished::create(&cache.dir).unwrap();
    let file = root.path().join("bin/sh");
    let error = directory::convert(&file, Role::Root, [0; 16], unfinished.file(), &Limits::DEFAULT).unwrap_err();
    assert!(matches!(error, DirectoryError::Read(..)), "{error}");
    drop(unfinished);
    assert!(images(&cache).is_empty());
}

#[test]
fn the_images_that_were_not_used_for_longest_go_first() {
    let (_dir, mut cache) = cache();
    let (old, new, third) = (rootfs(), rootfs(), rootfs());
    let old_image = cache.image(old.path()).unwrap();
    cache.limit = 2 * old_image.parts[0].metadata().unwrap().blocks() * 512;
    cache.image(new.path()).unwrap();
    cache.image(old.path()).unwrap();
    cache.image(third.path()).unwrap();
    assert!(
        !cache.image(old.path()).unwrap().converted,
        "used again before the third"
    );
    assert!(cache.image(new.path()).unwrap().converted, "not used for longest");
    assert!(is_whole(&old_image.parts[0]));
}
