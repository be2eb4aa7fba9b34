//! Policies of the host's security modules that a bundle names.
//!
//! AppArmor profiles and SELinux labels are the host's: its kernel enforces them, and the guest's knows none of them.
//! What they are to hold back on the host is the container, and all of the container that the host ever runs is its
//! machine monitor. So `husk-vmm` is executed under the profile or label.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a bundle asks for; empty texts are no request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confinement {
    /// `process.apparmorProfile`.
    pub apparmor_profile: Option<String>,
    /// `process.selinuxLabel`.
    pub selinux_label: Option<String>,
    /// `linux.mountLabel`: lets processes of the label above use the container's mounts. Those are the guest's, whose
    /// kernel keeps nobody from them for a label.
    pub mount_label: Option<String>,
}

/// Why a policy cannot be applied.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ConfinementError {
    #[error("config.json: {field} is {value:?}, but {module} is not active on this host")]
    Inactive {
        field: &'static str,
        value: String,
        module: &'static str,
    },
    #[error("config.json: {field} holds a zero byte")]
    Zero { field: &'static str },
    #[error("{field} is {value:?}; a further process is confined as its sandbox is{}", own(.sandbox.as_deref()))]
    Other {
        field: &'static str,
        value: String,
        sandbox: Option<String>,
    },
}

/// What a process writes about itself to be another's subject from its next execve(2) on.
#[derive(Debug)]
pub(crate) struct Label {
    /// The field that asks for it, for errors.
    pub(crate) field: &'static str,
    file: &'static CStr,
    text: CString,
}

/// AppArmor's name for no profile at all.
const UNCONFINED: &str = "unconfined";

fn own(sandbox: Option<&str>) -> String {
    sandbox.map_or_else(|| ", by nothing".into(), |own| format!(", by {own:?}"))
}

/// A profile that asks for something.
fn profile(name: Option<&String>) -> Option<&str> {
    name.map(String::as_str).filter(|name| *name != UNCONFINED)
}

impl Confinement {
    /// Checks what a further process asks for in a sandbox that is confined like this. One that asks for nothing is
    /// confined as all of the sandbox is.
    ///
    /// # Errors
    /// It asks for something else than its sandbox has.
    pub fn check_process(&self, wanted: &Self) -> Result<(), ConfinementError> {
        let pairs = [
            (
                "process.apparmorProfile",
                profile(wanted.apparmor_profile.as_ref()),
                profile(self.apparmor_profile.as_ref()),
            ),
            (
                "process.selinuxLabel",
                wanted.selinux_label.as_deref(),
                self.selinux_label.as_deref(),
            ),
        ];
        for (field, wanted, own) in pairs {
            if let Some(value) = wanted.filter(|wanted| own != Some(*wanted)) {
                return Err(ConfinementError::Other {
                    field,
                    value: value.to_owned(),
                    sandbox: own.map(str::to_owned),
                });
            }
        }
        Ok(())
    }

    /// What is to be written before the machine monitor is executed.
    ///
    /// # Errors
    /// The host does not enforce what is asked for.
    pub(crate) fn labels(&self) -> Result<Vec<Label>, ConfinementError> {
        self.labels_with(Active::of_this_host())
    }

    fn labels_with(&self, active: Active) -> Result<Vec<Label>, ConfinementError> {
        let mut labels = Vec::new();
        if let Some(profile) = profile(self.apparmor_profile.as_ref()) {
            let field = "process.apparmorProfile";
            require(active.apparmor.is_some(), field, profile, "AppArmor")?;
            labels.push(Label {
                field,
                file: active.apparmor.unwrap_or(SHARED),
                text: text(field, format!("exec {profile}"))?,
            });
        }
        if let Some(label) = self.selinux_label.as_deref() {
            let field = "process.selinuxLabel";
            require(active.selinux, field, label, "SELinux")?;
            labels.push(Label {
                field,
                file: SHARED,
                text: text(field, label.to_owned())?,
            });
        }
        if let Some(label) = self.mount_label.as_deref() {
            require(active.selinux, "linux.mountLabel", label, "SELinux")?;
        }
        Ok(labels)
    }
}

fn require(is_active: bool, field: &'static str, value: &str, module: &'static str) -> Result<(), ConfinementError> {
    match is_active {
        true => Ok(()),
        false => Err(ConfinementError::Inactive {
            field,
            value: value.to_owned(),
            module,
        }),
    }
}

fn text(field: &'static str, text: String) -> Result<CString, ConfinementError> {
    CString::new(text).map_err(|_| ConfinementError::Zero { field })
}

/// The file of the one module that had it first.
const SHARED: &CStr = c"/proc/self/attr/exec";
/// AppArmor's own, since Linux 5.8.
const APPARMOR: &CStr = c"/proc/self/attr/apparmor/exec";

/// Which modules the host's kernel runs.
#[derive(Clone, Copy, Debug)]
struct Active {
    /// AppArmor, by the file to be written.
    apparmor: Option<&'static CStr>,
    selinux: bool,
}

impl Active {
    fn of_this_host() -> Self {
        let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        let own_file = Path::new("/proc/self/attr/apparmor/exec").exists();
        Self {
            apparmor: enabled.is_ok_and(|text| text.starts_with('Y')).then_some(if own_file {
                APPARMOR
            } else {
                SHARED
            }),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        }
    }
}

impl Label {
    /// Takes it for this process. It may be called between fork and exec: it allocates nothing.
    pub(crate) fn take(&self) -> io::Result<()> {
        let file = open(self.file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        nix::unistd::write(&file, self.text.as_bytes())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Active = Active {
        apparmor: Some(APPARMOR),
        selinux: true,
    };
    const NONE: Active = Active {
        apparmor: None,
        selinux: false,
    };

    fn asked() -> Confinement {
        Confinement {
            apparmor_profile: Some("docker-default".into()),
            selinux_label: Some("system_u:system_r:container_t:s0:c1,c2".into()),
            mount_label: Some("system_u:object_r:container_file_t:s0:c1,c2".into()),
        }
    }

    #[test]
    fn what_the_host_enforces_is_taken_at_the_execution() {
        let labels = asked().labels_with(ALL).unwrap();
        let written: Vec<_> = labels
            .iter()
            .map(|label| (label.file.to_str().unwrap(), label.text.to_str().unwrap()))
            .collect();
        assert_eq!(
            written,
            [
                ("/proc/self/attr/apparmor/exec", "exec docker-default"),
                ("/proc/self/attr/exec", "system_u:system_r:container_t:s0:c1,c2"),
            ]
        );
    }

    #[test]
    fn what_nobody_enforces_is_refused_by_name() {
        let one = |change: fn(&mut Confinement, Confinement)| {
            let mut confinement = Confinement::default();
            change(&mut confinement, asked());
            confinement.labels_with(NONE).unwrap_err().to_string()
        };
        for (refusal, field) in [
            (
                one(|some, all| some.apparmor_profile = all.apparmor_profile),
                "process.apparmorProfile",
            ),
            (
                one(|some, all| some.selinux_label = all.selinux_label),
                "process.selinuxLabel",
            ),
            (one(|some, all| some.mount_label = all.mount_label), "linux.mountLabel"),
        ] {
            assert!(refusal.contains(field) && refusal.contains("not active"), "{refusal}");
        }
    }

    #[test]
    fn a_further_process_is_confined_as_its_sandbox_or_refused() {
        let unconfined = Confinement {
            apparmor_profile: Some("unconfined".into()),
            ..Default::default()
        };
        let further = Confinement {
            mount_label: None,
            ..asked()
        };
        for (own, wanted) in [
            (Confinement::default(), unconfined.clone()),
            (unconfined.clone(), Confinement::default()),
            (asked(), Confinement::default()),
            (asked(), unconfined),
            (asked(), further.clone()),
        ] {
            own.check_process(&wanted).unwrap();
        }
        let other = Confinement {
            apparmor_profile: Some("other".into()),
            ..further.clone()
        };
        let refusal = asked().check_process(&other).unwrap_err().to_string();
        assert!(
            refusal.contains("process.apparmorProfile is \"other\"") && refusal.contains("by \"docker-default\""),
            "{refusal}"
        );
        let labelled = Confinement {
            apparmor_profile: None,
            ..further
        };
        let refusal = Confinement::default().check_process(&labelled).unwrap_err().to_string();
        assert!(
            refusal.contains("process.selinuxLabel") && refusal.contains("by nothing"),
            "{refusal}"
        );
    }

    #[test]
    fn nothing_and_unconfined_ask_for_nothing() {
        let unconfined = Confinement {
            apparmor_profile: Some("unconfined".into()),
            ..Default::default()
        };
        for confinement in [Confinement::default(), unconfined] {
            assert!(confinement.labels_with(NONE).unwrap().is_empty());
        }
    }
}
