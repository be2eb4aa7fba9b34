//! Numbers that must stay as they are, of the machine and of the processes of a sandbox that lives long.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use husk_tests::Process;

/// What a command leaves to be closed after its end is closed within this time.
const GRACE: Duration = Duration::from_secs(10);
/// Linux counts open files by processor and adds up roughly; and other programs run.
const OPEN_FILES: usize = 200;
/// In KiB: what a process allocates for itself may lie in other places now than before. A leak of one KiB a sandbox or
/// ten an `exec` is beyond it in a run of the usual length.
const OWN_MEMORY: usize = 256;
/// In KiB: what the kernel itself has allocated. After many sandboxes at once pages with a few objects in them stay; a leak
/// of eight KiB a sandbox is beyond that in a run of the usual length.
const KERNEL_MEMORY: usize = 4096;
/// So many at once the limit on the kernel's memory is for.
const USUAL_AT_ONCE: u32 = 20;
/// Where the kernel shows its caches of objects.
const CACHES: &str = "/sys/kernel/slab";

/// The table's first line.
pub(crate) const HEAD: &str = "                                        before      after    may grow";

/// One line of the table. What has no limit is told only.
pub(crate) fn row(name: &str, before: usize, after: usize, limit: Option<usize>) -> String {
    let limit = limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
    format!("{name:<36}{before:>10} {after:>10} {limit:>11}")
}

/// Those of a sandbox's processes that have these names.
///
/// # Panics
/// One of them is missing, or there are several.
pub(crate) fn residents(processes: &[Process], names: &[&str]) -> Vec<Process> {
    let of_name = |name: &&str| {
        let found: Vec<_> = processes.iter().filter(|process| process.name == *name).collect();
        match found[..] {
            [one] => one.clone(),
            _ => panic!("one {name}, not {}: {processes:?}", found.len()),
        }
    };
    names.iter().map(of_name).collect()
}

/// A line of what the residents have, when that stays as it is.
///
/// # Panics
/// A resident is gone.
pub(crate) fn line(residents: &[Process]) -> String {
    settled(residents);
    let of_one = |process: &Process| {
        let (memory, huge) = own_memory(process);
        let (name, descriptors) = (&process.name, process.descriptors());
        format!("{name} {descriptors} descriptors {memory} KiB and {huge} in huge pages")
    };
    let all: Vec<_> = residents.iter().map(of_one).collect();
    all.join(", ")
}

/// Descriptors and threads of the residents, once they stay as they are.
fn settled(residents: &[Process]) -> Vec<(String, usize)> {
    // Nothing tells of a descriptor that another process closes.
    let end = Instant::now() + GRACE;
    let mut last = exact(residents);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_secs(1));
        let now = exact(residents);
        if now == last {
            break;
        }
        last = now;
    }
    last
}

fn exact(residents: &[Process]) -> Vec<(String, usize)> {
    let of_one = |process: &Process| {
        let threads = fields(&format!("/proc/{}/status", process.pid))["Threads"];
        [
            (format!("{}: descriptors", process.name), process.descriptors()),
            (format!("{}: threads", process.name), threads),
        ]
    };
    residents.iter().flat_map(of_one).collect()
}

/// The figures at one moment, with how much each may grow.
#[derive(Debug)]
pub(crate) struct Figures(Vec<(String, usize, Option<usize>)>);

impl Figures {
    /// Reads them when descriptors and threads of the residents stay as they are. What a peak of so many at once leaves in the
    /// kernel has a limit for the usual number only.
    ///
    /// # Panics
    /// A resident is gone.
    pub(crate) fn take(residents: &[Process], at_once: u32) -> Self {
        let exact = settled(residents);
        let mut all = vec![("open files of the system".to_owned(), open_files(), Some(OPEN_FILES))];
        all.extend(exact.into_iter().map(|(name, number)| (name, number, Some(0))));
        for resident in residents {
            let status = fields(&format!("/proc/{}/status", resident.pid));
            let name = &resident.name;
            let (memory, huge) = own_memory(resident);
            all.push((format!("{name}: own memory, KiB"), memory, Some(OWN_MEMORY)));
            // Of the stack of a thread the kernel makes one, or does not.
            all.push((format!("{name}: huge pages, KiB"), huge, None));
            // With the guest's memory, which it has when it has used it once, and with pages of files.
            all.push((format!("{name}: all memory, KiB"), status["VmRSS"], None));
        }
        let kernel = kernel_memory();
        let available = fields("/proc/meminfo")["MemAvailable"];
        all.push(("MemAvailable, KiB".to_owned(), available, None));
        let may_grow = (at_once <= USUAL_AT_ONCE).then_some(KERNEL_MEMORY);
        all.push(("SUnreclaim, KiB".to_owned(), kernel, may_grow));
        Self(all)
    }

    /// Prints them beside those of before. One line for each that has grown too much; empty when none has.
    pub(crate) fn compare(&self, before: &Self) -> String {
        let mut grown = String::new();
        for ((name, now, limit), (_, then, _)) in self.0.iter().zip(&before.0) {
            println!("{}", row(name, *then, *now, *limit));
            if limit.is_some_and(|limit| *now > then + limit) {
                // Writing to a String cannot fail.
                let _ = writeln!(grown, "{name} from {then} to {now}");
            }
        }
        grown
    }
}

/// A process's own memory in KiB, and what it has in huge pages, which are not counted in that.
fn own_memory(process: &Process) -> (usize, usize) {
    let all = fields(&format!("/proc/{}/status", process.pid))["RssAnon"];
    let rollup = fields(&format!("/proc/{}/smaps_rollup", process.pid));
    let huge = rollup.get("AnonHugePages").copied().unwrap_or_default();
    (all.saturating_sub(huge), huge)
}

/// What the kernel has allocated for itself, in KiB, once it gets no less: it frees some of it when nobody waits for it.
fn kernel_memory() -> usize {
    let now = || {
        shrink_caches();
        fields("/proc/meminfo")["SUnreclaim"]
    };
    let end = Instant::now() + GRACE;
    let mut least = now();
    while Instant::now() < end {
        std::thread::sleep(Duration::from_secs(1));
        match now() {
            less if less < least => least = less,
            _ => break,
        }
    }
    least
}

/// Has the kernel give back pages of its caches in which no object is. It keeps some of them after a peak, a few of each
/// kind, which are megabytes after many sandboxes at once. Who may not ask for it sees those too.
fn shrink_caches() {
    for cache in fs::read_dir(CACHES).into_iter().flatten().flatten() {
        // A link is another name of the same cache.
        if cache.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = fs::write(cache.path().join("shrink"), "1");
        }
    }
}

/// Open files of all processes, and those that are on their way between processes.
fn open_files() -> usize {
    let told = fs::read_to_string("/proc/sys/fs/file-nr").expect("/proc/sys/fs/file-nr");
    let first = told.split_whitespace().next();
    first
        .and_then(|word| word.parse().ok())
        .expect("a number of open files")
}

/// The lines `name: number` of a file of /proc.
///
/// # Panics
/// The file is gone.
fn fields(path: &str) -> BTreeMap<String, usize> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.split_whitespace().next()?.parse().ok()?))
    };
    text.lines().filter_map(field).collect()
}
