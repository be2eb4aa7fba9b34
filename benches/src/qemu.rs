//! The same bare-metal guest, doing the same, in QEMU's smallest machine on the same KVM.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use husk_test_guest::report::Outcome;

use crate::Plan;
use crate::monitor::Shared;

const PROGRAM: &str = "qemu-system-x86_64";
const MEMORY_MIB: u64 = 64;
/// Where a microvm has the registers of the device that was named last.
const REGISTERS: u64 = 0xfeb0_2e00;

/// Whether it is there.
pub(crate) fn found() -> bool {
    let version = Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// What the guest says of `orders` to the disk in the file, which is served by a thread of its own through io_uring.
pub(crate) fn disk(plan: &Plan, file: &Path, orders: &str) -> Result<Outcome> {
    let memory = tempfile::NamedTempFile::new_in("/dev/shm")?;
    memory.as_file().set_len(MEMORY_MIB << 20)?;
    let mut command = Command::new(PROGRAM);
    command
        .args(["-M", "microvm,accel=kvm,memory-backend=memory"])
        .args(["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-display", "none"])
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .arg("-object")
        .arg(format!(
            "memory-backend-file,id=memory,size={MEMORY_MIB}M,share=on,mem-path={}",
            memory.path().display()
        ))
        .args(["-object", "iothread,id=disk"])
        .arg("-drive")
        .arg(format!(
            "if=none,id=file,format=raw,read-only=on,aio=io_uring,file={}",
            file.display()
        ))
        .args(["-device", "virtio-blk-device,drive=file,iothread=disk"])
        .arg("-kernel")
        .arg(&plan.test_guest)
        .args(["-append", &format!("+virtio base={REGISTERS} {orders} +idle")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _machine = Running(command.spawn().context(PROGRAM)?);
    let page = Shared::of_file(File::options().read(true).write(true).open(memory.path())?).done()?;
    // Behind that of the order that says where the registers are.
    Ok(page.results[1])
}

/// A process that goes with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that is gone already needs neither.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
