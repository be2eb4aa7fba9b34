//! One entry of a layer, as it comes from an archive or a directory.

use serde::{Deserialize, Serialize};

/// What a name in a layer stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Components joined with slashes, none of them empty, `.` or `..`; empty for the root directory itself.
    pub path: Vec<u8>,
    /// What is there.
    pub kind: Kind,
    /// Whose it is, and so on; without meaning for hard links and whiteouts.
    pub meta: Meta,
}

/// The kinds of entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// One more name for what has this path.
    Link(Vec<u8>),
    /// A character or block device.
    Device {
        /// Block, not character.
        block: bool,
        /// The device's major number.
        major: u32,
        /// The device's minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket; only a directory has them, archives do not.
    Socket,
    /// Nothing: what the layers below have under this path is not there (OCI image specification, "Whiteouts").
    Whiteout,
    /// The directory does not show what the layers below have in it ("Opaque Whiteout").
    Opaque,
}

/// What an inode has beside its contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Time of modification, seconds since the epoch.
    pub mtime: i64,
    /// And nanoseconds.
    pub mtime_ns: u32,
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
}

/// An extended attribute: its full name, such as `security.capability`, and its value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// A regular file's contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// Where they are.
    pub data: Data,
}

/// Where a file's bytes are, in blocks of a layer's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Data {
    /// One behind the other, from this block on.
    Plain(u32),
    /// In chunks of `1 << bits` blocks, each with the block where it begins, or nowhere: a hole.
    Chunks {
        /// Binary logarithm of a chunk's length in blocks.
        bits: u8,
        /// Where each chunk begins.
        blocks: Vec<Option<u32>>,
    },
}

/// Bytes in a block.
pub const BLOCK: u64 = 4096;
/// The same for what is in memory.
pub(crate) const BLOCK_LENGTH: usize = 4096;
