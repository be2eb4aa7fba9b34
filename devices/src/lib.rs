//! The devices of a machine: virtio devices behind a virtio-mmio transport, and the few legacy ones.
//!
//! Nothing here knows KVM. Guest memory is a [`virtio::Memory`], interrupts and notifications are event descriptors,
//! and register accesses are plain calls, so every device runs in tests without a hypervisor.
//!
//! # The way of a request
//! The guest's register accesses arrive on a vCPU's thread, through a [`bus::Bus`], at a
//! [`virtio::mmio::Transport`]. It negotiates features and collects the queues' addresses; when the driver is ready it
//! moves queues, guest memory and the interrupt by value into the [`virtio::Device`] as one [`virtio::Activation`].
//! From then on registers belong to the vCPU's side and queues to the device's worker; the two share only the
//! status and interrupt words in [`virtio::Interrupt`]. A notification reaches the worker as an event descriptor, the
//! worker walks the [`virtio::chain`] and answers in the used ring.
//!
//! Devices that never block live in one event loop ([`event`]); a disk ([`blk`]) can block and has worker threads.
//!
//! # Trust
//! Whatever the guest puts into a register, a ring or a descriptor is checked. A ring that makes no sense puts the
//! device into `DEVICE_NEEDS_RESET`; it never panics and never makes a device allocate by the guest's word.

#![deny(unsafe_code)]

pub mod blk;
pub mod bus;
pub mod event;
pub mod power;
pub mod pvpanic;
pub mod rng;
pub mod serial;
pub mod system_calls;
pub mod virtio;
pub mod vsock;

#[cfg(test)]
mod testing;
