//! Maps of sparse files.

use super::header::number;

/// The most segments of one file.
const MAX_SEGMENTS: usize = 1 << 20;
/// A segment in a header: offset and length, twelve bytes each.
const ENTRY: usize = 24;
/// In a record that continues a map: the segments, then whether another one follows.
const EXTENSION_ENTRIES: usize = 21 * ENTRY;

/// A part of a sparse file that is not a hole, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// Adds the segments of GNU's old format; an empty one ends them.
pub(super) fn take(map: &mut Vec<Segment>, entries: &[u8]) -> Option<()> {
    for entry in entries.chunks_exact(ENTRY) {
        let (offset, length) = entry.split_at(ENTRY / 2);
        if length[0] == 0 {
            break;
        }
        map.push(Segment {
            offset: u64::try_from(number(offset)?).ok()?,
            length: u64::try_from(number(length)?).ok()?,
        });
    }
    (map.len() <= MAX_SEGMENTS).then_some(())
}

/// Adds the segments of a record that continues a map; says whether another one follows.
pub(super) fn extend(map: &mut Vec<Segment>, record: &[u8]) -> Option<bool> {
    let (entries, rest) = record.split_at_checked(EXTENSION_ENTRIES)?;
    take(map, entries)?;
    Some(*rest.first()? != 0)
}

/// Whether the segments are in order, within the file, and together as long as what the archive holds.
pub(super) fn check(map: &[Segment], size: u64, stored: u64) -> Option<()> {
    let (mut end, mut total) = (0_u64, 0_u64);
    for segment in map {
        if segment.offset < end {
            return None;
        }
        end = segment.offset.checked_add(segment.length)?;
        total = total.checked_add(segment.length)?;
    }
    (end <= size && total == stored).then_some(())
}

/// The map of the pax format 1.0: the number of segments, then offsets and lengths, each a line.
#[derive(Debug, Default)]
pub(super) struct Decimal {
    /// How many segments there will be.
    count: Option<usize>,
    value: Option<u64>,
    offset: Option<u64>,
    map: Vec<Segment>,
}

impl Decimal {
    pub(super) fn is_complete(&self) -> bool {
        self.count.is_some_and(|count| self.map.len() == count)
    }

    pub(super) fn into_map(self) -> Vec<Segment> {
        self.map
    }

    /// Takes a record's bytes; what follows the last number fills the record up.
    pub(super) fn feed(&mut self, record: &[u8]) -> Option<()> {
        for byte in record {
            if self.is_complete() {
                break;
            }
            match byte {
                b'0'..=b'9' => {
                    let value = self.value.unwrap_or(0);
                    self.value = Some(value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?);
                }
                b'\n' => {
                    let value = self.value.take()?;
                    self.number(value)?;
                }
                _ => return None,
            }
        }
        Some(())
    }

    fn number(&mut self, value: u64) -> Option<()> {
        if self.count.is_none() {
            let count = usize::try_from(value).ok()?;
            self.count = (count <= MAX_SEGMENTS).then_some(count);
            return self.count.map(drop);
        }
        match self.offset.take() {
            None => self.offset = Some(value),
            Some(offset) => self.map.push(Segment { offset, length: value }),
        }
        Some(())
    }
}
