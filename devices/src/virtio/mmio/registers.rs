//! The register layout (section 4.2.2, table 4.1).

/// "virt", little-endian.
pub(super) const MAGIC: u32 = 0x7472_6976;
/// Version 2: the layout of virtio 1.
pub(super) const VERSION: u32 = 2;
/// The vendor id that the driver shows and ignores: "HUSK", little-endian.
pub(super) const VENDOR: u32 = 0x4b53_5548;

pub(super) const MAGIC_VALUE: u64 = 0x000;
pub(super) const DEVICE_VERSION: u64 = 0x004;
pub(super) const DEVICE_ID: u64 = 0x008;
pub(super) const VENDOR_ID: u64 = 0x00c;
pub(super) const DEVICE_FEATURES: u64 = 0x010;
pub(super) const DEVICE_FEATURES_SELECT: u64 = 0x014;
pub(super) const DRIVER_FEATURES: u64 = 0x020;
pub(super) const DRIVER_FEATURES_SELECT: u64 = 0x024;
pub(super) const QUEUE_SELECT: u64 = 0x030;
pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
pub(super) const QUEUE_SIZE: u64 = 0x038;
pub(super) const QUEUE_READY: u64 = 0x044;
pub(super) const QUEUE_NOTIFY: u64 = 0x050;
pub(super) const INTERRUPT_STATUS: u64 = 0x060;
pub(super) const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
pub(super) const STATUS: u64 = 0x070;
pub(super) const QUEUE_DESCRIPTORS_LOW: u64 = 0x080;
pub(super) const QUEUE_DESCRIPTORS_HIGH: u64 = 0x084;
pub(super) const QUEUE_AVAILABLE_LOW: u64 = 0x090;
pub(super) const QUEUE_AVAILABLE_HIGH: u64 = 0x094;
pub(super) const QUEUE_USED_LOW: u64 = 0x0a0;
pub(super) const QUEUE_USED_HIGH: u64 = 0x0a4;
pub(super) const SHARED_LENGTH_LOW: u64 = 0x0b0;
pub(super) const SHARED_BASE_HIGH: u64 = 0x0bc;
pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
pub(super) const CONFIG: u64 = 0x100;
