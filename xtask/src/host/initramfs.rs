//! The initramfs: one program, in the cpio format that the kernel unpacks ("newc", Documentation/driver-api/early-userspace
//! /buffer-format.rst in the kernel's source).

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive with `/init` and what it needs before it mounts anything.
pub(crate) fn with_init(program: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.add("dev", DIRECTORY | 0o755, (0, 0), &[]);
    // The kernel opens it as the first process's stdin, stdout and stderr.
    archive.add("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[]);
    archive.add("init", REGULAR | 0o755, (0, 0), program);
    archive.finish()
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let size = contents.len();
        let (inode, links, owner, group, time) = (self.entries, 1, 0, 0, 0);
        let (file_system_major, file_system_minor, checksum) = (0, 0, 0);
        let name_size = name.len() + 1;
        let header = format!(
            "070701{inode:08X}{mode:08X}{owner:08X}{group:08X}{links:08X}{time:08X}{size:08X}\
             {file_system_major:08X}{file_system_minor:08X}{major:08X}{minor:08X}{name_size:08X}{checksum:08X}"
        );
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(header: &[u8], index: usize) -> u32 {
        let digits = &header[6 + 8 * index..14 + 8 * index];
        u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
    }

    #[test]
    fn every_entry_starts_on_a_multiple_of_four_and_the_trailer_ends() {
        let archive = with_init(b"12345");
        let mut names = Vec::new();
        let mut at = 0;
        while at < archive.len() {
            assert_eq!(&archive[at..at + 6], b"070701");
            let header = &archive[at..at + 110];
            let (size, name_size) = (field(header, 6) as usize, field(header, 11) as usize);
            names.push(String::from_utf8(archive[at + 110..at + 110 + name_size - 1].to_vec()).unwrap());
            at = (at + 110 + name_size).next_multiple_of(4);
            if names.last().unwrap() == "init" {
                assert_eq!(&archive[at..at + size], b"12345");
                assert_eq!(field(header, 1), REGULAR | 0o755);
            }
            at = (at + size).next_multiple_of(4);
        }
        assert_eq!(names, ["dev", "dev/console", "init", "TRAILER!!!"]);
    }
}
