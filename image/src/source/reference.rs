//! How a person names an image: `PATH` or `PATH:TAG`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// An image's files, and which of the images in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// A directory or an archive.
    pub path: PathBuf,
    /// The image's tag, if one is named.
    pub tag: Option<String>,
}

impl Reference {
    /// Tells path and tag from each other by what exists: both may have colons.
    #[must_use]
    pub fn find(text: &OsStr) -> Self {
        Self::find_with(text, |path| PathBuf::from(path).exists())
    }

    fn find_with(text: &OsStr, exists: impl Fn(&OsStr) -> bool) -> Self {
        let whole = Self {
            path: text.into(),
            tag: None,
        };
        if exists(text) {
            return whole;
        }
        let bytes = text.as_bytes();
        let colons = bytes.iter().enumerate().filter(|(_, byte)| **byte == b':');
        for (colon, _) in colons {
            let (path, tag) = (OsStr::from_bytes(&bytes[..colon]), &bytes[colon + 1..]);
            if let Ok(tag) = std::str::from_utf8(tag)
                && !tag.is_empty()
                && exists(path)
            {
                return Self {
                    path: OsString::from_vec(bytes[..colon].to_vec()).into(),
                    tag: Some(tag.into()),
                };
            }
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_begins_where_the_path_ends() {
        let there = ["img", "with:colon", "img:9"];
        for (text, path, tag) in [
            ("img", "img", None),
            ("img:1.0", "img", Some("1.0")),
            ("img:busybox:1.36", "img", Some("busybox:1.36")),
            ("img:sha256:00", "img", Some("sha256:00")),
            ("with:colon", "with:colon", None),
            ("with:colon:x", "with:colon", Some("x")),
            ("img:9", "img:9", None),
            ("none", "none", None),
            ("none:1", "none:1", None),
            ("img:", "img:", None),
        ] {
            let found = Reference::find_with(OsStr::new(text), |path| there.iter().any(|name| path == *name));
            assert_eq!((found.path.to_str(), found.tag.as_deref()), (Some(path), tag), "{text}");
        }
    }
}
