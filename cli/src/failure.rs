//! How husk tells that it failed: one line on stderr, and the exit codes of the container tools.

use std::io::{IsTerminal, Write};

use husk_sandbox::guest::GuestError;
use husk_sandbox::lifecycle::LifecycleError;
use husk_sandbox::sandbox::SandboxError;

use crate::log;
use crate::monitor::Failed;

/// husk itself failed.
pub(crate) const OWN: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The exit code that tells of an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    let guest = error
        .chain()
        .find_map(|cause| match cause.downcast_ref::<SandboxError>() {
            Some(SandboxError::Guest(error)) => Some(error),
            _ => match cause.downcast_ref::<LifecycleError>() {
                Some(LifecycleError::Guest(error)) => Some(error),
                _ => cause.downcast_ref::<GuestError>(),
            },
        });
    match guest {
        Some(GuestError::CommandNotFound(_)) => NOT_FOUND,
        Some(GuestError::CommandNotExecutable(_)) => NOT_EXECUTABLE,
        _ => match error.downcast_ref::<Failed>() {
            Some(failed) => failed.code,
            None => OWN,
        },
    }
}

/// Prints an error with its causes, and logs it where a caller looks for it.
pub(crate) fn print(error: &anyhow::Error) {
    if log::has_file() {
        tracing::error!("{error:#}");
    }
    let mut stderr = std::io::stderr().lock();
    let name = if stderr.is_terminal() {
        "\x1b[1;31mhusk:\x1b[0m"
    } else {
        "husk:"
    };
    // Nobody can be told that nobody can be told.
    let _ = writeln!(stderr, "{name} {error:#}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_command_has_its_own_codes() {
        let found = SandboxError::from(GuestError::CommandNotFound("x".into()));
        assert_eq!(exit_code(&anyhow::Error::from(found).context("the container")), 127);
        assert_eq!(exit_code(&GuestError::CommandNotExecutable("x".into()).into()), 126);
        assert_eq!(exit_code(&GuestError::Lost.into()), 125);
        assert_eq!(exit_code(&anyhow::anyhow!("x")), 125);
    }
}
