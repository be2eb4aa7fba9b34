//! This end of the channel: the virtio-serial port.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use xtask_init::channel::{Decoder, Frame};

/// The driver announces the port a moment after it finds the device.
const PORT_WAIT: Duration = Duration::from_secs(60);

/// The port, non-blocking, with what is on its way in either direction.
pub(crate) struct Link {
    port: File,
    incoming: Decoder,
    outgoing: Vec<u8>,
    written: usize,
}

impl Link {
    /// Waits for the port's device node, opens it and says that the machine has booted.
    pub(crate) fn open() -> Result<Self> {
        let path = wait_for_port()?;
        let port = OpenOptions::new().read(true).write(true).open(&path);
        let mut port = port.with_context(|| format!("opening {}", path.display()))?;
        // A blocking write waits until the other side is connected; a poll would report a hang-up until then.
        let mut hello = Vec::new();
        Frame::Booted.encode(&mut hello);
        port.write_all(&hello).context("writing the first frame")?;
        fcntl(&port, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("O_NONBLOCK on the port")?;
        Ok(Self {
            port,
            incoming: Decoder::default(),
            outgoing: Vec::new(),
            written: 0,
        })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }

    /// Whether frames wait for the port to take them.
    pub(crate) fn has_backlog(&self) -> bool {
        self.written < self.outgoing.len()
    }

    /// Puts a frame behind those that wait.
    pub(crate) fn queue(&mut self, frame: &Frame) {
        if self.written == self.outgoing.len() {
            self.outgoing.clear();
            self.written = 0;
        }
        frame.encode(&mut self.outgoing);
    }

    /// Writes what the port takes now.
    pub(crate) fn flush(&mut self) -> Result<()> {
        while self.has_backlog() {
            match self.port.write(&self.outgoing[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("writing to the channel"),
            }
        }
        Ok(())
    }

    /// The next frame that has arrived whole.
    pub(crate) fn receive(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.incoming.next_frame()? {
                return Ok(Some(frame));
            }
            let mut piece = [0; 64 * 1024];
            match self.port.read(&mut piece) {
                Ok(0) => bail!("the other end of the channel is closed"),
                Ok(count) => self.incoming.push(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading from the channel"),
            }
        }
    }

    /// Waits for a frame. xtask bounds the wait: it ends the machine.
    pub(crate) fn receive_blocking(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.receive()? {
                return Ok(frame);
            }
            self.wait(PollFlags::POLLIN)?;
        }
    }

    /// Sends a frame and all before it. xtask bounds the wait: it ends the machine.
    pub(crate) fn send_blocking(&mut self, frame: &Frame) -> Result<()> {
        self.queue(frame);
        self.flush()?;
        while self.has_backlog() {
            self.wait(PollFlags::POLLOUT)?;
            self.flush()?;
        }
        Ok(())
    }

    fn wait(&self, events: PollFlags) -> Result<()> {
        match poll(&mut [PollFd::new(self.port.as_fd(), events)], PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("waiting for the channel"),
        }
    }
}

fn wait_for_port() -> Result<PathBuf> {
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("inotify")?;
    watch
        .add_watch("/dev", AddWatchFlags::IN_CREATE)
        .context("watching /dev")?;
    let deadline = Instant::now() + PORT_WAIT;
    loop {
        for entry in std::fs::read_dir("/dev").context("listing /dev")? {
            let entry = entry.context("listing /dev")?;
            if entry.file_name().as_encoded_bytes().starts_with(b"vport") {
                return Ok(entry.path());
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], timeout).context("waiting for the port")? == 0 {
            bail!("no virtio-serial port appeared in {} s", PORT_WAIT.as_secs());
        }
        watch.read_events().context("reading inotify")?;
    }
}
