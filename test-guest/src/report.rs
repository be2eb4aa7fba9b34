//! The shared page, at [`crate::layout::SHARED_PAGE`]: the guest's answer, and the one word that it reads.
//!
//! All fields are little-endian 64-bit words. Whoever starts the guest reads the page out of its memory; it is valid
//! when the first word is [`MAGIC`].

/// "HUSKTEST", little-endian.
pub const MAGIC: u64 = u64::from_le_bytes(*b"HUSKTEST");
/// Orders whose results have room.
pub const RESULTS: usize = 24;
/// The page in words.
pub const WORDS: usize = size_of::<Page>() / 8;
/// The offset in bytes of [`Page::go`].
pub const GO: u64 = 24;

/// Values of [`Page::state`].
pub mod state {
    /// The guest waits for [`Page::go`](super::Page::go).
    pub const WAITING: u64 = 1;
    /// Orders are being done.
    pub const RUNNING: u64 = 2;
    /// All orders are done.
    pub const DONE: u64 = 3;
    /// An order could not be done: [`Page::reason`](super::Page::reason) says why.
    pub const FAILED: u64 = 4;
}

/// Why an order could not be done: values of [`Page::reason`], each told together with the number of the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Reason {
    /// There is no such order.
    UnknownOrder = 1,
    /// An option is unknown, is not a number, or is out of its range.
    Option = 2,
    /// The machine has no such device.
    NoDevice = 3,
    /// The device does not take the features or the queues.
    Negotiation = 4,
    /// The device did not answer within [`PATIENCE`].
    Silence = 5,
    /// The device answered with an error.
    Refused = 6,
    /// What came back is not what was sent.
    Content = 7,
    /// The second processor did not start.
    Processor = 8,
    /// More orders than results have room.
    TooMany = 9,
    /// The guest's own code panicked.
    Panic = 10,
}

impl Reason {
    /// The reason with this number.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        let all = [
            Self::UnknownOrder,
            Self::Option,
            Self::NoDevice,
            Self::Negotiation,
            Self::Silence,
            Self::Refused,
            Self::Content,
            Self::Processor,
            Self::TooMany,
            Self::Panic,
        ];
        all.into_iter().find(|reason| *reason as u64 == number)
    }
}

/// How long the guest waits for an answer, in ticks of the time stamp counter: at least 20 s on every processor below
/// 5 GHz.
pub const PATIENCE: u64 = 100_000_000_000;

/// The page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Page {
    /// [`MAGIC`], written first.
    pub magic: u64,
    /// One of [`state`].
    pub state: u64,
    /// Orders that were done.
    pub done: u64,
    /// Written by the host: the order `wait` waits until it is not zero.
    pub go: u64,
    /// A [`Reason`], when the state is `FAILED`: then the order `done` (counted from 0) is the one that failed.
    pub reason: u64,
    /// More about the reason: a device's answer, an address; for a panic the line.
    pub detail: u64,
    /// The time stamp counter at the guest's first instruction in ring 3.
    pub entered: u64,
    /// Counts up while an order lives, so that the host sees progress.
    pub pulse: u64,
    /// After an exception in the guest: its vector plus one, the next two words of its stack, and cr2.
    pub fault: [u64; 4],
    /// What came of each order, in the orders' sequence.
    pub results: [Outcome; RESULTS],
}

/// What came of an order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Outcome {
    /// Requests, packets or register accesses that were made.
    pub operations: u64,
    /// Bytes that were moved.
    pub bytes: u64,
    /// Ticks of the time stamp counter from first to last.
    pub ticks: u64,
    /// The sum of [`crate::checksum`] over what was read.
    pub checksum: u64,
    /// Attacks: how often a device asked for a reset.
    pub needs_reset: u64,
    /// Attacks: requests that the device completed.
    pub completed: u64,
}

impl Page {
    /// Reads the page out of guest memory.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 8 * WORDS]) -> Self {
        let (words, _) = bytes.as_chunks();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or_default();
        let mut page = Self {
            magic: next(),
            state: next(),
            done: next(),
            go: next(),
            reason: next(),
            detail: next(),
            entered: next(),
            pulse: next(),
            ..Self::default()
        };
        for word in &mut page.fault {
            *word = next();
        }
        for result in &mut page.results {
            *result = Outcome {
                operations: next(),
                bytes: next(),
                ticks: next(),
                checksum: next(),
                needs_reset: next(),
                completed: next(),
            };
        }
        page
    }
}

const _: () = assert!(size_of::<Page>() <= 4096);
const _: () = assert!(core::mem::offset_of!(Page, go) as u64 == GO);
// Where boot.s writes.
const _: () = assert!(core::mem::offset_of!(Page, fault) == 0x40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_where_the_guest_has_them() {
        let mut bytes = [0; 8 * WORDS];
        for (index, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = (index as u64).to_le_bytes();
        }
        let page = Page::from_bytes(&bytes);
        let at = |offset: usize| offset as u64 / 8;
        assert_eq!(page.pulse, at(core::mem::offset_of!(Page, pulse)));
        assert_eq!(page.fault[3], at(core::mem::offset_of!(Page, fault)) + 3);
        let last = at(core::mem::offset_of!(Page, results)) + 6 * (RESULTS as u64 - 1);
        assert_eq!(page.results[RESULTS - 1].operations, last);
        assert_eq!(page.results[RESULTS - 1].completed, WORDS as u64 - 1);
    }

    #[test]
    fn every_reason_is_found_by_its_number() {
        for number in 1..=10 {
            assert_eq!(Reason::from_number(number).map(|reason| reason as u64), Some(number));
        }
        assert_eq!(Reason::from_number(0), None);
        assert_eq!(Reason::from_number(11), None);
    }
}
