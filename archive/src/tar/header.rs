//! The fields of a header record (POSIX.1-1988 ustar, and GNU tar's "Basic Tar Format" for its own variant).

use std::ops::Range;

use super::RECORD;
use super::sparse::{self, Segment};

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const FLAG: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
/// GNU: the first four segments of a sparse file, whether there are more, and the file's length.
const SPARSE: Range<usize> = 386..482;
const SPARSE_MORE: usize = 482;
const SPARSE_SIZE: Range<usize> = 483..495;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A regular file.
    File,
    /// A hard link to another member.
    Link,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A record whose checksum is right.
pub(super) struct Header([u8; RECORD]);

impl Header {
    pub(super) fn new(record: [u8; RECORD]) -> Option<Self> {
        let stated = number(&record[CHECKSUM])?;
        // The sum counts its own field as spaces; some old writers took bytes as signed numbers.
        let counted = |index: usize, byte: u8| if CHECKSUM.contains(&index) { b' ' } else { byte };
        let bytes = record.iter().enumerate().map(|(index, byte)| counted(index, *byte));
        let unsigned: i64 = bytes.clone().map(i64::from).sum();
        let signed: i64 = bytes.map(|byte| i64::from(byte.cast_signed())).sum();
        (stated == unsigned || stated == signed).then_some(Self(record))
    }

    pub(super) fn flag(&self) -> u8 {
        self.0[FLAG]
    }

    /// What the member is that has this path.
    pub(super) fn kind(&self, path: &[u8]) -> Option<Type> {
        Some(match self.flag() {
            // The oldest format has no other way to tell a directory.
            b'0' | 0 if path.ends_with(b"/") => Type::Directory,
            b'0' | 0 | b'7' | b'S' => Type::File,
            b'1' => Type::Link,
            b'2' => Type::Symlink,
            b'3' => Type::CharDevice,
            b'4' => Type::BlockDevice,
            b'5' => Type::Directory,
            b'6' => Type::Fifo,
            _ => return None,
        })
    }

    /// The name; only POSIX headers have a prefix, in its place GNU's have other fields.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = self.string(NAME);
        let prefix = if self.0[MAGIC].starts_with(b"ustar\0") {
            self.string(PREFIX)
        } else {
            b""
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        self.string(LINK).to_vec()
    }

    /// Permission bits without the type that some writers leave in.
    pub(super) fn mode(&self) -> Option<u16> {
        u16::try_from(self.number(MODE)? & 0o7777).ok()
    }

    pub(super) fn uid(&self) -> Option<u32> {
        u32::try_from(self.number(UID)?).ok()
    }

    pub(super) fn gid(&self) -> Option<u32> {
        u32::try_from(self.number(GID)?).ok()
    }

    pub(super) fn size(&self) -> Option<u64> {
        u64::try_from(self.number(SIZE)?).ok()
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        self.number(MTIME)
    }

    pub(super) fn major(&self) -> Option<u32> {
        u32::try_from(self.number(MAJOR)?).ok()
    }

    pub(super) fn minor(&self) -> Option<u32> {
        u32::try_from(self.number(MINOR)?).ok()
    }

    pub(super) fn sparse_size(&self) -> Option<u64> {
        u64::try_from(self.number(SPARSE_SIZE)?).ok()
    }

    /// The first segments of a sparse file, and whether a record with more of them follows.
    pub(super) fn sparse_map(&self) -> Option<(Vec<Segment>, bool)> {
        let mut map = Vec::new();
        sparse::take(&mut map, &self.0[SPARSE])?;
        Some((map, self.0[SPARSE_MORE] != 0))
    }

    fn number(&self, field: Range<usize>) -> Option<i64> {
        number(&self.0[field])
    }

    fn string(&self, field: Range<usize>) -> &[u8] {
        let field = &self.0[field];
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        &field[..end]
    }
}

/// A number in octal digits between spaces and zero bytes, or, marked by the highest bit, GNU's big-endian two's
/// complement. An empty field is zero.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        // The mark is replaced by a copy of the sign.
        let start = i64::from(first & 0x7f) - if negative { 0x80 } else { 0 };
        return rest.iter().try_fold(start, |value, byte| {
            value.checked_mul(256)?.checked_add(i64::from(*byte))
        });
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}
