//! OCI images and root directories as EROFS disks.
//!
//! An image's way, in the order of the modules:
//!
//! 1. [`source`] opens an OCI layout, an OCI archive or an archive of `docker save`, chooses the image in it by tag and
//!    platform, and gives its configuration and its layers; every blob is checked against its digest and size.
//! 2. [`layer`] reads a layer's archive ([`tar`]) once, from the first to the last byte, and writes a *layer file*: the
//!    contents of all files, each at a block of its own, and behind them an index of [entries](entry).
//! 3. [`tree`] puts the entries of all layers over each other: whiteouts, hard links and symbolic links have their
//!    effect here, in memory, where no path leads out of the root.
//! 4. [`erofs`] writes the tree as an EROFS image without file contents: inodes that point at blocks behind its end.
//!
//! The disk is the image with the layer files behind it, one after the other. So a layer is converted once
//! and kept once, whatever images it is a part of, and the guest mounts one file system, however many layers there are.
//! Nothing of this needs privileges, mounts or a file system that can hold what the image holds.
//!
//! [`directory`] makes an image of one file from a root directory in the same way.
//!
//! The crate knows nothing of virtual machines and keeps nothing: what it writes goes into files that it is given.

#![deny(unsafe_code)]

mod blocks;
mod decompress;
mod digest;
pub mod directory;
pub mod entry;
pub mod erofs;
pub mod layer;
mod limits;
pub mod source;
pub use husk_archive::tar;
pub mod tree;

pub use digest::Digest;
pub use limits::Limits;
