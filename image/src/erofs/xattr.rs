//! Extended attributes as they stand behind an inode (`struct erofs_xattr_ibody_header`, `struct erofs_xattr_entry`).

/// Names' beginnings that are one byte on the disk (`EROFS_XATTR_INDEX_*`). Those of access control lists are whole.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
const HEADER: usize = 12;

/// The index of a name and what is left of the name; none for a name that Linux does not have.
#[must_use]
pub fn index(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        // A name is a list's exactly or has something behind the point.
        (prefix.ends_with(b".") != rest.is_empty()).then_some((*index, rest))
    })
}

/// The bytes behind the inode, a multiple of four; nothing if there are no attributes.
pub(super) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![0; HEADER];
    for (name, value) in xattrs {
        let Some((index, rest)) = index(name) else { continue };
        // Both lengths were checked when the layer was read.
        let (Ok(name_length), Ok(value_length)) = (u8::try_from(rest.len()), u16::try_from(value.len())) else {
            continue;
        };
        body.extend_from_slice(&[name_length, index]);
        body.extend_from_slice(&value_length.to_le_bytes());
        body.extend_from_slice(rest);
        body.extend_from_slice(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    if body.len() == HEADER { Vec::new() } else { body }
}

/// `i_xattr_icount`: the header counts as one, then each four bytes.
pub(super) fn count(length: usize) -> u16 {
    match length.checked_sub(HEADER) {
        Some(rest) => u16::try_from(rest / 4 + 1).unwrap_or(u16::MAX),
        None => 0,
    }
}
