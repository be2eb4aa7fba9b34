//! What helps to understand a command that hangs or fails on a machine that nobody can look at afterwards.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::Process;
use crate::leftovers::tree;

/// The most that is shown of one file, in bytes: its end.
const TAIL: usize = 4096;

/// The processes below this one with what their threads wait for, and the ends of the run directory's files.
pub(crate) fn describe(run: &Path) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "--- processes");
    for process in Process::descendants(std::process::id().cast_signed()) {
        let _ = writeln!(text, "{process}");
        threads(&process, &mut text);
    }
    tree(run, &mut |path| {
        if path.is_file() {
            let _ = writeln!(text, "--- {}\n{}", path.display(), tail(path));
        }
    });
    text
}

fn threads(process: &Process, text: &mut String) {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid))
        .into_iter()
        .flatten()
        .flatten();
    for task in tasks {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let stack: Vec<String> = read("stack").lines().map(|line| line.replace("[<0>] ", "")).collect();
        let waits = read("wchan");
        let _ = writeln!(text, "    {}: {waits} {}", read("comm").trim_end(), stack.join(" < "));
    }
}

fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL)..]).into_owned()
}
