//! A checksum that does not depend on the order in which parts arrive, only on where each belongs.

/// The sum over 64-bit words of a mixture of the word and its position.
///
/// `position` is that of the first word in the whole, in bytes. Sums of parts are added, wrapping.
#[must_use]
pub fn words(position: u64, words: impl Iterator<Item = u64>) -> u64 {
    let mut sum = 0u64;
    for (index, word) in (0u64..).zip(words) {
        let place = position.wrapping_add(8 * index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum = sum.wrapping_add((word ^ place).wrapping_mul(0xff51_afd7_ed55_8ccd));
    }
    sum
}

/// The same over bytes; what is left behind the last whole word does not count.
#[must_use]
pub fn bytes(position: u64, bytes: &[u8]) -> u64 {
    let (whole, _) = bytes.as_chunks();
    words(position, whole.iter().map(|word| u64::from_le_bytes(*word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_places_count() {
        let data: [u8; 64] = core::array::from_fn(|index| index.to_le_bytes()[0]);
        let (low, high) = data.split_at(24);
        assert_eq!(bytes(512, &data), bytes(536, high).wrapping_add(bytes(512, low)));
        assert_ne!(bytes(0, &data), bytes(8, &data));
        assert_ne!(bytes(0, &[0; 16]), bytes(0, &[0; 8]));
    }
}
