//! Namespaces of the process's own, and an empty root.

use husk_vmm_config::{Effect, Measure, Part};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};

/// Enters new namespaces and an empty root in them, as far as the host lets this process do so.
pub(super) fn enter(keep_network: bool) -> [Measure; 2] {
    let namespaces = Measure {
        part: Part::Namespaces,
        effect: Effect::Full,
        detail: match keep_network {
            true => "mount, IPC, UTS and cgroup namespaces of its own, and the containers' network namespace".into(),
            false => "mount, network, IPC, UTS and cgroup namespaces of its own".into(),
        },
    };
    let root = Measure {
        part: Part::Root,
        effect: Effect::Full,
        detail: "an empty root".into(),
    };
    if let Err(errno) = separate(keep_network) {
        let why = |what| format!("{what} cannot be made: {}", errno.desc());
        return [
            lacking(namespaces, why("namespaces")),
            lacking(root, why("a root of its own")),
        ];
    }
    match empty_root() {
        Ok(()) => [namespaces, root],
        Err((what, errno)) => [
            namespaces,
            lacking(root, format!("{what} is refused: {}", errno.desc())),
        ],
    }
}

fn lacking(measure: Measure, detail: String) -> Measure {
    Measure {
        effect: Effect::None,
        detail,
        ..measure
    }
}

/// Leaves the host's namespaces; in a user namespace where that is the only right to do so.
fn separate(keep_network: bool) -> nix::Result<()> {
    let mut flags =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWCGROUP;
    flags.set(CloneFlags::CLONE_NEWNET, !keep_network);
    match unshare(flags) {
        // Nobody is mapped into it: this process needs no identity to use what it has open.
        Err(Errno::EPERM) => unshare(flags | CloneFlags::CLONE_NEWUSER),
        result => result,
    }
}

/// Puts an empty file system in the root's place and lets go of everything else that is mounted.
fn empty_root() -> Result<(), (&'static str, Errno)> {
    let step = |what: &'static str| move |errno: Errno| (what, errno);
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(step("a mount of its own"))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = "size=4k,nr_inodes=1,mode=555";
    // Over the root: the one directory that is surely there.
    mount(Some("none"), "/", Some("tmpfs"), flags, Some(options)).map_err(step("an empty file system"))?;
    // The name "/" still means what lies below it; the way up from there ends on top.
    chdir("/..").map_err(step("the way into the new root"))?;
    // The old root comes to lie on the new one, and goes with all that is mounted in it.
    pivot_root(".", ".").map_err(step("the change of the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("the end of the old root"))?;
    chdir("/").map_err(step("the way into the empty root"))
}
