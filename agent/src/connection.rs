//! A connection to the agent's service: ttrpc frames in and out, without ever blocking.
//!
//! A frame is a header of ten bytes (length and stream id as big-endian `u32`, type, flags) and a protobuf message.
//! Answers may come in any order; the stream's id tells the client which call one belongs to.

use nix::sys::epoll::EpollFlags;
use protobuf::Message;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MessageHeader};
use ttrpc::{Code, Request, Response};

use crate::poller::Watch;
use crate::refusal::Refusal;

/// Answers that the peer does not fetch are kept up to this many bytes.
const MAX_UNSENT: usize = 16 << 20;
const CHUNK: usize = 64 << 10;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("the peer has closed it")]
    Closed,
    #[error("a message of {0} bytes is longer than {MESSAGE_LENGTH_MAX}")]
    TooLong(usize),
    #[error("a message is no request: {0}")]
    Malformed(protobuf::Error),
    #[error("the peer does not read its answers")]
    Unread,
    #[error("{0}")]
    Socket(#[from] nix::Error),
}

/// A call, and how to answer it.
#[derive(Debug)]
pub(crate) struct Call {
    pub stream: u32,
    pub request: Request,
}

/// A client.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Watch,
    received: Vec<u8>,
    unsent: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(socket: Watch) -> Self {
        Self {
            socket,
            received: Vec::new(),
            unsent: Vec::new(),
        }
    }

    /// Takes what has arrived and gives the calls that are complete.
    pub(crate) fn receive(&mut self) -> Result<Vec<Call>, ConnectionError> {
        let mut chunk = [0; CHUNK];
        match nix::unistd::read(&self.socket, &mut chunk) {
            Ok(0) => return Err(ConnectionError::Closed),
            Ok(count) => self.received.extend_from_slice(&chunk[..count]),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut calls = Vec::new();
        while let Some((header, message)) = self.next_frame()? {
            // What is not a request belongs to streaming, which this service has not: a client has no use for it.
            if header.type_ == MESSAGE_TYPE_REQUEST {
                let request = Request::parse_from_bytes(&message).map_err(ConnectionError::Malformed)?;
                calls.push(Call {
                    stream: header.stream_id,
                    request,
                });
            }
        }
        Ok(calls)
    }

    fn next_frame(&mut self) -> Result<Option<(MessageHeader, Vec<u8>)>, ConnectionError> {
        let Some(header) = self.received.first_chunk::<MESSAGE_HEADER_LENGTH>() else {
            return Ok(None);
        };
        let header = MessageHeader::from(header);
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if length > MESSAGE_LENGTH_MAX {
            return Err(ConnectionError::TooLong(length));
        }
        if self.received.len() < MESSAGE_HEADER_LENGTH + length {
            return Ok(None);
        }
        let mut frame: Vec<u8> = self.received.drain(..MESSAGE_HEADER_LENGTH + length).collect();
        if self.received.is_empty() {
            self.received = Vec::new();
        }
        Ok(Some((header, frame.split_off(MESSAGE_HEADER_LENGTH))))
    }

    /// Answers a call.
    pub(crate) fn answer(&mut self, stream: u32, answer: Result<Vec<u8>, Refusal>) -> Result<(), ConnectionError> {
        let mut response = Response::new();
        match answer {
            Ok(payload) => {
                response.set_status(ttrpc::get_status(Code::OK, ""));
                response.payload = payload;
            }
            Err(refusal) => response.set_status(ttrpc::get_status(refusal.code(), refusal.to_string())),
        }
        let message = response.write_to_bytes().map_err(ConnectionError::Malformed)?;
        let length = u32::try_from(message.len()).map_err(|_| ConnectionError::TooLong(message.len()))?;
        self.unsent
            .extend_from_slice(&Vec::from(MessageHeader::new_response(stream, length)));
        self.unsent.extend_from_slice(&message);
        self.send()
    }

    /// Sends as much as the peer takes.
    pub(crate) fn send(&mut self) -> Result<(), ConnectionError> {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match nix::unistd::write(&self.socket, &self.unsent[sent..]) {
                Ok(count) => sent += count,
                Err(nix::Error::EAGAIN) => break,
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.unsent.drain(..sent);
        if self.unsent.len() > MAX_UNSENT {
            return Err(ConnectionError::Unread);
        }
        let interest = if self.unsent.is_empty() {
            EpollFlags::EPOLLIN
        } else {
            EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT
        };
        if interest != self.socket.interest() {
            self.socket.rearm(interest)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::poller::{Poller, Source};

    fn pair() -> (Poller, Connection, UnixStream) {
        let poller = Poller::new().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let watch = poller
            .watch(ours.into(), Source::Connection(1), EpollFlags::EPOLLIN)
            .unwrap();
        (poller, Connection::new(watch), theirs)
    }

    fn frame(stream: u32, method: &str) -> Vec<u8> {
        let mut request = Request::new();
        request.method = method.to_owned();
        let message = request.write_to_bytes().unwrap();
        let mut frame = Vec::from(MessageHeader::new_request(
            stream,
            u32::try_from(message.len()).unwrap(),
        ));
        frame.extend(message);
        frame
    }

    #[test]
    fn calls_are_found_however_they_are_cut() {
        let (_poller, mut connection, mut peer) = pair();
        let bytes = [frame(1, "Create"), frame(3, "Start"), frame(5, "Wait")].concat();
        for step in [1, 7, bytes.len()] {
            let mut calls = Vec::new();
            for part in bytes.chunks(step) {
                peer.write_all(part).unwrap();
                calls.extend(connection.receive().unwrap());
            }
            let found: Vec<_> = calls
                .iter()
                .map(|call| (call.stream, call.request.method.as_str()))
                .collect();
            assert_eq!(found, [(1, "Create"), (3, "Start"), (5, "Wait")]);
        }
    }

    #[test]
    fn absurd_lengths_and_rubbish_end_the_connection() {
        let (_poller, mut connection, mut peer) = pair();
        peer.write_all(&[0xff; 10]).unwrap();
        assert!(matches!(connection.receive(), Err(ConnectionError::TooLong(_))));
        let (_poller, mut connection, mut peer) = pair();
        peer.write_all(&[0, 0, 0, 1, 0, 0, 0, 1, MESSAGE_TYPE_REQUEST, 0, 0xff])
            .unwrap();
        assert!(matches!(connection.receive(), Err(ConnectionError::Malformed(_))));
        let (_poller, mut connection, peer) = pair();
        drop(peer);
        assert!(matches!(connection.receive(), Err(ConnectionError::Closed)));
    }

    #[test]
    fn answers_wait_for_a_slow_peer_but_not_for_ever() {
        let (_poller, mut connection, mut peer) = pair();
        let answer = vec![7; 1 << 20];
        for stream in 0..3 {
            connection.answer(stream, Ok(answer.clone())).unwrap();
        }
        assert!(connection.socket.interest().contains(EpollFlags::EPOLLOUT));
        let reader = std::thread::spawn(move || {
            for stream in 0..3 {
                let mut header = [0; MESSAGE_HEADER_LENGTH];
                peer.read_exact(&mut header).unwrap();
                let header = MessageHeader::from(header);
                assert_eq!(header.stream_id, stream);
                let mut message = vec![0; usize::try_from(header.length).unwrap()];
                peer.read_exact(&mut message).unwrap();
                assert_eq!(Response::parse_from_bytes(&message).unwrap().payload.len(), 1 << 20);
            }
            peer
        });
        while connection.socket.interest().contains(EpollFlags::EPOLLOUT) {
            connection.send().unwrap();
            std::thread::yield_now();
        }
        let _peer = reader.join().unwrap();
        let unread = (0..64).find_map(|stream| connection.answer(stream, Ok(answer.clone())).err());
        assert!(matches!(unread, Some(ConnectionError::Unread)));
    }
}
