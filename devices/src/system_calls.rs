//! What a thread asks of the host's kernel: the lists beside the devices' code, from which whoever runs the devices can
//! make filters.
//!
//! A list holds what the code asks for itself, on top of what every thread of a program needs (memory, locks, clocks,
//! its end, writing to an event descriptor and closing one).

use libc::c_long;

/// A system call, with what its arguments must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemCall {
    /// The number that the architecture gives it.
    pub number: c_long,
    /// All of these hold.
    pub conditions: &'static [Condition],
}

/// What the lower 32 bits of an argument must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The argument's index, 0 to 5.
    pub argument: u8,
    /// The bits that count.
    pub mask: u32,
    /// Their values.
    pub value: u32,
}

impl SystemCall {
    /// Any use of a system call.
    #[must_use]
    pub const fn any(number: c_long) -> Self {
        Self {
            number,
            conditions: &[],
        }
    }

    /// A system call whose arguments meet all of the conditions.
    #[must_use]
    pub const fn with(number: c_long, conditions: &'static [Condition]) -> Self {
        Self { number, conditions }
    }
}

impl Condition {
    /// The argument has this value.
    #[must_use]
    pub const fn is(argument: u8, value: u32) -> Self {
        Self {
            argument,
            mask: u32::MAX,
            value,
        }
    }

    /// None of the flags is set in the argument.
    #[must_use]
    pub const fn lacks(argument: u8, flags: u32) -> Self {
        Self {
            argument,
            mask: flags,
            value: 0,
        }
    }

    /// All of the flags are set in the argument.
    #[must_use]
    pub const fn has(argument: u8, flags: u32) -> Self {
        Self {
            argument,
            mask: flags,
            value: flags,
        }
    }
}

/// How the standard library makes a socket non-blocking.
pub(crate) const NONBLOCKING: SystemCall = SystemCall::with(libc::SYS_ioctl, &[Condition::is(1, FIONBIO)]);

#[allow(clippy::cast_possible_truncation)] // a 32-bit number, whatever type the C library gives it
const FIONBIO: u32 = libc::FIONBIO as u32;
