//! Sizes as people write them.

use anyhow::{Context, Result};

/// Parses `4G`, `512M`, `512MiB`, `65536K` or plain bytes; the units are powers of 1024.
pub(crate) fn parse(text: &str) -> Result<u64> {
    parse_bytes(text).with_context(|| format!("{text:?} is no size; write 512M or 4G"))
}

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024_in_either_case() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("2k", 2048),
            ("512M", 512 << 20),
            ("4GiB", 4 << 30),
            ("1tb", 1 << 40),
        ] {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for text in ["", "G", "4 G", "-1M", "1.5G", "4X", "99999999999999G", "4Gi b"] {
            assert!(parse(text).unwrap_err().to_string().contains(text), "{text}");
        }
    }
}
