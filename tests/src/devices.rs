//! A machine that lacks something, for one command alone.

/// A command that executes what follows it with a /dev that holds the usual nodes and what `script` makes beside them.
///
/// The /dev is a mount in a mount namespace of that command's own, and gone with it.
pub fn with_devices(script: &str) -> [String; 7] {
    in_private_mounts(&format!(
        "mount -t tmpfs -o mode=755 own /dev
        mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/zero c 1 5; mknod -m 666 /dev/full c 1 7
        mknod -m 666 /dev/random c 1 8; mknod -m 666 /dev/urandom c 1 9; mknod -m 666 /dev/tty c 5 0
        {script}"
    ))
}

fn in_private_mounts(script: &str) -> [String; 7] {
    let script = format!("set -e\n{script}\nexec \"$@\"");
    ["unshare", "--mount", "--propagation=private", "sh", "-c", &script, "sh"].map(str::to_owned)
}
