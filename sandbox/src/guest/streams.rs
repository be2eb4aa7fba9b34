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

/// Which streams a process is to have; the others are `/dev/null` for it. A terminal is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What it reads.
    pub stdin: bool,
    /// What it writes.
    pub stdout: bool,
    /// What it writes of errors.
    pub stderr: bool,
}

impl Wanted {
    /// Both outputs, and the input where it is asked for.
    #[must_use]
    pub fn outputs_and(stdin: bool) -> Self {
        Self {
            stdin,
            stdout: true,
            stderr: true,
        }
    }
}

impl Guest {
    /// Opens the streams of a process that is about to be made and names them in `stdio`, whose `terminal` says of
    /// what kind they are.
    ///
    /// # Errors
    /// The machine has ended or the agent does not listen.
    pub fn streams(&self, stdio: &mut agent::Stdio, wanted: Wanted) -> Result<Streams, GuestError> {
        let mut streams = Streams::default();
        if stdio.terminal {
            streams.stdin = Some(self.stream(&mut stdio.stdin)?);
            return Ok(streams);
        }
        for (wanted, stream, token) in [
            (wanted.stdin, &mut streams.stdin, &mut stdio.stdin),
            (wanted.stdout, &mut streams.stdout, &mut stdio.stdout),
            (wanted.stderr, &mut streams.stderr, &mut stdio.stderr),
        ] {
            if wanted {
                *stream = Some(self.stream(token)?);
            }
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
