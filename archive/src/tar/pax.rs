//! The records of a pax extended header (POSIX.1-2001, pax(1), "pax Extended Header").

use super::sparse::Segment;

/// Schily's prefix for extended attributes, which all container tools use.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What the records say; without one the header's own field counts.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Sparse,
}

/// GNU tar's records of sparse files ("PAX Format, Versions 0.0, 0.1 and 1.0").
#[derive(Debug, Default)]
pub(super) struct Sparse {
    major: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) map: Option<Vec<Segment>>,
    /// Format 0.0: a segment's offset whose length is still to come.
    offset: Option<u64>,
}

impl Sparse {
    /// Whether the map stands at the beginning of the contents.
    pub(super) fn is_1_0(&self) -> bool {
        self.major == Some(1)
    }
}

impl Records {
    pub(super) fn parse(mut text: &[u8]) -> Option<Self> {
        let mut records = Self::default();
        while !text.is_empty() {
            let space = text.iter().position(|byte| *byte == b' ')?;
            let length = usize::try_from(decimal(&text[..space])?).ok()?;
            if length <= space + 1 || length > text.len() || text[length - 1] != b'\n' {
                return None;
            }
            // Values may hold any byte, line feeds too: the length alone says where they end.
            let record = &text[space + 1..length - 1];
            let equals = record.iter().position(|byte| *byte == b'=')?;
            records.record(&record[..equals], &record[equals + 1..])?;
            text = &text[length..];
        }
        Some(records)
    }

    /// An empty value takes an earlier one back.
    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = optional(value, name)?,
            b"linkpath" => self.link = optional(value, name)?,
            b"size" => self.size = optional(value, decimal)?,
            b"uid" => self.uid = optional(value, number)?,
            b"gid" => self.gid = optional(value, number)?,
            b"mtime" => self.mtime = optional(value, time)?,
            b"GNU.sparse.major" => self.sparse.major = optional(value, decimal)?,
            b"GNU.sparse.name" => self.sparse.name = optional(value, name)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = optional(value, decimal)?,
            b"GNU.sparse.offset" => self.sparse.offset = Some(decimal(value)?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take()?;
                let length = decimal(value)?;
                self.sparse.map.get_or_insert_default().push(Segment { offset, length });
            }
            b"GNU.sparse.map" => self.sparse.map = Some(map(value)?),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.retain(|(old, _)| old != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

/// A path, which holds no zero byte.
fn name(value: &[u8]) -> Option<Vec<u8>> {
    (!value.contains(&0)).then(|| value.to_vec())
}

/// The outer option is the parser's.
#[allow(
    clippy::option_option,
    reason = "what is wrong and what is absent are different things"
)]
fn optional<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() {
        Some(None)
    } else {
        parse(value).map(Some)
    }
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn number(text: &[u8]) -> Option<u32> {
    u32::try_from(decimal(text)?).ok()
}

/// Seconds since the epoch with a fraction, perhaps negative: `-1.25` is a quarter second before the last but one.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match point {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &[][..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanoseconds = digits.fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

/// Format 0.1: offsets and lengths in turn, between commas.
fn map(text: &[u8]) -> Option<Vec<Segment>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let numbers: Option<Vec<u64>> = text.split(|byte| *byte == b',').map(decimal).collect();
    let numbers = numbers?;
    if numbers.len() % 2 != 0 {
        return None;
    }
    Some(
        numbers
            .chunks_exact(2)
            .map(|pair| Segment {
                offset: pair[0],
                length: pair[1],
            })
            .collect(),
    )
}
