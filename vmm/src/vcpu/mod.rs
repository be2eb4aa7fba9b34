//! A vCPU: its thread goes into the guest, and comes out for what only user space can do.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use husk_devices::bus::{MmioBus, PioBus};
use husk_vmm_config::End;
use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use nix::errno::Errno;
use nix::unistd::{getpid, gettid};
use thiserror::Error;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use crate::confinement::filters::{self, FilterError, Kind};
use crate::ending::Ending;
use crate::memory::Memory;
use crate::timeline::Timeline;
use crate::x86_64::cpuid::{self, CpuidError};
use crate::x86_64::msrs::{self, MsrError};

mod counts;
mod gate;
mod run_page;
mod system_calls;

pub use counts::{Counts, Exit};
pub use gate::{Gate, Passage};
use run_page::RunPage;
pub use system_calls::SYSTEM_CALLS;

/// Why a vCPU could not be made or does not run.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum VcpuError {
    #[error("KVM does not create vCPU {index}")]
    Create { index: u32, source: kvm_ioctls::Error },
    #[error("the run page of vCPU {index} cannot be mapped")]
    Map { index: u32, source: io::Error },
    #[error("vCPU {index} has no CPUID")]
    Cpuid { index: u32, source: CpuidError },
    #[error("KVM refuses the CPUID of vCPU {index}")]
    SetCpuid { index: u32, source: kvm_ioctls::Error },
    #[error("vCPU {index} has no model-specific registers")]
    Msrs { index: u32, source: MsrError },
    #[error("the thread of vCPU {index} cannot be started")]
    Thread { index: u32, source: io::Error },
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error("the signal that makes vCPUs leave the guest cannot be set up")]
    Signal(#[source] kvm_ioctls::Error),
    #[error("the signal that makes vCPUs leave the guest cannot be unblocked: {0}")]
    Unblock(vmm_sys_util::signal::Error),
}

/// What all vCPUs of a machine share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Devices by guest address.
    pub mmio: Arc<MmioBus>,
    /// Devices by port.
    pub pio: Arc<PioBus>,
    /// Whether to run.
    pub gate: Arc<Gate>,
    /// Where the machine's end is told.
    pub ending: Arc<Ending>,
    /// Where the first entry is noted.
    pub timeline: Arc<Timeline>,
    /// The guest's memory, which must not be unmapped before the last vCPU is gone.
    pub memory: Memory,
}

/// A vCPU that does not run yet.
#[derive(Debug)]
pub struct Vcpu {
    index: u32,
    fd: VcpuFd,
    page: Arc<RunPage>,
    counts: Arc<Counts>,
}

/// A vCPU's thread, which is there before its vCPU: it needs as long to get its filter of system calls as the machine
/// needs to be made.
#[derive(Debug)]
pub struct Thread {
    handle: JoinHandle<()>,
    /// The thread's number, once it runs.
    number: Arc<AtomicI32>,
    work: SyncSender<(Vcpu, Shared)>,
}

/// A running vCPU, seen from the thread that controls the machine.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<()>,
    /// The thread's number, once it runs.
    number: Arc<AtomicI32>,
    page: Arc<RunPage>,
    counts: Arc<Counts>,
}

impl Vcpu {
    /// Creates vCPU `index` of the machine; its identifier is its index.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn create(vm: &VmFd, index: u32, cpuid: &cpuid::Template) -> Result<Self, VcpuError> {
        let fd = vm
            .create_vcpu(index.into())
            .map_err(|source| VcpuError::Create { index, source })?;
        let leaves = cpuid
            .for_vcpu(index)
            .map_err(|source| VcpuError::Cpuid { index, source })?;
        fd.set_cpuid2(&leaves)
            .map_err(|source| VcpuError::SetCpuid { index, source })?;
        msrs::set(&fd).map_err(|source| VcpuError::Msrs { index, source })?;
        let page = map_run_page(&fd).map_err(|source| VcpuError::Map { index, source })?;
        Ok(Self {
            index,
            fd,
            page: Arc::new(page),
            counts: Arc::default(),
        })
    }

    /// KVM's side of the vCPU.
    #[must_use]
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Runs the guest until the machine ends.
    ///
    /// The gate is looked at before the first entry and after each `EINTR`, and only there: then nothing is pending
    /// in KVM, as it completes what was answered last before it returns for a kick.
    fn run(mut self, shared: &Shared) {
        if shared.gate.pass() == Passage::Dismissed {
            return;
        }
        if self.index == 0 {
            shared.timeline.reach("guest entered");
        }
        while !shared.ending.is_over() {
            let goes_on = match self.fd.run() {
                Ok(exit) => match serve(exit, shared, &self.counts) {
                    Served::Done => true,
                    Served::End(end) => {
                        shared.ending.end(end);
                        false
                    }
                    Served::Failed(what) => {
                        self.fail(shared, &what);
                        false
                    }
                },
                Err(error) if error.errno() == libc::EINTR => {
                    self.counts.count(Exit::Interrupted);
                    self.page.clear();
                    self.pass(shared)
                }
                Err(error) if error.errno() == libc::EAGAIN => {
                    self.counts.count(Exit::Again);
                    true
                }
                Err(error) => {
                    self.fail(shared, &format!("KVM_RUN failed: {error}"));
                    false
                }
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Passes the gate; false says that the vCPU is to end.
    fn pass(&self, shared: &Shared) -> bool {
        let passage = shared.gate.pass();
        if passage == Passage::Held {
            // The guest's watchdog is told that the time that went by was not its own. A guest without KVM's clock
            // has none to tell.
            if let Err(error) = self.fd.kvmclock_ctrl() {
                tracing::debug!(%error, "the guest's clock was not told of the pause");
            }
        }
        passage != Passage::Dismissed
    }

    /// Ends the machine because KVM cannot continue this vCPU.
    fn fail(&mut self, shared: &Shared, what: &str) {
        let place = match self.fd.get_regs() {
            Ok(registers) => format!("{what}, at rip {:#x}", registers.rip),
            Err(_) => what.to_owned(),
        };
        shared.ending.end(End::Vcpu {
            index: self.index,
            reason: place + &internal_error(&mut self.fd),
        });
    }
}

impl Thread {
    /// Starts the thread of vCPU `index`, which passes the gate of all before it enters the guest.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(index: u32, gate: &Arc<Gate>, ending: &Arc<Ending>) -> Result<Self, VcpuError> {
        let number = Arc::new(AtomicI32::new(0));
        let (own, gate) = (Arc::clone(&number), Arc::clone(gate));
        let (work, given) = mpsc::sync_channel::<(Vcpu, Shared)>(1);
        let handle = crate::threads::spawn(format!("vcpu{index}"), ending, move || {
            let _done = Done(gate);
            own.store(gettid().as_raw(), Ordering::SeqCst);
            filters::enter(Kind::Vcpu)?;
            // None if there will be no machine.
            if let Ok((vcpu, shared)) = given.recv() {
                vcpu.run(&shared);
            }
            Ok::<(), VcpuError>(())
        })
        .map_err(|source| VcpuError::Thread { index, source })?;
        Ok(Self { handle, number, work })
    }

    /// Gives the thread its vCPU.
    #[must_use]
    pub fn take(self, vcpu: Vcpu, shared: Shared) -> Running {
        let (page, counts) = (Arc::clone(&vcpu.page), Arc::clone(&vcpu.counts));
        // A thread that has failed has told the machine's end.
        let _ = self.work.send((vcpu, shared));
        Running {
            thread: self.handle,
            number: self.number,
            page,
            counts,
        }
    }
}

impl Running {
    /// Makes the vCPU leave the guest and pass the gate. Nothing is lost if it is just about to enter.
    pub fn kick(&self) {
        self.page.set();
        match self.number.load(Ordering::SeqCst) {
            // It has not been to the gate yet, and finds the page behind it.
            0 => {}
            number => signal(number),
        }
    }

    /// The vCPU's exits so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Waits for the vCPU's thread to end.
    pub fn join(self) {
        // A panic in it was already told.
        let _ = self.thread.join();
    }
}

/// Sends a vCPU's thread its signal. That it may have ended is no error: no other thread of this process gets its number,
/// as there are no new ones. The process's number in the call is what a filter can look at, unlike that of a
/// pthread_kill(3).
#[allow(unsafe_code)]
fn signal(thread: libc::pid_t) {
    // SAFETY: the call takes numbers alone, and the signal's handler does nothing.
    let sent = Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, getpid().as_raw(), thread, SIGRTMIN()) });
    if let Err(errno) = sent
        && errno != Errno::ESRCH
    {
        tracing::warn!(%errno, "a vCPU cannot be kicked");
    }
}

/// Tells the gate that a thread is done, however it ends.
struct Done(Arc<Gate>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.done();
    }
}

/// What came of an exit.
enum Served {
    /// The guest goes on.
    Done,
    /// The machine ends.
    End(End),
    /// KVM cannot go on.
    Failed(String),
}

fn serve(exit: VcpuExit<'_>, shared: &Shared, counts: &Counts) -> Served {
    match exit {
        VcpuExit::MmioRead(address, data) => {
            counts.count(Exit::MmioRead);
            shared.mmio.read(address, data);
        }
        VcpuExit::MmioWrite(address, data) => {
            counts.count(Exit::MmioWrite);
            shared.mmio.write(address, data);
        }
        VcpuExit::IoIn(port, data) => {
            counts.count(Exit::PioIn);
            shared.pio.read(port.into(), data);
        }
        VcpuExit::IoOut(port, data) => {
            counts.count(Exit::PioOut);
            shared.pio.write(port.into(), data);
        }
        VcpuExit::Intr => counts.count(Exit::Interrupted),
        other => {
            counts.count(Exit::Other);
            return serve_rare(&other);
        }
    }
    Served::Done
}

fn serve_rare(exit: &VcpuExit<'_>) -> Served {
    match exit {
        VcpuExit::Shutdown => Served::End(End::TripleFault),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Served::End(End::Shutdown),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Served::End(End::Reboot),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => Served::End(End::Panic),
        VcpuExit::FailEntry(reason, cpu) => Served::Failed(format!(
            "the guest could not be entered on host CPU {cpu} (hardware reason {reason:#x})"
        )),
        VcpuExit::InternalError => Served::Failed("KVM met an internal error".into()),
        other => Served::Failed(format!("KVM left the guest for {other:?}, which nobody handles")),
    }
}

fn map_run_page(fd: &VcpuFd) -> io::Result<RunPage> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open for as long as `fd` is borrowed.
    #[allow(unsafe_code)]
    let descriptor = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    RunPage::map(descriptor)
}

/// What KVM tells of an internal error, as text to append; nothing after any other exit.
#[allow(unsafe_code)]
fn internal_error(fd: &mut VcpuFd) -> String {
    let run = fd.get_kvm_run();
    if run.exit_reason != kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
        return String::new();
    }
    // SAFETY: with this exit reason, the kernel filled the union's field `internal`.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = usize::try_from(internal.ndata).unwrap_or(0).min(internal.data.len());
    let kind = match internal.suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "an instruction that KVM does not emulate",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "an event that cannot be delivered",
        _ => "an unknown kind",
    };
    let data = internal.data.get(..count).unwrap_or_default();
    format!(" ({kind}, suberror {}, data {data:x?})", internal.suberror)
}

/// Sets up the signal of [`Running::kick`]; on the thread that starts the vCPUs' threads.
///
/// # Errors
/// The kernel refuses the handler.
pub fn prepare_kicks() -> Result<(), VcpuError> {
    // The handler has nothing to do: that the signal arrives is what makes KVM_RUN return.
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing).map_err(VcpuError::Signal)?;
    // The owner's mask is inherited, and a blocked signal would not arrive.
    unblock_signal(SIGRTMIN()).map_err(VcpuError::Unblock)
}
