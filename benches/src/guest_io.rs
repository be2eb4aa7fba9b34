//! The disk and the streams of a container, through Linux in the guest, beside the same program on the host itself.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::bounded::{self, Program};
use crate::runtimes::{command, present, ratios};
use crate::series::Part;
use crate::start::{MEMORY, husk};
use crate::{Plan, bundle, rounds, stage};

/// Reads blocks of 4 KiB past the page cache with several programs at a time, each with one request under way. Says when,
/// and what the disk's statistics were before and after.
const READS: &str = r#"
file=$1 depth=$2 each=$3 statistics=$4 number=0
cat $statistics; echo begin
while [ $number -lt $depth ]; do
    dd if=$file of=/dev/null bs=4k iflag=direct count=$each skip=$((number * each)) 2>/dev/null || echo failed &
    number=$((number + 1))
done
wait
echo end; cat $statistics"#;
/// How many read at a time, where it is not one.
const DEPTH: usize = 32;

/// Sends, takes, and then gives back what comes.
const STREAMS: &str =
    r#"echo up; dd if=/dev/zero bs=64k count=$1 2>/dev/null; head -c $(($1 * 65536)) >/dev/null; echo; exec cat"#;
/// Of what is sent and taken at once, in bytes.
const CHUNK: usize = 64 << 10;
/// Of a message that goes through a container and comes back, in bytes.
const MESSAGE: usize = 64;

/// The root file system's disk, by one `dd` and by [`DEPTH`] of them. A guest's one processor runs them all, so that
/// the requests under way are fewer than the programs, and the figures have the cost of Linux and of switching in them.
pub(crate) fn blk(plan: &Plan, part: &mut Part) -> Result<()> {
    let (_directory, tree) = stage::with_data(plan)?;
    let rootfs = tree.to_string_lossy().into_owned();
    let shell = tree.join("bin/sh");
    let data = tree.join("data").to_string_lossy().into_owned();
    let total = if plan.quick { 320 } else { 4_800 };
    rounds::run(plan, part, 3, |part| {
        for depth in [1, DEPTH] {
            let (count, each) = (depth.to_string(), (total / depth).to_string());
            let mut own = Command::new(&shell);
            own.args(["-c", READS, "sh", &data, &count, &each, "/dev/null"]);
            own.env("PATH", tree.join("bin"));
            let mut guests = husk(
                plan,
                &[
                    "run", "--memory", MEMORY, "--rootfs", &rootfs, "--", "sh", "-c", READS, "sh",
                ],
            );
            guests.args(["/data", &count, &each, "/sys/block/vda/stat"]);
            let (own, guests) = (reads(&mut own)?, reads(&mut guests)?);
            let rate = |reads: &Reads| total as f64 / reads.seconds;
            let name = format!("blk, {depth} dd at a time");
            part.add(&format!("{name}: on the host itself"), "requests/s", rate(&own));
            part.add(&format!("{name}: in a container of husk"), "requests/s", rate(&guests));
            let percent = 100.0 * rate(&guests) / rate(&own);
            part.add(&format!("{name}: husk's against the host's"), "%", percent);
            let [requests, waited] = guests.disk.context("the guest has no statistics of its disk")?;
            ensure!(requests >= total as f64, "{requests} requests for {total} reads");
            part.add(
                &format!("{name}: requests under way in the guest, mean"),
                "requests",
                waited / 1e3 / guests.seconds,
            );
        }
        Ok(())
    })
}

/// What [`READS`] says.
struct Reads {
    seconds: f64,
    /// How many requests the disk had meanwhile, and how many milliseconds they took, all together.
    disk: Option<[f64; 2]>,
}

fn reads(command: &mut Command) -> Result<Reads> {
    let (own, theirs) = bounded::stream()?;
    let program = Program::start(command.stdin(Stdio::null()).stdout(theirs))?;
    // Ends this side's hold on the other end of the stream.
    command.stdout(Stdio::null());
    let (mut times, mut statistics) = (Vec::new(), Vec::new());
    for line in BufReader::new(own).lines() {
        match line?.as_str() {
            "begin" | "end" => times.push(Instant::now()),
            "failed" => anyhow::bail!("dd failed"),
            numbers => statistics.push(disk_statistics(numbers).context("a disk's statistics")?),
        }
    }
    program.succeed()?;
    let [begin, end] = times[..] else {
        anyhow::bail!("no begin or no end");
    };
    let disk = match statistics[..] {
        [before, after] => Some(std::array::from_fn(|index| after[index] - before[index])),
        _ => None,
    };
    Ok(Reads {
        seconds: (end - begin).as_secs_f64(),
        disk,
    })
}

/// Reads that are completed, and the milliseconds that requests have taken (Linux's `block/stat.rst`).
fn disk_statistics(line: &str) -> Option<[f64; 2]> {
    let numbers: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    Some([*numbers.first()?, *numbers.get(10)?])
}

/// A container's streams: with husk they go over vsock, by way of the agent.
pub(crate) fn vsock(plan: &Plan, part: &mut Part) -> Result<()> {
    let (chunks, messages) = if plan.quick { (16, 20) } else { (256, 500) };
    let directory = tempfile::tempdir()?;
    let words = ["/bin/sh", "-c", STREAMS, "sh", &chunks.to_string()];
    bundle::write(directory.path(), &plan.rootfs, &words, None)?;
    rounds::run(plan, part, 3, |part| {
        let mut trips = BTreeMap::new();
        let mut own = Command::new(plan.rootfs.join("bin/sh"));
        own.args(&words[1..]).env("PATH", plan.rootfs.join("bin"));
        let mut all = vec![("no runtime", own)];
        for (name, program) in present(plan) {
            all.push((name, command(&program, directory.path(), run_words(name))));
        }
        for (name, mut command) in all {
            let [sent, taken, trip] = streams(&mut command, chunks, messages).with_context(|| name.to_owned())?;
            let mib = (chunks * CHUNK) as f64 / 1_048_576.0;
            part.add(&format!("vsock, {name}: stdout"), "MiB/s", mib / sent);
            part.add(&format!("vsock, {name}: stdin"), "MiB/s", mib / taken);
            let micros = 1e6 * trip / messages as f64;
            part.add(&format!("vsock, {name}: round trip of {MESSAGE} bytes"), "us", micros);
            trips.insert(name, micros);
        }
        ratios(part, "vsock, round trip", &trips);
        Ok(())
    })
}

/// How a runtime runs the bundle in its directory with its own stdin.
fn run_words(name: &str) -> &'static [&'static str] {
    match name {
        "husk" => &["run", "--interactive", "--name", "bench-streams", "--bundle", "."],
        _ => &["run", "bench-streams"],
    }
}

/// The seconds that [`STREAMS`] takes for what it sends, for what it takes, and for the messages that come back.
fn streams(command: &mut Command, chunks: usize, messages: usize) -> Result<[f64; 3]> {
    let (mut own, theirs) = bounded::stream()?;
    command.stdin(theirs.try_clone()?).stdout(theirs);
    let program = Program::start(command)?;
    command.stdin(Stdio::null()).stdout(Stdio::null());
    own.read_exact(&mut [0; 3]).context("the container says nothing")?;
    let mut bytes = vec![0; chunks * CHUNK];
    let start = Instant::now();
    own.read_exact(&mut bytes)?;
    let sent = start.elapsed();
    own.write_all(&bytes)?;
    own.read_exact(&mut [0])?;
    let taken = start.elapsed() - sent;
    let mut message = [0x5a; MESSAGE];
    let start = Instant::now();
    for _ in 0..messages {
        own.write_all(&message)?;
        own.read_exact(&mut message)?;
    }
    let trips = start.elapsed();
    own.shutdown(std::net::Shutdown::Write)?;
    program.succeed()?;
    Ok([sent, taken, trips].map(|time| time.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_itself_can_be_measured() {
        let mut shell = Command::new("sh");
        shell.args(["-c", STREAMS, "sh", "2"]);
        assert!(streams(&mut shell, 2, 3).unwrap().iter().all(|seconds| *seconds > 0.0));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![1; 1 << 20]).unwrap();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", READS, "sh"])
            .arg(file.path())
            .args(["2", "64", "/dev/null"]);
        let reads = reads(&mut shell).unwrap();
        assert!(reads.seconds > 0.0 && reads.disk.is_none());
    }

    #[test]
    fn statistics_of_a_disk_are_understood() {
        let line = "     100        0      800       40        0        0        0        0        0       20       40        0";
        assert_eq!(disk_statistics(line), Some([100.0, 40.0]));
        assert_eq!(disk_statistics("begin"), None);
    }
}
