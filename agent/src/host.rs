//! The way to the host: vsock.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use husk_protocol::agent::Ready;
use husk_protocol::{HOST_CID, MAX_READY, READY_PORT};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, getpeername, listen as listen_on, socket,
};
use protobuf::Message;

use crate::sys;

/// How long a busy host may take to answer; whoever waits for the guest there has a limit of its own.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why the host cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("listening on vsock port {port}: {source}")]
    Listen { port: u32, source: nix::Error },
    #[error("connecting to the host's vsock port {READY_PORT}: {0}")]
    Connect(nix::Error),
    #[error("saying that the agent is ready: {0}")]
    Say(std::io::Error),
    #[error("the ready message cannot be encoded: {0}")]
    Encode(protobuf::Error),
}

/// A listening, non-blocking vsock socket.
pub(crate) fn listen(port: u32) -> Result<OwnedFd, HostError> {
    let error = |source| HostError::Listen { port, source };
    let listener = vsock(SockFlag::SOCK_NONBLOCK).map_err(error)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port)).map_err(error)?;
    listen_on(&listener, Backlog::MAXCONN).map_err(error)?;
    Ok(listener)
}

/// Whether an accepted connection comes from the host: a container's process may reach the agent's ports where the
/// kernel loops vsock back.
pub(crate) fn is_host(connection: BorrowedFd<'_>) -> bool {
    getpeername::<VsockAddr>(connection.as_raw_fd()).is_ok_and(|peer| peer.cid() == HOST_CID)
}

/// Tells the host that both ports listen.
///
/// `started_ns` is the CLOCK_MONOTONIC of the agent's first instruction.
pub(crate) fn say_ready(started_ns: u64) -> Result<(), HostError> {
    let ready = Ready {
        kernel: nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        agent_started_ns: started_ns,
        ready_ns: sys::monotonic_ns(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Ready::default()
    };
    let frame = frame(&ready)?;
    let connection = vsock(SockFlag::empty()).map_err(HostError::Connect)?;
    sys::set_connect_timeout(connection.as_fd(), PATIENCE).map_err(HostError::Connect)?;
    connect(connection.as_raw_fd(), &VsockAddr::new(HOST_CID, READY_PORT)).map_err(HostError::Connect)?;
    std::fs::File::from(connection)
        .write_all(&frame)
        .map_err(HostError::Say)
}

/// The message as it is on the wire: its length as a little-endian `u32`, then itself.
fn frame(ready: &Ready) -> Result<Vec<u8>, HostError> {
    let message = ready.write_to_bytes().map_err(HostError::Encode)?;
    debug_assert!(message.len() <= MAX_READY);
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend_from_slice(&message);
    Ok(frame)
}

fn vsock(flags: SockFlag) -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Vsock,
        SockType::Stream,
        flags | SockFlag::SOCK_CLOEXEC,
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_length_delimited() {
        let ready = Ready {
            kernel: "6.12.0".to_owned(),
            agent_started_ns: 7,
            ready_ns: 1 << 40,
            ..Ready::default()
        };
        let frame = frame(&ready).unwrap();
        let length = u32::from_le_bytes(frame[..4].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), frame.len() - 4);
        assert_eq!(Ready::parse_from_bytes(&frame[4..]).unwrap(), ready);
    }

    #[test]
    fn only_vsock_peers_with_the_hosts_id_are_the_host() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_host(std::os::fd::AsFd::as_fd(&one)));
    }
}
