//! Archives in the form of POSIX.1-2001: ustar, with an extension header where its fields do not suffice.

use std::io::{self, Write};
use std::ops::Range;

use super::{Member, RECORD, Type, padding};

/// What a ustar header can hold: bytes of a name, an id, a length, a time.
const MAX_NAME: usize = 100;
const MAX_ID: u32 = 0o7_777_777;
const MAX_NUMBER: u64 = 0o77_777_777_777;

/// An archive that is being written. Of a [`Member`], extended attributes, maps of sparse files and parts of seconds are
/// not written.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// An archive's writer.
    pub fn new(out: W) -> Self {
        Self { out, written: 0 }
    }

    /// Begins a member; a file's contents follow, and [`end_contents`](Self::end_contents).
    ///
    /// # Errors
    /// What writing has met.
    pub fn member(&mut self, member: &Member) -> io::Result<()> {
        let extension = extension(member);
        if !extension.is_empty() {
            let header = header(
                b'x',
                &Member {
                    path: b"PaxHeaders/0".to_vec(),
                    link: Vec::new(),
                    kind: Type::File,
                    mode: 0o644,
                    uid: 0,
                    gid: 0,
                    mtime: 0,
                    mtime_ns: 0,
                    major: 0,
                    minor: 0,
                    size: extension.len() as u64,
                    xattrs: Vec::new(),
                    sparse: None,
                },
            );
            self.out.write_all(&header)?;
            self.contents(&extension)?;
            self.end_contents()?;
        }
        let flag = match member.kind {
            Type::File => b'0',
            Type::Link => b'1',
            Type::Symlink => b'2',
            Type::CharDevice => b'3',
            Type::BlockDevice => b'4',
            Type::Directory => b'5',
            Type::Fifo => b'6',
        };
        self.out.write_all(&header(flag, member))
    }

    /// Writes a part of a file's contents.
    ///
    /// # Errors
    /// What writing has met.
    pub fn contents(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Fills up the last record of a file's contents.
    ///
    /// # Errors
    /// What writing has met.
    pub fn end_contents(&mut self) -> io::Result<()> {
        let rest = usize::try_from(padding(self.written)).unwrap_or_default();
        self.written = 0;
        self.out.write_all(&[0; RECORD][..rest])
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// What writing has met.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * RECORD])?;
        self.out.flush()
    }
}

/// The records of an extension header; empty if the member needs none.
fn extension(member: &Member) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |keyword: &str, value: &[u8]| {
        // The length counts its own digits: they are found by trying.
        let rest = keyword.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        records.extend_from_slice(format!("{length} {keyword}=").as_bytes());
        records.extend_from_slice(value);
        records.push(b'\n');
    };
    if member.path.len() > MAX_NAME {
        add("path", &member.path);
    }
    if member.link.len() > MAX_NAME {
        add("linkpath", &member.link);
    }
    for (keyword, id) in [("uid", member.uid), ("gid", member.gid)] {
        if id > MAX_ID {
            add(keyword, id.to_string().as_bytes());
        }
    }
    if member.size > MAX_NUMBER {
        add("size", member.size.to_string().as_bytes());
    }
    if u64::try_from(member.mtime).is_ok_and(|time| time > MAX_NUMBER) || member.mtime < 0 {
        add("mtime", member.mtime.to_string().as_bytes());
    }
    records
}

/// A header's record; what does not fit in stands in the extension header.
fn header(flag: u8, member: &Member) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let mut put = |field: Range<usize>, value: &[u8]| {
        let length = value.len().min(field.len());
        record[field][..length].copy_from_slice(&value[..length]);
    };
    let octal = |value: u64, digits: usize| format!("{value:0digits$o}").into_bytes();
    let fitting = |value: u64, most: u64| if value > most { 0 } else { value };
    let id = |id: u32| fitting(id.into(), MAX_ID.into());
    put(0..100, &member.path);
    put(100..107, &octal(u64::from(member.mode), 7));
    put(108..115, &octal(id(member.uid), 7));
    put(116..123, &octal(id(member.gid), 7));
    put(124..135, &octal(fitting(member.size, MAX_NUMBER), 11));
    let mtime = u64::try_from(member.mtime).unwrap_or_default();
    put(136..147, &octal(fitting(mtime, MAX_NUMBER), 11));
    put(148..156, b"        ");
    put(156..157, &[flag]);
    put(157..257, &member.link);
    put(257..265, b"ustar\x0000");
    put(329..336, &octal(u64::from(member.major & 0o7_777_777), 7));
    put(337..344, &octal(u64::from(member.minor & 0o7_777_777), 7));
    let sum: u32 = record.iter().copied().map(u32::from).sum();
    record[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    record
}
