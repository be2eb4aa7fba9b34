//! `husk console`: the guest's console of a running sandbox.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result};
use husk_sandbox::relay::write_all;

use crate::args::{ConsoleArgs, Global};
use crate::terminal::{Raw, on_stdin};

/// Ctrl-], which telnet uses too.
const DETACH: u8 = 0x1d;

/// What is read at a time, in bytes.
const CHUNK: usize = 64 << 10;

/// Copies a console to stderr until it ends.
pub(crate) fn to_stderr(mut from: UnixStream) -> Result<thread::JoinHandle<()>> {
    let copy = move || {
        let mut chunk = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut chunk) {
            if write_all(io::stderr().as_fd(), &chunk[..count]).is_err() {
                break;
            }
        }
    };
    Ok(thread::Builder::new().name("console".into()).spawn(copy)?)
}

pub(crate) fn console(global: &Global, args: &ConsoleArgs) -> Result<u8> {
    let stream = global.container(&args.name)?.link()?.console()?;
    let terminal = on_stdin();
    let raw = match terminal {
        true => {
            eprintln!("husk: attached to the console of {}; Ctrl-] detaches", args.name);
            Some(Raw::new().context("the terminal cannot be made raw")?)
        }
        false => None,
    };
    let (sender, receiver) = mpsc::channel();
    let (typed, done) = (stream.try_clone()?, sender.clone());
    thread::Builder::new().name("input".into()).spawn(move || {
        if type_into(&typed, terminal) {
            // The main thread may have left already.
            let _ = done.send(());
        }
    })?;
    thread::Builder::new().name("output".into()).spawn(move || {
        show(stream);
        let _ = sender.send(());
    })?;
    receiver.recv()?;
    drop(raw);
    Ok(0)
}

/// Types stdin into the console; says whether the person has detached.
fn type_into(console: &UnixStream, terminal: bool) -> bool {
    let mut keys = [0; 1024];
    while let Ok(count @ 1..) = io::stdin().lock().read(&mut keys) {
        let detach = keys[..count].iter().position(|key| terminal && *key == DETACH);
        let typed = &keys[..detach.unwrap_or(count)];
        if write_all(console.as_fd(), typed).is_err() || detach.is_some() {
            return true;
        }
    }
    // What it still says is shown, as after the end of a file.
    let _ = console.shutdown(Shutdown::Write);
    false
}

fn show(mut console: UnixStream) {
    let mut text = [0; 4096];
    while let Ok(count @ 1..) = console.read(&mut text) {
        if write_all(io::stdout().as_fd(), &text[..count]).is_err() {
            return;
        }
    }
}
