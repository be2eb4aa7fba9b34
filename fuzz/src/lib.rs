//! The fuzz targets: each module's `run` takes any bytes and must return, without a panic, soon, and in little memory.
//!
//! A device is driven as a whole, behind its registers ([`machine`]); its worker lives in an event loop in another
//! thread ([`events`]), as it does in `husk-vmm`. Most targets read their input as a script of steps, so that a
//! mutation of the bytes is a mutation of the steps.

pub mod agent;
pub mod blk;
pub mod bundle;
pub mod bus;
pub mod config;
mod events;
pub mod image;
mod json;
pub mod kernel;
pub mod layer;
mod machine;
pub mod muxer;
pub mod rng;
pub mod serial;
mod tar;
pub mod vsock;
