//! From a built process to one that executes: what it says over its channel, and Start.

use std::os::fd::AsFd;

use husk_protocol::agent::{CreateResponse, ExecResponse, Failure, StartRequest, StartResponse};
use nix::errno::Errno;

use crate::agent::Agent;
use crate::calls::{Answer, state};
use crate::child::packet;
use crate::container::{Name, Phase, Reply};
use crate::refusal::Refusal;
use crate::sys;

impl Agent {
    /// Lets a created process execute.
    pub(crate) fn start(&mut self, reply: Reply, request: &StartRequest) -> Answer {
        let name = Name::new(&request.container, &request.exec);
        self.process(&name)?;
        let container = self.container(&name.container)?;
        if !container.takes_processes() {
            let needed = if name.is_first() {
                "created"
            } else {
                "created or running"
            };
            return Err(container.refuse(&name.container, needed));
        }
        let process = self.process(&name)?;
        let (Phase::Created, Some(channel)) = (&process.phase, &process.channel) else {
            return Err(state(&name, "the process was started before, or has ended"));
        };
        nix::unistd::write(channel, &[packet::START]).map_err(Refusal::system("starting the process"))?;
        process.phase = Phase::Starting(reply);
        Ok(None)
    }

    /// Hears what a process that is not executing yet has to say.
    pub(crate) fn on_channel(&mut self, number: u64) {
        let Some(name) = self.channels.get(&number).cloned() else {
            return;
        };
        loop {
            let Some(process) = self.process_mut(&name) else { return };
            let Some(channel) = &process.channel else { return };
            match packet::receive(channel.as_fd()) {
                Ok(Some(packet)) => self.on_packet(&name, packet),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // Its end is closed: it has executed, or is dead.
                Ok(None) | Err(_) => {
                    self.channels.remove(&number);
                    return self.on_silence(&name);
                }
            }
        }
    }

    fn on_packet(&mut self, name: &Name, packet: packet::Packet) {
        let Some(process) = self.process_mut(name) else { return };
        match packet {
            packet::Packet::Terminal(master) => self.connect_terminal(name, master),
            packet::Packet::Created => {
                let Phase::Building(reply) = process.phase else { return };
                process.phase = Phase::Created;
                let pid = process.pid.as_raw().cast_unsigned();
                self.answer_created(name, reply, pid, None);
            }
            packet::Packet::Failed(failure) => match process.phase {
                // The answers wait for its end, so that nothing of it is left then.
                Phase::Building(reply) => process.phase = Phase::Unbuilt(reply, failure),
                Phase::Starting(reply) => process.phase = Phase::Unstarted(reply, failure),
                _ => {}
            },
        }
    }

    /// Answers Create or Exec.
    pub(crate) fn answer_created(&mut self, name: &Name, reply: Reply, pid: u32, failure: Option<Failure>) {
        let failure = failure.into();
        if name.is_first() {
            self.answer(
                reply,
                &CreateResponse {
                    pid,
                    failure,
                    ..CreateResponse::default()
                },
            );
        } else {
            self.answer(
                reply,
                &ExecResponse {
                    pid,
                    failure,
                    ..ExecResponse::default()
                },
            );
        }
    }

    fn on_silence(&mut self, name: &Name) {
        let Some(process) = self.process_mut(name) else { return };
        process.channel = None;
        if let Phase::Starting(reply) = process.phase {
            process.phase = Phase::Running;
            let started_ns = sys::monotonic_ns();
            self.answer(
                reply,
                &StartResponse {
                    started_ns,
                    ..StartResponse::default()
                },
            );
        }
    }
}
