//! The end of a thread that makes a system call which its filter does not allow: the machine's, with a report that
//! names the call.
//!
//! The kernel does not make the call and sends the thread SIGSYS instead. If the signal is blocked or its handler is
//! gone, the kernel ends the process. All of this is done in the handler, so nothing here allocates or locks.
#![allow(unsafe_code)]

use std::fmt::{self, Write};
use std::io;
use std::sync::{Arc, OnceLock};

use libc::{c_int, c_uint, c_void, siginfo_t};
use syscalls::Sysno;

use super::filters::Kind;
use crate::report::{Reporter, VIOLATION};

/// Where the report goes.
static REPORTER: OnceLock<Arc<Reporter>> = OnceLock::new();

/// `SYS_SECCOMP`: the signal comes from a filter, and not from another process.
const FROM_FILTER: c_int = 1;

/// What `siginfo_t` holds of a SIGSYS on 64-bit architectures.
#[repr(C)]
struct Trapped {
    signal: c_int,
    error: c_int,
    code: c_int,
    _padding: c_int,
    _address: *const c_void,
    system_call: c_int,
    _architecture: c_uint,
}

/// Lets violations end the process, told to `reporter`. Only the first reporter is ever told.
///
/// # Errors
/// The kernel refuses the handler.
pub fn report_to(reporter: &Arc<Reporter>) -> io::Result<()> {
    REPORTER.get_or_init(|| Arc::clone(reporter));
    // SAFETY: all zeros is a valid value of the structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = violated as *const () as usize;
    // On the stack that the standard library gives each thread for signals: its own may be what is broken.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the action is whole, and its handler only does what a handler may.
    if unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The owner's mask is inherited, and a blocked signal would end the process without a word.
    vmm_sys_util::signal::unblock_signal(libc::SIGSYS).map_err(|_| io::Error::last_os_error())
}

extern "C" fn violated(_: c_int, information: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO the signal's information, which is larger than this.
    let Trapped { code, system_call, .. } = unsafe { information.cast::<Trapped>().read() };
    if code != FROM_FILTER {
        return;
    }
    let thread = Kind::own().map_or("unknown", Kind::name);
    if let Some(owner) = REPORTER.get().and_then(|reporter| reporter.claim()) {
        say(owner, report(thread, system_call));
    }
    say(libc::STDERR_FILENO, complaint(thread, system_call));
    // SAFETY: the process ends; nothing of it is used any more.
    unsafe { libc::_exit(VIOLATION.into()) }
}

/// A report as the owner reads it.
fn report(thread: &str, system_call: c_int) -> Text {
    let name = Name(system_call);
    Text::of(format_args!(
        "{{\"end\":{{\"end\":\"violation\",\"thread\":\"{thread}\",\"system_call\":\"{name}\"}},\"exits\":{{}},\"phases\":[]}}"
    ))
}

fn complaint(thread: &str, system_call: c_int) -> Text {
    let name = Name(system_call);
    Text::of(format_args!(
        "husk-vmm: the {thread} thread made the system call {name}, which its filter does not allow\n"
    ))
}

fn say(to: c_int, text: Text) {
    let Text { bytes, length } = text;
    // SAFETY: the bytes are initialized, and there are more than `length`.
    let _ = unsafe { libc::write(to, bytes.as_ptr().cast(), length) };
}

/// A system call's name, or its number.
struct Name(c_int);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match usize::try_from(self.0).ok().and_then(Sysno::new) {
            Some(call) => f.write_str(call.name()),
            None => write!(f, "number {}", self.0),
        }
    }
}

/// A text that needs no allocation; what does not fit is cut off.
struct Text {
    bytes: [u8; 256],
    length: usize,
}

impl Text {
    fn of(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self {
            bytes: [0; 256],
            length: 0,
        };
        // It never fails.
        let _ = text.write_fmt(arguments);
        text
    }
}

impl Write for Text {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        for (target, byte) in self.bytes.iter_mut().skip(self.length).zip(piece.bytes()) {
            *target = byte;
            self.length += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_vmm_config::{End, Report};

    fn read(text: &Text) -> Report {
        serde_json::from_slice(&text.bytes[..text.length]).unwrap()
    }

    #[test]
    fn the_report_is_one_that_the_owner_understands() {
        let number = c_int::try_from(libc::SYS_openat).unwrap();
        for (number, name) in [(number, "openat"), (9999, "number 9999"), (-7, "number -7")] {
            for kind in Kind::ALL {
                let expected = End::Violation {
                    thread: kind.name().into(),
                    system_call: name.into(),
                };
                assert_eq!(read(&report(kind.name(), number)).end, expected);
            }
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_cut() {
        let text = Text::of(format_args!("{}{}", "a".repeat(200), "b".repeat(200)));
        assert_eq!((text.length, text.bytes[199], text.bytes[255]), (256, b'a', b'b'));
    }
}
