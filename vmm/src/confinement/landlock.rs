//! Landlock: a process that finds a name after all gets nothing for it.

use husk_vmm_config::{Effect, Measure, Part};
use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, RestrictionStatus, Ruleset, RulesetAttr, RulesetError,
    RulesetStatus, Scope,
};

/// The newest version whose rights are asked for: signals and abstract sockets outside of the domain are its last.
const NEWEST: ABI = ABI::V6;

/// Denies all access to files by name, to TCP ports, and to other processes, as far as the host's kernel can.
pub(super) fn enter() -> Measure {
    let (effect, detail) = match restrict() {
        Ok(status) => describe(&status),
        Err(error) => (Effect::None, error.to_string()),
    };
    Measure {
        part: Part::Landlock,
        effect,
        detail,
    }
}

fn restrict() -> Result<RestrictionStatus, RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()
}

fn describe(status: &RestrictionStatus) -> (Effect, String) {
    let effect = match status.ruleset {
        RulesetStatus::FullyEnforced => Effect::Full,
        RulesetStatus::PartiallyEnforced => Effect::Partial,
        RulesetStatus::NotEnforced => Effect::None,
    };
    let detail = match status.landlock {
        LandlockStatus::NotEnabled => "the host's kernel has Landlock, but it is switched off".into(),
        LandlockStatus::NotImplemented => "the host's kernel has no Landlock".into(),
        LandlockStatus::Available {
            effective_abi,
            kernel_abi,
        } => {
            format!("Landlock ABI {}", kernel_abi.unwrap_or(effective_abi as i32))
        }
    };
    (effect, detail)
}
