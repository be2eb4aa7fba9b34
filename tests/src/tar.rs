//! Archives that the tests make, right ones and wrong ones, byte for byte.

/// Bytes in a record.
const RECORD: usize = 512;

/// A tar archive that grows member by member (pax).
#[derive(Clone, Debug, Default)]
pub struct Tar {
    bytes: Vec<u8>,
    owner: (u64, u64),
}

impl Tar {
    /// An archive without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// Who owns what follows.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// A directory.
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.member(b'5', path, "", mode, b"")
    }

    /// A regular file.
    pub fn file(self, path: &str, mode: u32, contents: impl AsRef<[u8]>) -> Self {
        self.member(b'0', path, "", mode, contents.as_ref())
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.member(b'2', path, target, 0o777, b"")
    }

    /// A hard link.
    pub fn link(self, path: &str, target: &str) -> Self {
        self.member(b'1', path, target, 0, b"")
    }

    /// A named pipe.
    pub fn fifo(self, path: &str, mode: u32) -> Self {
        self.member(b'6', path, "", mode, b"")
    }

    /// A character device.
    pub fn device(mut self, path: &str, mode: u32, major: u32, minor: u32) -> Self {
        let mut header = self.header(b'3', path, "", mode, 0);
        octal(&mut header[329..337], major.into());
        octal(&mut header[337..345], minor.into());
        self.record(header);
        self
    }

    /// What makes a name vanish that lower layers have.
    pub fn whiteout(self, path: &str) -> Self {
        let (parent, name) = path
            .rsplit_once('/')
            .map_or(("", path), |(parent, name)| (parent, name));
        let slash = if parent.is_empty() { "" } else { "/" };
        self.file(&format!("{parent}{slash}.wh.{name}"), 0o644, "")
    }

    /// What makes a directory hide what lower layers have in it.
    pub fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), 0o644, "")
    }

    /// Records of a pax header for the member that follows.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            // The length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self = self.member(b'x', "pax", "", 0o644, &text);
        self
    }

    /// A file whose header says that it is longer than what the archive holds of it.
    pub fn claims(mut self, path: &str, size: u64) -> Self {
        let header = self.header(b'0', path, "", 0o644, size);
        self.record(header);
        self
    }

    /// A member of any type.
    pub fn member(mut self, flag: u8, path: &str, target: &str, mode: u32, contents: &[u8]) -> Self {
        let header = self.header(flag, path, target, mode, contents.len() as u64);
        self.record(header);
        self.bytes.extend_from_slice(contents);
        self.bytes.resize(self.bytes.len().next_multiple_of(RECORD), 0);
        self
    }

    /// Bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The archive with its end.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 2 * RECORD]);
        self.bytes
    }

    fn header(&mut self, flag: u8, path: &str, target: &str, mode: u32, size: u64) -> [u8; RECORD] {
        if path.len() > 100 && flag != b'L' {
            let name = [path.as_bytes(), b"\0"].concat();
            *self = std::mem::take(self).member(b'L', "././@LongLink", "", 0, &name);
        }
        let mut header = [0; RECORD];
        let name = &path.as_bytes()[..path.len().min(100)];
        header[..name.len()].copy_from_slice(name);
        octal(&mut header[100..108], mode.into());
        octal(&mut header[108..116], self.owner.0);
        octal(&mut header[116..124], self.owner.1);
        octal(&mut header[124..136], size);
        octal(&mut header[136..148], 1_600_000_000);
        header[156] = flag;
        header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        header
    }

    /// Adds a header with its checksum.
    fn record(&mut self, mut header: [u8; RECORD]) {
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut header[148..155], sum);
        self.bytes.extend_from_slice(&header);
    }
}

/// Octal digits, or GNU's bytes where they have no room.
fn octal(field: &mut [u8], value: u64) {
    let digits = format!("{value:0width$o}", width = field.len() - 1);
    if digits.len() < field.len() {
        field[..digits.len()].copy_from_slice(digits.as_bytes());
        return;
    }
    let length = field.len();
    field.fill(0);
    let bytes = value.to_be_bytes();
    let used = bytes.len().min(length - 1);
    field[length - used..].copy_from_slice(&bytes[bytes.len() - used..]);
    field[0] |= 0x80;
}
