//! Bad input: each gets one clear error, the right exit code, nothing left behind, and no hang.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use husk_tests::{Host, SmallDisk, busybox, prepared, with_devices};

#[test]
fn a_kernel_that_is_none_is_named() {
    let host = Host::new();
    let file = |name: &str, content: &[u8]| -> PathBuf {
        let path = host.scratch().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let own = fs::read(prepared::bin().join("guest/vmlinux")).unwrap();
    let mut loops = husk_tests::tiny::kernel(husk_tests::tiny::LOOPS);
    // A segment beyond the end of the file.
    loops.truncate(4000);
    let broken = [
        host.scratch().join("missing"),
        host.scratch().to_owned(),
        PathBuf::from("/dev/null"),
        file("empty", b""),
        file("text", b"this is no kernel\n"),
        file("cut-in-the-header", &own[..40]),
        file("cut-in-the-code", &own[..own.len() / 2]),
        file("cut-segment", &loops),
        file("program", &fs::read("/bin/true").unwrap()),
    ];
    for path in broken {
        let name = path.to_str().unwrap().to_owned();
        host.husk()
            .rootfs(busybox())
            .kernel(&path)
            .run(["true"])
            .fails(125, &[&name]);
    }
}

#[test]
fn a_kernel_that_may_not_be_read_is_named() {
    let host = Host::new();
    let path = host.scratch().join("secret");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
    // root may read everything, so somebody else tries.
    let directory = host.scratch().join("nobody");
    fs::create_dir(&directory).unwrap();
    std::os::unix::fs::chown(&directory, Some(65534), Some(65534)).unwrap();
    let husk = host.husk().as_nobody().variable("HUSK_ROOT", directory.join("run"));
    let husk = husk.variable("HUSK_IMAGE_CACHE", directory.join("images"));
    husk.rootfs(busybox())
        .kernel(&path)
        .run(["true"])
        .fails(125, &[path.to_str().unwrap(), "permission denied"]);
}

#[test]
fn a_root_file_system_that_is_none_is_named() {
    let host = Host::new();
    let file = host.scratch().join("file");
    fs::write(&file, "text").unwrap();
    let empty = host.scratch().join("empty");
    fs::create_dir(&empty).unwrap();
    for path in [host.scratch().join("missing"), file, empty] {
        host.husk()
            .rootfs(&path)
            .run(["true"])
            .fails(125, &[path.to_str().unwrap()]);
    }
    host.husk().run(["true"]).exits(125).mentions(&["--rootfs", "--bundle"]);
}

#[test]
fn a_command_that_cannot_be_found_is_127_and_one_that_cannot_be_run_126() {
    let host = Host::new();
    let husk = || host.husk().rootfs(busybox());
    husk().run(["no-such-command"]).fails(127, &["no-such-command"]);
    husk().run(["/opt/plain"]).fails(126, &["/opt/plain"]);
    // The same ways lead to the other processes of a sandbox.
    let sandbox = husk().sandbox("commands");
    for command in ["no-such-command", "/no/such/command", "/opt/no-interpreter"] {
        sandbox.exec([command]).fails(127, &[command]);
    }
    for command in ["/opt/plain", "/opt/no-format", "/etc"] {
        sandbox.exec([command]).fails(126, &[command]);
    }
    let private = sandbox.husk().user("tester").exec("commands", ["/opt/private"]);
    private.fails(126, &["/opt/private"]);
    sandbox.end();
}

#[test]
fn a_user_or_a_directory_that_is_not_there_is_named() {
    let host = Host::new();
    let users = [
        ("mallory", "mallory"),
        ("tester:wheel", "wheel"),
        ("", ""),
        (":", ":"),
        ("-1", "-1"),
        ("4294967296", "4294967296"),
    ];
    for (user, named) in users {
        host.husk()
            .rootfs(busybox())
            .option(format!("--user={user}"))
            .run(["true"])
            .fails(125, &[named]);
    }
    for directory in ["relative", ""] {
        host.husk()
            .rootfs(busybox())
            .option(format!("--workdir={directory}"))
            .run(["true"])
            .exits(125)
            .prints("");
    }
}

#[test]
fn absurd_sizes_are_refused_with_what_is_possible() {
    let host = Host::new();
    for cpus in ["0", "-1", "65", "1000000", "two", "1.5", "", "99999999999999999999"] {
        let outcome = host
            .husk()
            .rootfs(busybox())
            .option(format!("--cpus={cpus}"))
            .run(["true"]);
        outcome.exits(125).prints("").mentions(&["cpus", cpus]);
    }
    for memory in [
        "0",
        "1",
        "-5M",
        "31M",
        "12Q",
        "much",
        "",
        "99999999999999999999G",
        "16E",
    ] {
        let outcome = host
            .husk()
            .rootfs(busybox())
            .option(format!("--memory={memory}"))
            .run(["true"]);
        outcome.exits(125).prints("").mentions(&["memory", memory]);
    }
}

#[test]
fn names_and_variables_of_the_wrong_form_are_refused() {
    let host = Host::new();
    let long = "x".repeat(200);
    for name in ["", ".", "..", "a/b", "../a", "a b", "ä", "-a", &long] {
        host.husk()
            .rootfs(busybox())
            .option(format!("--name={name}"))
            .run(["true"])
            .exits(125)
            .prints("")
            .mentions(&["name"]);
    }
    host.husk()
        .rootfs(busybox())
        .option("--env==x")
        .run(["true"])
        .exits(125)
        .prints("")
        .mentions(&["env"]);
    host.husk()
        .rootfs(busybox())
        .option("--no-such-option")
        .run(["true"])
        .exits(125)
        .mentions(&["--no-such-option"]);
    host.husk()
        .command(["no-such-verb"])
        .exits(125)
        .mentions(&["no-such-verb"]);
    // Linux knows bytes, the message to the agent only text.
    let bytes = std::os::unix::ffi::OsStringExt::from_vec(vec![b'a', 0xff]);
    let words: [std::ffi::OsString; 2] = ["echo".into(), bytes];
    host.husk()
        .rootfs(busybox())
        .run(words)
        .exits(125)
        .prints("")
        .mentions(&["utf-8"]);
}

#[test]
fn without_a_usable_kvm_the_error_names_the_doctor() {
    let host = Host::new();
    // Not there; there but something else; there but not for this user.
    host.husk()
        .through(with_devices(""))
        .rootfs(busybox())
        .run(["true"])
        .fails(125, &["/dev/kvm", "husk doctor"]);
    let other = with_devices("mknod -m 666 /dev/kvm c 1 3");
    host.husk()
        .through(other)
        .rootfs(busybox())
        .run(["true"])
        .fails(125, &["/dev/kvm", "husk doctor"]);
    let directory = host.scratch().join("nobody");
    fs::create_dir(&directory).unwrap();
    std::os::unix::fs::chown(&directory, Some(65534), Some(65534)).unwrap();
    let husk = host
        .husk()
        .through(with_devices("mknod -m 600 /dev/kvm c 10 232"))
        .as_nobody();
    let husk = husk
        .variable("HUSK_ROOT", directory.join("run"))
        .variable("HUSK_IMAGE_CACHE", directory.join("images"));
    husk.rootfs(busybox())
        .run(["true"])
        .fails(125, &["/dev/kvm", "permission denied", "husk doctor"]);
}

#[test]
fn the_doctor_names_what_is_missing_and_the_remedy() {
    let host = Host::new();
    let outcome = host.husk().through(with_devices("")).command(["doctor"]);
    outcome.exits(1);
    assert!(outcome.stdout().contains("/dev/kvm"), "{outcome}");
    let outcome = host
        .husk()
        .variable("HUSK_GUEST_DIR", "/nonexistent")
        .command(["doctor", "--json"]);
    outcome.exits(1);
    let report: serde_json::Value = serde_json::from_str(outcome.stdout()).expect("JSON");
    assert!(report.to_string().contains("/nonexistent"), "{outcome}");
}

#[test]
fn a_missing_part_of_husk_is_named() {
    let host = Host::with_own_image_cache();
    let husk = || host.husk().rootfs(busybox());
    husk()
        .variable("HUSK_GUEST_DIR", "/nonexistent")
        .run(["true"])
        .fails(125, &["/nonexistent"]);
    husk()
        .variable("HUSK_VMM", "/nonexistent/husk-vmm")
        .run(["true"])
        .fails(125, &["/nonexistent/husk-vmm"]);
    // Something else in its place, which ends before it says anything.
    husk()
        .variable("HUSK_VMM", "/bin/false")
        .run(["true"])
        .fails(125, &["/bin/false"]);
}

#[test]
fn a_full_disk_under_the_cache_is_named() {
    let host = Host::with_own_image_cache();
    let disk = SmallDisk::mount(host.image_cache(), "300k");
    let outcome = host.husk().rootfs(busybox()).run(["true"]);
    outcome.fails(125, &[host.image_cache().to_str().unwrap(), "no space left"]);
    assert_eq!(disk.files(), Vec::<PathBuf>::new(), "files in the cache afterwards");
}

#[test]
fn directories_that_cannot_be_written_are_named() {
    let host = Host::with_own_image_cache();
    let file = host.scratch().join("file");
    fs::write(&file, "").unwrap();
    for variable in ["HUSK_ROOT", "HUSK_IMAGE_CACHE"] {
        let husk = host.husk().rootfs(busybox()).variable(variable, &file);
        husk.run(["true"]).fails(125, &[file.to_str().unwrap()]);
        let husk = host.husk().rootfs(busybox()).variable(variable, "/proc/nothing");
        husk.run(["true"]).fails(125, &["/proc/nothing"]);
    }
}

#[test]
fn a_run_directory_on_a_full_disk_is_named() {
    let host = Host::new();
    let place = host.scratch().join("full");
    let disk = SmallDisk::mount(&place, "4k");
    fs::write(place.join("fill"), vec![0; 4096]).unwrap_or_default();
    let outcome = host
        .husk()
        .rootfs(busybox())
        .variable("HUSK_ROOT", &place)
        .run(["true"]);
    // A file system of one page may still have room for names, and then everything works.
    if !outcome.succeeded() {
        outcome.fails(125, &[place.to_str().unwrap()]);
    }
    assert_eq!(
        disk.files(),
        [place.join("fill")],
        "files in the run directory afterwards"
    );
}
