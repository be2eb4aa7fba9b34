//! The bare-metal test guest, for `x86_64-unknown-none`; see the library for what it is told and what it answers.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod guest;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!("this is a kernel: build it with `--target x86_64-unknown-none`");
    std::process::ExitCode::FAILURE
}
