//! The answer to the shim's last call.

use std::thread;

use containerd_shim_protos::ttrpc::proto::MESSAGE_TYPE_RESPONSE;
use containerd_shim_protos::ttrpc::r#sync::TtrpcContext;
use nix::sys::socket::{MsgFlags, send};

use crate::pod::Pod;

/// Answers a call that ends the shim, and lets it end. An answer that the handler returned would be written by a thread of the
/// server's, and the process could be gone before that.
pub(crate) fn answer(context: &TtrpcContext, pod: &Pod) -> ! {
    if let Err(error) = write(context) {
        // Whoever asked has gone.
        tracing::debug!(%error, "the last call is not answered");
    }
    pod.let_end();
    // The handler must not answer once more.
    loop {
        thread::park();
    }
}

/// One call: on a stream socket no other thread's answer comes in between. It does not wait for one who does not read.
fn write(context: &TtrpcContext) -> nix::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(context.fd, &frame(context.mh.stream_id), flags).map(drop)
}

/// A ttrpc frame (PROTOCOL.md of containerd/ttrpc): the length, the stream, the type, no flags, and a Response with an empty
/// status, which is OK, and no payload, which is an empty message.
fn frame(stream: u32) -> [u8; 12] {
    let mut frame = [0, 0, 0, 2, 0, 0, 0, 0, MESSAGE_TYPE_RESPONSE, 0, 0x0a, 0];
    frame[4..8].copy_from_slice(&stream.to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::ttrpc::proto::{Codec, MessageHeader, Response};

    use super::*;

    #[test]
    fn the_frame_is_an_empty_answer() {
        let frame = frame(7);
        let header = MessageHeader::from(&frame[..10]);
        assert_eq!(
            (header.length, header.stream_id, header.type_),
            (2, 7, MESSAGE_TYPE_RESPONSE)
        );
        let response = Response::decode(&frame[10..]).unwrap();
        assert_eq!((response.status.code.value(), response.payload.len()), (0, 0));
    }
}
