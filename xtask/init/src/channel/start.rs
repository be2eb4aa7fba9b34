//! The first frame: everything that the emulated host has to know.

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// A directory of the machine's that the emulated host sees at the same path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The virtiofs device's tag; `None`: read-only, out of the machine's root file system.
    pub tag: Option<String>,
    /// The absolute path.
    pub path: Vec<u8>,
}

/// What the emulated host has to assemble and to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The command and its arguments, at least one.
    pub command: Vec<Vec<u8>>,
    /// `NAME=value` pairs, complete.
    pub environment: Vec<Vec<u8>>,
    /// The command's working directory.
    pub directory: Vec<u8>,
    /// Directory with the kernel's modules (it holds `modules.dep`), in the machine's root file system.
    pub modules: Vec<u8>,
    /// Mounted in this order.
    pub shares: Vec<Share>,
    /// Run the command on a pty of this size instead of three pipes.
    pub terminal: Option<WindowSize>,
}

impl WindowSize {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        out.extend(self.rows.to_le_bytes());
        out.extend(self.columns.to_le_bytes());
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let [r0, r1, c0, c1] = *bytes.as_array()?;
        Some(Self {
            rows: u16::from_le_bytes([r0, r1]),
            columns: u16::from_le_bytes([c0, c1]),
        })
    }
}

impl Start {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_list(out, &self.command);
        put_list(out, &self.environment);
        put_bytes(out, &self.directory);
        put_bytes(out, &self.modules);
        put_length(out, self.shares.len());
        for share in &self.shares {
            // A virtiofs tag is never empty.
            put_bytes(out, share.tag.as_deref().unwrap_or_default().as_bytes());
            put_bytes(out, &share.path);
        }
        if let Some(size) = self.terminal {
            size.encode(out);
        }
    }

    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let rest = &mut { payload };
        let command = take_list(rest)?;
        let environment = take_list(rest)?;
        let directory = take_bytes(rest)?;
        let modules = take_bytes(rest)?;
        let shares = (0..take_length(rest)?)
            .map(|_| take_share(rest))
            .collect::<Option<_>>()?;
        let terminal = if rest.is_empty() {
            None
        } else {
            Some(WindowSize::decode(rest)?)
        };
        (!command.is_empty()).then_some(Self {
            command,
            environment,
            directory,
            modules,
            shares,
            terminal,
        })
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    // Lengths beyond 32 bits do not pass MAX_PAYLOAD.
    out.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend(bytes);
}

fn put_list(out: &mut Vec<u8>, list: &[Vec<u8>]) {
    put_length(out, list.len());
    for item in list {
        put_bytes(out, item);
    }
}

fn take_length(rest: &mut &[u8]) -> Option<usize> {
    let (length, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*length) as usize)
}

fn take_bytes(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let length = take_length(rest)?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes.to_vec())
}

fn take_list(rest: &mut &[u8]) -> Option<Vec<Vec<u8>>> {
    // Collecting stops at the first item that is missing, so an absurd count allocates nothing.
    (0..take_length(rest)?).map(|_| take_bytes(rest)).collect()
}

fn take_share(rest: &mut &[u8]) -> Option<Share> {
    let tag = String::from_utf8(take_bytes(rest)?).ok()?;
    Some(Share {
        tag: (!tag.is_empty()).then_some(tag),
        path: take_bytes(rest)?,
    })
}
