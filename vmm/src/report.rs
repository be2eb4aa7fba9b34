//! The last word: the report for the owner, and the exit code for whoever sees nothing else.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use husk_vmm_config::{End, Report};

/// The way to the owner. Only the first report is written, so that a panic that follows it adds nothing.
#[derive(Debug)]
pub struct Reporter {
    /// An open descriptor of ours, until somebody has claimed it.
    way: AtomicI32,
}

/// What `way` is when it was claimed.
const CLAIMED: RawFd = -1;

impl Reporter {
    /// A reporter that writes to a pipe, socket or file.
    #[must_use]
    pub fn new(way: OwnedFd) -> Self {
        Self {
            way: AtomicI32::new(way.into_raw_fd()),
        }
    }

    /// Writes the report and closes the way to the owner.
    ///
    /// # Errors
    /// The owner does not take it.
    pub fn write(&self, report: &Report) -> io::Result<()> {
        let Some(way) = self.claim() else {
            return Ok(());
        };
        // SAFETY: the descriptor is open, and who has claimed it is its only owner.
        #[allow(unsafe_code)]
        let mut way = unsafe { File::from_raw_fd(way) };
        way.write_all(&serde_json::to_vec(report)?)
    }

    /// The way to the owner, for who comes first: an open descriptor that is the caller's from now on. A signal's
    /// handler may ask for it.
    pub(crate) fn claim(&self) -> Option<RawFd> {
        Some(self.way.swap(CLAIMED, Ordering::SeqCst)).filter(|way| *way != CLAIMED)
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(way) = self.claim() {
            // SAFETY: the descriptor is open, and who has claimed it is its only owner.
            #[allow(unsafe_code)]
            drop(unsafe { OwnedFd::from_raw_fd(way) });
        }
    }
}

/// The exit code of a process one of whose threads made a system call that it may not.
pub(crate) const VIOLATION: u8 = 16;

/// The exit code of `husk-vmm` that tells an end without the report. 2 is left to a command line or configuration
/// that cannot be used, and what a signal gives (128 and more) to the shell.
#[must_use]
pub fn exit_code(end: &End) -> u8 {
    match end {
        End::Shutdown => 0,
        End::Failed { .. } => 1,
        End::Reboot => 10,
        End::Panic => 11,
        End::TripleFault => 12,
        End::Vcpu { .. } => 13,
        End::Stopped => 14,
        End::OwnerGone => 15,
        End::Violation { .. } => VIOLATION,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_vmm_config::ExitCounts;
    use std::io::Read;

    #[test]
    fn only_the_first_report_is_written() {
        let (mut reader, writer) = io::pipe().unwrap();
        let reporter = Reporter::new(writer.into());
        let report = |end| Report {
            end,
            exits: ExitCounts::default(),
            phases: Vec::new(),
        };
        reporter.write(&report(End::Panic)).unwrap();
        reporter.write(&report(End::Reboot)).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let read: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(read.end, End::Panic);
    }
}
