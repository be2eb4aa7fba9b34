//! Starts machines with the bare-metal test guest, and reads its shared page out of their memory.

#![allow(dead_code)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use husk_test_guest::layout::SHARED_PAGE;
use husk_test_guest::report::{GO, MAGIC, Page, Reason, WORDS, state};
use husk_vmm_config::Report;
use serde_json::Value;

use crate::harness::{LIMIT, Owned, Setup};

const TARGET: &str = "x86_64-unknown-none";

/// The guest's kernel: built once, by the cargo that built the test.
pub(crate) fn kernel() -> File {
    static PATH: OnceLock<String> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([
            "build",
            "--quiet",
            "--release",
            "--package=husk-test-guest",
            "--target",
            TARGET,
        ]);
        cargo.arg("--message-format=json-render-diagnostics");
        let output = cargo
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "the test guest is not built; does `rustup target add {TARGET}` help?"
        );
        let told = String::from_utf8(output.stdout).unwrap();
        let messages = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut programs = messages.filter_map(|message| Some(message["executable"].as_str()?.to_owned()));
        programs.next().unwrap()
    });
    File::open(path).unwrap()
}

/// A machine with the test guest in it.
pub(crate) struct Guest {
    pub(crate) machine: Owned,
    memory: File,
}

impl Guest {
    /// Starts the machine; the guest waits for [`Guest::go`] before it does the orders.
    pub(crate) fn start(mut setup: Setup, orders: &str) -> Self {
        setup.command_line = format!("+wait {orders}");
        let machine = setup.start();
        machine.wait_for(|status| status.phases.iter().any(|phase| phase.name == "guest entered"));
        let memory = memory_of(machine.pid());
        let guest = Self { machine, memory };
        guest.wait_until(|page| page.magic == MAGIC && page.state != state::RUNNING);
        guest
    }

    /// The shared page, as it is now.
    pub(crate) fn page(&self) -> Page {
        let mut bytes = [0; 8 * WORDS];
        self.memory.read_exact_at(&mut bytes, SHARED_PAGE).unwrap();
        Page::from_bytes(&bytes)
    }

    /// Lets the guest do its orders.
    pub(crate) fn go(&self) {
        self.memory.write_all_at(&1u64.to_le_bytes(), SHARED_PAGE + GO).unwrap();
    }

    /// Waits until the page shows something.
    pub(crate) fn wait_until(&self, what: impl Fn(&Page) -> bool) -> Page {
        let start = Instant::now();
        loop {
            let page = self.page();
            if what(&page) {
                return page;
            }
            assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {}", describe(&page));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the machine's end; then all orders must be done.
    pub(crate) fn finish(self) -> (Page, Report, ExitStatus) {
        let (page, report, status) = self.end();
        assert_eq!(page.state, state::DONE, "{}; {:?}", describe(&page), report.end);
        (page, report, status)
    }

    /// Waits for the machine's end, whatever came of the orders.
    pub(crate) fn end(self) -> (Page, Report, ExitStatus) {
        let Self { machine, memory } = self;
        let (report, status) = machine.end();
        let mut bytes = [0; 8 * WORDS];
        memory.read_exact_at(&mut bytes, SHARED_PAGE).unwrap();
        (Page::from_bytes(&bytes), report, status)
    }
}

/// What a page says, for a person.
pub(crate) fn describe(page: &Page) -> String {
    let Page {
        state,
        done,
        reason,
        detail,
        pulse,
        fault,
        ..
    } = page;
    let why = Reason::from_number(*reason);
    format!("state {state}, order {done}, {why:?} ({detail:#x}), pulse {pulse}, fault {fault:x?}")
}

/// The memory of the guest that this process runs.
fn memory_of(pid: u32) -> File {
    let mut descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_memory = |path: &std::path::PathBuf| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:husk-guest"))
    };
    let path = descriptors.find(is_memory).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}
