//! Reading layer files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::entry::{BLOCK, Content, Data, Entry};

pub(super) const MAGIC: &[u8; 8] = b"huskLYR1";
pub(super) const FOOTER: usize = 64;

/// Why a layer file cannot be used.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum LayerFileError {
    #[error("the layer file is damaged")]
    Damaged,
    #[error("the layer file cannot be read")]
    Read(#[source] io::Error),
}

/// The beginning of a file's contents, from the layer file that holds them: at most `limit` bytes.
///
/// # Errors
/// The layer file cannot be read.
pub fn read(file: &File, content: &Content, limit: usize) -> io::Result<Vec<u8>> {
    let length = usize::try_from(content.size).unwrap_or(usize::MAX).min(limit);
    let mut bytes = vec![0; length];
    match &content.data {
        Data::Plain(block) => file.read_exact_at(&mut bytes, u64::from(*block) * BLOCK)?,
        Data::Chunks { bits, blocks } => {
            let chunk = usize::try_from(BLOCK << bits).unwrap_or(usize::MAX);
            for (part, block) in bytes.chunks_mut(chunk).zip(blocks) {
                if let Some(block) = block {
                    file.read_exact_at(part, u64::from(*block) * BLOCK)?;
                }
            }
        }
    }
    Ok(bytes)
}

/// Whether a file is a whole layer file, as far as its end tells.
#[must_use]
pub fn is_whole(file: &File) -> bool {
    footer(file).is_ok()
}

/// The entries of a layer file.
///
/// # Errors
/// It is damaged or cannot be read.
pub fn read_index(file: &File) -> Result<Vec<Entry>, LayerFileError> {
    let (offset, length, hash) = footer(file)?;
    let length = usize::try_from(length).map_err(|_| LayerFileError::Damaged)?;
    let mut index = vec![0; length];
    file.read_exact_at(&mut index, offset).map_err(LayerFileError::Read)?;
    if Sha256::digest(&index)[..] != hash {
        return Err(LayerFileError::Damaged);
    }
    postcard::from_bytes(&index).map_err(|_| LayerFileError::Damaged)
}

/// Where the index is, how long, and its hash.
fn footer(file: &File) -> Result<(u64, u64, [u8; 32]), LayerFileError> {
    let size = file.metadata().map_err(LayerFileError::Read)?.len();
    let mut footer = [0; FOOTER];
    if size % BLOCK != 0 || size < BLOCK {
        return Err(LayerFileError::Damaged);
    }
    file.read_exact_at(&mut footer, size - FOOTER as u64)
        .map_err(LayerFileError::Read)?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&footer[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let (offset, length) = (number(8), number(16));
    let fits = offset
        .checked_add(length)
        .is_some_and(|end| end <= size - FOOTER as u64);
    if !footer.starts_with(MAGIC) || !fits {
        return Err(LayerFileError::Damaged);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(&footer[24..56]);
    Ok((offset, length, hash))
}
