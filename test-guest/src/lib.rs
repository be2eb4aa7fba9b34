//! What the bare-metal test guest and those who start it agree on: where things lie ([`layout`]), what the guest is told
//! to do ([`order`]) and what it answers ([`report`]).
//!
//! The guest itself is this package's program, built for `x86_64-unknown-none`: a PVH kernel that goes to ring 3 in a
//! few hundred instructions and drives virtio-mmio devices by polling. Its orders are on the kernel's command line.

#![no_std]
#![deny(unsafe_code)]

pub mod checksum;
pub mod layout;
pub mod order;
pub mod random;
pub mod report;
