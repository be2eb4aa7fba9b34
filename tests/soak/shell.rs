//! Containers from the shell, by husk's own commands.

use husk_tests::{Bundle, Container, Host, Husk, Running, busybox};

use super::{LONG, PATIENCE, STAYS, Way};

pub(crate) struct FromShell<'h> {
    host: &'h Host,
    bundle: Bundle,
}

impl<'h> FromShell<'h> {
    pub(crate) fn new(host: &'h Host) -> Self {
        Self {
            host,
            bundle: Bundle::of_script(host, busybox(), "exit 7"),
        }
    }

    fn husk(&self) -> Husk<'h> {
        self.host.husk().rootfs(busybox())
    }
}

impl Way for FromShell<'_> {
    fn begin(&self) -> &'static [&'static str] {
        let stays = self.husk().name(LONG).option("--detach");
        stays.run(["sh", "-c", STAYS]).exits(0);
        &["husk-keeper", "husk-monitor", "husk-vmm"]
    }

    fn run(&self) {
        self.husk().run(["true"]).exits(0).prints("").is_quiet();
    }

    fn create(&self) {
        let container = Container::create(self.host, &self.bundle, "created");
        container.husk("start").exits(0);
        assert_eq!(container.wait(), 7);
        container.delete();
    }

    fn enter(&self) {
        self.host.husk().exec(LONG, ["echo", "in"]).exits(0).prints("in\n");
    }

    fn run_many(&self, number: u32) {
        let patience = PATIENCE.as_secs().to_string();
        let start = |code: u32| {
            let husk = self.husk().memory("128M").within(PATIENCE);
            let husk = husk.variable("HUSK_TIMEOUT", &patience);
            husk.start(["sh", "-c", &format!("exit {code}")])
        };
        let running: Vec<Running<'_>> = (1..=number).map(start).collect();
        for (running, code) in running.into_iter().zip(1..) {
            running.finish().exits(code).prints("").is_quiet();
        }
    }

    fn end(&self) {
        self.host.husk().command(["rm", "--force", LONG]).exits(0);
    }
}
