//! How far a machine's process is confined here: it tells itself.

use std::process::Command;

use husk_sandbox::artefacts;
use husk_sandbox::vmm::{Effect, Measure, Part};

use super::Finding;

/// What the machine monitor's program says of each part; nothing if it is not there, which is a finding of its own.
pub(super) fn confinement() -> Vec<Finding> {
    let Ok(program) = artefacts::vmm() else {
        return Vec::new();
    };
    let unknown = |detail: String| {
        vec![Finding::bad(
            "confinement",
            detail,
            "husk needs seccomp filters (CONFIG_SECCOMP_FILTER in the host's kernel); do husk and husk-vmm belong \
             together?",
        )]
    };
    let output = match Command::new(&program).arg("--confinement").output() {
        Ok(output) => output,
        Err(error) => return unknown(format!("{} cannot be run: {error}", program.display())),
    };
    match serde_json::from_slice::<Vec<Measure>>(&output.stdout) {
        Ok(measures) => measures.into_iter().map(finding).collect(),
        Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr);
            unknown(format!(
                "{} says: {} ({})",
                program.display(),
                said.trim(),
                output.status
            ))
        }
    }
}

fn finding(measure: Measure) -> Finding {
    let Measure { part, effect, detail } = measure;
    let (check, remedy) = match part {
        Part::Filters => ("seccomp", "build the host's kernel with CONFIG_SECCOMP_FILTER"),
        Part::Capabilities => ("capabilities", USER_NAMESPACES),
        Part::Namespaces => ("namespaces", USER_NAMESPACES),
        Part::Root => ("empty root", USER_NAMESPACES),
        Part::Landlock => (
            "Landlock",
            "use Linux 6.12 or newer, with landlock among the security modules (lsm= on its command line)",
        ),
    };
    match effect {
        Effect::Full => Finding::good(check, detail),
        Effect::Partial | Effect::None => Finding::warning(check, detail, remedy),
    }
}

/// What gives a process without root its own namespaces.
const USER_NAMESPACES: &str = "run husk as root, or allow user namespaces: sysctl user.max_user_namespaces=10000, where \
                               there are these also kernel.unprivileged_userns_clone=1 and \
                               kernel.apparmor_restrict_unprivileged_userns=0";

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    #[test]
    fn what_is_missing_has_a_remedy() {
        let measure = |effect| Measure {
            part: Part::Namespaces,
            effect,
            detail: "there are none".into(),
        };
        let missing = finding(measure(Effect::None));
        assert_eq!((missing.check, missing.outcome), ("namespaces", Outcome::Warning));
        assert!(missing.remedy.unwrap().contains("user.max_user_namespaces"));
        assert_eq!(finding(measure(Effect::Full)).remedy, None);
    }
}
