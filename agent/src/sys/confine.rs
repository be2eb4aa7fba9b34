//! What a process may call, and as what the kernel presents itself to it.

use nix::errno::Errno;

/// A filter of system calls, ready to be loaded.
pub(crate) struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
}

impl Filter {
    /// From eight bytes an instruction; the kernel checks what they say.
    pub(crate) fn new(program: &[u8], flags: u32) -> Self {
        let (instructions, _) = program.as_chunks::<8>();
        let program = instructions
            .iter()
            .map(|[c0, c1, jt, jf, k @ ..]| libc::sock_filter {
                code: u16::from_le_bytes([*c0, *c1]),
                jt: *jt,
                jf: *jf,
                k: u32::from_le_bytes(*k),
            })
            .collect();
        Self {
            program,
            flags: flags.into(),
        }
    }

    /// Filters this process's system calls from now on.
    pub(crate) fn load(&mut self) -> nix::Result<()> {
        let program = libc::sock_fprog {
            len: libc::c_ushort::try_from(self.program.len()).map_err(|_| Errno::EINVAL)?,
            filter: self.program.as_mut_ptr(),
        };
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: the pointer is to a program whose length is the one given, and the kernel copies it.
        Errno::result(unsafe { libc::syscall(libc::SYS_seccomp, mode, self.flags, &raw const program) }).map(drop)
    }
}

/// Sets the process's execution domain (personality(2)).
pub(crate) fn set_personality(persona: u32) -> nix::Result<()> {
    // SAFETY: personality(2) touches no memory.
    Errno::result(unsafe { libc::personality(persona.into()) }).map(drop)
}
