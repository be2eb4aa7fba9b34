//! Inodes (`struct erofs_inode_extended`) with what stands behind them.

use super::layout::{Layout, chunks};
use super::{directory, xattr};
use crate::entry::Data;
use crate::tree::{Node, Number, Tree};

/// `i_format`: bit 0 says that the inode is extended, the next three how its data is laid out.
const EXTENDED: u16 = 1;
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
const CHUNK_BASED: u16 = 4;
/// `EROFS_NULL_ADDR`.
const HOLE: u32 = u32::MAX;

/// An inode, its extended attributes, and its data or its map as far as it stands there.
pub(super) fn encode(tree: &Tree, layout: &Layout, number: Number) -> Vec<u8> {
    let inode = tree.inode(number);
    let place = layout.inode(number);
    let xattrs = xattr::encode(&inode.meta.xattrs);
    let (kind, mut format, union) = match &inode.node {
        Node::Directory(_) => (types::DIRECTORY, FLAT_PLAIN, place.block.unwrap_or(0)),
        Node::Symlink(_) => (types::SYMLINK, FLAT_PLAIN, place.block.unwrap_or(0)),
        Node::File { layer, content } => match content.data {
            Data::Plain(block) => (types::FILE, FLAT_PLAIN, layout.block(*layer, block)),
            Data::Chunks { bits, .. } => (types::FILE, CHUNK_BASED, u32::from(bits)),
        },
        Node::Device { block, major, minor } => {
            let kind = if *block { types::BLOCK } else { types::CHARACTER };
            (kind, FLAT_PLAIN, device(*major, *minor))
        }
        Node::Fifo => (types::FIFO, FLAT_PLAIN, 0),
        Node::Socket => (types::SOCKET, FLAT_PLAIN, 0),
    };
    if place.tail > 0 {
        format = FLAT_INLINE;
    }
    let mut bytes = Vec::with_capacity(64 + xattrs.len() + place.tail);
    bytes.extend_from_slice(&(EXTENDED | format << 1).to_le_bytes());
    bytes.extend_from_slice(&xattr::count(xattrs.len()).to_le_bytes());
    bytes.extend_from_slice(&(kind | inode.meta.mode & 0o7777).to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&place.size.to_le_bytes());
    bytes.extend_from_slice(&union.to_le_bytes());
    bytes.extend_from_slice(&place.ordinal.to_le_bytes());
    bytes.extend_from_slice(&inode.meta.uid.to_le_bytes());
    bytes.extend_from_slice(&inode.meta.gid.to_le_bytes());
    bytes.extend_from_slice(&inode.meta.mtime.to_le_bytes());
    bytes.extend_from_slice(&inode.meta.mtime_ns.to_le_bytes());
    bytes.extend_from_slice(&place.links.to_le_bytes());
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(&xattrs);
    match &inode.node {
        Node::Directory(names) if place.tail > 0 => {
            let whole = directory::encode(tree, layout, number, names);
            bytes.extend_from_slice(&whole[whole.len() - place.tail..]);
        }
        Node::Symlink(target) => bytes.extend_from_slice(&target[target.len() - place.tail..]),
        Node::File { layer, .. } => {
            for block in chunks(&inode.node).into_iter().flat_map(|(_, blocks)| blocks) {
                let address = block.map_or(HOLE, |block| layout.block(*layer, block));
                bytes.extend_from_slice(&address.to_le_bytes());
            }
        }
        _ => {}
    }
    bytes
}

/// A device number as the kernel writes it to disks (`new_encode_dev`).
fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// The types in `i_mode` (inode(7)).
mod types {
    pub(super) const SOCKET: u16 = 0o140_000;
    pub(super) const SYMLINK: u16 = 0o120_000;
    pub(super) const FILE: u16 = 0o100_000;
    pub(super) const BLOCK: u16 = 0o060_000;
    pub(super) const DIRECTORY: u16 = 0o040_000;
    pub(super) const CHARACTER: u16 = 0o020_000;
    pub(super) const FIFO: u16 = 0o010_000;
}
