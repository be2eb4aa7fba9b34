//! The demonstration: a container in a microVM, built from nothing.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Result;

use crate::{build, place, trees};

const LIMIT: Duration = Duration::from_secs(600);

/// What is run where /dev/kvm is: `$1` is husk and `$2` the root file system.
const SCRIPT: &str = r#"
echo "the host's kernel:  $(uname -r)"
echo "+ husk run --timings --rootfs $2 -- sh -c ..."
exec "$1" run --timings --rootfs "$2" -- sh -c '
    echo "hello from a container in its own microVM"
    echo "the guest kernel:   $(uname -r)"
    echo "processes in here:  $(ls -d /proc/[0-9]* | wc -l)"'
"#;

/// Builds everything and runs a container; gives its exit code.
pub(crate) fn run() -> Result<i32> {
    let programs = build::run()?;
    let root = trees::busybox()?;
    let mut command: Vec<OsString> = ["sh", "-c", SCRIPT, "demo"].into_iter().map(OsString::from).collect();
    command.push(programs.join("husk").into());
    command.push(root.into());
    place::run(command, Vec::new(), LIMIT)
}
