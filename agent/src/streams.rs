//! The agent's ends of a process's streams.

use std::fs;
use std::os::fd::OwnedFd;

use husk_protocol::agent::Process as ProcessSpec;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Uid, fchown, pipe2};

use crate::agent::Agent;
use crate::container::Name;
use crate::refusal::Refusal;
use crate::stdio::Token;
use crate::sys;

/// A process's streams: the child's ends, and what the agent does with the others.
pub(crate) struct Streams {
    pub(crate) child: Option<[OwnedFd; 3]>,
    pub(crate) flows: Vec<u64>,
    pub(crate) stdin: Option<u64>,
    pub(crate) terminal: Option<OwnedFd>,
}

impl Agent {
    /// Pairs a process's streams with their connections. Nothing flows into or out of a terminal before the process
    /// has made it. `owner` is to own the child's ends, where the child cannot give them away itself.
    pub(crate) fn connect_streams(
        &mut self,
        spec: &ProcessSpec,
        tokens: &[Option<Token>; 3],
        owner: Option<u32>,
    ) -> Result<Streams, Refusal> {
        let mut claim = |token: &Option<Token>| match token {
            None => Ok(None),
            Some(token) => self.unclaimed.claim(token).map(Some).ok_or(Refusal::NoStream),
        };
        let [stdin, stdout, stderr] = [claim(&tokens[0])?, claim(&tokens[1])?, claim(&tokens[2])?];
        if spec.stdio.terminal {
            return Ok(Streams {
                child: None,
                flows: Vec::new(),
                stdin: None,
                terminal: stdin,
            });
        }
        let mut flows = Vec::new();
        let mut failed = None;
        let mut connect = |connection: Option<OwnedFd>, is_input: bool| -> nix::Result<OwnedFd> {
            let Some(connection) = connection else { return null() };
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            let (theirs, ours) = if is_input { (read, write) } else { (write, read) };
            fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            if owner.is_some() {
                fchown(&theirs, owner.map(Uid::from_raw), None)?;
            }
            let (from, to) = if is_input {
                (connection, ours)
            } else {
                (ours, connection)
            };
            flows.push(self.begin_flow(from, to, None)?);
            Ok(theirs)
        };
        let has_stdin = stdin.is_some();
        let ends: Vec<OwnedFd> = [(stdin, true), (stdout, false), (stderr, false)]
            .into_iter()
            .map_while(|(connection, is_input)| {
                connect(connection, is_input)
                    .map_err(|source| failed = Some(source))
                    .ok()
            })
            .collect();
        let Ok(child) = <[OwnedFd; 3]>::try_from(ends) else {
            flows.into_iter().for_each(|flow| self.end_flow(flow));
            return Err(Refusal::system("making the process's streams")(
                failed.unwrap_or(Errno::EIO),
            ));
        };
        let stdin = if has_stdin { flows.first().copied() } else { None };
        Ok(Streams {
            child: Some(child),
            flows,
            stdin,
            terminal: None,
        })
    }

    /// Joins a terminal with its connection, in both directions.
    pub(crate) fn connect_terminal(&mut self, name: &Name, master: OwnedFd) {
        let Some(process) = self.process_mut(name) else { return };
        let Some(connection) = process.terminal_connection.take() else {
            return;
        };
        let pid = process.pid;
        let connected = self.begin_terminal(name, &master, connection);
        let Some(process) = self.process_mut(name) else { return };
        match connected {
            Ok(stdin) => {
                process.stdin = Some(stdin);
                process.terminal = Some(master);
            }
            // Without memory or descriptors for it, the process is not what was asked for.
            Err(_) => drop(sys::kill(pid, libc::SIGKILL)),
        }
    }

    fn begin_terminal(&mut self, name: &Name, master: &OwnedFd, connection: OwnedFd) -> nix::Result<u64> {
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|error| sys::errno(&error));
        let (from, to) = (copy(master)?, copy(&connection)?);
        let stdin = self.begin_flow(connection, copy(master)?, None)?;
        match self.begin_flow(from, to, Some(name.clone())) {
            Ok(_) => Ok(stdin),
            Err(error) => {
                self.end_flow(stdin);
                Err(error)
            }
        }
    }
}

fn null() -> nix::Result<OwnedFd> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| sys::errno(&error))?;
    Ok(file.into())
}
