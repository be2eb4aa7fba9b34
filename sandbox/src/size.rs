//! Sizes as people write them.

use husk_vmm_config::MIN_MEMORY_MIB;
use thiserror::Error;

/// The most memory that can be asked for, in MiB: 1 TiB.
pub(crate) const MAX_MEMORY_MIB: u32 = 1 << 20;

/// Why a text is no size of a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum SizeError {
    #[error("use a number with K, M or G, such as 512M")]
    Form,
    #[error("a guest needs at least {MIN_MEMORY_MIB}M")]
    Little,
    #[error("at most 1T is possible")]
    Much,
}

/// A size in bytes with an optional unit, as docker takes it.
///
/// # Errors
/// What is wrong with it.
pub fn bytes(text: &str) -> Result<u64, SizeError> {
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &lower[number.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(SizeError::Form),
    };
    let number: u64 = number.parse().map_err(|_| SizeError::Form)?;
    number.checked_mul(1 << shift).ok_or(SizeError::Much)
}

/// The same, to whole MiB that a guest can have.
///
/// # Errors
/// What is wrong with it.
pub fn memory_mib(text: &str) -> Result<u32, SizeError> {
    let bytes = bytes(text)?;
    match u32::try_from(bytes.div_ceil(1 << 20)) {
        Ok(..MIN_MEMORY_MIB) => Err(SizeError::Little),
        Ok(mib @ ..=MAX_MEMORY_MIB) => Ok(mib),
        _ => Err(SizeError::Much),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_whole_mebibytes() {
        for (text, size) in [
            ("512M", Ok(512)),
            ("2g", Ok(2048)),
            ("33554433", Ok(33)),
            ("1T", Ok(1 << 20)),
            ("1M", Err(SizeError::Little)),
            ("2T", Err(SizeError::Much)),
            ("99999999999999999999", Err(SizeError::Form)),
            ("99999999999999T", Err(SizeError::Much)),
            ("", Err(SizeError::Form)),
            ("5X", Err(SizeError::Form)),
            ("-5M", Err(SizeError::Form)),
        ] {
            assert_eq!(memory_mib(text), size, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,12}") {
            let _ = memory_mib(&text);
        }
    }
}
