//! Orders: words of the kernel's command line.
//!
//! A word that begins with `+` begins an order; words of the form `key=number` behind it are its options. What comes
//! before the first order, or behind a word `--`, is somebody else's. Numbers are decimal or, with `0x`, hexadecimal.
//! For instance `+wait +blk-read disk=1 qd=8 count=100 +off`.
//!
//! | order | options, with what holds without them | does |
//! |---|---|---|
//! | `virtio` | `base=0xd0000000` | says where the first device's registers are |
//! | `wait` | | waits for [`go`](crate::report::Page::go) |
//! | `idle` | | halts the processor; nothing comes behind it |
//! | `off` | | switches the machine off; what happens without any of the two, too |
//! | `blk-read` | `disk=0 qd=32 size=4096 count=1000 check=1` | reads the disk from its start, around its end |
//! | `blk-write` | `disk=0 qd=32 size=4096 count=1000 seed=1` | writes [`pattern`] |
//! | `rng` | `size=64 count=100` | reads random numbers |
//! | `vsock-echo` | `port=1024 size=64 count=100` | sends to the host's port and waits for the same back, each time |
//! | `vsock-stream` | `port=1024 size=4096 count=1000` | sends as fast as the host takes it, then waits for its end |
//! | `attack-registers` | `device=0 seed=1 count=1000` | accesses registers at every width, place and order |
//! | `attack-queues` | `device=0 seed=1 count=100` | queues of impossible places and sizes |
//! | `attack-chains` | `device=0 seed=1 count=100` | descriptor chains, tables and rings without sense |
//! | `attack-reset` | `device=0 seed=1 count=100` | resets the device in the middle of its work |
//! | `attack-kicks` | `device=0 seed=1 count=10000` | notifications for nothing, as fast as possible |
//! | `attack-packets` | `seed=1 count=1000` | vsock packets of every kind in every state |
//! | `attack-flood` | `port=1024 seed=1 count=5000` | half-open vsock connections |
//! | `attack-ports` | `seed=1 rounds=1` | accesses every port at every width, but for what ends the machine |
//! | `attack-controllers` | `seed=1 count=1000 spare=1` | accesses the interrupt controllers; without `spare` resets too |
//! | `attack-race` | `device=0 seed=1 count=1000` | a second processor changes the rings while the device reads them |
//!
//! `disk` counts the machine's disks; `device` counts all virtio devices in the order of their addresses.

/// An order: a name and its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order<'a> {
    /// What comes behind the `+`.
    pub name: &'a str,
    options: &'a str,
}

/// An option that is not of the form `key=number`, or that the order does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadOption;

impl Order<'_> {
    /// The values of the options with these keys, or their defaults.
    ///
    /// # Errors
    /// An option is not among the keys, or its value is no number.
    pub fn options<const N: usize>(&self, known: [(&str, u64); N]) -> Result<[u64; N], BadOption> {
        let mut values = known.map(|(_, default)| default);
        for word in self.options.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').ok_or(BadOption)?;
            let mut places = known.iter().zip(&mut values);
            let (_, place) = places.find(|((known, _), _)| *known == key).ok_or(BadOption)?;
            *place = number(value).ok_or(BadOption)?;
        }
        Ok(values)
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The orders on a command line.
pub fn orders(command_line: &str) -> impl Iterator<Item = Order<'_>> {
    let ours = match command_line.split_once(" -- ") {
        Some((ours, _)) => ours,
        None => command_line.strip_suffix(" --").unwrap_or(command_line),
    };
    let first = ours.find('+').unwrap_or(ours.len());
    let orders = ours.get(first..).unwrap_or_default();
    orders.split('+').skip(1).map(|text| {
        let end = text.find(' ').unwrap_or(text.len());
        let (name, options) = text.split_at(end);
        Order { name, options }
    })
}

/// The word that `blk-write` puts at this position of the disk, in bytes.
#[must_use]
pub const fn pattern(seed: u64, position: u64) -> u64 {
    (position ^ seed).wrapping_mul(0xd6e8_feb8_6659_fd93) ^ seed
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn orders_are_found_among_others_words() {
        let line = "console=ttyS0 +wait +blk-read disk=1 size=0x1000  +off -- virtio_mmio.device=4K@0xd0000000:5 +x";
        let found: Vec<Order<'_>> = orders(line).collect();
        let names: Vec<&str> = found.iter().map(|order| order.name).collect();
        assert_eq!(names, ["wait", "blk-read", "off"]);
        let keys = [("disk", 0), ("qd", 32), ("size", 512)];
        assert_eq!(found[1].options(keys), Ok([1, 32, 4096]));
        assert_eq!(found[1].options([("disk", 0)]), Err(BadOption));
        assert_eq!(found[0].options([]), Ok([]));
        for bad in ["+a b", "+a b=", "+a b=x", "+a b=-1", "+a b=0x"] {
            assert_eq!(orders(bad).next().unwrap().options([("b", 1)]), Err(BadOption), "{bad}");
        }
        assert_eq!(orders("quiet").count(), 0);
        assert_eq!(orders("+off --").count(), 1);
        assert_eq!(orders("").count(), 0);
    }
}
