//! What /proc says of processes and memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// A field of /proc/meminfo, in MiB.
pub(crate) fn meminfo(name: &str) -> Result<f64> {
    kib_of(&fs::read_to_string("/proc/meminfo")?, name).with_context(|| format!("no {name} in /proc/meminfo"))
}

/// A field of the form `Name: 12 kB`, in MiB.
pub(crate) fn kib_of(text: &str, name: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// Memory of a process, in MiB.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Usage {
    /// Proportional set size.
    pub(crate) pss: f64,
    /// Pages that are this process's alone.
    pub(crate) private: f64,
}

/// Memory of a process by what is mapped; guest memory is `guest`.
pub(crate) fn mappings(pid: u32) -> Result<BTreeMap<String, Usage>> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).with_context(|| format!("the memory of {pid}"))?;
    Ok(parse_mappings(&text))
}

fn parse_mappings(text: &str) -> BTreeMap<String, Usage> {
    let mut kinds = BTreeMap::<String, Usage>::new();
    let mut kind = String::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            kind = match words.nth(4) {
                None => "anonymous".to_owned(),
                Some(path) if path.starts_with("/memfd:husk-guest") => "guest".to_owned(),
                Some(path) => path.rsplit('/').next().unwrap_or_default().to_owned(),
            };
            continue;
        }
        let mib = words.next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0;
        let usage = kinds.entry(kind.clone()).or_default();
        match first {
            "Pss:" => usage.pss += mib,
            "Private_Clean:" | "Private_Dirty:" => usage.private += mib,
            _ => {}
        }
    }
    kinds
}

/// CPU time that the threads of a process with this name have had, in nanoseconds.
pub(crate) fn thread_ns(pid: u32, name: &str) -> Result<u64> {
    let times = thread_times(pid)?;
    let of_name = times.iter().filter(|(thread, _)| thread.contains(name));
    Ok(of_name.map(|(_, time)| time).sum())
}

/// CPU time that the threads of a process have had, in nanoseconds, by the thread's name.
pub(crate) fn thread_times(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut times = BTreeMap::new();
    for task in tasks(pid)? {
        let told = fs::read_to_string(task.join("schedstat"))?;
        let first = told.split_whitespace().next().unwrap_or_default();
        let name = fs::read_to_string(task.join("comm"))?.trim_end().to_owned();
        *times.entry(name).or_default() += first.parse::<u64>().context("a thread's CPU time")?;
    }
    Ok(times)
}

/// How often the threads of a process have given up or lost the processor, by the thread's name.
pub(crate) fn switches(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut switches = BTreeMap::new();
    for task in tasks(pid)? {
        let status = fs::read_to_string(task.join("status"))?;
        let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
        let sum = counts
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum::<u64>();
        let name = fs::read_to_string(task.join("comm"))?.trim_end().to_owned();
        *switches.entry(name).or_default() += sum;
    }
    Ok(switches)
}

fn tasks(pid: u32) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("the threads of {pid}"))?;
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
}

/// The processes with this name.
pub(crate) fn named(name: &str) -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("reading /proc")?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    // One that ends meanwhile is none.
    let has_name =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
    Ok(pids.filter(has_name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_apart() {
        let text = "7f00-7f10 rw-s 00000000 00:01 5 /memfd:husk-guest (deleted)\nPss: 2048 kB\nPrivate_Dirty: 1024 kB\n\
                    7f20-7f30 rw-p 00000000 00:00 0 \nPss: 512 kB\nPrivate_Clean: 256 kB\nPrivate_Dirty: 256 kB\n\
                    7f40-7f50 rw-p 00000000 00:00 0 [heap]\nPss: 1024 kB\nPrivate_Dirty: 1024 kB\n";
        let kinds = parse_mappings(text);
        assert_eq!(kinds["guest"].pss, 2.0);
        assert_eq!(kinds["guest"].private, 1.0);
        assert_eq!(kinds["anonymous"].private, 0.5);
        assert_eq!(kinds["[heap]"].private, 1.0);
        assert_eq!(kib_of("MemFree:   2048 kB\n", "MemFree"), Some(2.0));
    }
}
