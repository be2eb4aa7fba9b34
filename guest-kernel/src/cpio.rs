//! The initramfs: a `newc` cpio archive, written byte for byte reproducibly.
//!
//! Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
//! It holds the agent as `/init`, the mount points and the console node that the
//! kernel needs before the agent runs, and nothing else. It is not compressed: the
//! agent is small, and unpacking is on the way of every start.

use std::io::{self, Write};

/// What cannot be put into an archive.
#[derive(Debug, thiserror::Error)]
pub enum CpioError {
    /// The format has 32 bits for a file's size.
    #[error("{name} has {size} bytes; a cpio archive holds files of at most 4 GiB")]
    TooLarge {
        /// The name in the archive.
        name: &'static str,
        /// Its size in bytes.
        size: usize,
    },
    /// The archive could not be written.
    #[error("cannot write the archive")]
    Write(#[from] io::Error),
}

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CONSOLE: u32 = 0o020_600;
/// The system console's device number, 5:1 (Documentation/admin-guide/devices.txt).
const CONSOLE_DEVICE: (u32, u32) = (5, 1);
/// The directories that must exist before the agent has mounted anything.
const DIRECTORIES: [&str; 3] = ["dev", "proc", "sys"];

/// Writes the initramfs with `agent` as its `/init`.
///
/// # Errors
/// The agent does not fit the format, or `out` fails.
pub fn write_initramfs(out: &mut impl Write, agent: &[u8]) -> Result<(), CpioError> {
    let mut archive = Archive { out, inode: 0 };
    for directory in DIRECTORIES {
        archive.entry(directory, DIRECTORY, (0, 0), &[])?;
    }
    archive.entry("dev/console", CONSOLE, CONSOLE_DEVICE, &[])?;
    archive.entry("init", EXECUTABLE, (0, 0), agent)?;
    archive.finish()
}

struct Archive<'a, W> {
    out: &'a mut W,
    inode: u32,
}

impl<W: Write> Archive<'_, W> {
    fn entry(&mut self, name: &'static str, mode: u32, device: (u32, u32), data: &[u8]) -> Result<(), CpioError> {
        let size = u32::try_from(data.len()).map_err(|_| CpioError::TooLarge { name, size: data.len() })?;
        self.inode += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        self.header(name, [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1])?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    fn finish(mut self) -> Result<(), CpioError> {
        self.header("TRAILER!!!", [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    }

    /// Fields: inode, mode, uid, gid, links, mtime, size, device (major, minor), the
    /// node's own device (major, minor); the name's length and a checksum that this
    /// variant of the format leaves 0 follow.
    fn header(&mut self, name: &'static str, fields: [u32; 11]) -> Result<(), CpioError> {
        let length = name.len() + 1;
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        write!(self.out, "{length:08X}{:08X}{name}\0", 0)?;
        self.pad(HEADER + length)
    }

    fn pad(&mut self, written: usize) -> Result<(), CpioError> {
        let padding = written.next_multiple_of(4) - written;
        Ok(self.out.write_all(&[0; 3][..padding])?)
    }
}

/// Size of a header in bytes, before the name.
const HEADER: usize = 110;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq)]
    struct Entry {
        name: String,
        inode: u32,
        mode: u32,
        links: u32,
        mtime: u32,
        device: (u32, u32),
        data: Vec<u8>,
    }

    /// Reads an archive back, checking alignment, padding and the trailer.
    fn read(bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(at % 4, 0);
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let start = at + 6 + n * 8;
                let text = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, name_length) = (field(6) as usize, field(11) as usize);
            let name = &bytes[at + HEADER..at + HEADER + name_length];
            assert_eq!(name.last(), Some(&0));
            let name = String::from_utf8(name[..name_length - 1].to_vec()).unwrap();
            let data_at = (at + HEADER + name_length).next_multiple_of(4);
            assert!(bytes[at + HEADER + name_length..data_at].iter().all(|b| *b == 0));
            let end = (data_at + size).next_multiple_of(4);
            assert!(bytes[data_at + size..end].iter().all(|b| *b == 0));
            if name == "TRAILER!!!" {
                assert_eq!(end, bytes.len());
                return entries;
            }
            assert_eq!(
                (field(2), field(3), field(12)),
                (0, 0, 0),
                "owner or checksum of {name}"
            );
            entries.push(Entry {
                name,
                inode: field(0),
                mode: field(1),
                links: field(4),
                mtime: field(5),
                device: (field(9), field(10)),
                data: bytes[data_at..data_at + size].to_vec(),
            });
            at = end;
        }
    }

    fn archive(agent: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_initramfs(&mut bytes, agent).unwrap();
        bytes
    }

    #[test]
    fn the_archive_holds_the_agent_the_console_and_mount_points_only() {
        let entries = read(&archive(b"\x7fELF agent"));
        let names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["dev", "proc", "sys", "dev/console", "init"]);
        let init = &entries[4];
        assert_eq!((init.mode, init.links), (0o100_755, 1));
        assert_eq!(init.data, b"\x7fELF agent");
        let console = &entries[3];
        assert_eq!((console.mode, console.device), (0o020_600, (5, 1)));
        assert_eq!((entries[0].mode, entries[0].links), (0o040_755, 2));
    }

    #[test]
    fn times_are_zero_and_inodes_count_up() {
        for (index, entry) in read(&archive(b"x")).iter().enumerate() {
            assert_eq!(entry.mtime, 0);
            assert_eq!(entry.inode as usize, index + 1);
        }
    }

    #[test]
    fn the_cpio_program_reads_it_too() {
        let mut child = match std::process::Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
        {
            Ok(child) => child,
            Err(error) => {
                eprintln!("not run: no cpio on this machine: {error}");
                return;
            }
        };
        child.stdin.take().unwrap().write_all(&archive(b"agent")).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, b"dev\nproc\nsys\ndev/console\ninit\n");
    }

    proptest! {
        #[test]
        fn every_agent_is_read_back_as_it_was(agent in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = archive(&agent);
            prop_assert_eq!(&read(&bytes)[4].data, &agent);
            prop_assert_eq!(bytes, archive(&agent));
        }
    }
}
