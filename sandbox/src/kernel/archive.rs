//! A second initramfs archive with modules, in the format "newc" (`Documentation/driver-api/early-userspace/
//! buffer-format.rst` of the kernel's source).

use std::fs::File;
use std::io::{self, Seek, Write};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Where the modules are in the guest.
const DIR: &str = "modules";

/// Makes the archive in memory: `/modules/NAME` for each module, and `/modules/order`, which lists their paths in the
/// order of loading.
pub(super) fn modules(modules: &[(String, Vec<u8>)]) -> io::Result<File> {
    let mut archive = Vec::new();
    entry(&mut archive, DIR, 0o040_755, &[])?;
    let mut order = String::new();
    for (name, contents) in modules {
        entry(&mut archive, &format!("{DIR}/{name}"), 0o100_644, contents)?;
        order.push_str(&format!("/{DIR}/{name}\n"));
    }
    entry(&mut archive, &format!("{DIR}/order"), 0o100_644, order.as_bytes())?;
    entry(&mut archive, "TRAILER!!!", 0, &[])?;
    let mut file = File::from(memfd_create(c"husk-modules", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&archive)?;
    file.rewind()?;
    Ok(file)
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
    let too_long = |_| io::Error::from(io::ErrorKind::FileTooLarge);
    let size = u32::try_from(contents.len()).map_err(too_long)?;
    let name_size = u32::try_from(name.len() + 1).map_err(too_long)?;
    archive.extend_from_slice(b"070701");
    // Inode, mode, owner, group, links, time, size, device and special device, name's size, checksum.
    for number in [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        write!(archive, "{number:08x}")?;
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(contents);
    pad(archive);
    Ok(())
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_archive_has_the_formats_alignment_and_end() {
        let files = [("a.ko".to_owned(), vec![1; 5]), ("bc.ko".to_owned(), vec![2; 8])];
        let mut archive = Vec::new();
        modules(&files).unwrap().read_to_end(&mut archive).unwrap();
        let mut names = Vec::new();
        let mut at = 0;
        while at < archive.len() {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                let text = std::str::from_utf8(&archive[start..start + 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = &archive[at + 110..at + 110 + name_size - 1];
            let contents = (at + 110 + name_size).next_multiple_of(4);
            if name == b"modules/order" {
                assert_eq!(&archive[contents..contents + size], b"/modules/a.ko\n/modules/bc.ko\n");
            }
            names.push(String::from_utf8(name.to_vec()).unwrap());
            at = (contents + size).next_multiple_of(4);
        }
        assert_eq!(
            names,
            [
                "modules",
                "modules/a.ko",
                "modules/bc.ko",
                "modules/order",
                "TRAILER!!!"
            ]
        );
    }
}
