//! The release that a kernel image was built as.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// The longest release that is believed (`__NEW_UTS_LEN`).
const MAX_RELEASE: usize = 64;
/// Where the setup header's magic is in a bzImage (`Documentation/arch/x86/boot.rst`).
const MAGIC: u64 = 0x202;
/// The header's pointer to the release's text, less 0x200.
const VERSION_POINTER: u64 = 0x20e;
/// What the kernel's banner begins with.
const BANNER: &[u8] = b"Linux version ";

/// The release of an image, if it says one.
pub(super) fn of(image: &File) -> io::Result<Option<String>> {
    let mut magic = [0; 4];
    match image.read_exact_at(&mut magic, MAGIC) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    if &magic == b"HdrS" {
        return of_bzimage(image);
    }
    image.read_exact_at(&mut magic, 0)?;
    if &magic == b"\x7fELF" { of_elf(image) } else { Ok(None) }
}

fn of_bzimage(image: &File) -> io::Result<Option<String>> {
    let mut pointer = [0; 2];
    image.read_exact_at(&mut pointer, VERSION_POINTER)?;
    let at = match u16::from_le_bytes(pointer) {
        0 => return Ok(None),
        offset => u64::from(offset) + 0x200,
    };
    let mut text = [0; MAX_RELEASE + 1];
    let length = image.read_at(&mut text, at)?;
    Ok(release(&text[..length]))
}

/// Looks for the banner, which stands in the read-only data of every kernel.
fn of_elf(image: &File) -> io::Result<Option<String>> {
    const OVERLAP: usize = BANNER.len() + MAX_RELEASE;
    let mut image = image;
    let mut window: Vec<u8> = Vec::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let length = image.read(&mut chunk)?;
        window.extend_from_slice(&chunk[..length]);
        for at in memchr_all(&window) {
            let text = &window[at + BANNER.len()..];
            // The format string `Linux version %s` begins in the same way.
            if let Some(release) =
                release(text).filter(|release| release.starts_with(|first: char| first.is_ascii_digit()))
            {
                return Ok(Some(release));
            }
        }
        if length == 0 {
            return Ok(None);
        }
        let surplus = window.len().saturating_sub(OVERLAP);
        window.drain(..surplus);
    }
}

fn memchr_all(window: &[u8]) -> impl Iterator<Item = usize> + '_ {
    window
        .windows(BANNER.len())
        .enumerate()
        .filter(|(_, bytes)| bytes[0] == BANNER[0] && *bytes == BANNER)
        .map(|(at, _)| at)
}

/// The first word of a text, if it is a release: it becomes part of a path.
fn release(text: &[u8]) -> Option<String> {
    let end = text.iter().position(|byte| matches!(byte, b' ' | 0))?;
    let word = std::str::from_utf8(&text[..end]).ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte);
    (!word.is_empty() && word.len() <= MAX_RELEASE && word.bytes().all(plain) && !word.starts_with('.'))
        .then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use proptest::prelude::*;

    use super::*;

    fn file(contents: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(contents).unwrap();
        file.rewind().unwrap();
        file
    }

    fn bzimage(pointer: u16, text: &[u8]) -> File {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&pointer.to_le_bytes());
        image.extend_from_slice(text);
        file(&image)
    }

    #[test]
    fn a_bzimage_points_to_its_release() {
        let image = bzimage(0x200, b"6.1.0-18-amd64 (debian@x) #1 SMP\0");
        assert_eq!(of(&image).unwrap().as_deref(), Some("6.1.0-18-amd64"));
        assert_eq!(of(&bzimage(0, b"")).unwrap(), None);
        assert_eq!(of(&bzimage(0xffff, b"")).unwrap(), None);
        assert_eq!(of(&bzimage(0x200, b"../../etc \0")).unwrap(), None);
    }

    #[test]
    fn an_elf_has_a_banner_somewhere() {
        for gap in [0x300, (1 << 20) - 20, (1 << 20) - 3, 3 << 20] {
            let mut image = b"\x7fELF".to_vec();
            image.resize(0x210, 0);
            image.extend_from_slice(b"Linux version %s (%s)\n\0");
            image.resize(image.len() + gap, 7);
            image.extend_from_slice(b"Linux version 6.12.1+husk (gcc)\n\0");
            assert_eq!(of(&file(&image)).unwrap().as_deref(), Some("6.12.1+husk"), "{gap}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_files_never_panic(contents in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = of(&file(&contents));
        }
    }
}
