//! The disk and the streams of a container, through Linux in the guest, beside the same program on the host itself.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::bounded::{self, Program};
use crate::runtimes::{command, present, ratios};
use crate::series::Part;
use crate::start::{MEMORY, husk};
use crate::{Plan, bundle, reads, rounds, stage};

/// How many reads are under way at a time.
const DEPTHS: [usize; 2] = [1, 32];
/// The host's own reads are so many times as fast that for a time as long as a container's it needs more of them.
const OWN: usize = 10;

/// Sends, takes, and then gives back what comes.
const STREAMS: &str =
    r#"echo up; dd if=/dev/zero bs=64k count=$1 2>/dev/null; head -c $(($1 * 65536)) >/dev/null; echo; exec cat"#;
/// Of what is sent and taken at once, in bytes.
const CHUNK: usize = 64 << 10;
/// Of a message that goes through a container and comes back, in bytes.
const MESSAGE: usize = 64;

/// Reads from the root file system's disk, and the same program's on the host, from the file that the image was made of.
pub(crate) fn blk(plan: &Plan, part: &mut Part) -> Result<()> {
    let (_directory, tree) = stage::with_data(plan)?;
    let rootfs = tree.to_string_lossy().into_owned();
    let program = tree.join(stage::SELF);
    let data = tree.join(stage::DATA).to_string_lossy().into_owned();
    let total = if plan.quick { 320 } else { 4_800 };
    rounds::run(plan, part, 3, |part| {
        for depth in DEPTHS {
            let mut own = Command::new(&program);
            own.args(reads::arguments(&data, depth, total * OWN, None));
            let program = format!("/{}", stage::SELF);
            let words = ["run", "--memory", MEMORY, "--rootfs", &rootfs, "--", &program];
            let mut guests = husk(plan, &words);
            let data = format!("/{}", stage::DATA);
            guests.args(reads::arguments(&data, depth, total, Some("/sys/block/vda/stat")));
            let (own, guests) = (reads::by(&mut own)?, reads::by(&mut guests)?);
            let [requests, waited] = guests.disk.context("the guest has no statistics of its disk")?;
            ensure!(requests >= total as f64, "{requests} requests for {total} reads");
            let (own, rate) = ((total * OWN) as f64 / own.seconds, total as f64 / guests.seconds);
            let name = format!("blk QD{depth}, through Linux");
            part.add(&format!("{name}: on the host itself"), "requests/s", own);
            part.add(&format!("{name}: in a container of husk"), "requests/s", rate);
            part.add(&format!("{name}: husk's against the host's"), "%", 100.0 * rate / own);
            part.add(
                &format!("{name}: requests under way in the guest, mean"),
                "requests",
                waited / 1e3 / guests.seconds,
            );
        }
        Ok(())
    })
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
    }
}
