//! The virtual machine around a container: its shape, its kernel, its console, and many of them at once.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use husk_tests::{Host, Process, busybox, copy, debian, prepared};

#[test]
fn the_guest_has_the_processors_and_the_memory_that_were_asked_for() {
    let host = Host::new();
    let script = "
        echo cpus=$(nproc); echo online=$(cat /sys/devices/system/cpu/online)
        echo memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
        # Every processor does work, at the same time.
        work='i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; cut -d \" \" -f 39 /proc/$$/stat'
        for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu sh -c \"$work\" > /tmp/cpu$cpu & done
        wait; echo busy=$(sort -u /tmp/cpu* | wc -l)";
    for (cpus, memory, least) in [("1", "64M", 20), ("2", "256M", 180), ("4", "1G", 900)] {
        let outcome = host
            .husk()
            .rootfs(busybox())
            .cpus(cpus)
            .memory(memory)
            .run(["sh", "-c", script]);
        outcome.exits(0).states("cpus", cpus).states("busy", cpus).is_quiet();
        let asked: u64 = memory.trim_end_matches(['M', 'G']).parse().unwrap();
        let asked = if memory.ends_with('G') { asked << 10 } else { asked };
        // The kernel keeps some for itself.
        let seen = outcome.number("memory");
        assert!((least..=asked).contains(&seen), "{seen} MiB of {asked} in {outcome}");
    }
}

#[test]
fn eight_sandboxes_live_beside_each_other() {
    let host = Host::new();
    // All boot at the same time, and from a tree that the first to come converts.
    let starting: Vec<_> = (0..8)
        .map(|index| {
            let name = format!("box-{index}");
            let script = format!("echo {index} > /tmp/who; echo up; cat; exit {index}");
            let husk = host
                .husk()
                .rootfs(busybox())
                .name(&name)
                .memory("128M")
                .option("--interactive")
                .open_input();
            (name, husk.within(Duration::from_secs(240)).start(["sh", "-c", &script]))
        })
        .collect();
    let mut running: Vec<_> = starting
        .into_iter()
        .map(|(name, mut running)| {
            running.await_output("up\n");
            (name, running)
        })
        .collect();
    let list = host.husk().command(["list"]);
    list.exits(0).is_quiet();
    for (index, (name, _)) in running.iter().enumerate() {
        assert!(list.stdout().contains(name.as_str()), "{name} in {list}");
        host.husk()
            .exec(name, ["cat", "/tmp/who", "/etc/hostname"])
            .mentions(&[])
            .says(&format!("{index}\n"));
    }
    for (index, (_, sandbox)) in running.iter_mut().enumerate() {
        sandbox
            .forget_output()
            .send(format!("for {index}\n"))
            .await_output(&format!("for {index}\n"));
        sandbox.end_input();
    }
    for (index, (_, sandbox)) in running.into_iter().enumerate() {
        sandbox.finish().exits(i32::try_from(index).unwrap()).is_quiet();
    }
}

#[test]
fn a_kernel_of_the_users_own_boots() {
    let host = Host::new();
    let kernel = prepared::debian_kernel();
    let name = kernel.file_name().unwrap().to_string_lossy().into_owned();
    let release = name.strip_prefix("vmlinuz-").expect("Debian's name of a kernel");
    // Debian's kernel carries what a laptop needs, and takes its time where the processor is emulated.
    let husk = host
        .husk()
        .rootfs(debian())
        .kernel(&kernel)
        .memory("512M")
        .within(Duration::from_secs(400));
    let outcome = husk.run([
        "sh",
        "-c",
        "echo release=$(uname -r); echo sum=$(python3 -c 'print(6*7)'); exit 8",
    ]);
    outcome.exits(8).states("release", release).states("sum", "42");
}

#[test]
fn the_same_kernel_as_an_elf_boots_and_says_what_it_is() {
    let host = Host::new();
    let own = prepared::bin().join("guest/vmlinux");
    let outcome = host
        .husk()
        .rootfs(busybox())
        .kernel(own)
        .run(["sh", "-c", "echo release=$(uname -r)"]);
    outcome.exits(0).is_quiet();
    let inside = outcome.fact("release");
    let outside = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(inside.starts_with("6.12."), "husk's own kernel in {outcome}");
    assert_ne!(inside, outside.trim_end(), "the guest's kernel is not the host's");
}

#[test]
fn an_idle_guest_is_not_woken_to_defragment_its_memory() {
    let host = Host::new();
    let setting = ["cat", "/proc/sys/vm/compaction_proactiveness"];
    host.husk()
        .rootfs(busybox())
        .run(setting)
        .exits(0)
        .prints("0\n")
        .is_quiet();
}

#[test]
fn list_shows_what_runs_and_nothing_else() {
    let host = Host::new();
    let sandbox = host.husk().rootfs(busybox()).cpus("2").memory("192M").sandbox("shown");
    let list = host.husk().command(["list"]);
    list.exits(0).is_quiet();
    let line = list
        .stdout()
        .lines()
        .find(|line| line.contains("shown"))
        .expect("a line for the sandbox");
    assert!(line.contains("192M"), "its memory in {list}");
    host.husk().command(["list", "--quiet"]).exits(0).prints("shown\n");
    let json = host.husk().command(["list", "--json"]);
    json.exits(0).is_quiet();
    let states: serde_json::Value = serde_json::from_str(json.stdout()).expect("JSON");
    assert_eq!(
        (&states[0]["id"], &states[0]["cpus"]),
        (&"shown".into(), &2.into()),
        "{json}"
    );
    sandbox.end();
    let list = host.husk().command(["list"]);
    assert!(!list.stdout().contains("shown"), "a sandbox that has ended in {list}");
}

#[test]
fn the_console_shows_the_kernel_and_ends_with_the_guest() {
    let host = Host::new();
    let sandbox = host.husk().rootfs(busybox()).option("--console").sandbox("spoken");
    let mut console = host.husk().command_on_terminal(["console", "spoken"]);
    // What the guest said before anybody listened is kept.
    console.shows("Linux version");
    sandbox.end();
    // The guest's end is the console's.
    console.finish().exits(0);
    let quiet = host.husk().rootfs(busybox()).sandbox("quiet");
    host.husk().command(["console", "quiet"]).fails(125, &["--console"]);
    quiet.end();
}

#[test]
fn what_is_typed_into_the_console_arrives_in_the_guest() {
    let host = Host::new();
    let sandbox = host.husk().rootfs(busybox()).option("--console").sandbox("typed");
    let mut console = host.husk().command_on_terminal(["console", "typed"]);
    console.shows("Linux version");
    // husk's terminal is raw by now: what is shown again is the echo of the guest's own terminal.
    console.types("keys arrive").shows("keys arrive");
    console.types("\u{1d}");
    console.finish().exits(0);
    sandbox.end();
}

#[test]
fn doctor_finds_nothing_missing_and_says_so_in_json_too() {
    let host = Host::new();
    host.husk().command(["doctor"]).exits(0).mentions(&[]);
    let outcome = host.husk().command(["doctor", "--json"]);
    outcome.exits(0).is_quiet();
    let report: serde_json::Value = serde_json::from_str(outcome.stdout()).expect("JSON");
    let text = report.to_string();
    for subject in ["/dev/kvm", "image cache", "husk-vmm", "vmlinux"] {
        assert!(text.contains(subject), "{subject} in {outcome}");
    }
}

#[test]
fn an_idle_sandbox_uses_no_processor_time() {
    let host = Host::new();
    let mut sandbox = host.husk().rootfs(busybox()).cpus("2").sandbox("idle");
    let processes = [sandbox.running().process(), sandbox.vmm()];
    let ticks = || processes.iter().map(Process::ticks).collect::<Vec<_>>();
    // The guest has just booted and may have something left to do; that is not what is measured.
    std::thread::sleep(Duration::from_secs(1));
    let before = ticks();
    std::thread::sleep(Duration::from_secs(5));
    let used: Vec<_> = ticks()
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect();
    // A tick is 10 ms. Five seconds of one thread that polls are 500; a guest's own housekeeping is a few wake-ups a
    // second, each of which costs a millisecond or two where the processor is emulated.
    assert!(used[0] <= 5, "husk used {} ticks in 5 s", used[0]);
    assert!(used[1] <= 50, "husk-vmm used {} ticks in 5 s", used[1]);
    sandbox.end();
}

#[test]
fn an_unchanged_tree_is_converted_once() {
    let host = Host::with_own_image_cache();
    let tree = host.scratch().join("tree");
    copy(busybox(), &tree);
    // Which files there are; that one was made anew would show in its inode.
    let images = || {
        let entries = std::fs::read_dir(host.image_cache()).unwrap().flatten();
        let files = entries.map(|entry| (entry.path(), entry.metadata().unwrap()));
        let files = files.filter(|(_, file)| file.is_file() && file.len() > 0);
        files
            .map(|(path, file)| (path, file.ino()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let run = |expected: &str| {
        let outcome = host.husk().rootfs(&tree).run(["cat", "/etc/motd"]);
        outcome.exits(0).prints(expected);
    };
    std::fs::write(tree.join("etc/motd"), "first\n").unwrap();
    run("first\n");
    let first = images();
    assert!(!first.is_empty(), "an image in {}", host.image_cache().display());
    run("first\n");
    assert_eq!(images(), first, "an unchanged tree makes no new image");
    // The same length and, as far as a file system can tell, perhaps the same second.
    std::fs::write(tree.join("etc/motd"), "other\n").unwrap();
    run("other\n");
}
