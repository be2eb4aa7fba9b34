//! Reads of a file past the page cache, with a number of requests under way at any time.
//!
//! A process of its own, so that the very same program reads in a container and on the host itself.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use vmm_sys_util::aio::{IOCB_CMD_PREAD, IoContext, IoControlBlock, IoEvent};

use crate::bounded;

/// The name by which `main` knows it.
pub(crate) const MODE: &str = "reads";
/// Of a read, in bytes.
const BLOCK: usize = 4096;
/// From one read to the next, in blocks. Odd, so that a file whose blocks are a power of two is read evenly; and in a
/// file of 8192 blocks none of hundreds of reads in a row lies beside another, which Linux would make one request of.
const STRIDE: usize = 1021;

/// What the program says, in one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reads {
    /// From the first one's submission to the last one's end.
    pub(crate) seconds: f64,
    /// How many requests a disk had meanwhile, and how many milliseconds they took, all together.
    pub(crate) disk: Option<[f64; 2]>,
}

/// Its arguments: the file, how many reads are under way, how many there are in all, and the statistics of the disk, if
/// it has one.
pub(crate) fn arguments(file: &str, depth: usize, count: usize, statistics: Option<&str>) -> Vec<String> {
    let mut words = vec![MODE.to_owned(), file.to_owned(), depth.to_string(), count.to_string()];
    words.extend(statistics.map(str::to_owned));
    words
}

/// Runs a command that is this program in this mode, and gives what it says.
pub(crate) fn by(command: &mut Command) -> Result<Reads> {
    let said = bounded::output(command)?.stdout;
    serde_json::from_str(&said).with_context(|| format!("what {command:?} says: {said:?}"))
}

/// The program: reads, and says how long it took.
pub(crate) fn main(words: &[String]) -> Result<()> {
    let [file, depth, count, statistics @ ..] = words else {
        bail!("a file, a depth and a count are needed");
    };
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(file)
        .with_context(|| format!("opening {file}"))?;
    let read = || read(&file, depth.parse()?, count.parse()?);
    let reads = match statistics.first().map(Path::new) {
        None => Reads {
            seconds: read()?,
            disk: None,
        },
        Some(statistics) => {
            let before = disk_statistics(statistics)?;
            let seconds = read()?;
            let after = disk_statistics(statistics)?;
            Reads {
                seconds,
                disk: Some(std::array::from_fn(|index| after[index] - before[index])),
            }
        }
    };
    println!("{}", serde_json::to_string(&reads)?);
    Ok(())
}

/// Memory for one read, as O_DIRECT wants it.
#[derive(Clone)]
#[repr(align(4096))]
struct Buffer([u8; BLOCK]);

/// Keeps reads under way, by Linux' asynchronous I/O, until so many have ended; gives the seconds.
fn read(file: &File, depth: usize, count: usize) -> Result<f64> {
    let blocks = usize::try_from(file.metadata()?.len())? / BLOCK;
    ensure!(blocks > 0 && depth > 0, "nothing to read");
    // A first read, so that what is done once for a file is over.
    let mut buffers = vec![Buffer([0; BLOCK]); depth];
    file.read_exact_at(&mut buffers[0].0, 0)?;
    let addresses: Vec<_> = buffers.iter_mut().map(|buffer| buffer.0.as_mut_ptr() as u64).collect();
    // Declared after the buffers and so gone before them: its end waits for what is under way.
    let context = IoContext::new(u32::try_from(depth)?)?;
    let mut events = vec![IoEvent::default(); depth];
    let mut free: Vec<usize> = (0..depth.min(count)).collect();
    let (mut begun, mut ended) = (0, 0);
    let start = Instant::now();
    while ended < count {
        let request = |slot: usize, number: usize| -> Result<IoControlBlock> {
            Ok(IoControlBlock {
                aio_data: slot as u64,
                aio_lio_opcode: u16::try_from(IOCB_CMD_PREAD)?,
                aio_fildes: file.as_raw_fd().cast_unsigned(),
                aio_buf: addresses[slot],
                aio_nbytes: BLOCK as u64,
                aio_offset: i64::try_from(number * STRIDE % blocks * BLOCK)?,
                ..IoControlBlock::default()
            })
        };
        free.truncate(count - begun);
        let requests = free.drain(..).zip(begun..);
        let mut requests = requests
            .map(|(slot, number)| request(slot, number))
            .collect::<Result<Vec<_>>>()?;
        if !requests.is_empty() {
            let requests: Vec<_> = requests.iter_mut().collect();
            let taken = context.submit(&requests)?;
            ensure!(
                taken == requests.len(),
                "{taken} of {} reads were taken",
                requests.len()
            );
            begun += taken;
        }
        let number = context.get_events(1, &mut events, None)?;
        for event in &events[..number] {
            ensure!(event.res == BLOCK as i64, "a read ended with {}", event.res);
            free.push(usize::try_from(event.data)?);
        }
        ended += number;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Reads that are completed, and the milliseconds that requests have taken (Linux's `block/stat.rst`).
fn disk_statistics(path: &Path) -> Result<[f64; 2]> {
    let line = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    statistics_in(&line).with_context(|| format!("no statistics of a disk: {line:?}"))
}

fn statistics_in(line: &str) -> Option<[f64; 2]> {
    let numbers: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    Some([*numbers.first()?, *numbers.get(10)?])
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn so_many_reads_are_done() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0x5a; 64 * BLOCK]).unwrap();
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(file.path())
            .unwrap();
        for (depth, count) in [(1, 5), (8, 100), (32, 3)] {
            assert!(read(&file, depth, count).unwrap() > 0.0, "{depth} of {count}");
        }
        assert!(read(&file, 0, 1).is_err());
    }

    #[test]
    fn statistics_of_a_disk_are_understood() {
        let line = "     100        0      800       40        0        0        0        0        0       20       40        0";
        assert_eq!(statistics_in(line), Some([100.0, 40.0]));
        assert_eq!(statistics_in("begin"), None);
    }
}
