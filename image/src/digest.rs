//! Digests of blobs (OCI image specification, "Digests"), and readers that compute them.

use std::io::{self, Read};

pub use oci_spec::image::Digest;
use oci_spec::image::DigestAlgorithm;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// What a digest's algorithm computes.
enum Hash {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hash {
    /// None for an algorithm that husk does not have.
    fn new(algorithm: &DigestAlgorithm) -> Option<Self> {
        Some(match algorithm {
            DigestAlgorithm::Sha256 => Self::Sha256(Sha256::new()),
            DigestAlgorithm::Sha384 => Self::Sha384(Sha384::new()),
            DigestAlgorithm::Sha512 => Self::Sha512(Sha512::new()),
            _ => return None,
        })
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha384(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> String {
        let hash = match self {
            Self::Sha256(hash) => hash.finalize().to_vec(),
            Self::Sha384(hash) => hash.finalize().to_vec(),
            Self::Sha512(hash) => hash.finalize().to_vec(),
        };
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Counts and hashes what is read through it.
pub(crate) struct Hashing<R> {
    source: R,
    hash: Option<Hash>,
    count: u64,
    limit: u64,
    is_exceeded: bool,
}

impl<R: Read> Hashing<R> {
    /// Hashes as `digest` is hashed, or not at all, and fails when there are more than `limit` bytes. None for an
    /// algorithm that husk does not have.
    pub(crate) fn new(source: R, digest: Option<&Digest>, limit: u64) -> Option<Self> {
        let hash = match digest {
            Some(digest) => Some(Hash::new(digest.algorithm())?),
            None => None,
        };
        Some(Self {
            source,
            hash,
            count: 0,
            limit,
            is_exceeded: false,
        })
    }

    /// Whether there was more than the limit.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.is_exceeded
    }

    /// Reads what is left; gives the number of all bytes, and their hash in hexadecimal digits.
    pub(crate) fn finish(mut self) -> io::Result<(u64, Option<String>)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.count, self.hash.map(Hash::finish)))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.count += count as u64;
        if self.count > self.limit {
            self.is_exceeded = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..count]);
        }
        Ok(count)
    }
}
