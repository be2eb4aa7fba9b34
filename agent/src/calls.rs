//! The service's methods, as `agent.proto` describes them. Those that make a process are in [`crate::create`], those
//! about its end in [`crate::exits`].

use std::time::Instant;

use husk_protocol::agent::{
    CloseStdinRequest, ContainerStatus, Empty, EventsRequest, KillRequest, ResizeRequest, StateRequest, StateResponse,
    StatsRequest,
};
use protobuf::Message;
use ttrpc::Request;

use crate::agent::Agent;
use crate::child;
use crate::container::{Container, Name, Phase, Process, Reply};
use crate::refusal::Refusal;
use crate::sys;

const SERVICE: &str = "husk.agent.v1.Agent";
/// The greatest signal number of Linux.
const MAX_SIGNAL: u32 = 64;
/// Questions for events at a time.
const MAX_QUESTIONS: usize = 1024;

/// An encoded answer; none when it comes later.
pub(crate) type Answer = Result<Option<Vec<u8>>, Refusal>;

/// Decodes a request.
pub(crate) fn decode<M: Message>(request: &Request) -> Result<M, Refusal> {
    M::parse_from_bytes(&request.payload).map_err(Refusal::Undecodable)
}

/// Encodes an answer.
pub(crate) fn encode<M: Message>(answer: &M) -> Answer {
    answer.write_to_bytes().map(Some).map_err(Refusal::Unencodable)
}

impl Agent {
    /// Does what a call asks for.
    pub(crate) fn call(&mut self, reply: Reply, request: &Request) -> Answer {
        if request.service != SERVICE {
            return Err(Refusal::NoMethod(format!("{}/{}", request.service, request.method)));
        }
        match request.method.as_str() {
            "Create" => self.create(reply, decode(request)?),
            "Exec" => self.exec(reply, decode(request)?),
            "Start" => self.start(reply, &decode(request)?),
            "Kill" => self.kill(&decode(request)?),
            "Wait" => self.wait(reply, &decode(request)?),
            "Resize" => self.resize(&decode(request)?),
            "CloseStdin" => self.close_stdin(&decode(request)?),
            "Delete" => self.delete(reply, &decode(request)?),
            "State" => self.state(&decode(request)?),
            "Stats" => self.stats(&decode(request)?),
            "Pause" => self.pause(reply, &decode(request)?),
            "Resume" => self.resume(&decode(request)?),
            "Update" => self.update(&decode(request)?),
            "Processes" => self.processes(&decode(request)?),
            "Files" => self.files(reply, &decode(request)?),
            "Events" => self.events(reply, &decode(request)?),
            "Shutdown" => {
                self.is_over = true;
                encode(&Empty::default())
            }
            other => Err(Refusal::NoMethod(other.to_owned())),
        }
    }

    pub(crate) fn container(&self, id: &str) -> Result<&Container, Refusal> {
        self.containers
            .get(id)
            .ok_or_else(|| Refusal::NoContainer(id.to_owned()))
    }

    pub(crate) fn process_mut(&mut self, name: &Name) -> Option<&mut Process> {
        self.containers.get_mut(&name.container)?.processes.get_mut(&name.exec)
    }

    pub(crate) fn process(&mut self, name: &Name) -> Result<&mut Process, Refusal> {
        let container = self
            .containers
            .get_mut(&name.container)
            .ok_or_else(|| Refusal::NoContainer(name.container.clone()))?;
        container
            .processes
            .get_mut(&name.exec)
            .ok_or_else(|| Refusal::NoProcess {
                container: name.container.clone(),
                exec: name.exec.clone(),
            })
    }

    fn kill(&mut self, request: &KillRequest) -> Answer {
        let (true, Ok(signal)) = (request.signal <= MAX_SIGNAL, u8::try_from(request.signal)) else {
            return Err(Refusal::invalid("signal", "is greater than 64"));
        };
        if request.all {
            if !request.exec.is_empty() {
                return Err(Refusal::invalid("exec", "must be empty where all is set"));
            }
            return self.kill_all(&request.container, signal);
        }
        let name = Name::new(&request.container, &request.exec);
        self.process(&name)?;
        let container = self.container(&name.container)?;
        if container.status() == ContainerStatus::CONTAINER_CREATING {
            return Err(container.refuse(&name.container, "created, running or paused"));
        }
        let process = self.process(&name)?;
        match process.phase {
            Phase::Exited(_) => return Err(state(&name, "the process has exited")),
            // Its dispositions are all default, and as the first of its pid namespace it would ignore the signal.
            Phase::Created if is_fatal(signal) => {
                if let Some(channel) = &process.channel {
                    nix::unistd::write(channel, &[signal]).map_err(Refusal::system("ending the process"))?;
                }
            }
            _ => sys::kill(process.pid, signal.into()).map_err(Refusal::system("sending the signal"))?,
        }
        encode(&Empty::default())
    }

    fn kill_all(&mut self, id: &str, signal: u8) -> Answer {
        let container = self.container(id)?;
        // What it has left behind was killed when it stopped.
        container.check_is_there(id)?;
        if i32::from(signal) == libc::SIGKILL {
            container.cgroup.kill().map_err(Refusal::file("killing the cgroup"))?;
            return encode(&Empty::default());
        }
        for pid in container.cgroup.pids() {
            match sys::kill(nix::unistd::Pid::from_raw(pid), signal.into()) {
                // It has ended since.
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(source) => return Err(Refusal::system("sending the signal")(source)),
            }
        }
        encode(&Empty::default())
    }

    fn resize(&mut self, request: &ResizeRequest) -> Answer {
        let name = Name::new(&request.container, &request.exec);
        let Some(window) = request.window.as_ref() else {
            return Err(Refusal::invalid("window", "is missing"));
        };
        let process = self.process(&name)?;
        if !process.has_terminal {
            return Err(state(&name, "the process has no terminal"));
        }
        // One that has hung up has no size to lose.
        if let Some(terminal) = &process.terminal {
            child::resize(terminal, window).map_err(Refusal::system("setting the terminal's size"))?;
        }
        encode(&Empty::default())
    }

    fn close_stdin(&mut self, request: &CloseStdinRequest) -> Answer {
        let process = self.process(&Name::new(&request.container, &request.exec))?;
        if let Some(stdin) = process.stdin.take() {
            self.close_flow(stdin);
        }
        encode(&Empty::default())
    }

    fn state(&mut self, request: &StateRequest) -> Answer {
        let container = self.container(&request.container)?;
        let processes = container
            .processes
            .iter()
            .filter_map(|(exec, process)| process.state(exec))
            .collect();
        let pids = container.cgroup.pids().into_iter().map(i32::cast_unsigned).collect();
        encode(&StateResponse {
            processes,
            pids,
            status: container.status().into(),
            ..StateResponse::default()
        })
    }

    fn stats(&mut self, request: &StatsRequest) -> Answer {
        encode(&self.container(&request.container)?.cgroup.stats())
    }

    fn events(&mut self, reply: Reply, request: &EventsRequest) -> Answer {
        if self.journal.waiting() >= MAX_QUESTIONS {
            return Err(Refusal::Full {
                what: "questions for events",
                limit: MAX_QUESTIONS,
            });
        }
        match self.journal.ask(request.after, reply, Instant::now()) {
            Some(answer) => encode(&answer),
            None => Ok(None),
        }
    }
}

/// A process's state does not allow what is asked for.
pub(crate) fn state(name: &Name, state: &'static str) -> Refusal {
    Refusal::State {
        container: name.container.clone(),
        exec: name.exec.clone(),
        state,
    }
}

/// Whether a signal's default action ends a process, as far as signals are sent for that.
fn is_fatal(signal: u8) -> bool {
    let signal = i32::from(signal);
    let harmless = [
        0,
        libc::SIGCHLD,
        libc::SIGURG,
        libc::SIGWINCH,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        // The kernel does it, whatever the process thinks of it.
        libc::SIGKILL,
    ];
    !harmless.contains(&signal)
}
