//! What a hostile agent answers: frames of ttrpc and the messages in them.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Sender};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use husk_sandbox::agent::{CreateRequest, ExecRequest, Ready};
use husk_sandbox::bundle::resources::Update;
use husk_sandbox::guest::{Guest, ProcessId};
use husk_sandbox::machine::Link;
use husk_sandbox::rundir;
use protobuf::Message;
use ttrpc::Response;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MessageHeader};

/// Longer than a run is allowed to take.
const PATIENCE: Duration = Duration::from_secs(100);
/// The stream of a connection's first call.
const FIRST: u32 = 1;

/// The socket of a machine whose agent says what it is given, once for each connection.
struct Fake {
    dir: tempfile::TempDir,
    scripts: Mutex<Sender<Vec<u8>>>,
}

static FAKE: LazyLock<Fake> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(rundir::VSOCK)).unwrap();
    let (sender, receiver) = mpsc::channel::<Vec<u8>>();
    thread::spawn(move || {
        for script in receiver {
            let (stream, _) = listener.accept().unwrap();
            // The host may hang up at any time.
            let _ = speak(stream, &script);
        }
    });
    Fake {
        dir,
        scripts: Mutex::new(sender),
    }
});

/// Takes the connection, waits for a call, and says what it has to say.
fn speak(mut stream: UnixStream, script: &[u8]) -> std::io::Result<()> {
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    stream.write_all(b"OK 1\n")?;
    let mut header = [0; MESSAGE_HEADER_LENGTH];
    stream.read_exact(&mut header)?;
    let mut body = vec![0; MessageHeader::from(header).length as usize];
    stream.read_exact(&mut body)?;
    stream.write_all(script)
}

pub fn run(data: &[u8]) {
    // What the guest says first comes on a connection of its own.
    let _ = Ready::parse_from_bytes(data);
    let mut script = Unstructured::new(data);
    // A script that ends in the middle of a frame has ended.
    let _ = ask(&mut script);
}

fn ask(script: &mut Unstructured<'_>) -> Result<()> {
    let call = script.int_in_range(0..=12_u8)?;
    let answers = answers(script)?;
    FAKE.scripts.lock().unwrap().send(answers).unwrap();
    let dir = OwnedFd::from(std::fs::File::open(FAKE.dir.path()).unwrap());
    let guest = Guest::connect(Link::new(dir, PATIENCE)).unwrap();
    let process = ProcessId {
        container: "c".into(),
        exec: String::new(),
    };
    // Any result will do, as long as there is one.
    match call {
        0 => drop(guest.wait(&process)),
        1 => drop(guest.create(&CreateRequest::default())),
        2 => drop(guest.exec(&ExecRequest::default())),
        3 => drop(guest.start(&process)),
        4 => drop(guest.kill(&process, 9, true)),
        5 => drop(guest.delete(&process)),
        6 => drop(guest.state("c")),
        7 => drop(guest.stats("c")),
        8 => drop(guest.pause("c")),
        9 => drop(guest.processes("c")),
        10 => drop(guest.events(0)),
        11 => drop(guest.shutdown()),
        _ => {
            let update = Update::parse(br#"{"memory": {"limit": 1000000}, "pids": {"limit": 5}}"#).unwrap();
            drop(guest.update("c", &update, FAKE.dir.path()));
        }
    }
    Ok(())
}

/// Frames that are answers, and frames that are none.
fn answers(script: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for _ in 0..script.int_in_range(1..=3)? {
        let length = script.len().min(usize::from(script.arbitrary::<u16>()?));
        let kind = script.int_in_range(0..=7_u8)?;
        let payload = script.bytes(length.min(script.len()))?;
        match kind {
            0 => bytes.extend(payload),
            1 => frame(&mut bytes, FIRST, payload),
            2 => frame(&mut bytes, script.arbitrary()?, payload),
            3 => {
                let header: [u8; MESSAGE_HEADER_LENGTH] = script.arbitrary()?;
                bytes.extend(header);
                bytes.extend(payload);
            }
            _ => {
                let response = Response {
                    payload: payload.to_vec(),
                    ..Default::default()
                };
                frame(&mut bytes, FIRST, &response.write_to_bytes().unwrap());
            }
        }
    }
    Ok(bytes)
}

fn frame(bytes: &mut Vec<u8>, stream: u32, body: &[u8]) {
    bytes.extend(Vec::from(MessageHeader::new_response(stream, body.len() as u32)));
    bytes.extend(body);
}
