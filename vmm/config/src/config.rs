//! The complete configuration of one machine.

use std::collections::HashSet;
use std::io::Read;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The largest number of vCPUs that a machine can have.
pub const MAX_VCPUS: u32 = 64;
/// The least memory with which a guest boots, in MiB.
pub const MIN_MEMORY_MIB: u32 = 32;
/// The largest number of disk slots: what the interrupt controller's pins leave beside the other devices.
pub const MAX_DISKS: usize = 12;
/// The largest number of queues of one disk.
pub const MAX_QUEUES: u16 = 16;
/// The longest kernel command line in bytes, without the terminating zero (`COMMAND_LINE_SIZE` of x86 is 2,048).
pub const MAX_COMMAND_LINE: usize = 2047;
/// The longest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// The number of a descriptor that `husk-vmm` was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Descriptor(pub i32);

/// Everything that `husk-vmm` is told: one JSON value, read to its end from one descriptor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `/dev/kvm`, opened for reading and writing.
    pub kvm: Descriptor,
    /// vCPUs and how they are laid out.
    pub vcpus: Topology,
    /// Guest memory in MiB, from [`MIN_MEMORY_MIB`] on.
    pub memory_mib: u32,
    /// What is booted.
    pub kernel: Kernel,
    /// Disk slots, in the guest's order. A slot without a file is a disk of size zero until one is attached.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// The vsock device.
    pub vsock: Vsock,
    /// The serial console; without it the guest has no serial port.
    #[serde(default)]
    pub console: Option<Console>,
    /// A listening `SOCK_SEQPACKET` unix socket for [`Request`](crate::Request)s.
    pub control: Descriptor,
    /// Where the [`Report`](crate::Report) is written, once, as JSON: a pipe or socket.
    pub report: Descriptor,
    /// A pipe's or socket's end whose other end the owner holds: when it hangs up, the machine ends.
    pub lifeline: Descriptor,
    /// Whether the process stays in the network namespace in which it was started, which others know as the containers'.
    /// It can make no socket in it.
    #[serde(default)]
    pub keep_network: bool,
}

/// The number of vCPUs and the topology that CPUID shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// vCPUs, 1 to [`MAX_VCPUS`].
    pub count: u32,
    /// Hardware threads a core, 1 or 2; it divides `count`.
    pub threads_per_core: u32,
}

/// The kernel and what it is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// An uncompressed ELF (entered through PVH, or at its 64-bit entry) or a bzImage.
    pub image: Descriptor,
    /// Initramfs archives, placed one behind the other, each at a multiple of four bytes.
    #[serde(default)]
    pub initramfs: Vec<Descriptor>,
    /// The command line, at most [`MAX_COMMAND_LINE`] bytes of printable ASCII.
    pub command_line: String,
}

/// One virtio-blk slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The serial that the guest reads with `VIRTIO_BLK_T_GET_ID`: 1 to 20 bytes of printable ASCII, unique.
    pub id: String,
    /// Whether the guest may only read (`VIRTIO_BLK_F_RO`); belongs to the slot, whatever file it holds.
    pub read_only: bool,
    /// Request queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// The file or block device, unless the slot is empty.
    #[serde(default)]
    pub file: Option<Descriptor>,
}

/// The vsock device and its ways to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context id, at least 3.
    pub cid: u32,
    /// A listening `SOCK_STREAM` unix socket: a client writes `CONNECT <port>\n` and is answered `OK <host port>\n`.
    pub listener: Descriptor,
    /// The host's ports that the guest may connect to.
    #[serde(default)]
    pub ports: Vec<HostPort>,
}

/// A port of the host that the guest may connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPort {
    /// The port's number.
    pub port: u32,
    /// A `SOCK_SEQPACKET` unix socket: for each connection one byte is sent on it, with the stream's end attached.
    pub acceptor: Descriptor,
}

/// The serial console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// A listening `SOCK_STREAM` unix socket. A client is sent what the console last said, then follows it; what it
    /// writes is typed into the serial port.
    pub listener: Descriptor,
}

/// What is wrong with a configuration.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("the configuration cannot be read")]
    Read(#[source] std::io::Error),
    #[error("the configuration is longer than {MAX_CONFIG} bytes")]
    TooLong,
    #[error("the configuration is not valid JSON of the expected form")]
    Parse(#[source] serde_json::Error),
    #[error("{0} vCPUs asked for; 1 to {MAX_VCPUS} are possible")]
    Vcpus(u32),
    #[error("{threads} threads a core do not divide {count} vCPUs; 1 or 2 are possible")]
    Threads { threads: u32, count: u32 },
    #[error("{0} MiB of memory asked for; at least {MIN_MEMORY_MIB} are needed")]
    Memory(u32),
    #[error("the kernel command line is longer than {MAX_COMMAND_LINE} bytes")]
    CommandLineTooLong,
    #[error("the kernel command line holds the byte {0:#04x}; only printable ASCII is possible")]
    CommandLineByte(u8),
    #[error("{0} disks asked for; at most {MAX_DISKS} are possible")]
    Disks(usize),
    #[error("the disk id {0:?} is not 1 to 20 bytes of printable ASCII")]
    DiskId(String),
    #[error("the disk id {0:?} is used twice")]
    DiskIdTwice(String),
    #[error("disk {id:?} has {queues} queues; 1 to {MAX_QUEUES} are possible")]
    DiskQueues { id: String, queues: u16 },
    #[error("the guest's context id {0} is reserved; at least 3 is needed")]
    Cid(u32),
    #[error("the host's port {0} is listed twice")]
    PortTwice(u32),
    #[error("the descriptor {0} is named twice or is one of 0, 1 and 2")]
    Descriptor(i32),
}

impl Config {
    /// Reads a configuration to its end and checks it.
    ///
    /// # Errors
    /// What cannot be read or parsed, and each value outside its range, by name.
    pub fn read(source: impl Read) -> Result<Self, ConfigError> {
        let mut text = Vec::new();
        source
            .take(MAX_CONFIG + 1)
            .read_to_end(&mut text)
            .map_err(ConfigError::Read)?;
        if text.len() as u64 > MAX_CONFIG {
            return Err(ConfigError::TooLong);
        }
        let config: Self = serde_json::from_slice(&text).map_err(ConfigError::Parse)?;
        config.check()?;
        Ok(config)
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// The first value outside its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Topology {
            count,
            threads_per_core: threads,
        } = self.vcpus;
        if !(1..=MAX_VCPUS).contains(&count) {
            return Err(ConfigError::Vcpus(count));
        }
        if !(1..=2).contains(&threads) || count % threads != 0 {
            return Err(ConfigError::Threads { threads, count });
        }
        if self.memory_mib < MIN_MEMORY_MIB {
            return Err(ConfigError::Memory(self.memory_mib));
        }
        if self.kernel.command_line.len() > MAX_COMMAND_LINE {
            return Err(ConfigError::CommandLineTooLong);
        }
        if let Some(byte) = self
            .kernel
            .command_line
            .bytes()
            .find(|byte| !(b' '..=b'~').contains(byte))
        {
            return Err(ConfigError::CommandLineByte(byte));
        }
        self.check_disks()?;
        self.check_vsock()?;
        self.check_descriptors()
    }

    fn check_disks(&self) -> Result<(), ConfigError> {
        if self.disks.len() > MAX_DISKS {
            return Err(ConfigError::Disks(self.disks.len()));
        }
        let mut ids = HashSet::new();
        for disk in &self.disks {
            let printable = disk.id.bytes().all(|byte| byte.is_ascii_graphic());
            if !printable || !(1..=20).contains(&disk.id.len()) {
                return Err(ConfigError::DiskId(disk.id.clone()));
            }
            if !ids.insert(&disk.id) {
                return Err(ConfigError::DiskIdTwice(disk.id.clone()));
            }
            if !(1..=MAX_QUEUES).contains(&disk.queues) {
                return Err(ConfigError::DiskQueues {
                    id: disk.id.clone(),
                    queues: disk.queues,
                });
            }
        }
        Ok(())
    }

    fn check_vsock(&self) -> Result<(), ConfigError> {
        if self.vsock.cid < 3 || self.vsock.cid == u32::MAX {
            return Err(ConfigError::Cid(self.vsock.cid));
        }
        let mut ports = HashSet::new();
        match self.vsock.ports.iter().find(|entry| !ports.insert(entry.port)) {
            Some(twice) => Err(ConfigError::PortTwice(twice.port)),
            None => Ok(()),
        }
    }

    /// Each descriptor is owned by one part of the machine, so none may be named twice.
    fn check_descriptors(&self) -> Result<(), ConfigError> {
        let mut seen = HashSet::new();
        match self.descriptors().find(|fd| fd.0 < 3 || !seen.insert(*fd)) {
            Some(bad) => Err(ConfigError::Descriptor(bad.0)),
            None => Ok(()),
        }
    }

    /// All descriptors that the configuration names.
    pub fn descriptors(&self) -> impl Iterator<Item = Descriptor> + '_ {
        [
            self.kvm,
            self.kernel.image,
            self.vsock.listener,
            self.control,
            self.report,
            self.lifeline,
        ]
        .into_iter()
        .chain(self.kernel.initramfs.iter().copied())
        .chain(self.disks.iter().filter_map(|disk| disk.file))
        .chain(self.vsock.ports.iter().map(|port| port.acceptor))
        .chain(self.console.iter().map(|console| console.listener))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> Config {
        Config {
            kvm: Descriptor(10),
            vcpus: Topology {
                count: 2,
                threads_per_core: 1,
            },
            memory_mib: 128,
            kernel: Kernel {
                image: Descriptor(3),
                initramfs: vec![Descriptor(4)],
                command_line: "quiet".into(),
            },
            disks: vec![Disk {
                id: "husk-0".into(),
                read_only: true,
                queues: 1,
                file: None,
            }],
            vsock: Vsock {
                cid: 3,
                listener: Descriptor(5),
                ports: vec![HostPort {
                    port: 1024,
                    acceptor: Descriptor(6),
                }],
            },
            console: None,
            control: Descriptor(7),
            report: Descriptor(8),
            lifeline: Descriptor(9),
            keep_network: false,
        }
    }

    #[test]
    fn survives_the_way_through_json() {
        let text = serde_json::to_vec(&valid()).unwrap();
        assert_eq!(Config::read(text.as_slice()).unwrap(), valid());
    }

    #[test]
    fn refuses_an_unknown_field_by_name() {
        let mut value = serde_json::to_value(valid()).unwrap();
        value["surprise"] = 1.into();
        let error = Config::read(value.to_string().as_bytes()).unwrap_err();
        assert!(matches!(error, ConfigError::Parse(source) if source.to_string().contains("surprise")));
    }

    #[test]
    fn refuses_each_value_outside_its_range() {
        let broken = |change: fn(&mut Config)| {
            let mut config = valid();
            change(&mut config);
            config.check().unwrap_err()
        };
        assert!(matches!(broken(|c| c.vcpus.count = 0), ConfigError::Vcpus(0)));
        assert!(matches!(broken(|c| c.vcpus.count = 65), ConfigError::Vcpus(65)));
        assert!(matches!(
            broken(|c| c.vcpus = Topology {
                count: 3,
                threads_per_core: 2
            }),
            ConfigError::Threads { .. }
        ));
        assert!(matches!(broken(|c| c.memory_mib = 31), ConfigError::Memory(31)));
        assert!(matches!(
            broken(|c| c.kernel.command_line = "a".repeat(2048)),
            ConfigError::CommandLineTooLong
        ));
        assert!(matches!(
            broken(|c| c.kernel.command_line = "a\nb".into()),
            ConfigError::CommandLineByte(10)
        ));
        assert!(matches!(
            broken(|c| c.disks[0].id = String::new()),
            ConfigError::DiskId(_)
        ));
        assert!(matches!(
            broken(|c| c.disks.push(c.disks[0].clone())),
            ConfigError::DiskIdTwice(_)
        ));
        assert!(matches!(
            broken(|c| c.disks[0].queues = 0),
            ConfigError::DiskQueues { .. }
        ));
        assert!(matches!(broken(|c| c.vsock.cid = 2), ConfigError::Cid(2)));
        assert!(matches!(
            broken(|c| c.vsock.ports.push(c.vsock.ports[0])),
            ConfigError::PortTwice(1024)
        ));
        assert!(matches!(
            broken(|c| c.control = Descriptor(3)),
            ConfigError::Descriptor(3)
        ));
        assert!(matches!(
            broken(|c| c.control = Descriptor(1)),
            ConfigError::Descriptor(1)
        ));
    }
}
