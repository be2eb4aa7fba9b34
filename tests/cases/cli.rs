//! The commands as a person meets them: help, tracing, and where husk finds its parts.

use std::path::Path;

use husk_tests::{Host, busybox};

#[test]
fn every_command_explains_itself_with_an_example() {
    let host = Host::new();
    let all = host.husk().command(["--help"]);
    all.exits(0).is_quiet();
    for command in ["run", "list", "exec", "stop", "kill", "console", "doctor", "install"] {
        assert!(all.stdout().contains(command), "{command} in {all}");
        let help = host.husk().command([command, "--help"]);
        help.exits(0).is_quiet().says(&format!("husk {command}"));
        assert!(help.stdout().to_lowercase().contains("example"), "an example in {help}");
        // Colour is for terminals.
        assert!(!help.stdout().contains('\u{1b}'), "no escape sequences in {help}");
    }
    host.husk().command(["--version"]).exits(0).prints(concat!(
        "husk version ",
        env!("CARGO_PKG_VERSION"),
        "\nspec: 1.3.0\n"
    ));
}

#[test]
fn a_command_without_its_dashes_is_no_name() {
    let host = Host::new();
    let husk = || host.husk().rootfs(busybox());
    husk().command(["run", "ls"]).fails(125, &["-- ls", "--name"]);
    // What other tools need is taken, though every container that is waited for is removed.
    husk().option("--rm").run(["echo", "gone"]).exits(0).prints("gone\n");
}

#[test]
fn tracing_goes_to_stderr_and_only_when_asked_for() {
    let host = Host::new();
    let plain = host.husk().rootfs(busybox()).run(["echo", "out"]);
    plain.exits(0).prints("out\n").is_quiet();
    let traced = host
        .husk()
        .rootfs(busybox())
        .variable("HUSK_LOG", "debug")
        .run(["echo", "out"]);
    traced.exits(0).prints("out\n");
    assert!(!traced.stderr().is_empty(), "a trace in {traced}");
}

#[test]
fn an_installed_husk_finds_its_parts() {
    let host = Host::new();
    let to = host.scratch().join("usr/local");
    let install = ["install", "--prefix", to.to_str().unwrap()];
    host.husk().command(install).exits(0).is_quiet();
    // By its path, and by a link to it somewhere else.
    let link = host.scratch().join("husk");
    std::os::unix::fs::symlink(to.join("bin/husk"), &link).unwrap();
    for program in [to.join("bin/husk"), link] {
        host.husk()
            .program(program)
            .rootfs(busybox())
            .run(["echo", "installed"])
            .exits(0)
            .prints("installed\n");
    }
    let nothing = host.husk().program(to.join("bin/husk")).rootfs(busybox());
    std::fs::remove_file(to.join("lib/husk/vmlinux")).unwrap();
    nothing.run(["true"]).exits(125).mentions(&["vmlinux"]);
}

#[test]
fn relative_paths_are_relative_to_the_caller() {
    let host = Host::new();
    std::os::unix::fs::symlink(busybox(), host.scratch().join("rootfs")).unwrap();
    let husk = host.husk().through(["env", "-C"]).through([host.scratch()]);
    husk.rootfs(Path::new("./rootfs"))
        .run(["echo", "here"])
        .exits(0)
        .prints("here\n");
}

#[test]
fn the_short_options_are_those_of_other_tools() {
    let host = Host::new();
    let husk = host
        .husk()
        .rootfs(busybox())
        .option("-it")
        .option("-e")
        .option("A=b")
        .option("-w")
        .option("/tmp");
    let mut terminal =
        husk.option("-u")
            .option("tester")
            .on_terminal(["sh", "-c", "echo $A $(pwd) $(id -u); tty; exit 2"]);
    terminal.shows("b /tmp 1234").shows("/dev/");
    terminal.finish().exits(2);
}
