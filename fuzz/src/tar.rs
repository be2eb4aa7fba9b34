//! Archives whose checksums are right, whatever else is in them.

use arbitrary::{Result, Unstructured};

const BLOCK: usize = 512;
/// Names that have to do with each other.
const NAMES: [&str; 16] = [
    "a",
    "a/b",
    "a/b/c",
    "./a",
    "/a",
    "b",
    "b/",
    "../a",
    "a/../b",
    ".wh.a",
    "a/.wh.b",
    "a/.wh..wh..opq",
    ".wh..wh.plnk/x",
    "",
    ".",
    "c",
];
const TYPES: &[u8] = b"0000000\x0012345567gxLKSDVZ";

/// The header of a member, with its checksum.
pub fn header(name: &[u8], kind: u8, size: u64, link: &[u8], mode: u32) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, most: usize, bytes: &[u8]| {
        let length = bytes.len().min(most);
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(0, 100, name);
    put(100, 8, format!("{:07o}\0", mode & 0o7_777_777).as_bytes());
    put(108, 8, b"0000000\0");
    put(116, 8, b"0000000\0");
    put(124, 12, format!("{size:011o}\0").as_bytes());
    put(136, 12, b"00000000000\0");
    put(156, 1, &[kind]);
    put(157, 100, link);
    put(257, 8, b"ustar\x0000");
    sign(&mut block);
    block
}

/// Makes the checksum right.
fn sign(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Adds a member and its contents.
pub fn add(archive: &mut Vec<u8>, name: &str, contents: &[u8]) {
    archive.extend(header(name.as_bytes(), b'0', contents.len() as u64, b"", 0o644));
    archive.extend(contents);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

/// An archive as the script says.
pub fn archive(script: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    for _ in 0..script.int_in_range(0..=12)? {
        member(&mut archive, script)?;
    }
    if script.arbitrary()? {
        archive.resize(archive.len() + 2 * BLOCK, 0);
    }
    Ok(archive)
}

fn member(archive: &mut Vec<u8>, script: &mut Unstructured<'_>) -> Result<()> {
    let kind = *script.choose(TYPES)?;
    let contents = match kind {
        b'g' | b'x' if script.arbitrary()? => records(script)?,
        _ => {
            let length = script.int_in_range(0..=40)?;
            script.bytes(length.min(script.len()))?.to_vec()
        }
    };
    let size = if script.ratio(1, 16)? {
        script.arbitrary::<u64>()? & 0o77_777_777_777
    } else {
        contents.len() as u64
    };
    let name = *script.choose(&NAMES)?;
    let link = *script.choose(&NAMES)?;
    let mut block = header(name.as_bytes(), kind, size, link.as_bytes(), script.arbitrary()?);
    if script.ratio(1, 4)? {
        let at = script.int_in_range(0..=BLOCK - 9)?;
        block[at..at + 8].copy_from_slice(&script.arbitrary::<[u8; 8]>()?);
        sign(&mut block);
    }
    archive.extend(block);
    archive.extend(contents);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    Ok(())
}

/// Records of a pax header.
fn records(script: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    const KEYS: [&str; 12] = [
        "path",
        "linkpath",
        "size",
        "mtime",
        "uid",
        "SCHILY.xattr.user.a",
        "LIBARCHIVE.xattr.user.b",
        "GNU.sparse.major",
        "GNU.sparse.minor",
        "GNU.sparse.map",
        "GNU.sparse.realsize",
        "GNU.sparse.name",
    ];
    const VALUES: [&str; 10] = [
        "a",
        "a/b",
        "1",
        "0",
        "0,5,10,5",
        "0,0",
        "18446744073709551615",
        "-1.5",
        "1000",
        "x=y",
    ];
    let mut text = Vec::new();
    for _ in 0..script.int_in_range(1..=4)? {
        let (key, value) = (script.choose(&KEYS)?, script.choose(&VALUES)?);
        let rest = format!(" {key}={value}\n");
        let length = match rest.len() + 1 {
            short @ 0..=9 => short,
            long @ 10..=98 => long + 1,
            long => long + 2,
        };
        let length = if script.ratio(1, 16)? {
            script.int_in_range(0..=200)?
        } else {
            length
        };
        text.extend(format!("{length}{rest}").as_bytes());
    }
    Ok(text)
}
