//! Connections to the guest for what is no call: the streams of processes, and files.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use husk_protocol::agent::{self, Empty, FilesRequest};
use husk_protocol::{STDIO_PORT, TOKEN_LEN};

use super::{Guest, GuestError};
use crate::machine::LinkError;

/// The host's ends of a process's streams; those that were not asked for are `/dev/null` in the guest.
#[derive(Debug, Default)]
pub struct Streams {
    /// With a terminal both directions.
    pub stdin: Option<UnixStream>,
    /// What the process writes.
    pub stdout: Option<UnixStream>,
    /// What the process writes.
    pub stderr: Option<UnixStream>,
}

impl Guest {
    /// Opens the streams of a process that is about to be made and names them in `stdio`, whose `terminal` says of
    /// what kind they are. Without `stdin` it is `/dev/null`.
    ///
    /// # Errors
    /// The machine has ended or the agent does not listen.
    pub fn streams(&self, stdio: &mut agent::Stdio, stdin: bool) -> Result<Streams, GuestError> {
        let mut streams = Streams::default();
        if stdin || stdio.terminal {
            streams.stdin = Some(self.stream(&mut stdio.stdin)?);
        }
        if !stdio.terminal {
            streams.stdout = Some(self.stream(&mut stdio.stdout)?);
            streams.stderr = Some(self.stream(&mut stdio.stderr)?);
        }
        Ok(streams)
    }

    fn stream(&self, token: &mut Vec<u8>) -> Result<UnixStream, GuestError> {
        let mut random = [0; TOKEN_LEN];
        File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut random))
            .map_err(GuestError::Token)?;
        let mut stream = self.link.connect(STDIO_PORT)?;
        stream.write_all(&random).map_err(|source| LinkError::Socket {
            socket: "vsock",
            source,
        })?;
        *token = random.to_vec();
        Ok(stream)
    }

    /// Opens a connection on which a container's files are served.
    pub(crate) fn files(&self, container: &str) -> Result<UnixStream, GuestError> {
        let mut token = Vec::new();
        let connection = self.stream(&mut token)?;
        let request = FilesRequest {
            container: container.into(),
            stream: token,
            ..Default::default()
        };
        self.call::<Empty>("Files", &request)?;
        Ok(connection)
    }
}
