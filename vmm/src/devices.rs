//! The machine's devices: made, given their addresses and interrupts, and found again by control requests.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use event_manager::RemoteEndpoint;
use husk_devices::blk::{self, AttachError, Block, DetachError};
use husk_devices::bus::{BusDevice, BusError, MmioBus, PioBus};
use husk_devices::event::{EventError, EventLoop, LoopHandle, Worker};
use husk_devices::power::{self, Power};
use husk_devices::pvpanic::{self, PvPanic};
use husk_devices::rng::Rng;
use husk_devices::serial;
use husk_devices::virtio::mmio::{NOTIFY_OFFSET, PauseError, Transport, TransportError};
use husk_devices::virtio::{self, status};
use husk_devices::vsock::{Vsock, VsockError};
use husk_vmm_config::{Config, End};
use kvm_ioctls::{IoEventAddress, VmFd};
use thiserror::Error;

use crate::confinement::filters::{self, FilterError, Kind};
use crate::ending::Ending;
use crate::memory::Memory;
use crate::resources::DeviceFiles;
use crate::threads;
use crate::timeline::Timeline;
use crate::x86_64::acpi;
use crate::x86_64::interrupts::{self, InterruptError};
use crate::x86_64::layout;

/// The offset of the device status among a virtio device's registers (virtio 1.2, 4.2.2).
const STATUS_OFFSET: u64 = 0x70;

/// How often the event loop looks for something to do after the machine's end.
const LAST_ROUNDS: u32 = 16;

/// Why a device cannot be had, or does not do what it is asked for.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum DevicesError {
    #[error("the devices' event loop cannot be made")]
    Loop(#[source] event_manager::Error),
    #[error("the thread of the devices' event loop cannot be started")]
    LoopThread(#[source] io::Error),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Interrupt(#[from] InterruptError),
    #[error("two devices have the same addresses")]
    Bus(#[from] BusError),
    #[error("the {name} device cannot be made")]
    Transport { name: String, source: TransportError },
    #[error("KVM does not connect queue {queue} of the {name} device")]
    Notify {
        name: String,
        queue: usize,
        source: kvm_ioctls::Error,
    },
    #[error("there are more than {} virtio devices", layout::GSI_END - layout::VIRTIO_GSI)]
    TooMany,
    #[error("the serial port cannot be made")]
    Serial(#[from] serial::SerialError),
    #[error("the event loop does not take the serial console")]
    Console(#[source] EventError),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error("the disk {0:?} cannot be made")]
    Disk(String, #[source] blk::OptionsError),
    #[error("there is no disk {0:?}")]
    NoDisk(String),
    #[error("the disk {0:?} does not take the file")]
    Attach(String, #[source] AttachError),
    #[error("the disk {0:?} does not let go of its file")]
    Detach(String, #[source] DetachError),
    #[error("the {name} device does not stop")]
    Pause { name: String, source: PauseError },
}

/// All devices of a machine.
pub struct Devices {
    mmio: Arc<MmioBus>,
    pio: Arc<PioBus>,
    virtio: Vec<(String, Arc<Mutex<Transport>>)>,
    disks: Vec<(String, blk::Handle)>,
    serial: bool,
    // Last, so that it still answers when the devices go.
    _events: EventThread,
}

impl Devices {
    /// Makes the devices in the order in which the guest finds them: vsock, random numbers, disks.
    ///
    /// # Errors
    /// The first that cannot be had.
    pub fn create(
        vm: &VmFd,
        memory: &Memory,
        config: &Config,
        files: DeviceFiles,
        ending: &Arc<Ending>,
        timeline: &Arc<Timeline>,
    ) -> Result<Self, DevicesError> {
        let events = EventThread::start(ending)?;
        let mut board = Board::new(vm, memory);
        let ready = Box::new({
            let timeline = Arc::clone(timeline);
            move || timeline.reach("vsock driver ready")
        });
        let vsock = Vsock::new(config.vsock.cid, files.vsock, files.vsock_ports, events.handle.clone())?;
        board.attach("vsock", Box::new(vsock), Some(ready))?;
        board.attach("random number", Box::new(Rng::new(events.handle.clone())), None)?;

        let mut disks = Vec::new();
        for (disk, file) in config.disks.iter().zip(files.disks) {
            let options = blk::Options {
                id: disk.id.clone(),
                read_only: disk.read_only,
                queues: disk.queues,
            };
            let confine = disk_filter(ending);
            let (device, slot) =
                Block::new(options, confine).map_err(|error| DevicesError::Disk(disk.id.clone(), error))?;
            if let Some(file) = file {
                slot.attach(file)
                    .map_err(|error| DevicesError::Attach(disk.id.clone(), error))?;
            }
            board.attach(&format!("disk {}", disk.id), Box::new(device), None)?;
            disks.push((disk.id.clone(), slot));
        }

        board.add_power(ending)?;
        let console = files.console;
        let serial = console.is_some();
        if let Some(listener) = console {
            board.add_serial(listener, &events.handle)?;
        }
        Ok(Self {
            mmio: Arc::new(board.mmio),
            pio: Arc::new(board.pio),
            virtio: board.virtio,
            disks,
            serial,
            _events: events,
        })
    }

    /// Devices by guest address.
    #[must_use]
    pub fn mmio(&self) -> Arc<MmioBus> {
        Arc::clone(&self.mmio)
    }

    /// Devices by port.
    #[must_use]
    pub fn pio(&self) -> Arc<PioBus> {
        Arc::clone(&self.pio)
    }

    /// What the guest is told of the devices.
    #[must_use]
    pub fn described(&self) -> acpi::Devices {
        acpi::Devices {
            virtio: u32::try_from(self.virtio.len()).unwrap_or(u32::MAX),
            serial: self.serial,
        }
    }

    /// Stops all devices. The vCPUs stand still, so that no register is accessed meanwhile.
    ///
    /// # Errors
    /// A device that does not stop.
    pub fn pause(&self) -> Result<(), DevicesError> {
        for (name, transport) in &self.virtio {
            let mut transport = lock(transport);
            transport.pause().map_err(|source| DevicesError::Pause {
                name: name.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Lets all devices go on.
    pub fn resume(&self) {
        for (_, transport) in &self.virtio {
            lock(transport).resume();
        }
    }

    /// Makes each device look at its queues.
    pub fn kick(&self) {
        for (_, transport) in &self.virtio {
            lock(transport).kick();
        }
    }

    /// Puts a file, or several as one disk, into an empty disk slot.
    ///
    /// # Errors
    /// There is no such slot, or it does not take the files.
    pub fn attach(&self, disk: &str, files: Vec<File>) -> Result<(), DevicesError> {
        self.slot(disk)?
            .attach_parts(files)
            .map_err(|error| DevicesError::Attach(disk.to_owned(), error))
    }

    /// Empties a disk slot.
    ///
    /// # Errors
    /// There is no such slot, or it does not let go.
    pub fn detach(&self, disk: &str) -> Result<(), DevicesError> {
        self.slot(disk)?
            .detach()
            .map_err(|error| DevicesError::Detach(disk.to_owned(), error))
    }

    fn slot(&self, disk: &str) -> Result<&blk::Handle, DevicesError> {
        let found = self.disks.iter().find(|(id, _)| id == disk);
        found
            .map(|(_, slot)| slot)
            .ok_or_else(|| DevicesError::NoDisk(disk.to_owned()))
    }
}

/// What a disk's thread does first. Without its filter it serves nothing, and the machine ends.
fn disk_filter(ending: &Arc<Ending>) -> impl FnOnce() -> io::Result<()> + Clone + Send + 'static {
    let ending = Arc::clone(ending);
    move || {
        filters::enter(Kind::Disk).map_err(|error| {
            ending.fail(&error);
            io::Error::other(error)
        })
    }
}

fn lock(transport: &Mutex<Transport>) -> std::sync::MutexGuard<'_, Transport> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where devices get their addresses and interrupts.
struct Board<'a> {
    vm: &'a VmFd,
    memory: &'a Memory,
    mmio: MmioBus,
    pio: PioBus,
    virtio: Vec<(String, Arc<Mutex<Transport>>)>,
}

impl<'a> Board<'a> {
    fn new(vm: &'a VmFd, memory: &'a Memory) -> Self {
        Self {
            vm,
            memory,
            mmio: MmioBus::new(),
            pio: PioBus::new(),
            virtio: Vec::new(),
        }
    }

    /// Gives a virtio device the next place; `ready` is called when its driver is first ready.
    fn attach(
        &mut self,
        name: &str,
        device: Box<dyn virtio::Device>,
        ready: Option<Box<dyn FnOnce() + Send>>,
    ) -> Result<(), DevicesError> {
        let index = u32::try_from(self.virtio.len()).unwrap_or(u32::MAX);
        if index >= layout::GSI_END - layout::VIRTIO_GSI {
            return Err(DevicesError::TooMany);
        }
        let base = layout::VIRTIO + layout::VIRTIO_WINDOW * u64::from(index);
        let line = interrupts::line(self.vm, layout::VIRTIO_GSI + index)?;
        let transport =
            Transport::new(device, self.memory.clone().into(), line).map_err(|source| DevicesError::Transport {
                name: name.to_owned(),
                source,
            })?;
        let notify = IoEventAddress::Mmio(base + NOTIFY_OFFSET);
        for ((queue, kick), value) in transport.kicks().iter().enumerate().zip(0u32..) {
            self.vm
                .register_ioevent(kick, &notify, value)
                .map_err(|source| DevicesError::Notify {
                    name: name.to_owned(),
                    queue,
                    source,
                })?;
        }
        let transport = Arc::new(Mutex::new(transport));
        let registers: Arc<Mutex<dyn BusDevice>> = match ready {
            None => Arc::clone(&transport) as _,
            Some(ready) => Arc::new(Mutex::new(Watched {
                transport: Arc::clone(&transport),
                ready: Some(ready),
            })),
        };
        self.mmio.insert(base, layout::VIRTIO_WINDOW, registers)?;
        self.virtio.push((name.to_owned(), transport));
        Ok(())
    }

    /// Power registers and panic notifier: how the guest ends the machine.
    fn add_power(&mut self, ending: &Arc<Ending>) -> Result<(), DevicesError> {
        let power = Power::new({
            let ending = Arc::clone(ending);
            Box::new(move |request| {
                ending.end(match request {
                    power::Request::Shutdown => End::Shutdown,
                    power::Request::Reboot => End::Reboot,
                });
            })
        });
        self.pio
            .insert(layout::POWER_PORT.into(), power::PORTS, Arc::new(Mutex::new(power)))?;
        let notifier = PvPanic::new({
            let ending = Arc::clone(ending);
            Box::new(move |event| match event {
                pvpanic::Event::Panicked => ending.end(End::Panic),
                pvpanic::Event::CrashLoaded => tracing::info!("the guest's kernel panicked and loads its crash kernel"),
            })
        });
        self.pio
            .insert(layout::PVPANIC_PORT.into(), 1, Arc::new(Mutex::new(notifier)))?;
        Ok(())
    }

    fn add_serial(
        &mut self,
        listener: std::os::unix::net::UnixListener,
        events: &LoopHandle,
    ) -> Result<(), DevicesError> {
        let line = interrupts::line(self.vm, layout::SERIAL_GSI)?;
        let (port, console) = serial::build(line, listener, None)?;
        self.pio.insert(
            layout::SERIAL_PORT.into(),
            layout::SERIAL_PORTS.into(),
            Arc::new(Mutex::new(port)),
        )?;
        events.add(console).map_err(DevicesError::Console).map(drop)
    }
}

/// A transport whose driver's first readiness is told.
struct Watched {
    transport: Arc<Mutex<Transport>>,
    ready: Option<Box<dyn FnOnce() + Send>>,
}

impl BusDevice for Watched {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.transport).read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        lock(&self.transport).write(offset, data);
        let driver_ok = offset == STATUS_OFFSET
            && data
                .first()
                .is_some_and(|bits| u32::from(*bits) & status::DRIVER_OK != 0);
        if driver_ok && let Some(ready) = self.ready.take() {
            ready();
        }
    }
}

/// The thread of the event loop in which the devices that never block live.
struct EventThread {
    handle: LoopHandle,
    wake: RemoteEndpoint<Box<dyn Worker>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EventThread {
    fn start(ending: &Arc<Ending>) -> Result<Self, DevicesError> {
        let mut events = EventLoop::new_with_capacity(32).map_err(DevicesError::Loop)?;
        let over = Arc::new(AtomicBool::new(false));
        let handle = LoopHandle::new(&events);
        let wake = events.remote_endpoint();
        let thread = threads::spawn("devices".into(), ending, {
            let over = Arc::clone(&over);
            move || {
                filters::enter(Kind::Devices)?;
                while !over.load(Ordering::SeqCst) {
                    events.run().map_err(DevicesError::Loop)?;
                }
                // What the guest said last still goes out, as far as it can at once.
                for _ in 0..LAST_ROUNDS {
                    if events.run_with_timeout(0).map_err(DevicesError::Loop)? == 0 {
                        break;
                    }
                }
                Ok::<(), DevicesError>(())
            }
        })
        .map_err(DevicesError::LoopThread)?;
        Ok(Self {
            handle,
            wake,
            over,
            thread: Some(thread),
        })
    }
}

impl Drop for EventThread {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // A loop that cannot be woken has ended; one that can ends at once, for nothing in it blocks.
        if self.wake.kick().is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
