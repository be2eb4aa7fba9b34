//! What compresses layers and archives, told by their first bytes.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::FrameDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

/// How much is read at once, in bytes.
const BUFFER: usize = 256 << 10;

/// A source with its first bytes put back.
type Source<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// An uncompressed stream.
pub(crate) enum Decompressed<R: Read> {
    Plain(Source<R>),
    Gzip(Box<MultiGzDecoder<Source<R>>>),
    Zstd(Box<Zstd<Source<R>>>),
}

impl<R: Read> Decompressed<R> {
    /// Looks at the first bytes.
    pub(crate) fn new(mut source: R) -> io::Result<Self> {
        let mut first = Vec::new();
        source.by_ref().take(4).read_to_end(&mut first)?;
        let kind: [u8; 4] = std::array::from_fn(|index| first.get(index).copied().unwrap_or(0));
        let source = BufReader::with_capacity(BUFFER, Cursor::new(first).chain(source));
        Ok(match kind {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(MultiGzDecoder::new(source))),
            // RFC 8878: a frame, or one of the sixteen kinds of frames that are passed over.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Self::Zstd(Box::new(Zstd::new(source))),
            _ => Self::Plain(source),
        })
    }

    /// Whether it is compressed at all.
    pub(crate) fn is_compressed(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// Zstandard frames one behind the other.
pub(crate) struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        Self {
            source,
            decoder: FrameDecoder::new(),
            in_frame: false,
        }
    }

    /// Begins the next frame; says whether there is one.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => {
                    self.in_frame = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    let skipped = io::copy(&mut self.source.by_ref().take(length), &mut io::sink())?;
                    if skipped < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(invalid(error)),
            }
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.begin()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let some = ruzstd::decoding::BlockDecodingStrategy::UptoBytes(buffer.len());
                self.decoder.decode_blocks(&mut self.source, some).map_err(invalid)?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.in_frame = false;
            let stated = self.decoder.get_checksum_from_data();
            if stated.is_some() && stated != self.decoder.get_calculated_checksum() {
                return Err(invalid("the checksum of a zstd frame is wrong"));
            }
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn text() -> Vec<u8> {
        (0..200_000_u32).flat_map(|word| (word / 7).to_le_bytes()).collect()
    }

    fn through(program: &str, input: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .arg("-c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output.stdout
    }

    fn decompressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut output = Vec::new();
        Decompressed::new(bytes)?.read_to_end(&mut output)?;
        Ok(output)
    }

    #[test]
    fn each_format_is_told_by_its_first_bytes() {
        for program in ["gzip", "zstd", "cat"] {
            let program = if program == "cat" { None } else { Some(program) };
            let text = text();
            let packed = program.map_or(text.clone(), |program| through(program, &text));
            assert_eq!(
                Decompressed::new(&packed[..]).unwrap().is_compressed(),
                program.is_some()
            );
            assert!(decompressed(&packed).unwrap() == text, "{program:?}");
        }
        assert_eq!(decompressed(b"").unwrap(), b"");
        assert_eq!(decompressed(b"ab").unwrap(), b"ab");
    }

    #[test]
    fn several_parts_are_one_stream() {
        let text = text();
        let (one, two) = text.split_at(1234);
        for program in ["gzip", "zstd"] {
            let mut packed = through(program, one);
            if program == "zstd" {
                packed.extend_from_slice(&[0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
            }
            packed.extend(through(program, two));
            assert!(decompressed(&packed).unwrap() == text, "{program}");
        }
    }

    #[test]
    fn what_is_cut_or_changed_is_an_error() {
        for program in ["gzip", "zstd"] {
            let packed = through(program, &text());
            for length in [5, 20, packed.len() / 2, packed.len() - 1] {
                assert!(decompressed(&packed[..length]).is_err(), "{program} {length}");
            }
            let mut changed = packed.clone();
            let middle = changed.len() / 2;
            changed[middle] ^= 0x55;
            assert!(decompressed(&changed).is_err(), "{program}");
        }
        let skip = [0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1];
        assert!(decompressed(&skip).is_err());
    }
}
