use std::os::unix::fs::FileExt;

use husk_tests::Tar;
use proptest::prelude::*;

use super::*;
use crate::erofs;
use crate::tree::Tree;

fn converted(tar: Tar, limits: &Limits) -> Result<(File, Vec<Entry>), LayerError> {
    let file = tempfile::tempfile().unwrap();
    convert(&tar.finish()[..], &file, limits)?;
    let entries = read_index(&file).unwrap();
    Ok((file, entries))
}

fn refused(tar: Tar) -> LayerError {
    converted(tar, &Limits::DEFAULT).unwrap_err()
}

fn contents(file: &File, entry: &Entry) -> Vec<u8> {
    match &entry.kind {
        Kind::File(content) => read(file, content, usize::MAX).unwrap(),
        kind => panic!("{kind:?}"),
    }
}

#[test]
fn contents_begin_at_blocks_and_names_are_clean() {
    let tar = Tar::new()
        .directory("./", 0o755)
        .file("./a", 0o644, "first")
        .file("/abs//b/./c", 0o644, [7; 5000])
        .file("empty", 0o644, "");
    let (file, entries) = converted(tar, &Limits::DEFAULT).unwrap();
    assert!(is_whole(&file));
    let paths: Vec<_> = entries.iter().map(|entry| lossy(&entry.path)).collect();
    assert_eq!(paths, ["", "a", "abs/b/c", "empty"]);
    assert_eq!(contents(&file, &entries[1]), b"first");
    assert_eq!(contents(&file, &entries[2]), [7; 5000]);
    assert_eq!(contents(&file, &entries[3]), b"");
    assert_eq!(file.metadata().unwrap().len() % BLOCK, 0);
}

#[test]
fn whiteouts_are_told_by_their_names() {
    let tar = Tar::new()
        .whiteout("d/gone")
        .opaque("d/e")
        .opaque("")
        .file(".wh..wh.plnk", 0, "x")
        .whiteout("top");
    let (_, entries) = converted(tar, &Limits::DEFAULT).unwrap();
    let found: Vec<_> = entries
        .iter()
        .map(|entry| (lossy(&entry.path), entry.kind.clone()))
        .collect();
    let expected = [
        ("d/gone", Kind::Whiteout),
        ("d/e", Kind::Opaque),
        ("", Kind::Opaque),
        ("top", Kind::Whiteout),
    ];
    assert_eq!(found, expected.map(|(path, kind)| (path.to_owned(), kind)));
    for name in [".wh.", "d/.wh..", "d/.wh..."] {
        assert!(
            matches!(refused(Tar::new().file(name, 0, "")), LayerError::Name(_)),
            "{name}"
        );
    }
}

#[test]
fn nothing_leads_out() {
    for path in ["../x", "a/../../x", "..", "/../x", "a/.."] {
        assert!(
            matches!(refused(Tar::new().file(path, 0, "")), LayerError::Escape(_)),
            "{path}"
        );
        let link = Tar::new().file("x", 0, "").link("l", path);
        assert!(matches!(refused(link), LayerError::LinkEscape { .. }), "{path}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let long = "x".repeat(256);
    assert!(matches!(refused(Tar::new().file(&long, 0, "")), LayerError::Name(_)));
    let deep = "x/".repeat(2100);
    assert!(matches!(refused(Tar::new().directory(&deep, 0)), LayerError::Name(_)));
    assert!(matches!(refused(Tar::new().symlink("l", "")), LayerError::Symlink(_)));
    assert!(matches!(
        refused(Tar::new().device("d", 0, 4096, 0)),
        LayerError::Device(_)
    ));
    let value = vec![b'v'; 65_536];
    let tar = Tar::new().pax(&[("SCHILY.xattr.user.x", &value)]).file("f", 0, "");
    assert!(matches!(refused(tar), LayerError::Xattrs(_)));
}

#[test]
fn attributes_that_mean_nothing_here_are_left_out() {
    let records: [(&str, &[u8]); 6] = [
        ("SCHILY.xattr.user.kept", b"1"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.com.apple.quarantine", b"x"),
        ("SCHILY.xattr.security.capability", b"\x01"),
        ("SCHILY.xattr.user.", b"nameless"),
        ("SCHILY.xattr.system.posix_acl_access", b"acl"),
    ];
    let (_, entries) = converted(Tar::new().pax(&records).file("f", 0, ""), &Limits::DEFAULT).unwrap();
    let names: Vec<_> = entries[0].meta.xattrs.iter().map(|(name, _)| lossy(name)).collect();
    assert_eq!(names, ["security.capability", "system.posix_acl_access", "user.kept"]);
}

#[test]
fn bombs_are_bounded() {
    let limits = Limits {
        layer_bytes: 10_000,
        entries: 10,
        metadata_bytes: 20_000,
        ..Limits::DEFAULT
    };
    let refused = |tar| converted(tar, &limits).unwrap_err();
    assert!(matches!(
        refused(Tar::new().claims("f", 10_001)),
        LayerError::LongFile { size: 10_001, .. }
    ));
    let hole = Tar::new()
        .pax(&[("GNU.sparse.size", b"99999"), ("GNU.sparse.map", b"")])
        .file("f", 0, "");
    assert!(matches!(refused(hole), LayerError::LongFile { size: 99_999, .. }));
    let many = (0..11).fold(Tar::new(), |tar, index| tar.fifo(&index.to_string(), 0));
    assert!(matches!(refused(many), LayerError::Entries(10)));
    let value = vec![b'v'; 15_000];
    let wide = (0..2).fold(Tar::new(), |tar, index| {
        tar.pax(&[("SCHILY.xattr.user.x", &value)]).fifo(&index.to_string(), 0)
    });
    assert!(matches!(refused(wide), LayerError::Metadata(20_000)));
}

#[test]
fn a_damaged_layer_file_is_noticed() {
    let (file, _) = converted(Tar::new().file("a", 0, "x"), &Limits::DEFAULT).unwrap();
    let length = file.metadata().unwrap().len();
    for at in [4096, length - 64, length - 50] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        assert!(matches!(read_index(&file), Err(LayerFileError::Damaged)), "{at}");
        file.write_all_at(&byte, at).unwrap();
    }
    assert!(read_index(&file).is_ok());
    file.set_len(length - BLOCK).unwrap();
    assert!(!is_whole(&file));
    file.set_len(0).unwrap();
    assert!(!is_whole(&file));
}

/// A sparse file: how long parts and the holes before them are.
fn sparse_files() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let length = prop_oneof![0..3_usize, 4000..4200_usize, 0..20_000_usize];
    let hole = prop_oneof![Just(0), 1..3_usize, 4090..4100_usize, 0..500_000_usize];
    prop::collection::vec((hole, length), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sparse_files_are_what_they_were(parts in sparse_files(), tail in 0..10_000_usize) {
        let (mut expected, mut stored, mut map) = (Vec::<u8>::new(), Vec::<u8>::new(), Vec::new());
        for (index, (hole, length)) in parts.iter().enumerate() {
            expected.resize(expected.len() + *hole, 0);
            map.push(format!("{},{length}", expected.len()));
            let bytes = vec![u8::try_from(index + 1).unwrap(); *length];
            stored.extend(&bytes);
            expected.extend(&bytes);
        }
        expected.resize(expected.len() + tail, 0);
        let size = expected.len().to_string();
        let tar = Tar::new()
            .pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.join(",").as_bytes())])
            .file("f", 0, &stored)
            .file("behind", 0, "x");
        let (file, entries) = converted(tar, &Limits::DEFAULT).unwrap();
        prop_assert!(contents(&file, &entries[0]) == expected);
        prop_assert!(contents(&file, &entries[1]) == b"x");
    }

    /// Whatever an archive holds, it becomes a disk or is refused; nothing panics.
    #[test]
    fn any_members_become_a_disk_or_are_refused(
        members in prop::collection::vec((prop::sample::select(b"0123456".to_vec()), "[ab./]{0,12}", "[ab./]{0,9}"), 0..30),
    ) {
        let tar = members.iter().fold(Tar::new(), |tar, (flag, path, target)| {
            tar.member(*flag, path, target, 0o644, b"")
        });
        if let Ok((file, entries)) = converted(tar, &Limits::DEFAULT) {
            let mut tree = Tree::new(&Limits::DEFAULT);
            if tree.apply(entries).is_ok() {
                let disk = tempfile::tempfile().unwrap();
                let length = file.metadata().unwrap().len();
                erofs::write(&tree, &[length], [0; 16], &disk).unwrap();
                prop_assert_eq!(disk.metadata().unwrap().len() % BLOCK, 0);
            }
        }
    }
}
