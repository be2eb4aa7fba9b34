//! Directories: blocks of `struct erofs_dirent`s followed by their names, in the order of the names.

use super::Names;
use super::layout::Layout;
use crate::entry::{BLOCK, BLOCK_LENGTH};
use crate::tree::{Node, Number, Tree};

/// Bytes of a directory entry without its name.
const DIRENT: usize = 12;

/// The names of a directory with the two that every directory has, in the order of their bytes.
fn sorted(names: &Names) -> impl Iterator<Item = (&[u8], Option<Number>)> {
    let mut all: Vec<(&[u8], Option<Number>)> = vec![(b".", None), (b"..", None)];
    all.extend(names.iter().map(|(name, number)| (name.as_slice(), Some(*number))));
    all.sort_unstable();
    all.into_iter()
}

/// Splits names between blocks: each gets as many as have room.
fn split<'a>(names: impl Iterator<Item = (&'a [u8], Option<Number>)>) -> Vec<Vec<(&'a [u8], Option<Number>)>> {
    let mut blocks = vec![Vec::new()];
    let mut used = 0;
    for (name, number) in names {
        let size = DIRENT + name.len();
        if used + size > BLOCK_LENGTH {
            blocks.push(Vec::new());
            used = 0;
        }
        used += size;
        if let Some(block) = blocks.last_mut() {
            block.push((name, number));
        }
    }
    blocks
}

/// A directory's length in bytes.
pub(super) fn size(names: &Names) -> u64 {
    let blocks = split(sorted(names));
    let last: usize = blocks
        .last()
        .into_iter()
        .flatten()
        .map(|(name, _)| DIRENT + name.len())
        .sum();
    (blocks.len() as u64 - 1) * BLOCK + last as u64
}

/// A directory's contents.
pub(super) fn encode(tree: &Tree, layout: &Layout, number: Number, names: &Names) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in split(sorted(names)) {
        bytes.resize(bytes.len().next_multiple_of(BLOCK_LENGTH), 0);
        let mut name_at = block.len() * DIRENT;
        for (name, child) in &block {
            let target = match child {
                Some(child) => *child,
                None if *name == b"." => number,
                None => layout.parent(number),
            };
            bytes.extend_from_slice(&layout.nid(target).to_le_bytes());
            // Within a block.
            bytes.extend_from_slice(&u16::try_from(name_at).unwrap_or(0).to_le_bytes());
            bytes.extend_from_slice(&[file_type(&tree.inode(target).node), 0]);
            name_at += name.len();
        }
        for (name, _) in &block {
            bytes.extend_from_slice(name);
        }
    }
    bytes
}

/// Linux's `FT_*` numbers.
fn file_type(node: &Node) -> u8 {
    match node {
        Node::File { .. } => 1,
        Node::Directory(_) => 2,
        Node::Device { block: false, .. } => 3,
        Node::Device { block: true, .. } => 4,
        Node::Fifo => 5,
        Node::Socket => 6,
        Node::Symlink(_) => 7,
    }
}
