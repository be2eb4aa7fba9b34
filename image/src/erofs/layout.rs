//! Where everything goes, before anything is written.

use std::collections::BTreeMap;

use super::{ErofsError, FIRST_INODE, UNIT, blocks, directory, xattr};
use crate::entry::{BLOCK, Content, Data};
use crate::tree::{Node, Number, ROOT, Tree};

/// Bytes of an inode (`struct erofs_inode_extended`).
pub(super) const INODE: u64 = 64;

/// An inode's place and that of its data.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// In bytes from the image's start.
    at: u64,
    /// The file's, directory's or link's length.
    pub(super) size: u64,
    /// How many of its last bytes stand behind the inode.
    pub(super) tail: usize,
    /// Where the rest begins, if there is a rest and it is in the image.
    pub(super) block: Option<u32>,
    /// The number of names.
    pub(super) links: u32,
    /// Counted from one.
    pub(super) ordinal: u32,
    parent: Number,
}

/// The places of a tree's inodes and of the layer files.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) order: Vec<Number>,
    places: BTreeMap<Number, Place>,
    /// The first block of each layer file.
    layers: Vec<u32>,
    /// Blocks of the whole disk.
    pub(super) blocks: u32,
    pub(super) has_chunks: bool,
    /// The block from which inodes' numbers are counted.
    pub(super) base: u32,
}

/// Where files' contents are.
pub(super) enum Contents<'a> {
    /// In layer files of these lengths behind the image.
    Layers(&'a [u64]),
    /// In the image itself, before this position, which is a block's start.
    Before(u64),
}

impl Layout {
    pub(super) fn new(tree: &Tree, contents: &Contents<'_>) -> Result<Self, ErofsError> {
        let (order, links) = tree.walk();
        let mut layout = Self {
            places: BTreeMap::new(),
            layers: Vec::new(),
            blocks: 0,
            has_chunks: false,
            base: 0,
            order,
        };
        let (mut end, layers) = match contents {
            Contents::Layers(lengths) => (FIRST_INODE, *lengths),
            Contents::Before(position) => {
                layout.base = blocks(*position)?;
                // Number 0 would be no number.
                (position + UNIT, &[][..])
            }
        };
        for (index, number) in layout.order.iter().enumerate() {
            let (place, behind) = place(tree, *number, end);
            end = place.at + behind;
            layout.has_chunks |= chunks(&tree.inode(*number).node).is_some();
            let place = Place {
                links: links.get(number).copied().unwrap_or(1),
                ordinal: u32::try_from(index + 1).map_err(|_| ErofsError::Large)?,
                ..place
            };
            layout.places.insert(*number, place);
        }
        layout.find_parents(tree);
        layout.allocate(end, layers)?;
        if let Contents::Before(_) = contents {
            layout.layers = vec![0];
        }
        Ok(layout)
    }

    fn find_parents(&mut self, tree: &Tree) {
        for number in &self.order {
            let Node::Directory(names) = &tree.inode(*number).node else {
                continue;
            };
            for child in names.values() {
                if let Some(place) = self.places.get_mut(child) {
                    place.parent = *number;
                }
            }
        }
    }

    /// Gives blocks to what does not stand behind its inode, and to the layer files behind them.
    fn allocate(&mut self, end: u64, layers: &[u64]) -> Result<(), ErofsError> {
        let add = |next: u32, more: u32| next.checked_add(more).ok_or(ErofsError::Large);
        let mut next = blocks(end)?;
        for number in &self.order {
            let Some(place) = self.places.get_mut(number) else {
                continue;
            };
            if place.block.is_some() {
                place.block = Some(next);
                next = add(next, blocks(place.size - place.tail as u64)?)?;
            }
        }
        for length in layers {
            self.layers.push(next);
            next = add(next, blocks(*length)?)?;
        }
        self.blocks = next;
        Ok(())
    }

    pub(super) fn inode(&self, number: Number) -> &Place {
        &self.places[&number]
    }

    /// An inode's place in bytes.
    pub(super) fn place(&self, number: Number) -> u64 {
        self.inode(number).at
    }

    /// An inode's number on the disk.
    pub(super) fn nid(&self, number: Number) -> u64 {
        (self.place(number) - u64::from(self.base) * BLOCK) / UNIT
    }

    /// The directory in which a directory is.
    pub(super) fn parent(&self, number: Number) -> Number {
        self.inode(number).parent
    }

    /// The block of the disk that is a layer file's block.
    pub(super) fn block(&self, layer: u16, block: u32) -> u32 {
        // Its index has said that it is within the file, and all files together fit.
        self.layers
            .get(usize::from(layer))
            .map_or(0, |start| start.saturating_add(block))
    }
}

/// A sparse file's chunks.
pub(super) fn chunks(node: &Node) -> Option<(u8, &[Option<u32>])> {
    match node {
        Node::File {
            content: Content {
                data: Data::Chunks { bits, blocks },
                ..
            },
            ..
        } => Some((*bits, blocks)),
        _ => None,
    }
}

/// The first place from `end` on that an inode can have; with the bytes that it takes there.
fn place(tree: &Tree, number: Number, end: u64) -> (Place, u64) {
    let inode = tree.inode(number);
    let xattrs = xattr::encode(&inode.meta.xattrs).len() as u64;
    let head = INODE + xattrs;
    let mut place = Place {
        at: end.next_multiple_of(UNIT),
        size: 0,
        tail: 0,
        block: None,
        links: 0,
        ordinal: 0,
        parent: ROOT,
    };
    match &inode.node {
        Node::Directory(names) => place.size = directory::size(names),
        Node::Symlink(target) => place.size = target.len() as u64,
        Node::File { content, .. } => {
            place.size = content.size;
            let map = chunks(&inode.node).map_or(0, |(_, blocks)| blocks.len() as u64 * 4);
            return (place, head + map);
        }
        _ => return (place, head),
    }
    // The last part of a block stands behind the inode if both are in one block.
    let tail = place.size % BLOCK;
    if tail > 0 && head % BLOCK + tail <= BLOCK {
        let from = place.at + head;
        if from / BLOCK != (from + tail - 1) / BLOCK {
            place.at = place.at.next_multiple_of(BLOCK);
        }
        place.tail = usize::try_from(tail).unwrap_or(0);
    }
    // Which block is said later.
    place.block = (place.size > place.tail as u64).then_some(0);
    let tail = place.tail as u64;
    (place, head + tail)
}
