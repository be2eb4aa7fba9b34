//! A machine, from nothing to a running guest and back.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use husk_vmm_config::{Config, End, ExitCounts, Report, State, Status};
use kvm_ioctls::{Kvm, VmFd};
use thiserror::Error;

use crate::devices::{Devices, DevicesError};
use crate::ending::Ending;
use crate::kvm::{self, KvmError};
use crate::memory::{self, MemoryError};
use crate::resources::{DeviceFiles, Parts};
use crate::timeline::Timeline;
use crate::vcpu::{self, Gate, Running, Vcpu, VcpuError};
use crate::x86_64::acpi::{self, AcpiError};
use crate::x86_64::boot::{self, BootError};
use crate::x86_64::cpuid::{self, CpuidError};
use crate::x86_64::interrupts::{self, InterruptError};
use crate::x86_64::registers::{self, RegisterError};

/// How long a vCPU may take to leave the guest.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// Why there is no machine.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum MachineError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Interrupts(#[from] InterruptError),
    #[error(transparent)]
    Devices(#[from] DevicesError),
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Registers(#[from] RegisterError),
}

/// Why a request to a running machine was not carried out.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RequestError {
    #[error("a vCPU did not leave the guest within {} seconds", LEAVE_LIMIT.as_secs())]
    VcpuStuck,
    #[error(transparent)]
    Devices(#[from] DevicesError),
}

/// A machine with a guest.
pub struct Machine {
    // In the order in which they go: threads first, then devices, then the machine itself.
    vcpus: Vec<Running>,
    gate: Arc<Gate>,
    devices: Devices,
    ending: Arc<Ending>,
    timeline: Arc<Timeline>,
    state: State,
    _vm: VmFd,
    _memory: memory::Memory,
}

impl Machine {
    /// Builds the machine that `config` describes out of `parts` and loads the kernel. All its threads are there
    /// afterwards; the guest waits for [`run`](Self::run).
    ///
    /// # Errors
    /// The first thing that cannot be had.
    pub fn build(
        config: &Config,
        parts: Parts,
        ending: &Arc<Ending>,
        timeline: &Arc<Timeline>,
    ) -> Result<Self, MachineError> {
        let kvm = kvm::check(parts.kvm, config.vcpus.count)?;
        timeline.reach("KVM checked");

        // The vCPUs stand before the guest until the machine runs.
        let gate = Arc::new(Gate::new(config.vcpus.count as usize));
        gate.close();
        vcpu::prepare_kicks()?;
        // The boot processor's last: the others wait in KVM for its call.
        let threads: Vec<_> = (0..config.vcpus.count)
            .rev()
            .map(|index| vcpu::Thread::start(index, &gate, ending))
            .collect::<Result<_, _>>()?;
        timeline.reach("vCPU threads started");

        // KVM asks the processor for each leaf, of which each can be an exit to a hypervisor below: that takes as long
        // as what is done here meanwhile.
        let (cpuid, made) = thread::scope(|scope| {
            let cpuid = scope.spawn(|| cpuid::Template::new(&kvm, config.vcpus));
            let made = Self::make(&kvm, config, parts.devices, ending, timeline);
            (cpuid.join(), made)
        });
        let (vm, memory, devices) = made?;
        let cpuid = cpuid.unwrap_or_else(|panic| resume_unwind(panic))?;

        let vcpus: Vec<Vcpu> = (0..config.vcpus.count)
            .map(|index| Vcpu::create(&vm, index, &cpuid))
            .collect::<Result<_, _>>()?;
        timeline.reach("vCPUs created");

        let rsdp = acpi::write(&memory, config.vcpus.count, devices.described())?;
        let entry = boot::load(&memory, &parts.boot, &config.kernel.command_line, rsdp)?;
        if let Some(first) = vcpus.first() {
            registers::set(first.fd(), &memory, entry)?;
        }
        timeline.reach("kernel loaded");

        let shared = vcpu::Shared {
            mmio: devices.mmio(),
            pio: devices.pio(),
            gate: Arc::clone(&gate),
            ending: Arc::clone(ending),
            timeline: Arc::clone(timeline),
            memory: memory.clone(),
        };
        let vcpus = threads.into_iter().zip(vcpus.into_iter().rev());
        Ok(Self {
            gate,
            vcpus: vcpus.map(|(thread, vcpu)| thread.take(vcpu, shared.clone())).collect(),
            devices,
            ending: Arc::clone(ending),
            timeline: Arc::clone(timeline),
            state: State::Running,
            _vm: vm,
            _memory: memory,
        })
    }

    /// Makes what there is of a machine before its vCPUs.
    fn make(
        kvm: &Kvm,
        config: &Config,
        files: DeviceFiles,
        ending: &Arc<Ending>,
        timeline: &Arc<Timeline>,
    ) -> Result<(VmFd, memory::Memory, Devices), MachineError> {
        let vm = kvm.create_vm().map_err(KvmError::CreateVm)?;
        timeline.reach("machine created");

        let memory = memory::create(config.memory_mib)?;
        kvm::add_memory(&vm, &memory)?;
        timeline.reach("memory mapped");

        interrupts::create(&vm)?;
        timeline.reach("interrupt controllers created");

        let devices = Devices::create(&vm, &memory, config, files, ending, timeline)?;
        timeline.reach("devices created");
        Ok((vm, memory, devices))
    }

    /// Lets the guest run, for the first time.
    pub fn run(&self) {
        self.gate.open();
    }

    /// What the machine says of itself.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            state: self.state,
            exits: self.exits(),
            phases: self.timeline.phases(),
        }
    }

    /// Stops all vCPUs, then all devices. Pausing a paused machine changes nothing.
    ///
    /// # Errors
    /// A vCPU or a device that does not stop; then the machine goes on.
    pub fn pause(&mut self) -> Result<(), RequestError> {
        if self.state == State::Paused {
            return Ok(());
        }
        self.gate.close();
        self.kick_vcpus();
        if !self.gate.wait_closed(LEAVE_LIMIT) {
            self.gate.open();
            return Err(RequestError::VcpuStuck);
        }
        if let Err(error) = self.devices.pause() {
            self.devices.resume();
            self.gate.open();
            return Err(error.into());
        }
        self.state = State::Paused;
        Ok(())
    }

    /// Lets devices and vCPUs go on. Resuming a running machine changes nothing.
    pub fn resume(&mut self) {
        if self.state == State::Paused {
            self.devices.resume();
            self.gate.open();
            self.state = State::Running;
        }
    }

    /// Makes every vCPU leave the guest once, and every device look at its queues.
    pub fn kick(&self) {
        self.kick_vcpus();
        self.devices.kick();
    }

    /// The machine's devices.
    #[must_use]
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Ends the machine, if nothing else did, and says what it was.
    pub fn stop(&mut self) -> Report {
        self.ending.end(End::Stopped);
        self.leave();
        Report {
            end: self.ending.get().unwrap_or(End::Stopped),
            exits: self.exits(),
            phases: self.timeline.phases(),
        }
    }

    fn exits(&self) -> ExitCounts {
        let mut total = ExitCounts::default();
        for vcpu in &self.vcpus {
            vcpu.counts().add_to(&mut total);
        }
        total
    }

    fn kick_vcpus(&self) {
        for vcpu in &self.vcpus {
            vcpu.kick();
        }
    }

    /// Sends all vCPUs home and waits for them, but not forever: the process ends soon, and they with it.
    fn leave(&self) -> bool {
        self.gate.dismiss();
        self.kick_vcpus();
        let left = self.gate.wait_done(LEAVE_LIMIT);
        if !left {
            tracing::error!(
                "a vCPU did not leave the guest within {} seconds",
                LEAVE_LIMIT.as_secs()
            );
        }
        left
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ending.end(End::Stopped);
        if self.leave() {
            for vcpu in self.vcpus.drain(..) {
                vcpu.join();
            }
        }
    }
}
