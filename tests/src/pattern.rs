//! A long stream of bytes that can be made and compared quickly, and of which no piece can be lost, doubled or moved
//! without being noticed.

use std::io::{self, Read};

/// The length of the block that repeats, in bytes.
const BLOCK: usize = 1 << 20;
/// Every so many bytes stands the number of the stamp.
const STAMP: usize = 4096;

/// The stream: a block of noise over and over, in which every page carries its position.
#[derive(Clone)]
pub struct Pattern {
    block: Vec<u8>,
    /// The stream's bytes that are behind us.
    position: u64,
    /// The stream's length in bytes.
    length: u64,
    /// The number of the block that `block` is stamped for.
    stamped: Option<u64>,
}

impl Pattern {
    /// A stream of so many bytes.
    pub fn new(length: u64) -> Self {
        // xorshift64: any noise does, and it must be the same each time.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut noise = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let block = (0..BLOCK / 8).flat_map(|_| noise()).collect();
        Self {
            block,
            position: 0,
            length,
            stamped: None,
        }
    }

    /// The bytes that come next, as many as are at hand.
    fn next_bytes(&mut self) -> &[u8] {
        let number = self.position / BLOCK as u64;
        if self.stamped != Some(number) {
            for (index, page) in self.block.chunks_exact_mut(STAMP).enumerate() {
                let stamp = number * (BLOCK / STAMP) as u64 + index as u64;
                page[..8].copy_from_slice(&stamp.to_le_bytes());
            }
            self.stamped = Some(number);
        }
        let within = usize::try_from(self.position % BLOCK as u64).expect("less than a block");
        let left = usize::try_from(self.length - self.position).expect("64-bit");
        let end = BLOCK.min(within + left);
        &self.block[within..end]
    }

    /// Compares bytes that came out somewhere with those that should have.
    ///
    /// # Panics
    /// They differ, or are too many.
    pub fn expect(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let position = self.position;
            let expected = self.next_bytes();
            let count = expected.len().min(bytes.len());
            assert!(
                count > 0,
                "{} bytes more than the {position} that were sent",
                bytes.len()
            );
            assert!(
                bytes[..count] == expected[..count],
                "bytes {position} to {} differ",
                position + count as u64
            );
            bytes = &bytes[count..];
            self.position += count as u64;
        }
    }

    /// How many bytes have been read or expected.
    pub fn position(&self) -> u64 {
        self.position
    }
}

impl Read for Pattern {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.next_bytes();
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.position += count as u64;
        Ok(count)
    }
}
