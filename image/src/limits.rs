//! How much an image may ask for. Whatever an image says of itself, no more than this is read, kept or written.

/// Bounds for one layer and for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a layer when it is uncompressed; also the longest compressed blob, and the longest file, holes included.
    pub layer_bytes: u64,
    /// Members of a layer's archive; directories of a tree that nothing but their contents' names tells of count too.
    pub entries: usize,
    /// Bytes of names, link targets, extended attributes and maps of sparse files of one layer: they are kept in memory.
    pub metadata_bytes: usize,
    /// Layers of an image.
    pub layers: usize,
    /// Bytes of a manifest, an index or a configuration.
    pub json_bytes: u64,
    /// Bytes of a compressed archive that holds an image, when it is uncompressed.
    pub archive_bytes: u64,
    /// Members of an archive that holds an image.
    pub archive_members: usize,
}

impl Limits {
    /// What husk allows.
    pub const DEFAULT: Self = Self {
        layer_bytes: 64 << 30,
        entries: 2_000_000,
        metadata_bytes: 512 << 20,
        layers: 128,
        json_bytes: 8 << 20,
        archive_bytes: 256 << 30,
        archive_members: 100_000,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The longest path in bytes, as Linux takes it (`PATH_MAX` without the terminating zero).
pub(crate) const MAX_PATH: usize = 4095;
/// The longest name in bytes (`NAME_MAX`, `EROFS_NAME_LEN`).
pub(crate) const MAX_NAME: usize = 255;
/// The longest value of an extended attribute in bytes (`XATTR_SIZE_MAX`, less the one that EROFS cannot tell).
pub(crate) const MAX_XATTR: usize = 65_535;
/// The bytes of all extended attributes of one file: what listxattr(2) can tell of, and what EROFS can hold.
pub(crate) const MAX_XATTRS: usize = 128 << 10;
