//! Files of the host's that a container is given: copies in guest memory, bound to their places.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use husk_protocol::agent::{HostFile, Mount};
use nix::mount::MsFlags;

use super::mounts::{bind_to, change, failed};
use super::paths::Root;
use super::{ChildError, errno};

/// Makes the copy that stands for `mounts[index]` in `stage` and binds it to its place.
pub(super) fn bind(root: &Root, stage: &Path, index: usize, wanted: &Mount, file: &HostFile) -> Result<(), ChildError> {
    let copies = stage.join("files");
    let copy = copies.join(index.to_string());
    make(&copies, &copy, file).map_err(|error| failed(wanted)(errno(&error)))?;
    let target = root.file(&wanted.destination).map_err(failed(wanted))?;
    bind_to(&copy, &target, MsFlags::MS_BIND).map_err(failed(wanted))?;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    let flags = MsFlags::from_bits_truncate(wanted.flags) - bind;
    let propagation = MsFlags::from_bits_truncate(wanted.propagation);
    for change_to in [
        (!flags.is_empty()).then_some(MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags),
        (!propagation.is_empty()).then_some(propagation),
    ]
    .into_iter()
    .flatten()
    {
        let target = root.find(&wanted.destination).map_err(failed(wanted))?;
        change(&target, change_to).map_err(failed(wanted))?;
    }
    Ok(())
}

fn make(directory: &Path, path: &Path, file: &HostFile) -> std::io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    copy.write_all(&file.content)?;
    fchown(&copy, Some(file.uid), Some(file.gid))?;
    // Giving a file away takes the set-id bits off.
    copy.set_permissions(fs::Permissions::from_mode(file.mode & 0o7777))
}
