//! EROFS images (`fs/erofs/erofs_fs.h` of Linux, "Core on-disk format" of its documentation), uncompressed.
//!
//! [`write()`] makes an image of a [`Tree`] that holds everything but the contents of files: those are in layer files,
//! which stand behind the image on the same disk, one after the other, the lowest layer first.
//!
//! ```text
//! ┌───────────┬────────┬────────────────────┬──────────────────────┐ ┌─────────────────┐ ┌──
//! │ boot block│ super- │ inodes, each with  │ directories and links│ │ lowest layer's  │ │
//! │ (unused)  │ block  │ xattrs, short dirs,│ that are too long to │ │ file            │ │ ...
//! │           │        │ links, chunk maps  │ stand beside theirs  │ │                 │ │
//! └───────────┴────────┴────────────────────┴──────────────────────┘ └─────────────────┘ └──
//! 0          1024     1152                  a block                  a block
//! ```
//!
//! Only what Linux 5.16 and later know is used: extended inodes (64 bytes), flat and inline data, and chunks for files
//! with holes.

mod directory;
mod inode;
mod layout;
mod xattr;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};

use thiserror::Error;

use crate::blocks::BlockWriter;
use crate::entry::BLOCK;
use crate::tree::{Node, Number, ROOT, Tree};
use layout::{Contents, Layout};

pub use xattr::index as xattr_index;

/// `EROFS_SUPER_OFFSET`.
const SUPERBLOCK: u64 = 1024;
/// `EROFS_SUPER_MAGIC_V1`.
const MAGIC: u32 = 0xe0f5_e1e2;
/// The first inode's place: behind the superblock.
const FIRST_INODE: u64 = SUPERBLOCK + 128;
/// The unit of inodes' places, in bytes: `inode number = place / unit`.
const UNIT: u64 = 32;
/// `EROFS_FEATURE_COMPAT_MTIME`: each inode's own time is one of modification.
const COMPAT_MTIME: u32 = 2;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`.
const INCOMPAT_CHUNKED: u32 = 4;

/// Why an image cannot be made.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ErofsError {
    #[error("it is larger than a disk can be")]
    Large,
    #[error("the image cannot be written")]
    Write(#[from] io::Error),
}

/// Writes the image of a tree into an empty file; its length is a number of blocks.
///
/// `layers` are the lengths of the layer files in bytes, the lowest first; `uuid` tells images from each other.
///
/// # Errors
/// The disk would be larger than EROFS can address, or the file cannot be written.
pub fn write(tree: &Tree, layers: &[u64], uuid: [u8; 16], file: &File) -> Result<(), ErofsError> {
    let layout = Layout::new(tree, &Contents::Layers(layers))?;
    let mut writer = BlockWriter::new(file);
    writer.skip_to(SUPERBLOCK)?;
    writer.write_all(&superblock(&layout, uuid)?)?;
    write_inodes(tree, &layout, &mut writer)?;
    writer.finish()?;
    Ok(())
}

/// Writes the image of a tree behind the contents of its files, which are in the same file from its second block on.
pub(crate) fn write_behind(tree: &Tree, uuid: [u8; 16], mut writer: BlockWriter<'_>) -> Result<(), ErofsError> {
    let layout = Layout::new(tree, &Contents::Before(writer.position()))?;
    write_inodes(tree, &layout, &mut writer)?;
    writer.patch(&superblock(&layout, uuid)?, SUPERBLOCK)?;
    writer.finish()?;
    Ok(())
}

fn write_inodes(tree: &Tree, layout: &Layout, writer: &mut BlockWriter<'_>) -> Result<(), ErofsError> {
    for number in &layout.order {
        writer.skip_to(layout.place(*number))?;
        writer.write_all(&inode::encode(tree, layout, *number))?;
    }
    writer.pad()?;
    for number in &layout.order {
        if layout.inode(*number).block.is_some() {
            writer.write_all(&outside(tree, layout, *number))?;
            writer.pad()?;
        }
    }
    Ok(())
}

/// `struct erofs_super_block`.
fn superblock(layout: &Layout, uuid: [u8; 16]) -> Result<[u8; 128], ErofsError> {
    let mut block = [0; 128];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    let root = u16::try_from(layout.nid(ROOT)).map_err(|_| ErofsError::Large)?;
    put(0, &MAGIC.to_le_bytes());
    put(8, &COMPAT_MTIME.to_le_bytes());
    put(12, &[12]);
    put(14, &root.to_le_bytes());
    put(16, &(layout.order.len() as u64).to_le_bytes());
    put(36, &layout.blocks.to_le_bytes());
    put(40, &layout.base.to_le_bytes());
    put(48, &uuid);
    let incompatible = if layout.has_chunks { INCOMPAT_CHUNKED } else { 0 };
    put(80, &incompatible.to_le_bytes());
    Ok(block)
}

/// The data that stands in blocks of its own.
fn outside(tree: &Tree, layout: &Layout, number: Number) -> Vec<u8> {
    let whole = match &tree.inode(number).node {
        Node::Directory(names) => directory::encode(tree, layout, number, names),
        Node::Symlink(target) => target.clone(),
        _ => Vec::new(),
    };
    let end = whole.len() - layout.inode(number).tail;
    whole[..end].to_vec()
}

/// How many blocks hold so many bytes.
fn blocks(bytes: u64) -> Result<u32, ErofsError> {
    u32::try_from(bytes.div_ceil(BLOCK)).map_err(|_| ErofsError::Large)
}

/// A directory's names.
type Names = BTreeMap<Vec<u8>, Number>;
