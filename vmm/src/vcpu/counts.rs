//! Exits to user space by kind.

use std::sync::atomic::{AtomicU64, Ordering};

use husk_vmm_config::ExitCounts;

/// Why a vCPU left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A read of a device register.
    MmioRead,
    /// A write of a device register.
    MmioWrite,
    /// A read of a port.
    PioIn,
    /// A write of a port.
    PioOut,
    /// The vCPU was told to leave.
    Interrupted,
    /// KVM asked to be called again, for example after a vCPU was started by another.
    Again,
    /// Any other kind; most of them end the machine.
    Other,
}

impl Exit {
    const ALL: [(Self, &'static str); 7] = [
        (Self::MmioRead, "mmio_read"),
        (Self::MmioWrite, "mmio_write"),
        (Self::PioIn, "pio_in"),
        (Self::PioOut, "pio_out"),
        (Self::Interrupted, "interrupted"),
        (Self::Again, "again"),
        (Self::Other, "other"),
    ];
}

/// The exits of one vCPU: written by its thread, read by any.
#[derive(Debug, Default)]
pub struct Counts {
    counts: [AtomicU64; Exit::ALL.len()],
}

impl Counts {
    /// Counts an exit.
    pub fn count(&self, exit: Exit) {
        if let Some(count) = self.counts.get(exit as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds these exits to `total`; a kind that did not happen is left out.
    pub fn add_to(&self, total: &mut ExitCounts) {
        for ((_, name), count) in Exit::ALL.iter().zip(&self.counts) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                *total.0.entry((*name).to_owned()).or_default() += count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_counted_under_its_own_name() {
        let mut total = ExitCounts::default();
        for (exit, name) in Exit::ALL {
            let counts = Counts::default();
            counts.count(exit);
            let mut own = ExitCounts::default();
            counts.add_to(&mut own);
            counts.add_to(&mut total);
            assert_eq!(own.0.into_iter().collect::<Vec<_>>(), [(name.to_owned(), 1)]);
        }
        assert_eq!(total.total(), Exit::ALL.len() as u64);
    }
}
