//! Guest memory as devices see it.

use std::iter::FusedIterator;

use vm_memory::guest_memory::{Error, GuestMemorySliceIterator, Result};
use vm_memory::mmap::FromRangesError;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
    Permissions, VolatileSlice,
};

/// Guest memory. Cloning it clones references to the same mappings.
///
/// A device looks at a few bytes here and there for each request, and the library's general way to them, which is made
/// for memory behind an IOMMU too, costs as much as the rest of a small request. This one is short where the bytes lie
/// in one region, which is nearly always.
#[derive(Clone, Debug)]
pub struct Memory(GuestMemoryMmap<()>);

impl Memory {
    /// New memory that is nobody else's, of these ranges.
    ///
    /// # Errors
    /// The ranges overlap, or cannot be mapped.
    pub fn from_ranges(ranges: &[(GuestAddress, usize)]) -> std::result::Result<Self, FromRangesError> {
        GuestMemoryMmap::from_ranges(ranges).map(Self)
    }
}

impl From<GuestMemoryMmap<()>> for Memory {
    fn from(memory: GuestMemoryMmap<()>) -> Self {
        Self(memory)
    }
}

impl GuestMemory for Memory {
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, _: Permissions) -> bool {
        GuestMemoryBackend::check_range(&self.0, address, count)
    }

    #[inline]
    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        _: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>> {
        Ok(Slices {
            memory: &self.0,
            address: address.0,
            left: count,
        })
    }

    fn physical_memory(&self) -> Option<&Self::PhysicalMemory> {
        Some(&self.0)
    }
}

/// The pieces of a range, one for each region that it crosses.
struct Slices<'a> {
    memory: &'a GuestMemoryMmap<()>,
    address: u64,
    left: usize,
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a, ()>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let found = self.memory.iter().find_map(|region| {
            let offset = self.address.checked_sub(region.start_addr().0)?;
            (offset < region.len()).then_some((region, offset))
        });
        let Some((region, offset)) = found else {
            self.left = 0;
            return Some(Err(Error::InvalidGuestAddress(GuestAddress(self.address))));
        };
        let length = usize::try_from(region.len() - offset).map_or(self.left, |room| room.min(self.left));
        // No region ends beyond the last address, so that this wraps at most to the address behind it.
        self.address = self.address.wrapping_add(length as u64);
        self.left -= length;
        Some(region.get_slice(MemoryRegionAddress(offset), length))
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {
    #[inline]
    fn stop_on_error(mut self) -> Result<impl Iterator<Item = VolatileSlice<'a, ()>>> {
        let first = self.next().transpose()?;
        Ok(first.into_iter().chain(self.map_while(Result::ok)))
    }
}
