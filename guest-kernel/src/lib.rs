//! Builds what runs inside of a husk sandbox's machine: a kernel and an initramfs.
//!
//! The kernel's [`source`] is Debian's; its configuration is the merged
//! [fragments](fragment::embedded), each option of which must be honoured; the
//! [`kernel`] that comes of them is cached by its inputs. The initramfs is a [`cpio`]
//! archive with the agent. Both leave as the [`guest`] directory that `husk` boots.

#![forbid(unsafe_code)]

pub mod cpio;
pub mod elf;
pub mod fragment;
pub mod guest;
pub mod kernel;
mod lock;
pub mod make;
pub mod source;
pub mod toolchain;

/// Is told, in a line, what is being done.
pub type Progress<'a> = &'a dyn Fn(&str);
