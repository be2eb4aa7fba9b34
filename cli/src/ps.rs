//! `husk ps`: a container's processes, as ps(1) shows them.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use husk_sandbox::agent::ProcessInfo;

use crate::answer;
use crate::args::{Global, PsArgs, TableFormat};
use crate::table::{aligned, clean};

/// The character devices of pseudo terminals (Documentation/admin-guide/devices.txt).
const PTS: u32 = 136;

pub(crate) fn ps(global: &Global, args: &PsArgs) -> Result<u8> {
    let processes = global.container(&args.id)?.processes()?;
    let text = match args.format {
        TableFormat::Json => {
            let pids: Vec<_> = processes.iter().map(|process| process.pid).collect();
            format!("{}\n", serde_json::to_string(&pids)?)
        }
        TableFormat::Table => table(&processes),
    };
    answer::text(&text)?;
    Ok(0)
}

fn table(processes: &[ProcessInfo]) -> String {
    let mut rows = vec![["UID", "PID", "PPID", "STIME", "TTY", "TIME", "CMD"].map(str::to_owned)];
    for process in processes {
        let command = match process.args.is_empty() {
            true => format!("[{}]", process.name),
            false => process.args.join(" "),
        };
        rows.push([
            process.uid.to_string(),
            process.pid.to_string(),
            process.parent.to_string(),
            time_of_day(process.started_at_ns),
            terminal(process.terminal),
            duration(Duration::from_micros(
                process.cpu_user_us.saturating_add(process.cpu_system_us),
            )),
            clean(&command),
        ]);
    }
    aligned(&rows)
}

/// Hours and minutes in UTC.
fn time_of_day(at_ns: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(at_ns);
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.get(11..16).unwrap_or("?").to_owned()
}

fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// A terminal's name from its device number (proc_pid_stat(5)).
fn terminal(device: u32) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    match major {
        0 => "?".into(),
        PTS => format!("pts/{minor}"),
        _ => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_a_row() {
        let process = ProcessInfo {
            uid: 1,
            pid: 22,
            parent: 3,
            started_at_ns: 3_723_000_000_000,
            terminal: PTS << 8 | 4,
            cpu_user_us: 61_000_000,
            args: vec!["sh".into(), "-c\u{1b}".into()],
            ..Default::default()
        };
        let text = table(&[process, ProcessInfo::default()]);
        let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["1", "22", "3", "01:02", "pts/4", "00:01:01", "sh", "-c"]);
        assert_eq!(lines[2].last(), Some(&"[]"));
    }
}
