//! A container's files for the host: Files, and the process that serves them.
//!
//! Looking for a file may take as long as the container likes, which can mount a file system of its own. So a process does
//! it that the agent does not wait for. It stays in the agent's namespaces and sees the container's files through
//! `/proc/PID/root`, below which every path is resolved; only a container's user namespace it enters, so that it may do
//! there what the container's root may, and owners are numbers of that.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::{ffi::OsStr, fs};

use husk_archive::{ArchiveError, Found, Kind, Root, Unpacking, pack, unpack};
use husk_protocol::agent::{Empty, FileAnswer, FileRequest, FilesRequest, file_answer, file_request};
use husk_protocol::frames::{ArchiveReader, ArchiveWriter, receive, send};
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};

use crate::agent::Agent;
use crate::calls::Answer;
use crate::child::become_root;
use crate::container::{Name, Reply};
use crate::pending::{Pending, Work};
use crate::refusal::Refusal;
use crate::stdio::Token;
use crate::sys;

/// Processes that serve files at a time.
const MAX_SERVERS: usize = 64;

impl Agent {
    /// Answers Files, once the connection is there.
    pub(crate) fn files(&mut self, reply: Reply, request: &FilesRequest) -> Answer {
        self.joinable(&request.container)?;
        let token = Token::try_from(&request.stream[..])
            .map_err(|_| Refusal::invalid("stream", "is no token of sixteen bytes"))?;
        let name = Name::new(&request.container, "");
        self.await_needs(name, reply, [Some(token), None, None], Work::Files)
    }

    /// Starts the process that serves.
    pub(crate) fn begin_files(&mut self, pending: &Pending) -> Result<(), Refusal> {
        let container = &pending.name.container;
        if self.servers.len() >= MAX_SERVERS {
            return Err(Refusal::Full {
                what: "connections that serve files",
                limit: MAX_SERVERS,
            });
        }
        let pidfd = self.joinable(container)?;
        let pid = self.process(&Name::new(container, ""))?.pid;
        let in_user_namespace = !self.container(container)?.common.uid_mappings.is_empty();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(format!("/proc/{pid}/root").as_str(), flags, Mode::empty())
            .map_err(Refusal::system("opening the container's root"))?;
        let connection = pending.tokens[0].as_ref().and_then(|token| self.unclaimed.claim(token));
        let connection = connection.ok_or(Refusal::NoStream)?;
        // The agent's children are in the pid namespace that was chosen last.
        setns(&self.pid_namespace, CloneFlags::CLONE_NEWPID).map_err(Refusal::system("choosing a pid namespace"))?;
        match sys::fork().map_err(Refusal::system("making a process that serves files"))? {
            None => run(connection, root, in_user_namespace.then_some(pidfd)),
            Some(child) => self.servers.insert(child.as_raw(), container.to_owned()),
        };
        self.answer(pending.reply, &Empty::default());
        Ok(())
    }

    /// Ends the processes that serve a container's files.
    pub(crate) fn end_servers(&self, container: &str) {
        for (pid, _) in self.servers.iter().filter(|(_, of)| *of == container) {
            // It may have ended by itself; it is not reaped yet, so that the number is still its own.
            let _ = sys::kill(nix::unistd::Pid::from_raw(*pid), libc::SIGKILL);
        }
    }
}

/// What the forked process does; it returns to nothing.
fn run(connection: OwnedFd, root: OwnedFd, user_namespace: Option<OwnedFd>) -> ! {
    let own = [&connection, &root]
        .into_iter()
        .chain(&user_namespace)
        .map(AsRawFd::as_raw_fd);
    let keep: Vec<_> = [0, 1, 2].into_iter().chain(own).collect();
    let ready = sys::close_all_but(&keep).is_ok()
        // Before anything of the container's when memory is short.
        && fs::write("/proc/self/oom_score_adj", "1000").is_ok()
        && user_namespace.is_none_or(|of| setns(of, CloneFlags::CLONE_NEWUSER).is_ok() && become_root().is_ok());
    let connection = UnixStream::from(connection);
    umask(Mode::empty());
    if ready && connection.set_nonblocking(false).is_ok() {
        // That the host has hung up is the end, however it shows.
        let _ = serve(&connection, &Root::from(root));
    }
    sys::exit_now(0)
}

fn serve(connection: &UnixStream, root: &Root) -> std::io::Result<()> {
    let (mut from, mut to) = (connection, connection);
    while let Some(request) = receive::<FileRequest>(&mut from)? {
        let answer = match request.kind.enum_value_or_default() {
            file_request::Kind::LOOK => root.look(path(&request), request.follow).map(found),
            file_request::Kind::READ => {
                let mut archive = ArchiveWriter::new(to);
                let result = pack(root, path(&request), request.follow, &request.name, &mut archive);
                archive.end()?;
                result.map(|()| FileAnswer::default())
            }
            file_request::Kind::WRITE => write(from, root, &request)?,
            file_request::Kind::UNKNOWN => return Ok(()),
        };
        let answer = answer.unwrap_or_else(|error| FileAnswer {
            error: error.to_string(),
            ..FileAnswer::default()
        });
        send(&mut to, &answer)?;
        to.flush()?;
    }
    Ok(())
}

fn path(request: &FileRequest) -> &Path {
    Path::new(OsStr::from_bytes(&request.path))
}

/// Unpacks the archive that comes; the outer error is the connection's.
fn write(from: impl Read, root: &Root, request: &FileRequest) -> std::io::Result<Result<FileAnswer, ArchiveError>> {
    let mut archive = ArchiveReader::new(from);
    let how = Unpacking {
        name: &request.name,
        owners: request.owners,
    };
    let result = unpack(root, path(request), how, &mut archive);
    // What stands behind an archive's end, and what was not read of one that is refused.
    archive.end()?;
    Ok(result.map(|()| FileAnswer::default()))
}

fn found(found: Found) -> FileAnswer {
    let kind = match found.kind {
        None => file_answer::Kind::NOTHING,
        Some(Kind::Directory) => file_answer::Kind::DIRECTORY,
        Some(Kind::File) => file_answer::Kind::FILE,
        Some(Kind::Symlink) => file_answer::Kind::SYMLINK,
        Some(Kind::Other) => file_answer::Kind::OTHER,
    };
    FileAnswer {
        kind: kind.into(),
        path: found.path.into_os_string().into_vec(),
        ..FileAnswer::default()
    }
}
