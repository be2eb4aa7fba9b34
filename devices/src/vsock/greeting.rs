//! What a client of the host says first: the port that it wants.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;

use super::socket;

/// The longest greeting with its line end: `CONNECT 4294967295\n` and some room for leading zeros.
const MAX_LINE: usize = 32;

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// The line is not complete yet.
    Partial,
    /// The line is complete and has been taken out of the socket, and nothing behind it.
    Port(u32),
    /// The client does not speak this protocol, or has gone.
    Invalid,
}

/// Looks whether a client has said its line.
pub(super) fn read(socket: &UnixStream) -> Greeting {
    let mut line = [0; MAX_LINE];
    let count = match socket::peek(socket, &mut line) {
        Ok(0) => return Greeting::Invalid,
        Ok(count) => count,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            return Greeting::Partial;
        }
        Err(_) => return Greeting::Invalid,
    };
    let Some(end) = line[..count].iter().position(|byte| *byte == b'\n') else {
        return if count < MAX_LINE {
            Greeting::Partial
        } else {
            Greeting::Invalid
        };
    };
    // What follows the line belongs to the stream: it stays where it is.
    let mut taken = [0; MAX_LINE];
    match socket::read(socket, &mut taken[..=end]) {
        Ok(count) if count == end + 1 => parse(&line[..end]).map_or(Greeting::Invalid, Greeting::Port),
        _ => Greeting::Invalid,
    }
}

/// The port in a line without its end. `u32::MAX` stands for "any port" and is none.
fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let port = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (port != u32::MAX).then_some(port)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_in_pieces_is_taken_whole_and_nothing_behind_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(read(&ours), Greeting::Partial);
        theirs.write_all(b"CONNECT 10").unwrap();
        assert_eq!(read(&ours), Greeting::Partial);
        theirs.write_all(b"24\nfirst data").unwrap();
        assert_eq!(read(&ours), Greeting::Port(1024));
        drop(theirs);
        let mut rest = String::new();
        (&ours).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "first data");
    }

    #[test]
    fn what_is_no_greeting_is_refused() {
        for line in [
            "\n",
            "CONNECT\n",
            "CONNECT \n",
            "CONNECT 1024 \n",
            "CONNECT +1\n",
            "CONNECT -1\n",
            "CONNECT 4294967295\n",
            "CONNECT 4294967296\n",
            "connect 1\n",
            "CONNECT 1\r\n",
            "CONNECT 00000000000000000000000000000001\n",
        ] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(line.as_bytes()).unwrap();
            assert_eq!(read(&ours), Greeting::Invalid, "{line:?}");
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(read(&ours), Greeting::Invalid, "gone");
    }

    proptest! {
        #[test]
        fn every_port_but_any_is_understood(port in 0..u32::MAX) {
            prop_assert_eq!(parse(format!("CONNECT {port}").as_bytes()), Some(port));
        }

        #[test]
        fn no_line_breaks_the_parser(line in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(port) = parse(&line) {
                let digits = String::from_utf8(line[8..].to_vec()).unwrap();
                prop_assert_eq!(digits.trim_start_matches('0').len(), port.to_string().trim_start_matches('0').len());
            }
        }
    }
}
