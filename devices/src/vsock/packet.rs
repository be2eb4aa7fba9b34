//! The header of a packet, as it lies in guest memory (section 5.10.6).

/// The size of a header in bytes.
pub(super) const HEADER_LEN: usize = 44;

/// The only socket type that the device serves: a stream.
pub(super) const TYPE_STREAM: u16 = 1;

/// Flag of a [`op::SHUTDOWN`]: the sender will not receive any more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of a [`op::SHUTDOWN`]: the sender will not send any more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both directions of a [`op::SHUTDOWN`].
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for. Plain numbers, because the guest can send any.
pub(super) mod op {
    /// Asks for a connection.
    pub(in super::super) const REQUEST: u16 = 1;
    /// Accepts a connection.
    pub(in super::super) const RESPONSE: u16 = 2;
    /// Refuses or ends a connection.
    pub(in super::super) const RST: u16 = 3;
    /// Ends one or both directions.
    pub(in super::super) const SHUTDOWN: u16 = 4;
    /// Carries data.
    pub(in super::super) const RW: u16 = 5;
    /// Tells the sender's free buffer space.
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    /// Asks for a [`CREDIT_UPDATE`].
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// `struct virtio_vsock_hdr`, in the host's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Context id of the sender.
    pub(super) src_cid: u64,
    /// Context id of the receiver.
    pub(super) dst_cid: u64,
    /// Port of the sender.
    pub(super) src_port: u32,
    /// Port of the receiver.
    pub(super) dst_port: u32,
    /// Bytes that follow the header.
    pub(super) len: u32,
    /// Socket type.
    pub(super) kind: u16,
    /// One of [`op`].
    pub(super) op: u16,
    /// Meaning depends on `op`.
    pub(super) flags: u32,
    /// Size of the sender's receive buffer.
    pub(super) buf_alloc: u32,
    /// How many bytes the sender has taken out of its receive buffer, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Reads a header from its wire form.
    pub(super) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            kind: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    /// The header's wire form.
    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The reset that answers this packet when no connection stands behind it.
    pub(super) fn reset_reply(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            // Of the same type, so that the guest finds the socket that it belongs to.
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

/// Cuts a header into its fields.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next `N` bytes. The fields' sizes add up to the header's, so there are always enough.
    fn next<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        if let Some((bytes, rest)) = self.0.split_first_chunk::<N>() {
            field = *bytes;
            self.0 = rest;
        }
        field
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1112_1314,
            dst_port: 0x2122_2324,
            len: 0x3132_3334,
            kind: 0x4142,
            op: 0x5152,
            flags: 0x6162_6364,
            buf_alloc: 0x7172_7374,
            fwd_cnt: 0x8182_8384,
        };
        let expected = [
            8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21, 0x34, 0x33,
            0x32, 0x31, 0x42, 0x41, 0x52, 0x51, 0x64, 0x63, 0x62, 0x61, 0x74, 0x73, 0x72, 0x71, 0x84, 0x83, 0x82, 0x81,
        ];
        assert_eq!(header.to_bytes(), expected);
        assert_eq!(Header::from_bytes(&expected), header);
    }

    #[test]
    fn a_reset_goes_back_to_where_the_packet_came_from() {
        let header = Header {
            src_cid: 3,
            dst_cid: 9,
            src_port: 10,
            dst_port: 11,
            len: 4,
            kind: 2,
            op: op::RW,
            flags: 1,
            buf_alloc: 5,
            fwd_cnt: 6,
        };
        let reset = header.reset_reply();
        assert_eq!((reset.src_cid, reset.dst_cid), (9, 3));
        assert_eq!((reset.src_port, reset.dst_port), (11, 10));
        assert_eq!((reset.kind, reset.op, reset.len, reset.flags), (2, op::RST, 0, 0));
    }

    proptest! {
        #[test]
        fn every_header_survives_the_way_through_bytes(bytes in any::<[u8; 32]>(), tail in any::<[u8; 12]>()) {
            let mut wire = [0; HEADER_LEN];
            wire[..32].copy_from_slice(&bytes);
            wire[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::from_bytes(&wire).to_bytes(), wire);
        }
    }
}
