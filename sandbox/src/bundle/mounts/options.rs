//! The options of a mount: names to flags of mount(2) and mount_setattr(2).

/// What an option's name stands for.
#[derive(Clone, Copy)]
enum Meaning {
    Set(u64),
    Clear(u64),
    Propagation(u64),
    /// An attribute of this mount and those below it.
    SetBelow(u64),
    ClearBelow(u64),
    CopyUp,
    /// Whether the mappings of ids count for the mounts below as well.
    MapOwners(bool),
}

use Meaning::{Clear, ClearBelow, CopyUp, MapOwners, Propagation, Set, SetBelow};

/// MS_NOSYMFOLLOW of linux/mount.h.
const MS_NOSYMFOLLOW: u64 = libc::MS_NOSYMFOLLOW;

/// The options that runc knows, which are those of mount(8) that are not a file system's own, and the specification's
/// (OCI runtime specification, config.md, "Linux mount options").
const OPTIONS: &[(&str, Meaning)] = &[
    ("defaults", Set(0)),
    ("ro", Set(libc::MS_RDONLY)),
    ("rw", Clear(libc::MS_RDONLY)),
    ("nosuid", Set(libc::MS_NOSUID)),
    ("suid", Clear(libc::MS_NOSUID)),
    ("nodev", Set(libc::MS_NODEV)),
    ("dev", Clear(libc::MS_NODEV)),
    ("noexec", Set(libc::MS_NOEXEC)),
    ("exec", Clear(libc::MS_NOEXEC)),
    ("sync", Set(libc::MS_SYNCHRONOUS)),
    ("async", Clear(libc::MS_SYNCHRONOUS)),
    ("dirsync", Set(libc::MS_DIRSYNC)),
    ("mand", Set(libc::MS_MANDLOCK)),
    ("nomand", Clear(libc::MS_MANDLOCK)),
    ("noatime", Set(libc::MS_NOATIME)),
    ("atime", Clear(libc::MS_NOATIME)),
    ("nodiratime", Set(libc::MS_NODIRATIME)),
    ("diratime", Clear(libc::MS_NODIRATIME)),
    ("relatime", Set(libc::MS_RELATIME)),
    ("norelatime", Clear(libc::MS_RELATIME)),
    ("strictatime", Set(libc::MS_STRICTATIME)),
    ("nostrictatime", Clear(libc::MS_STRICTATIME)),
    ("nosymfollow", Set(MS_NOSYMFOLLOW)),
    ("symfollow", Clear(MS_NOSYMFOLLOW)),
    ("iversion", Set(libc::MS_I_VERSION)),
    ("noiversion", Clear(libc::MS_I_VERSION)),
    ("lazytime", Set(libc::MS_LAZYTIME)),
    ("nolazytime", Clear(libc::MS_LAZYTIME)),
    ("silent", Set(libc::MS_SILENT)),
    ("loud", Clear(libc::MS_SILENT)),
    ("bind", Set(libc::MS_BIND)),
    ("rbind", Set(libc::MS_BIND | libc::MS_REC)),
    ("remount", Set(libc::MS_REMOUNT)),
    ("shared", Propagation(libc::MS_SHARED)),
    ("rshared", Propagation(libc::MS_SHARED | libc::MS_REC)),
    ("slave", Propagation(libc::MS_SLAVE)),
    ("rslave", Propagation(libc::MS_SLAVE | libc::MS_REC)),
    ("private", Propagation(libc::MS_PRIVATE)),
    ("rprivate", Propagation(libc::MS_PRIVATE | libc::MS_REC)),
    ("unbindable", Propagation(libc::MS_UNBINDABLE)),
    ("runbindable", Propagation(libc::MS_UNBINDABLE | libc::MS_REC)),
    ("rro", SetBelow(libc::MOUNT_ATTR_RDONLY)),
    ("rrw", ClearBelow(libc::MOUNT_ATTR_RDONLY)),
    ("rnosuid", SetBelow(libc::MOUNT_ATTR_NOSUID)),
    ("rsuid", ClearBelow(libc::MOUNT_ATTR_NOSUID)),
    ("rnodev", SetBelow(libc::MOUNT_ATTR_NODEV)),
    ("rdev", ClearBelow(libc::MOUNT_ATTR_NODEV)),
    ("rnoexec", SetBelow(libc::MOUNT_ATTR_NOEXEC)),
    ("rexec", ClearBelow(libc::MOUNT_ATTR_NOEXEC)),
    ("rnodiratime", SetBelow(libc::MOUNT_ATTR_NODIRATIME)),
    ("rdiratime", ClearBelow(libc::MOUNT_ATTR_NODIRATIME)),
    ("rrelatime", SetBelow(libc::MOUNT_ATTR_RELATIME)),
    ("rnorelatime", ClearBelow(libc::MOUNT_ATTR_RELATIME)),
    ("rnoatime", SetBelow(libc::MOUNT_ATTR_NOATIME)),
    ("ratime", ClearBelow(libc::MOUNT_ATTR_NOATIME)),
    ("rstrictatime", SetBelow(libc::MOUNT_ATTR_STRICTATIME)),
    ("rnostrictatime", ClearBelow(libc::MOUNT_ATTR_STRICTATIME)),
    ("rnosymfollow", SetBelow(libc::MOUNT_ATTR_NOSYMFOLLOW)),
    ("rsymfollow", ClearBelow(libc::MOUNT_ATTR_NOSYMFOLLOW)),
    ("tmpcopyup", CopyUp),
    ("idmap", MapOwners(false)),
    ("ridmap", MapOwners(true)),
];

/// A mount's options, taken apart.
#[derive(Debug, Default)]
pub(super) struct Options<'a> {
    /// MS_* that are to be.
    pub(super) flags: u64,
    /// MS_* that are not to be.
    pub(super) cleared: u64,
    /// MS_SHARED and its like, one after the other.
    pub(super) propagation: Vec<u64>,
    /// MOUNT_ATTR_* that the mount and those below it get.
    pub(super) recursive_set: u64,
    /// MOUNT_ATTR_* that they lose.
    pub(super) recursive_clear: u64,
    pub(super) copy_up: bool,
    /// Whether owners are mapped, and also below.
    pub(super) map_owners: Option<bool>,
    /// What is the file system's own.
    pub(super) data: Vec<&'a str>,
}

impl<'a> Options<'a> {
    /// Of two options that contradict each other the later one counts.
    pub(super) fn parse(options: &'a [String]) -> Self {
        let mut parsed = Self::default();
        for option in options {
            match OPTIONS.iter().find(|(name, _)| name == option) {
                Some((_, meaning)) => parsed.add(*meaning),
                None => parsed.data.push(option),
            }
        }
        parsed
    }

    fn add(&mut self, meaning: Meaning) {
        match meaning {
            Set(flag) => {
                self.flags |= flag;
                self.cleared &= !flag;
            }
            Clear(flag) => {
                self.flags &= !flag;
                self.cleared |= flag;
            }
            Propagation(kind) => self.propagation.push(kind),
            SetBelow(attribute) => {
                self.recursive_set |= attribute;
                self.recursive_clear &= !attribute;
                self.clear_times(attribute);
            }
            ClearBelow(attribute) => {
                self.recursive_clear |= attribute;
                self.recursive_set &= !attribute;
                self.clear_times(attribute);
            }
            CopyUp => self.copy_up = true,
            MapOwners(recursive) => self.map_owners = Some(recursive),
        }
    }

    /// How access times are treated is one number and not bits: whoever changes it clears all of it (mount_setattr(2)).
    fn clear_times(&mut self, attribute: u64) {
        if attribute & libc::MOUNT_ATTR__ATIME == attribute {
            self.recursive_clear |= libc::MOUNT_ATTR__ATIME;
        }
    }
}

/// The flags of a propagation's name.
pub(in super::super) fn propagation(name: &str) -> Option<u64> {
    OPTIONS.iter().find_map(|(option, meaning)| match meaning {
        Propagation(flags) if *option == name => Some(*flags),
        _ => None,
    })
}

/// Whether a name is one of the options.
#[cfg(test)]
pub(super) fn is_known(name: &str) -> bool {
    OPTIONS.iter().any(|(known, _)| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(options: &[&str]) -> Vec<String> {
        options.iter().map(|option| (*option).to_owned()).collect()
    }

    #[test]
    fn the_later_option_counts() {
        let options = strings(&["ro", "nosuid", "rw", "suid", "nodev", "rro", "rrw", "rnoexec", "x=1"]);
        let parsed = Options::parse(&options);
        assert_eq!(parsed.flags, libc::MS_NODEV);
        assert_eq!(parsed.cleared, libc::MS_RDONLY | libc::MS_NOSUID);
        assert_eq!(parsed.recursive_set, libc::MOUNT_ATTR_NOEXEC);
        assert_eq!(parsed.recursive_clear, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(parsed.data, ["x=1"]);
    }

    #[test]
    fn access_times_below_are_cleared_before_they_are_set() {
        for (option, set) in [
            ("rnoatime", libc::MOUNT_ATTR_NOATIME),
            ("rstrictatime", libc::MOUNT_ATTR_STRICTATIME),
            ("rrelatime", 0),
            ("ratime", 0),
            ("rnorelatime", 0),
        ] {
            let options = strings(&[option]);
            let parsed = Options::parse(&options);
            assert_eq!(
                (parsed.recursive_set, parsed.recursive_clear),
                (set, libc::MOUNT_ATTR__ATIME),
                "{option}"
            );
        }
        let options = strings(&["rnodiratime"]);
        assert_eq!(Options::parse(&options).recursive_clear, 0);
    }
}
