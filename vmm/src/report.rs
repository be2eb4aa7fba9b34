//! The last word: the report for the owner, and the exit code for whoever sees nothing else.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use husk_vmm_config::{End, Report};

/// The way to the owner. Only the first report is written, so that a panic that follows it adds nothing.
#[derive(Debug)]
pub struct Reporter {
    way: Mutex<Option<File>>,
}

impl Reporter {
    /// A reporter that writes to a pipe, socket or file.
    #[must_use]
    pub fn new(way: OwnedFd) -> Self {
        Self {
            way: Mutex::new(Some(way.into())),
        }
    }

    /// Writes the report and closes the way to the owner.
    ///
    /// # Errors
    /// The owner does not take it.
    pub fn write(&self, report: &Report) -> io::Result<()> {
        let way = self.way.lock().unwrap_or_else(PoisonError::into_inner).take();
        match way {
            Some(mut way) => way.write_all(&serde_json::to_vec(report)?),
            None => Ok(()),
        }
    }
}

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
