//! `husk cp`: files into running containers and out of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use husk_tests::{Bundle, Container, Host, Outcome, busybox, prepared};

/// `husk cp` with these words.
fn cp(host: &Host, words: &[&str]) -> Outcome {
    host.husk().command([&["cp"], words].concat())
}

/// `husk cp - DESTINATION` with these bytes on stdin.
fn cp_stdin(host: &Host, bytes: &[u8], destination: &str) -> Outcome {
    let husk = host.husk().open_input();
    let mut running = husk.start_command(["cp", "-", destination]);
    running.send(bytes).end_input();
    running.finish()
}

/// A directory with a file, a link and a directory below it.
fn tree(host: &Host) -> PathBuf {
    let tree = host.scratch().join("tree");
    fs::create_dir_all(tree.join("inner")).unwrap();
    fs::write(tree.join("file"), "contents\n").unwrap();
    fs::write(tree.join("inner/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("inner/tool"), fs::Permissions::from_mode(0o751)).unwrap();
    symlink("inner/tool", tree.join("link")).unwrap();
    tree
}

/// The directory holds what [`tree`] has made.
#[track_caller]
fn assert_is_tree(tree: &Path) {
    assert_eq!(fs::read_to_string(tree.join("file")).unwrap(), "contents\n");
    assert_eq!(fs::read_link(tree.join("link")).unwrap(), Path::new("inner/tool"));
    let tool = tree.join("inner/tool").metadata().unwrap();
    assert_eq!(tool.mode() & 0o7777, 0o751);
}

#[test]
fn a_container_without_any_program_takes_and_gives_files() {
    let host = Host::new();
    // All that the image has is the one process.
    let root = host.scratch().join("root");
    fs::create_dir(&root).unwrap();
    fs::copy(prepared::busybox().join("bin/busybox"), root.join("sleep")).unwrap();
    let husk = host.husk().rootfs(&root).name("bare").option("--detach");
    husk.run(["/sleep", "1000"]).exits(0);
    let tree = tree(&host);
    let from = tree.to_str().unwrap();
    let to = |name: &str| host.scratch().join(name).to_str().unwrap().to_owned();
    // A directory into one, as a new one, and its contents alone.
    cp(&host, &[from, "bare:/"]).exits(0).prints("").is_quiet();
    cp(&host, &[&format!("{from}/."), "bare:/new"]).exits(0);
    cp(&host, &["bare:/tree", &to("whole")]).exits(0).prints("").is_quiet();
    assert_is_tree(Path::new(&to("whole")));
    fs::create_dir(to("into")).unwrap();
    cp(&host, &["bare:new", &to("into")]).exits(0);
    assert_is_tree(&Path::new(&to("into")).join("new"));
    fs::create_dir(to("contents")).unwrap();
    cp(&host, &["bare:/new/.", &to("contents")]).exits(0);
    assert_is_tree(Path::new(&to("contents")));
    // A link as it is, and what it leads to.
    cp(&host, &["bare:/tree/link", &to("kept")]).exits(0);
    assert_eq!(fs::read_link(to("kept")).unwrap(), Path::new("inner/tool"));
    cp(&host, &["-L", "bare:/tree/link", &to("followed")]).exits(0);
    assert_eq!(fs::read_to_string(to("followed")).unwrap(), "#!/bin/sh\n");
    // As archives on the streams.
    let archive = cp(&host, &["bare:/tree", "-"]);
    archive.exits(0).is_quiet();
    cp(&host, &["bare:/tree/file", "bare:/x"]).fails(125, &["one container to another"]);
    cp(&host, &[from, "bare:/put"]).exits(0);
    cp_stdin(&host, archive.stdout().as_bytes(), "bare:/put")
        .exits(0)
        .is_quiet();
    cp(&host, &["bare:/put/tree", &to("again")]).exits(0);
    assert_is_tree(Path::new(&to("again")));
    // What is large arrives whole; its end is no multiple of anything.
    let large: Vec<u8> = (0..3_000_001_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    fs::write(to("large"), &large).unwrap();
    cp(&host, &[&to("large"), "bare:/"]).exits(0);
    cp(&host, &["bare:/large", &to("back")]).exits(0);
    assert!(fs::read(to("back")).unwrap() == large);
    host.husk().command(["rm", "--force", "bare"]).exits(0);
}

#[test]
fn owners_are_kept_when_asked_for_and_what_is_mounted_is_seen() {
    let host = Host::new();
    let bundle = Bundle::of_script(&host, busybox(), "read word");
    let container = Container::create(&host, &bundle, "owned");
    let file = host.scratch().join("file");
    fs::write(&file, "x").unwrap();
    chown(&file, Some(1234), Some(1235)).unwrap();
    let file = file.to_str().unwrap();
    // A container that is created has its files, and one that is paused.
    cp(&host, &[file, "owned:/dev/shm/plain"]).exits(0);
    container.husk("start").exits(0);
    container.husk("pause").exits(0);
    cp(&host, &["--archive", file, "owned:/dev/shm/kept"]).exits(0);
    container.husk("resume").exits(0);
    let stat = ["stat", "-c", "%u:%g", "/dev/shm/plain", "/dev/shm/kept"];
    host.husk().exec("owned", stat).exits(0).prints("0:0\n1234:1235\n");
    for (option, uid) in [("--archive", 1234), ("--quiet", nix::unistd::geteuid().as_raw())] {
        let out = host.scratch().join(option);
        cp(&host, &[option, "owned:/dev/shm/kept", out.to_str().unwrap()]).exits(0);
        assert_eq!(out.metadata().unwrap().uid(), uid, "{option}");
    }
    host.husk().command(["kill", "owned", "KILL"]).exits(0);
    assert_eq!(container.wait(), 137);
    cp(&host, &["owned:/etc/passwd", "-"]).fails(125, &["owned"]);
    container.delete();
}

#[test]
fn what_cannot_be_copied_is_named_and_nothing_leads_out() {
    let host = Host::new();
    let root = host.scratch().join("root");
    husk_tests::copy(busybox(), &root);
    symlink("../../../../../../../../only-outside", root.join("climb")).unwrap();
    symlink("/etc", root.join("absolute")).unwrap();
    fs::write(root.join("etc/only-inside"), "inside\n").unwrap();
    let run = host.husk().rootfs(&root).name("links").option("--detach");
    run.run(["sleep", "1000"]).exits(0);
    let file = host.scratch().join("file");
    fs::write(&file, "x").unwrap();
    let (file, scratch) = (file.to_str().unwrap(), host.scratch().to_str().unwrap());
    let out = format!("{scratch}/out");
    cp(&host, &["links:/absolute/only-inside", &out]).exits(0);
    assert_eq!(fs::read_to_string(&out).unwrap(), "inside\n");
    // The guest's own root has an /init, to which no number of `..` leads.
    cp(&host, &["links:/../../../init", &out]).fails(125, &["/../../../init", "does not exist"]);
    cp(&host, &["-L", "links:/climb", &out]).fails(125, &["/climb", "does not exist"]);
    cp(&host, &[file, "links:/climb"]).exits(0);
    host.husk().exec("links", ["cat", "/only-outside"]).exits(0).prints("x");
    assert!(!Path::new("/only-outside").exists());
    for (words, named) in [
        (&["links:/missing", &out][..], "/missing"),
        (&[file, "links:/missing/file"], "/missing"),
        (&[file, "links:/missing/"], "/missing/"),
        (&[scratch, "links:/etc/passwd"], "/etc/passwd"),
        (&["links:/etc/passwd/", &out], "/etc/passwd/"),
        (&["links:/etc", file], file),
        (&["links:/etc/passwd", "/no-such-place/file"], "/no-such-place"),
        (&["nobody:/etc/passwd", &out], "nobody"),
        (&["/etc/passwd", "/tmp/other"], "NAME:PATH"),
        (&["links:/dev/null", &out], "device"),
    ] {
        cp(&host, words).fails(125, &[named]);
    }
    cp_stdin(&host, &[7; 512], "links:/etc").fails(125, &["archive"]);
    host.husk().command(["rm", "--force", "links"]).exits(0);
}
