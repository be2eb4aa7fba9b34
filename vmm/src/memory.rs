//! Guest memory: one memfd, mapped in one or two pieces around the hole for device registers.
//!
//! The memfd is sealed against any change of its size and mapped shared, so that a later machine can map the same
//! file copy-on-write. Pages come into being when they are touched. Huge pages are deliberately not asked for: a small
//! guest touches its memory thinly, and what it does not use should cost the host nothing.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sendfile::sendfile64;
use nix::unistd::ftruncate;
use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, ReadVolatile,
};

/// Guest memory as devices see it.
pub type Memory = vm_memory::GuestMemoryMmap<()>;

/// Where the hole for device registers begins (3.25 GiB): the most memory that lies below 4 GiB.
pub const HOLE_START: u64 = 0xd000_0000;
/// Where the hole ends and memory goes on.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Why there is no guest memory.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum MemoryError {
    #[error("no file can be made for {mib} MiB of guest memory")]
    File { mib: u64, source: io::Error },
    #[error("the file of the guest's memory cannot be sealed")]
    Seal(#[source] io::Error),
    #[error("{mib} MiB of guest memory cannot be mapped at guest address {address:#x}")]
    Map {
        mib: u64,
        address: u64,
        source: MmapRegionError,
    },
    #[error("guest memory cannot be kept out of core dumps")]
    Advise(#[source] io::Error),
    #[error("the pieces of guest memory do not fit together")]
    Layout(#[source] vm_memory::GuestRegionCollectionError),
}

/// The pieces that `bytes` of memory consist of: guest address and length, in rising order.
pub fn pieces(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= HOLE_START {
        vec![(0, bytes)]
    } else {
        vec![(0, HOLE_START), (HOLE_END, bytes - HOLE_START)]
    }
}

/// Makes guest memory of `mib` MiB.
///
/// # Errors
/// What the kernel refuses, with the size that was asked for.
pub fn create(mib: u32) -> Result<Memory, MemoryError> {
    let mib = u64::from(mib);
    let file = backing_file(mib << 20).map_err(|source| MemoryError::File { mib, source })?;
    seal(&file)?;
    let file = Arc::new(File::from(file));
    let mut offset = 0;
    let mut regions = Vec::new();
    for (address, length) in pieces(mib << 20) {
        regions.push(Arc::new(map(&file, offset, address, length)?));
        offset += length;
    }
    let memory = Memory::from_arc_regions(regions).map_err(MemoryError::Layout)?;
    for region in memory.iter() {
        keep_out_of_dumps(region)?;
    }
    Ok(memory)
}

fn backing_file(bytes: u64) -> io::Result<OwnedFd> {
    let file = memfd_create("husk-guest", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    ftruncate(&file, length)?;
    Ok(file)
}

/// A file that cannot shrink cannot pull pages away from under a mapping (which would be a SIGBUS).
fn seal(file: &OwnedFd) -> Result<(), MemoryError> {
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(file, FcntlArg::F_ADD_SEALS(seals))
        .map(drop)
        .map_err(|errno| MemoryError::Seal(errno.into()))
}

fn map(file: &Arc<File>, offset: u64, address: u64, length: u64) -> Result<GuestRegionMmap<()>, MemoryError> {
    let mib = length >> 20;
    let failed = |source| MemoryError::Map { mib, address, source };
    let size = usize::try_from(length).map_err(|_| failed(MmapRegionError::InvalidOffsetLength))?;
    let mapping = MmapRegionBuilder::new(size)
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .build()
        .map_err(failed)?;
    GuestRegionMmap::new(mapping, GuestAddress(address)).ok_or_else(|| failed(MmapRegionError::InvalidOffsetLength))
}

/// Copies `count` bytes of a file, from `offset` on, to a guest address; they must lie in one piece of memory.
///
/// They are written to the memory's file and not to its mapping: so a page is neither faulted in nor cleared before it is
/// filled, which for a kernel takes as long as the copy itself.
///
/// # Errors
/// The file cannot be read, is shorter, or the bytes do not lie in one piece.
pub fn load(memory: &Memory, address: u64, file: &File, offset: u64, count: u64) -> io::Result<()> {
    let (region, inside) = memory
        .to_region_addr(GuestAddress(address))
        .filter(|(region, inside)| count <= region.len() - inside.0)
        .ok_or(io::ErrorKind::InvalidInput)?;
    let backing = region.file_offset().ok_or(io::ErrorKind::Unsupported)?;
    let mut to = backing.file();
    to.seek(SeekFrom::Start(backing.start() + inside.0))?;
    let mut from = i64::try_from(offset).map_err(io::Error::other)?;
    let mut left = usize::try_from(count).map_err(io::Error::other)?;
    while left > 0 {
        match sendfile64(to, file, Some(&mut from), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => left -= moved,
            Err(Errno::EINTR) => {}
            // A file system that cannot give its pages away.
            Err(Errno::EINVAL) => {
                let rest = inside.0 + (count - left as u64);
                let mut slice = region
                    .get_slice(MemoryRegionAddress(rest), left)
                    .map_err(io::Error::other)?;
                let mut file = file;
                file.seek(SeekFrom::Start(offset + count - left as u64))?;
                file.read_exact_volatile(&mut slice).map_err(io::Error::other)?;
                return Ok(());
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[allow(unsafe_code)]
fn keep_out_of_dumps(region: &GuestRegionMmap<()>) -> Result<(), MemoryError> {
    let length = usize::try_from(region.len()).map_err(|error| MemoryError::Advise(io::Error::other(error)))?;
    // SAFETY: the range is exactly one live mapping of ours, and MADV_DONTDUMP changes nothing of its content.
    let result = unsafe { libc::madvise(region.as_ptr().cast(), length, libc::MADV_DONTDUMP) };
    match result {
        0 => Ok(()),
        _ => Err(MemoryError::Advise(io::Error::last_os_error())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use vm_memory::Bytes;

    #[test]
    fn small_memory_is_one_piece_and_large_memory_leaves_the_hole() {
        assert_eq!(pieces(32 << 20), [(0, 32 << 20)]);
        assert_eq!(pieces(HOLE_START), [(0, HOLE_START)]);
        assert_eq!(pieces(4 << 30), [(0, HOLE_START), (HOLE_END, (4 << 30) - HOLE_START)]);
    }

    #[test]
    fn a_part_of_a_file_is_loaded_wherever_it_lies() {
        let memory = create(32).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..20_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        file.write_all(&bytes).unwrap();
        load(&memory, 0x10_0123, &file, 77, 10_000).unwrap();
        let mut found = vec![0; 10_002];
        memory.read_slice(&mut found, GuestAddress(0x10_0122)).unwrap();
        assert_eq!(found[0], 0);
        assert_eq!(found[1..10_001], bytes[77..10_077]);
        assert_eq!(found[10_001], 0);
        let error = load(&memory, 0x10_0000, &file, 15_000, 5_001).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error = load(&memory, (32 << 20) - 99, &file, 0, 100).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        load(&memory, (32 << 20) - 99, &file, 0, 99).unwrap();
    }

    /// Files of /proc have no pages to give away.
    #[test]
    fn a_file_without_pages_is_loaded_too() {
        let memory = create(32).unwrap();
        let file = File::open("/proc/self/status").unwrap();
        load(&memory, 0x10_0000, &file, 1, 20).unwrap();
        let mut found = [0; 4];
        memory.read_slice(&mut found, GuestAddress(0x10_0000)).unwrap();
        assert_eq!(&found, b"ame:");
    }

    #[test]
    fn every_piece_is_a_part_of_the_same_file() {
        let memory = create(3584).unwrap();
        memory.write_slice(b"low", GuestAddress(0x1000)).unwrap();
        memory.write_slice(b"high", GuestAddress(HOLE_END + 0x2000)).unwrap();
        assert!(memory.write_slice(b"hole", GuestAddress(HOLE_START)).is_err());
        let region = memory.iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        let mut text = [0; 4];
        file.read_exact_at(&mut text[..3], 0x1000).unwrap();
        assert_eq!(&text[..3], b"low");
        file.read_exact_at(&mut text, HOLE_START + 0x2000).unwrap();
        assert_eq!(&text, b"high");
        assert!(file.set_len(1 << 20).is_err(), "the file must not shrink");
    }
}
