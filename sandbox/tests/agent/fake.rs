//! A sandbox without a machine: its sockets are served here, and a test decides what its agent says.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use husk_sandbox::agent;
use husk_sandbox::guest::Guest;
use husk_sandbox::lifecycle::Container;
use husk_sandbox::machine::Link;
use husk_sandbox::rundir::{self, ContainerProcess, RunDir, RunRoot, State};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv, send, socket,
};
use protobuf::Message;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MessageHeader};
use ttrpc::{Code, Request, Response};

pub(crate) const NAME: &str = "box";
/// Long enough for whatever must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A call that the agent was sent, and the way back.
pub(crate) struct Call<'a> {
    pub(crate) stream: u32,
    pub(crate) request: Request,
    pub(crate) socket: &'a mut UnixStream,
}

impl Call<'_> {
    /// Sends bytes as they are. The host may have hung up.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// Answers a call, this one or another.
    pub(crate) fn answer_to(&mut self, stream: u32, payload: &[u8]) {
        self.raw(&frame(
            stream,
            &Response {
                payload: payload.to_vec(),
                ..Default::default()
            },
        ));
    }

    /// Answers this call.
    pub(crate) fn answer(&mut self, message: &impl Message) {
        self.answer_to(self.stream, &message.write_to_bytes().unwrap());
    }

    /// Refuses this call.
    pub(crate) fn refuse(&mut self, code: Code, message: &str) {
        let response = Response {
            status: Some(ttrpc::get_status(code, message)).into(),
            ..Default::default()
        };
        self.raw(&frame(self.stream, &response));
    }
}

fn frame(stream: u32, response: &Response) -> Vec<u8> {
    let body = response.write_to_bytes().unwrap();
    let header = MessageHeader::new_response(stream, u32::try_from(body.len()).unwrap());
    [Vec::from(header), body].concat()
}

/// The sandbox; its owner is a process that does nothing, until its machine is stopped.
pub(crate) struct Fake {
    pub(crate) root: RunRoot,
    dir: Arc<Mutex<Option<RunDir>>>,
    owner: Arc<Mutex<Child>>,
    place: tempfile::TempDir,
    /// Told when the machine was asked to stop.
    pub(crate) stopped: Receiver<()>,
}

impl Fake {
    /// A sandbox whose agent does this with each call.
    pub(crate) fn new(agent: impl Fn(Call<'_>) + Send + Sync + 'static) -> Self {
        let place = tempfile::tempdir().unwrap();
        let run = place.path().join("run");
        let root = RunRoot::open(&run).unwrap();
        let dir = RunRoot::open(&run).unwrap().create(NAME).unwrap();
        let owner = Command::new("sleep").arg("1000").spawn().unwrap();
        dir.write_state(&state(owner.id(), place.path())).unwrap();
        let sockets = run.join(NAME);
        serve_vsock(UnixListener::bind(sockets.join(rundir::VSOCK)).unwrap(), agent);
        let dir = Arc::new(Mutex::new(Some(dir)));
        let owner = Arc::new(Mutex::new(owner));
        let (sender, stopped) = channel();
        let ending = (Arc::clone(&dir), Arc::clone(&owner));
        serve_control(&sockets.join(rundir::CONTROL), move || {
            // The machine's end is the owner's.
            drop(ending.0.lock().unwrap().take());
            end(&ending.1);
            let _ = sender.send(());
        });
        Self {
            root,
            dir,
            owner,
            place,
            stopped,
        }
    }

    /// The agent's client, which waits this long for answers.
    pub(crate) fn guest(&self, patience: Duration) -> Guest {
        Guest::connect(self.link(patience)).unwrap()
    }

    pub(crate) fn link(&self, patience: Duration) -> Link {
        let dir = std::fs::File::open(self.place.path().join("run").join(NAME)).unwrap();
        Link::new(OwnedFd::from(dir), patience)
    }

    pub(crate) fn container(&self, patience: Duration) -> Container {
        Container::find(&self.root, NAME, patience).unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.dir.lock().unwrap().take());
        end(&self.owner);
    }
}

fn end(owner: &Mutex<Child>) {
    let mut owner = owner.lock().unwrap();
    let _ = owner.kill();
    let _ = owner.wait();
}

fn state(pid: u32, root: &std::path::Path) -> State {
    State {
        name: NAME.into(),
        pid,
        vmm_pid: 0,
        created: 0,
        cpus: 1,
        memory_mib: 128,
        console: false,
        confinement: husk_sandbox::confinement::Confinement::default(),
        containers: vec![rundir::Container {
            name: NAME.into(),
            root: root.into(),
            bundle: None,
            annotations: std::collections::BTreeMap::new(),
            hooks: husk_sandbox::hooks::Hooks::default(),
            start_hooks_s: 0,
            process: ContainerProcess::from(&agent::Process::default()),
        }],
        cgroup: None,
        kept: true,
        exit: None,
    }
}

/// Lets clients connect to any port and hands the agent their calls. Ends with the test's process.
fn serve_vsock(listener: UnixListener, agent: impl Fn(Call<'_>) + Send + Sync + 'static) {
    let agent = Arc::new(agent);
    thread::spawn(move || {
        for socket in listener.incoming() {
            let (mut socket, agent) = (socket.unwrap(), Arc::clone(&agent));
            thread::spawn(move || {
                let mut byte = [0];
                while byte != *b"\n" {
                    if socket.read_exact(&mut byte).is_err() {
                        return;
                    }
                }
                let _ = socket.write_all(b"OK 1\n");
                while let Some((stream, request)) = read_call(&mut socket) {
                    agent(Call {
                        stream,
                        request,
                        socket: &mut socket,
                    });
                }
            });
        }
    });
}

fn read_call(socket: &mut UnixStream) -> Option<(u32, Request)> {
    let mut header = [0; MESSAGE_HEADER_LENGTH];
    socket.read_exact(&mut header).ok()?;
    let header = MessageHeader::from(header);
    let mut body = vec![0; header.length as usize];
    socket.read_exact(&mut body).ok()?;
    Some((header.stream_id, Request::parse_from_bytes(&body).ok()?))
}

/// Takes one request to stop.
fn serve_control(path: &std::path::Path, stop: impl FnOnce() + Send + 'static) {
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&listener, Backlog::new(4).unwrap()).unwrap();
    thread::spawn(move || {
        let client = accept(listener.as_raw_fd()).unwrap();
        let mut request = [0; 1000];
        let length = recv(client, &mut request, MsgFlags::empty()).unwrap();
        assert!(String::from_utf8_lossy(&request[..length]).contains("stop"));
        stop();
        let answer = serde_json::to_vec(&husk_sandbox::vmm::Response::Done).unwrap();
        send(client, &answer, MsgFlags::empty()).unwrap();
    });
}
