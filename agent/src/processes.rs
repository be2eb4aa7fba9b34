//! A container's processes as ps(1) shows them, from `/proc` (proc_pid_stat(5), proc_pid_status(5)).

use std::fs::{self, File};
use std::io::Read;

use husk_protocol::agent::{ProcessInfo, ProcessesRequest, ProcessesResponse};

use crate::agent::Agent;
use crate::calls::{Answer, encode};
use crate::sys;

/// More of a command line is not read, in bytes.
const MAX_COMMAND_LINE: u64 = 4096;
/// More processes are not described: an answer has its bounds.
const MAX_PROCESSES: usize = 8192;
/// Times of processes are counted in these (USER_HZ), a second has so many.
const TICKS: u64 = 100;
const TICK_US: u64 = 1_000_000 / TICKS;
const TICK_NS: u64 = 1_000_000_000 / TICKS;

impl Agent {
    /// Answers Processes.
    pub(crate) fn processes(&self, request: &ProcessesRequest) -> Answer {
        let mut pids = self.container(&request.container)?.cgroup.pids();
        pids.sort_unstable();
        let booted_at_ns = sys::wall_clock_ns().saturating_sub(sys::since_boot_ns());
        let page = sys::page_size();
        // One that has ended since is left out.
        let describe = |pid| describe(pid, booted_at_ns, page);
        let processes = pids.into_iter().take(MAX_PROCESSES).filter_map(describe).collect();
        encode(&ProcessesResponse {
            processes,
            ..ProcessesResponse::default()
        })
    }
}

fn describe(pid: i32, booted_at_ns: u64, page: u64) -> Option<ProcessInfo> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mut info = parse_stat(&String::from_utf8_lossy(&stat), booted_at_ns, page)?;
    add_status(&mut info, &status);
    info.args = command_line(pid);
    Some(info)
}

/// The name may hold anything, also parentheses and blanks; it ends at the last parenthesis.
fn parse_stat(stat: &str, booted_at_ns: u64, page: u64) -> Option<ProcessInfo> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    // The third field of the manual page is the first of these.
    let fields: Vec<_> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |index: usize| -> Option<u64> { field(index)?.parse().ok() };
    let signed = |index: usize| -> Option<i64> { field(index)?.parse().ok() };
    Some(ProcessInfo {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        state: field(3)?.to_owned(),
        parent: number(4)?.try_into().ok()?,
        terminal: i32::try_from(signed(7)?).ok()?.cast_unsigned(),
        cpu_user_us: number(14)?.saturating_mul(TICK_US),
        cpu_system_us: number(15)?.saturating_mul(TICK_US),
        nice: signed(19)?.try_into().ok()?,
        threads: number(20)?.try_into().ok()?,
        started_at_ns: booted_at_ns.saturating_add(number(22)?.saturating_mul(TICK_NS)),
        virtual_bytes: number(23)?,
        resident_bytes: number(24)?.saturating_mul(page),
        ..ProcessInfo::default()
    })
}

fn add_status(info: &mut ProcessInfo, status: &str) {
    let field = |name: &str| {
        let mut lines = status.lines();
        let values = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(values.split_ascii_whitespace())
    };
    // Real, effective, saved, of the file system.
    let effective = |name: &str| field(name)?.nth(1)?.parse().ok();
    info.uid = effective("Uid").unwrap_or(0);
    info.gid = effective("Gid").unwrap_or(0);
    let innermost = || field("NSpid")?.next_back()?.parse().ok();
    info.container_pid = innermost().unwrap_or(info.pid);
}

/// The arguments, each ended by a zero byte; a process may have written something else in their place.
fn command_line(pid: i32) -> Vec<String> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{pid}/cmdline")) {
        let _ = file.take(MAX_COMMAND_LINE).read_to_end(&mut bytes);
    }
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Vec::new();
    }
    let argument = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    bytes.split(|byte| *byte == 0).map(argument).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_process_is_described() {
        let stat = "42 (a (b) c) S 1 42 42 34817 42 4194304 100 0 0 0 250 30 0 0 20 -5 3 0 1000 4096000 7 \
                    18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0\n";
        let mut info = parse_stat(stat, 5_000_000_000, 4096).unwrap();
        add_status(
            &mut info,
            "Name:\tx\nUid:\t0\t1000\t0\t0\nGid:\t1\t2\t3\t4\nNSpid:\t42\t7\t3\n",
        );
        assert_eq!(
            (info.pid, info.parent, info.name.as_str(), info.state.as_str()),
            (42, 1, "a (b) c", "S")
        );
        assert_eq!((info.cpu_user_us, info.cpu_system_us), (2_500_000, 300_000));
        assert_eq!((info.nice, info.threads, info.terminal), (-5, 3, 34817));
        assert_eq!(info.started_at_ns, 15_000_000_000);
        assert_eq!((info.virtual_bytes, info.resident_bytes), (4_096_000, 28_672));
        assert_eq!((info.uid, info.gid, info.container_pid), (1000, 2, 3));
    }

    #[test]
    fn this_process_describes_itself() {
        let pid = std::process::id();
        let info = describe(pid.cast_signed(), 0, sys::page_size()).unwrap();
        assert_eq!((info.pid, info.container_pid), (pid, pid));
        assert!(info.threads >= 1 && info.resident_bytes > 100_000 && !info.args.is_empty());
        assert!(describe(i32::MAX, 0, 4096).is_none());
    }

    proptest! {
        #[test]
        fn rubbish_is_no_reason_to_fall(stat in "[0-9() -]{0,80}", status in "[A-Za-z0-9:\t\n]{0,60}") {
            parse_stat(&stat, u64::MAX, u64::MAX);
            add_status(&mut ProcessInfo::default(), &status);
        }
    }
}
