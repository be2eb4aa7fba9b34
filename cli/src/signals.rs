//! Signals by name, those that are passed on, and the one that asks a container to end.

use std::str::FromStr;

use nix::sys::signal::Signal;

/// The signals that are passed on to the container: those that people and service managers send.
pub(crate) const FORWARDED: [i32; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
];

/// The annotation with the signal that asks a container to end (OCI image specification, "Conversion to OCI Runtime
/// Configuration").
pub(crate) const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// The largest signal number (`SIGRTMAX`).
const LAST: i32 = 64;
/// The first real-time signal that C libraries leave to programs (`SIGRTMIN` of glibc): what images mean by it.
const FIRST_REAL_TIME: i32 = 34;

/// A signal's number from its name, with or without `SIG`, or number.
pub(crate) fn parse(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=LAST).contains(&number) {
            Ok(number)
        } else {
            Err(format!("signals are numbered from 1 to {LAST}"))
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    if let Some(number) = real_time(&name) {
        return Ok(number);
    }
    match Signal::from_str(&name) {
        Ok(signal) => Ok(signal as i32),
        Err(_) => Err("there is no such signal; use a name such as TERM or a number".into()),
    }
}

/// The number of a real-time signal, as `SIGRTMIN+3` or `SIGRTMAX-1`.
fn real_time(name: &str) -> Option<i32> {
    let (base, offset) = match (name.strip_prefix("SIGRTMIN"), name.strip_prefix("SIGRTMAX")) {
        (Some(offset), _) => (FIRST_REAL_TIME, offset),
        (_, Some(offset)) => (LAST, offset),
        _ => return None,
    };
    let offset = match offset {
        "" => 0,
        offset if offset.starts_with(['+', '-']) => offset.parse().ok()?,
        _ => return None,
    };
    let number = base.checked_add(offset)?;
    (FIRST_REAL_TIME..=LAST).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_understood() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("kill", 9),
            ("9", 9),
            ("sigusr1", 10),
            ("64", 64),
            ("SIGRTMIN+3", 37),
            ("rtmax-1", 63),
            ("RTMIN", 34),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for text in [
            "",
            "0",
            "65",
            "-9",
            "SIG",
            "SIGNONSENSE",
            "RTMIN-1",
            "RTMAX+1",
            "RTMIN3",
            "RTMIN+x",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
