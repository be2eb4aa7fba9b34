//! Signals by name, and those that are passed on.

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

/// The largest signal number (`SIGRTMAX`).
const LAST: i32 = 64;

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
    match Signal::from_str(&name) {
        Ok(signal) => Ok(signal as i32),
        Err(_) => Err("there is no such signal; use a name such as TERM or a number".into()),
    }
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
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for text in ["", "0", "65", "-9", "SIG", "SIGNONSENSE"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
