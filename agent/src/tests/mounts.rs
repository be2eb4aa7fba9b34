//! Mounts as the container sees them.

use std::fs;
use std::path::Path;

use husk_protocol::agent::{CreateRequest, File, IdMapping, Mount};
use nix::mount::MsFlags;

use super::guest::{Guest, container, create, delete, file_system, read, run, shell, with_streams};

fn with(script: &str, mounts: Vec<Mount>) -> CreateRequest {
    let mut request = container("a", shell(script));
    request.mounts.extend(mounts);
    request
}

fn bind(source: &str, destination: &str, flags: MsFlags) -> Mount {
    Mount {
        source: source.to_owned(),
        destination: destination.to_owned(),
        flags: (flags | MsFlags::MS_BIND).bits(),
        ..Mount::default()
    }
}

/// The options of the mount on a path, as mountinfo has them.
const OPTIONS: &str = "options() { while read a b c d path options rest; do [ $path = $1 ] && echo $options $rest; \
                       done < /proc/self/mountinfo | tail -n 1; }; ";

fn options(guest: &Guest, paths: &[&str], mounts: Vec<Mount>) -> Vec<String> {
    let wanted: Vec<_> = paths.iter().map(|path| format!("options {path}")).collect();
    let script = format!("{OPTIONS}{}", wanted.join("; "));
    let (exit, text) = run(guest, with(&script.replace("| tail", "| busybox tail"), mounts));
    assert_eq!(exit.status, 0, "{text}");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn flags_of_a_mount_are_those_that_were_asked_for() {
    let Some(guest) = Guest::start() else { return };
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let found = options(
        &guest,
        &["/t", "/b", "/c", "/d", "/e", "/r"],
        vec![
            file_system(
                "/t",
                "tmpfs",
                plain | MsFlags::MS_NOATIME | MsFlags::MS_RDONLY,
                "size=1m,mode=700",
            ),
            // Made in a tmpfs that is read-only in the end.
            file_system("/t/below", "tmpfs", MsFlags::empty(), ""),
            bind("/t", "/b", MsFlags::empty()),
            Mount {
                cleared: MsFlags::MS_RDONLY.bits(),
                ..bind("/t", "/c", MsFlags::empty())
            },
            bind("/t", "/d", MsFlags::MS_RDONLY | MsFlags::MS_STRICTATIME),
            Mount {
                recursive_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOEXEC,
                ..bind("/t", "/e", MsFlags::MS_REC)
            },
            file_system("/r", "ramfs", MsFlags::MS_SYNCHRONOUS | MsFlags::MS_NODIRATIME, ""),
        ],
    );
    let expected = [
        ("ro,nosuid,nodev,noexec,noatime", "size=1024k"),
        ("rw,nosuid,nodev,noexec,noatime", "mode=700"),
        ("rw,noatime", ""),
        ("ro", ""),
        ("ro,nosuid,nodev,noexec,noatime", ""),
        ("rw,nodiratime,relatime", "rw,sync"),
    ];
    for (found, (flags, data)) in found.iter().zip(expected) {
        let (options, rest) = found.split_once(' ').unwrap();
        assert!(
            options == flags && rest.contains(data),
            "{found:?} is not {flags:?} {data:?}"
        );
    }
    // The recursive one reaches what lies below, the other one does not.
    let found = options(
        &guest,
        &["/e/below", "/f/below"],
        vec![
            file_system("/t", "tmpfs", MsFlags::empty(), ""),
            file_system("/t/below", "tmpfs", MsFlags::empty(), ""),
            Mount {
                recursive_set: libc::MOUNT_ATTR_RDONLY,
                recursive_clear: libc::MOUNT_ATTR__ATIME,
                ..bind("/t", "/e", MsFlags::MS_REC)
            },
            bind("/t", "/f", MsFlags::MS_REC | MsFlags::MS_RDONLY),
        ],
    );
    assert!(
        found[0].starts_with("ro,relatime ") && found[1].starts_with("rw,relatime "),
        "{found:?}"
    );
}

#[test]
fn propagation_is_what_was_asked_for() {
    let Some(guest) = Guest::start() else { return };
    let shared = (MsFlags::MS_SHARED | MsFlags::MS_REC).bits();
    let found = options(
        &guest,
        &["/s", "/p", "/l"],
        vec![
            Mount {
                propagation: vec![MsFlags::MS_PRIVATE.bits(), shared],
                ..file_system("/s", "tmpfs", MsFlags::empty(), "")
            },
            Mount {
                propagation: vec![MsFlags::MS_UNBINDABLE.bits()],
                ..file_system("/p", "tmpfs", MsFlags::empty(), "")
            },
            Mount {
                propagation: vec![MsFlags::MS_SLAVE.bits()],
                ..bind("/s", "/l", MsFlags::empty())
            },
        ],
    );
    assert!(
        found[0].contains("shared:") && found[1].contains("unbindable") && found[2].contains("master:"),
        "{found:?}"
    );
}

#[test]
fn what_a_tmpfs_covers_can_be_copied_into_it() {
    let Some(guest) = Guest::start() else { return };
    let script = "cat /etc/not-executable; echo; stat -c %a /etc /copied; echo more > /etc/new && ls /etc | wc -l";
    let copied = Mount {
        copy_up: true,
        ..file_system("/etc", "tmpfs", MsFlags::empty(), "")
    };
    let other = Mount {
        copy_up: true,
        ..file_system("/copied", "tmpfs", MsFlags::empty(), "mode=711")
    };
    let (exit, text) = run(&guest, with(script, vec![copied, other]));
    assert_eq!((exit.status, text.replace(' ', "").as_str()), (0, "x\n755\n711\n3\n"));
}

#[test]
fn files_of_the_host_are_there_and_are_the_containers_own() {
    let Some(guest) = Guest::start() else { return };
    let file = |path: &str, contents: &str| File {
        path: path.to_owned(),
        mode: 0o640,
        uid: 7,
        contents: contents.as_bytes().to_vec(),
        ..File::default()
    };
    let copy = |destination: &str, flags: MsFlags, files: Vec<File>| Mount {
        destination: destination.to_owned(),
        flags: flags.bits(),
        is_copy: true,
        files,
        ..Mount::default()
    };
    let mounts = vec![
        copy("/etc/hosts", MsFlags::empty(), vec![file("", "127.0.0.1 box")]),
        copy("/etc/resolv.conf", MsFlags::MS_RDONLY, vec![file("", "")]),
        copy("/run/secrets", MsFlags::empty(), vec![file("a", "1"), file("b/c", "2")]),
        copy("/run/none", MsFlags::empty(), vec![]),
    ];
    let script = "cat /etc/hosts; echo; stat -c %a:%u /etc/hosts; echo new > /etc/hosts && cat /etc/hosts; \
                  echo x 2> /dev/null > /etc/resolv.conf || echo protected; cat /run/secrets/a /run/secrets/b/c; echo; \
                  ls /run/none";
    let (_, text) = run(&guest, with(script, mounts.clone()));
    assert_eq!(text, "127.0.0.1 box\n640:7\nnew\nprotected\n12\n");
    for path in ["../x", "/x", "a//b", "."] {
        let mut mounts = mounts.clone();
        mounts[2].files.push(file(path, ""));
        let refused = guest
            .client
            .create(super::guest::context(), &with("", mounts))
            .unwrap_err()
            .to_string();
        assert!(refused.contains("files[2].path"), "{refused}");
    }
}

#[test]
fn owners_are_shown_as_the_mappings_say() {
    let Some(guest) = Guest::start() else { return };
    let mapping = |inside, outside| IdMapping {
        inside,
        outside,
        size: 10,
        ..IdMapping::default()
    };
    let mapped = Mount {
        uid_mappings: vec![mapping(0, 5000)],
        gid_mappings: vec![mapping(0, 6000)],
        ..bind("/t", "/mapped", MsFlags::empty())
    };
    let tmpfs = file_system("/t", "tmpfs", MsFlags::empty(), "");
    let script = "echo x > /t/file; stat -c %u:%g /t/file /mapped/file";
    let (_, text) = run(&guest, with(script, vec![tmpfs.clone(), mapped]));
    assert_eq!(text, "0:0\n5000:6000\n");
    let unmappable = Mount {
        uid_mappings: vec![mapping(0, 5000)],
        gid_mappings: vec![mapping(0, 6000)],
        ..bind("/proc", "/mapped", MsFlags::empty())
    };
    let failure = create(&guest, &with("", vec![unmappable])).unwrap();
    assert!(failure.message.contains("cannot be mapped"), "{failure:?}");
}

#[test]
fn an_overlay_is_made_of_directories_of_the_root() {
    let Some(guest) = Guest::start() else { return };
    let data = "lowerdir=/etc:/home,upperdir=/t/up,workdir=/t/work";
    let mounts = vec![
        file_system("/t", "tmpfs", MsFlags::empty(), ""),
        bind("/t", "/t/up", MsFlags::empty()),
        file_system("/merged", "overlay", MsFlags::empty(), "lowerdir=/etc:/home"),
    ];
    let (_, text) = run(&guest, with("ls /merged", mounts.clone()));
    assert!(text.contains("passwd") && text.contains("user"), "{text}");
    let outside = file_system("/merged", "overlay", MsFlags::empty(), "lowerdir=/../../../var:/etc");
    let failure = create(&guest, &with("", vec![outside])).unwrap();
    assert!(failure.message.contains("in the container"), "{failure:?}");
    let upper = file_system("/merged", "overlay", MsFlags::empty(), data);
    let failure = create(&guest, &with("", vec![mounts[0].clone(), upper])).unwrap();
    assert!(failure.message.contains("/t/up"), "{failure:?}");
}

#[test]
fn a_link_leads_no_mount_out_of_the_root() {
    let Some(guest) = Guest::start() else { return };
    // Outside of the root, where a link that is followed too far leads.
    let outside = Path::new("/tmp/made-through-a-link");
    assert!(!outside.exists());
    // The image's own links, made before the mounts: into the root they lead, and nowhere else.
    let link = |target: &str| {
        let path = guest.image().join("link");
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink(target, path).unwrap();
    };
    link("/../../../../tmp");
    let mounts = vec![file_system("/link/made-through-a-link", "tmpfs", MsFlags::empty(), "")];
    let (exit, text) = run(
        &guest,
        with(
            "ls /tmp; echo x > /link/made-through-a-link/x && ls /tmp/made-through-a-link",
            mounts.clone(),
        ),
    );
    assert_eq!((exit.status, text.as_str()), (0, "made-through-a-link\nx\n"));
    assert!(!outside.exists());
    link("/proc/self/cwd");
    let failure = create(&guest, &with("", mounts)).unwrap();
    assert!(failure.message.contains("/link/made-through-a-link"), "{failure:?}");
    // The kernel's own files are not mounted through a link at all.
    link("/etc");
    let proc = file_system("/link", "proc", MsFlags::empty(), "");
    let failure = create(&guest, &with("", vec![proc])).unwrap();
    assert!(failure.message.contains("ENOTDIR"), "{failure:?}");
}

#[test]
fn memory_is_shared_by_those_who_name_it() {
    let Some(guest) = Guest::start() else { return };
    let shm = |name: &str, flags: MsFlags| Mount {
        destination: "/dev/shm".to_owned(),
        flags: flags.bits(),
        shared: name.to_owned(),
        data: "size=1m,mode=1777".to_owned(),
        ..Mount::default()
    };
    let request = |id: &str, script: &str, name: &str, flags: MsFlags| {
        let mut request = container(id, shell(script));
        request.mounts.retain(|mount| mount.destination != "/dev/shm");
        request.mounts.push(shm(name, flags));
        request
    };
    let none = MsFlags::empty();
    let (stdout, token) = guest.stream();
    let mut first = request("a", "echo one > /dev/shm/file; echo; exec sleep 1000", "x", none);
    let process = first.process.take().unwrap();
    first.process = Some(with_streams(process, [&[], &token, &[]])).into();
    assert_eq!(create(&guest, &first), None);
    guest.start_process("a", "");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    let script = "cat /dev/shm/file; echo y > /dev/shm/other || echo read-only";
    assert_eq!(
        run(&guest, request("b", script, "x", MsFlags::MS_RDONLY)).1,
        "one\nread-only\n"
    );
    assert_eq!(run(&guest, request("b", "ls /dev/shm", "y", none)).1, "");
    let kill = husk_protocol::agent::KillRequest {
        container: "a".to_owned(),
        signal: 9,
        ..Default::default()
    };
    guest.client.kill(super::guest::context(), &kill).unwrap();
    guest.wait("a", "");
    delete(&guest, "a", "");
    // With the last container that has named it, it is gone.
    assert_eq!(run(&guest, request("b", "ls /dev/shm", "x", none)).1, "");
}

#[test]
fn the_kernel_says_what_it_does_not_like() {
    let Some(guest) = Guest::start() else { return };
    let failure = create(
        &guest,
        &with(
            "",
            vec![file_system("/x", "tmpfs", MsFlags::empty(), "no-such-option=1")],
        ),
    );
    let message = failure.unwrap().message;
    assert!(
        message.contains("no-such-option") && message.contains("/x"),
        "{message}"
    );
    assert!(read_nothing(&guest));
}

/// Nothing is left of a container that could not be made.
fn read_nothing(guest: &Guest) -> bool {
    let (stdout, token) = guest.stream();
    let mut request = container("a", shell("echo"));
    let process = request.process.take().unwrap();
    request.process = Some(with_streams(process, [&[], &token, &[]])).into();
    assert_eq!(create(guest, &request), None);
    guest.start_process("a", "");
    let text = read(stdout);
    guest.wait("a", "");
    delete(guest, "a", "");
    text == "\n" && guest.cgroups().is_empty()
}
