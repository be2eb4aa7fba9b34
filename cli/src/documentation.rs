//! Manual pages and shell completions, from the definitions of the commands.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;

/// Writes `man/husk.1`, `man/husk-COMMAND.1` and `completions/` with a file for each shell.
pub(crate) fn write(dir: &Path) -> Result<u8> {
    let failed = || format!("{} cannot be written to", dir.display());
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    fs::create_dir_all(&man).with_context(failed)?;
    fs::create_dir_all(&completions).with_context(failed)?;
    // What is printed for --version is more than a page's foot has room for.
    let command = Cli::command().version(env!("CARGO_PKG_VERSION"));
    clap_mangen::generate_to(command.clone(), &man).with_context(failed)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command.clone(), "husk", &completions).with_context(failed)?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_its_completions() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        for file in [
            "man/husk.1",
            "man/husk-run.1",
            "man/husk-create.1",
            "man/husk-install.1",
        ] {
            let page = fs::read_to_string(dir.path().join(file)).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{file}");
        }
        assert!(!dir.path().join("man/husk-documentation.1").exists());
        for file in ["husk.bash", "husk.fish", "_husk"] {
            let text = fs::read_to_string(dir.path().join("completions").join(file)).unwrap();
            assert!(text.contains("create") && text.contains("console-socket"), "{file}");
        }
    }
}
