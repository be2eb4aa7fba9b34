//! A ttrpc client that sleeps until an answer comes.
//!
//! The `ttrpc` crate's own looks up a hundred times a second. This one writes a call from the calling thread, and one
//! thread a connection reads answers, which may come in any order, and hands each to the thread that waits for it.
//!
//! The peer is not trusted. Of what it sends no more than one message is kept, and the first thing that the protocol
//! does not allow ends the connection: every call on it fails with that [`Breach`].

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use protobuf::Message;
use thiserror::Error;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_RESPONSE, MessageHeader};
use ttrpc::{Code, Request, Response};

/// The longest message of the guest's that stands in an error, in characters.
const MAX_WORDS: usize = 2048;

/// Why a call was not answered with what was asked for.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RpcError {
    #[error("{message}")]
    Status { code: Code, message: String },
    #[error("no answer has come in time")]
    Timeout,
    #[error("the connection is closed")]
    Closed,
    #[error("the peer does not keep to the protocol: {0}")]
    Breach(Breach),
}

/// What the peer has sent that the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum Breach {
    #[error("it has sent a message of {0} bytes; {MESSAGE_LENGTH_MAX} are possible")]
    Long(u32),
    #[error("it has sent a message of the type {0}, which is no answer")]
    Type(u8),
    #[error("it has sent an answer that nobody waits for")]
    Unasked,
    #[error("it has sent an answer that cannot be understood")]
    Form,
    #[error("it tells of events that it was not asked for")]
    Events,
}

/// A connection to a ttrpc service.
#[derive(Debug)]
pub struct Rpc {
    service: &'static str,
    stream: UnixStream,
    /// Held while a call is written, so that calls do not mix; the next call's stream.
    writer: Mutex<u32>,
    waiting: Arc<Mutex<Waiting>>,
}

/// The calls that wait for an answer.
#[derive(Debug, Default)]
struct Waiting {
    /// By their streams; none where the caller has given up, and the answer may still come.
    calls: HashMap<u32, Option<SyncSender<Response>>>,
    closed: bool,
    /// Why it is closed, if that is the peer's fault.
    breach: Option<Breach>,
}

impl Waiting {
    /// Why nothing more comes.
    fn end(&self) -> RpcError {
        self.breach.map_or(RpcError::Closed, RpcError::Breach)
    }
}

/// How a connection has ended.
#[derive(Debug, Error)]
enum Ended {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Breach(#[from] Breach),
}

impl Rpc {
    /// Speaks to a service; a peer that takes no bytes for `patience` is given up.
    ///
    /// # Errors
    /// A thread cannot be started, or no descriptor is left.
    pub fn new(service: &'static str, stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_write_timeout(Some(patience))?;
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (reader, calls) = (stream.try_clone()?, Arc::clone(&waiting));
        thread::Builder::new().name("answers".into()).spawn(move || {
            let error = read_answers(&reader, &calls);
            tracing::debug!(%error, "the connection to the agent has ended");
            let mut waiting = lock(&calls);
            waiting.closed = true;
            if let Ended::Breach(breach) = error {
                waiting.breach = Some(breach);
            }
            // The peer need not say more. A connection that is gone already needs no end.
            let _ = reader.shutdown(Shutdown::Both);
            // Dropping the senders wakes everybody who waits.
            waiting.calls.clear();
        })?;
        Ok(Self {
            service,
            stream,
            // A client's streams are odd.
            writer: Mutex::new(1),
            waiting,
        })
    }

    /// Calls a method and waits for the answer, for ever if there is no limit.
    ///
    /// # Errors
    /// What the peer answers instead, that it does not, or that it does not keep to the protocol.
    pub fn call<R: Message>(
        &self,
        method: &str,
        message: &impl Message,
        limit: Option<Duration>,
    ) -> Result<R, RpcError> {
        let request = Request {
            service: self.service.into(),
            method: method.into(),
            timeout_nano: limit.map_or(0, |limit| i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX)),
            payload: message.write_to_bytes().map_err(|_| RpcError::Closed)?,
            ..Default::default()
        };
        let (sender, receiver) = sync_channel(1);
        let stream = self.send(&request, sender)?;
        let response = match limit {
            Some(limit) => receiver.recv_timeout(limit),
            None => receiver.recv().map_err(RecvTimeoutError::from),
        };
        let response = response.map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                // The answer may have come just now.
                if let Some(caller) = lock(&self.waiting).calls.get_mut(&stream) {
                    *caller = None;
                }
                RpcError::Timeout
            }
            RecvTimeoutError::Disconnected => lock(&self.waiting).end(),
        })?;
        if response.status.code() != Code::OK {
            return Err(RpcError::Status {
                code: response.status.code(),
                message: readable(&response.status.message),
            });
        }
        R::parse_from_bytes(&response.payload).map_err(|_| self.breach(Breach::Form))
    }

    /// Ends the connection for what the peer has sent.
    pub(crate) fn breach(&self, breach: Breach) -> RpcError {
        lock(&self.waiting).breach.get_or_insert(breach);
        self.hang_up();
        RpcError::Breach(breach)
    }

    /// Writes a call; gives its stream.
    fn send(&self, request: &Request, answer: SyncSender<Response>) -> Result<u32, RpcError> {
        let body = request.write_to_bytes().map_err(|_| RpcError::Closed)?;
        let length = u32::try_from(body.len()).map_err(|_| RpcError::Closed)?;
        if body.len() > MESSAGE_LENGTH_MAX {
            return Err(RpcError::Status {
                code: Code::RESOURCE_EXHAUSTED,
                message: format!("a message of {length} bytes is longer than {MESSAGE_LENGTH_MAX}"),
            });
        }
        let mut next = lock(&self.writer);
        let stream = *next;
        *next = next.wrapping_add(2);
        {
            let mut waiting = lock(&self.waiting);
            if waiting.closed || waiting.breach.is_some() {
                return Err(waiting.end());
            }
            waiting.calls.insert(stream, Some(answer));
        }
        let mut frame = Vec::from(MessageHeader::new_request(stream, length));
        frame.extend(body);
        (&self.stream).write_all(&frame).map_err(|error| {
            tracing::debug!(%error, "a call cannot be sent");
            // A frame that was written in part would spoil all that follow.
            self.hang_up();
            let mut waiting = lock(&self.waiting);
            waiting.calls.remove(&stream);
            waiting.end()
        })?;
        Ok(stream)
    }

    fn hang_up(&self) {
        // A connection that is gone already needs no end.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Drop for Rpc {
    fn drop(&mut self) {
        self.hang_up();
    }
}

/// Hands answers to those who wait for them, until the connection ends; says why it has.
fn read_answers(mut stream: &UnixStream, waiting: &Mutex<Waiting>) -> Ended {
    loop {
        match read_answer(&mut stream) {
            Ok((number, response)) => match lock(waiting).calls.remove(&number) {
                Some(Some(caller)) => {
                    // A caller that gives up just now does not want it any more.
                    let _ = caller.try_send(response);
                }
                Some(None) => {}
                None => return Breach::Unasked.into(),
            },
            Err(error) => return error,
        }
    }
}

fn read_answer(stream: &mut impl Read) -> Result<(u32, Response), Ended> {
    let mut header = [0; MESSAGE_HEADER_LENGTH];
    stream.read_exact(&mut header)?;
    let header = MessageHeader::from(header);
    if header.type_ != MESSAGE_TYPE_RESPONSE {
        return Err(Breach::Type(header.type_).into());
    }
    let length = usize::try_from(header.length).unwrap_or(usize::MAX);
    if length > MESSAGE_LENGTH_MAX {
        return Err(Breach::Long(header.length).into());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let response = Response::parse_from_bytes(&body).map_err(|_| Breach::Form)?;
    Ok((header.stream_id, response))
}

/// The guest's words as they may stand in an error: not longer than [`MAX_WORDS`], and nothing that a terminal obeys.
pub(crate) fn readable(words: &str) -> String {
    let clean = |char: char| if char.is_control() { ' ' } else { char };
    let mut text: String = words.chars().take(MAX_WORDS).map(clean).collect();
    if text.len() < words.len() {
        text.push_str(" [...]");
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is whole whatever happened to the thread that held them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use husk_protocol::agent::{StartRequest, StartResponse};
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn pair() -> (Rpc, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Rpc::new("service", ours, PATIENCE).unwrap(), theirs)
    }

    /// The peer's side of a call: its stream and what was asked.
    fn read_call(peer: &mut UnixStream) -> (u32, Request) {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        peer.read_exact(&mut header).unwrap();
        let header = MessageHeader::from(header);
        let mut body = vec![0; header.length as usize];
        peer.read_exact(&mut body).unwrap();
        (header.stream_id, Request::parse_from_bytes(&body).unwrap())
    }

    fn answer(peer: &mut UnixStream, stream: u32, code: Code, started_ns: u64) {
        let started = StartResponse {
            started_ns,
            ..Default::default()
        };
        let response = Response {
            status: Some(ttrpc::get_status(code, "because")).into(),
            payload: started.write_to_bytes().unwrap(),
            ..Default::default()
        };
        let body = response.write_to_bytes().unwrap();
        let header = MessageHeader::new_response(stream, u32::try_from(body.len()).unwrap());
        peer.write_all(&Vec::from(header)).unwrap();
        peer.write_all(&body).unwrap();
    }

    fn start(rpc: &Rpc, container: &str, limit: Option<Duration>) -> Result<StartResponse, RpcError> {
        let request = StartRequest {
            container: container.into(),
            ..Default::default()
        };
        rpc.call("Start", &request, limit)
    }

    #[test]
    fn answers_find_their_calls_in_any_order() {
        let (rpc, mut peer) = pair();
        thread::scope(|scope| {
            let calls: Vec<_> = (0..8)
                .map(|index: u64| {
                    let rpc = &rpc;
                    scope.spawn(move || start(rpc, &index.to_string(), None).unwrap().started_ns == index)
                })
                .collect();
            let mut asked: Vec<_> = calls.iter().map(|_| read_call(&mut peer)).collect();
            asked.reverse();
            for (stream, request) in asked {
                assert_eq!(
                    (request.service.as_str(), request.method.as_str()),
                    ("service", "Start")
                );
                let container = StartRequest::parse_from_bytes(&request.payload).unwrap().container;
                answer(&mut peer, stream, Code::OK, container.parse().unwrap());
            }
            assert!(calls.into_iter().all(|call| call.join().unwrap()));
        });
    }

    #[test]
    fn a_refusal_is_an_error_with_its_reason() {
        let (rpc, mut peer) = pair();
        let answering = thread::spawn(move || {
            let (stream, _) = read_call(&mut peer);
            answer(&mut peer, stream, Code::NOT_FOUND, 0);
            peer
        });
        let error = start(&rpc, "x", Some(PATIENCE)).unwrap_err();
        assert!(matches!(error, RpcError::Status { code: Code::NOT_FOUND, message } if message == "because"));
        answering.join().unwrap();
    }

    #[test]
    fn a_late_answer_is_dropped() {
        let (rpc, mut peer) = pair();
        let error = start(&rpc, "x", Some(Duration::from_millis(1))).unwrap_err();
        assert!(matches!(error, RpcError::Timeout));
        let (late, _) = read_call(&mut peer);
        answer(&mut peer, late, Code::OK, 1);
        let answering = thread::spawn(move || {
            let (stream, _) = read_call(&mut peer);
            answer(&mut peer, stream, Code::OK, 2);
            peer
        });
        assert_eq!(start(&rpc, "x", Some(PATIENCE)).unwrap().started_ns, 2);
        answering.join().unwrap();
    }

    #[test]
    fn a_closed_connection_ends_every_call() {
        let (rpc, mut peer) = pair();
        let rpc = &rpc;
        thread::scope(|scope| {
            let waiting = scope.spawn(move || start(rpc, "x", None));
            read_call(&mut peer);
            drop(peer);
            assert!(matches!(waiting.join().unwrap(), Err(RpcError::Closed)));
        });
        assert!(matches!(start(rpc, "x", None), Err(RpcError::Closed)));
    }

    #[test]
    fn nothing_is_left_of_a_dropped_client() {
        let (rpc, mut peer) = pair();
        drop(rpc);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }

    proptest! {
        #[test]
        fn whatever_the_guest_sends_ends_in_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let (rpc, mut peer) = pair();
            peer.write_all(&bytes).unwrap();
            drop(peer);
            prop_assert!(start(&rpc, "x", None).is_err());
        }
    }
}
