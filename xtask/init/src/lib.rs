//! What `cargo xtask host` and the emulated host's first process have in common: the [`channel`] between them.
//!
//! The first process itself is this package's binary. It is the only file of the emulated host's initramfs.

#![forbid(unsafe_code)]

pub mod channel;
