//! What the command line changes of a process's definition.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use husk_sandbox::agent::Process;
use husk_sandbox::bundle::users;

use crate::args::ProcessArgs;
use crate::terminal;

/// Applies the options to a process in the root file system `root`.
pub(crate) fn apply(options: &ProcessArgs, root: &Path, process: &mut Process) -> Result<()> {
    ensure!(
        !(options.tty && options.interactive) || terminal::on_stdin(),
        "stdin is not a terminal; leave out --tty (-t)"
    );
    if let Some(user) = &options.user {
        let identity = users::resolve(root, user)?;
        users::become_user(process, identity);
        // It was the other user's; the right one is looked up when none is given.
        process.env.retain(|entry| !entry.starts_with("HOME="));
    }
    if let Some(dir) = &options.workdir {
        if !dir.starts_with('/') {
            bail!("the working directory {dir:?} is not an absolute path");
        }
        process.cwd.clone_from(dir);
    }
    let stdio = process.stdio.mut_or_insert_default();
    stdio.terminal |= options.tty;
    if stdio.terminal {
        if stdio.window.is_none() {
            stdio.window = terminal::window().into();
        }
        if !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
            process.env.push("TERM=xterm".into());
        }
    }
    for entry in &options.env {
        set_env(&mut process.env, entry)?;
    }
    Ok(())
}

/// Sets `NAME=VALUE`, or takes over `NAME` from husk's own environment if it has it.
pub(crate) fn set_env(env: &mut Vec<String>, entry: &str) -> Result<()> {
    let (name, entry) = match entry.split_once('=') {
        Some((name, _)) => (name, Some(entry.to_owned())),
        None => (entry, std::env::var(entry).ok().map(|value| format!("{entry}={value}"))),
    };
    ensure!(!name.is_empty(), "--env {:?} has no name", entry.unwrap_or_default());
    env.retain(|old| old.split('=').next() != Some(name));
    env.extend(entry);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_set_replaced_and_passed_on() {
        let mut env = vec!["A=1".to_owned(), "B=2".to_owned()];
        set_env(&mut env, "A=3=4").unwrap();
        set_env(&mut env, "HUSK_SURELY_UNSET").unwrap();
        set_env(&mut env, "CARGO_PKG_NAME").unwrap();
        assert_eq!(env, ["B=2", "A=3=4", "CARGO_PKG_NAME=husk"]);
        assert!(set_env(&mut env, "=x").is_err());
    }
}
