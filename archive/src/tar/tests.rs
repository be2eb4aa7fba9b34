use husk_tests::Tar;
use proptest::prelude::*;

use super::*;

fn members(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(bytes);
    let mut members = Vec::new();
    while let Some(member) = reader.next()? {
        let mut contents = Vec::new();
        reader.read_to_end(&mut contents)?;
        members.push((member, contents));
    }
    Ok(members)
}

fn one(tar: Tar) -> Result<Member, TarError> {
    members(&tar.finish()).map(|mut members| members.remove(0).0)
}

#[test]
fn each_type_is_told() {
    let tar = Tar::new()
        .owner(70_000, 5_000_000_000)
        .directory("d/", 0o1777)
        .owner(70_000, 4_294_967_295)
        .file("d/f", 0o4755, b"contents")
        .symlink("l", "../x")
        .link("h", "d/f")
        .device("null", 0o666, 1, 3)
        .fifo("p", 0o600);
    assert!(matches!(
        members(&tar.finish()),
        Err(TarError::Number { field: "group", .. })
    ));
    let tar = Tar::new()
        .owner(70_000, 4_294_967_295)
        .directory("d/", 0o1777)
        .file("d/f", 0o4755, b"contents")
        .symlink("l", "../x")
        .link("h", "d/f")
        .device("null", 0o666, 1, 3)
        .fifo("p", 0o600);
    let members = members(&tar.finish()).unwrap();
    let kinds: Vec<_> = members.iter().map(|(member, _)| member.kind).collect();
    use Type::{CharDevice, Directory, Fifo, File, Link, Symlink};
    assert_eq!(kinds, [Directory, File, Symlink, Link, CharDevice, Fifo]);
    assert_eq!(members[1].1, b"contents");
    assert_eq!(
        (members[1].0.uid, members[1].0.gid, members[1].0.mode),
        (70_000, u32::MAX, 0o4755)
    );
    assert_eq!(members[2].0.link, b"../x");
    assert_eq!((members[4].0.major, members[4].0.minor), (1, 3));
}

#[test]
fn long_names_come_from_headers_before_the_member() {
    let long = "a/".repeat(150) + "end";
    assert_eq!(one(Tar::new().file(&long, 0o644, "")).unwrap().path, long.as_bytes());
    let target = "t".repeat(300);
    let tar = Tar::new()
        .pax(&[("path", b"x\xff\ny"), ("linkpath", target.as_bytes())])
        .symlink("l", "short");
    let member = one(tar).unwrap();
    assert_eq!(
        (member.path.as_slice(), member.link.as_slice()),
        (&b"x\xff\ny"[..], target.as_bytes())
    );
}

#[test]
fn pax_records_replace_fields() {
    let tar = Tar::new()
        .pax(&[
            ("uid", b"4000000000"),
            ("gid", b"1"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.a", b"=\n\0"),
            ("SCHILY.xattr.user.b", b""),
            ("comment", b"nothing"),
        ])
        .file("f", 0o644, "x");
    let member = one(tar).unwrap();
    assert_eq!((member.uid, member.gid), (4_000_000_000, 1));
    assert_eq!((member.mtime, member.mtime_ns), (-2, 750_000_000));
    let expected = vec![
        (b"user.a".to_vec(), b"=\n\0".to_vec()),
        (b"user.b".to_vec(), Vec::new()),
    ];
    assert_eq!(member.xattrs, expected);
    // They hold for one member.
    let tar = Tar::new().pax(&[("uid", b"7")]).file("a", 0, "").file("b", 0, "");
    assert_eq!(members(&tar.finish()).unwrap()[1].0.uid, 0);
}

#[test]
fn a_size_beyond_octal_digits_is_read() {
    let reader = |tar: Tar| {
        Reader::new(std::io::Cursor::new(tar.finish()))
            .next()
            .unwrap()
            .unwrap()
            .size
    };
    assert_eq!(reader(Tar::new().claims("f", 1 << 40)), 1 << 40);
    assert_eq!(
        reader(Tar::new().pax(&[("size", b"9000000000000")]).claims("f", 0)),
        9_000_000_000_000
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let valid = Tar::new().file("name", 0o644, [7; 1000]).finish();
    assert!(matches!(members(&valid[..1100]), Err(TarError::Truncated)));
    assert!(matches!(members(&valid[..100]), Err(TarError::Truncated)));
    assert!(members(&valid[..1536]).is_ok(), "an archive may lack its end");
    let mut changed = valid.clone();
    changed[0] ^= 1;
    assert!(matches!(members(&changed), Err(TarError::Checksum(0))));
    assert!(matches!(
        members(b"this is no archive").unwrap_err(),
        TarError::Truncated
    ));
    let refused = |tar: Tar| members(&tar.finish()).unwrap_err();
    assert!(matches!(
        refused(Tar::new().member(b'M', "x", "", 0, b"")),
        TarError::Type { flag: 'M', at: 0 }
    ));
    assert!(matches!(
        refused(Tar::new().pax(&[("uid", b"7")])),
        TarError::Orphan(1024)
    ));
    for records in [
        &b"7 uid=1"[..],
        b"0 a=b\n",
        b"99 uid=1\n",
        b"5 uid\n",
        b"8 uid=x\n",
        b"x uid=1\n",
        b"9 path=\0\n",
    ] {
        let tar = Tar::new().member(b'x', "pax", "", 0, records).file("f", 0, "");
        assert!(matches!(refused(tar), TarError::Extension(0)), "{records:?}");
    }
    let long = Tar::new()
        .member(b'x', "pax", "", 0, &vec![b'0'; (1 << 20) + 1])
        .file("f", 0, "");
    assert!(matches!(refused(long), TarError::LongExtension { .. }));
    let claims = Tar::new().member(b'L', "x", "", 0, b"").claims("f", 1 << 62);
    assert!(matches!(refused(claims), TarError::Truncated));
}

#[test]
fn maps_that_make_no_sense_are_refused() {
    for map in [
        "0,5,3,5",
        "0,5,100,5",
        "0,11",
        "1",
        "0,5,",
        "18446744073709551615,2",
        "0,4",
    ] {
        let tar = Tar::new()
            .pax(&[("GNU.sparse.size", b"50"), ("GNU.sparse.map", map.as_bytes())])
            .file("f", 0, "0123456789");
        assert!(members(&tar.finish()).is_err(), "{map}");
    }
    let tar = Tar::new()
        .pax(&[("GNU.sparse.size", b"50"), ("GNU.sparse.map", b"0,5,45,5")])
        .file("f", 0, "0123456789");
    let member = one(tar).unwrap();
    assert_eq!((member.size, member.sparse.unwrap().len()), (50, 2));
    for map in ["99999999\n", "1\n", "x\n", "1\n0\n5", "2\n0\n5\n3\n5\n"] {
        let mut contents = map.as_bytes().to_vec();
        contents.resize(512, 0);
        contents.extend_from_slice(b"0123456789");
        let records: [(&str, &[u8]); 3] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"50"),
        ];
        let tar = Tar::new().pax(&records).file("f", 0, &contents);
        assert!(members(&tar.finish()).is_err(), "{map:?}");
    }
}

#[test]
fn numbers_are_read_as_they_are_written() {
    for (field, value) in [
        (&b"0000755\0"[..], Some(0o755)),
        (b"   755 \0", Some(0o755)),
        (b"\0\0\0\0", Some(0)),
        (b"        ", Some(0)),
        (b"12345678", None),
        (b"\x80\0\0\x01\0", Some(256)),
        (b"\xff\xff\xff\xff", Some(-1)),
        (b"\xff\xff\xff\xfe", Some(-2)),
        (b"\x80\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
        (b"\x80\x80\0\0\0\0\0\0\0", None),
        (b"\x81\0\0\0\0\0\0\0\0\0\0\0", None),
        (b"0008\0", None),
        (b"-1\0", None),
    ] {
        assert_eq!(header::number(field), value, "{field:?}");
    }
}

/// Any archive, more or less.
fn archives() -> impl Strategy<Value = Vec<u8>> {
    let member = (
        prop::sample::select(b"0123456789xgLKSMV\0".to_vec()),
        "[a-z./]{0,120}",
        prop::collection::vec(any::<u8>(), 0..1500),
        0..40_000_u64,
    );
    let tar = prop::collection::vec(member, 0..6).prop_map(|members| {
        members
            .into_iter()
            .fold(Tar::new(), |tar, (flag, path, contents, claim)| match claim % 5 {
                0 => tar.claims(&path, claim),
                1 => tar.raw(&contents),
                2 => tar.pax(&[
                    ("GNU.sparse.size", b"99999"),
                    ("GNU.sparse.map", &contents),
                    (&path, b"1"),
                ]),
                _ => tar.member(flag, &path, "", 0o644, &contents),
            })
            .finish()
    });
    (tar, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut bytes, index, change)| {
        if change < 128 && !bytes.is_empty() {
            let at = index.index(bytes.len());
            bytes[at] ^= change;
        }
        bytes
    })
}

proptest! {
    /// Whatever is read: no panic, no more than there is, and the same again.
    #[test]
    fn any_archive_is_read_or_refused(bytes in archives()) {
        let first = members(&bytes);
        if let Ok(members) = &first {
            let total: usize = members.iter().map(|(_, contents)| contents.len()).sum();
            prop_assert!(total <= bytes.len());
        }
        prop_assert_eq!(format!("{first:?}"), format!("{:?}", members(&bytes)));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = members(&bytes);
    }
}
