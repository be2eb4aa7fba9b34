//! Calls on unix sockets that the standard library lacks: vectored I/O on guest memory, and looking ahead. None of them
//! blocks or raises SIGPIPE, whatever the socket's own mode.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use libc::{c_int, c_void, iovec, msghdr};
use vm_memory::VolatileSlice;

/// The most pieces that one call takes (the kernel's `UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// Receives into guest memory, at most up to `limit` bytes and the first 1,024 pieces; 0 is the end of the stream.
pub(super) fn receive<'m>(
    socket: &UnixStream,
    slices: impl Iterator<Item = VolatileSlice<'m>>,
    limit: usize,
) -> io::Result<usize> {
    let mut vector = vector(slices, limit);
    let mut message = message(&mut vector);
    // SAFETY: the vector's pieces are parts of guest memory, which stays mapped while the slices live; the guest may
    // change it at any time, so nobody here holds a reference into it. The message refers to the vector, which lives.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    checked(count)
}

/// Sends from guest memory, at most up to the first 1,024 pieces. The count may be smaller than what there is.
pub(super) fn send<'m>(socket: &UnixStream, slices: impl Iterator<Item = VolatileSlice<'m>>) -> io::Result<usize> {
    send_vector(socket, vector(slices, usize::MAX))
}

/// Sends bytes of our own. The count may be smaller than what there is.
pub(super) fn send_bytes(socket: &UnixStream, parts: [&[u8]; 2]) -> io::Result<usize> {
    let vector = parts
        .iter()
        .map(|part| iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        })
        .collect();
    send_vector(socket, vector)
}

/// The pieces of `slices` in the kernel's form, cut off at `limit` bytes and [`MAX_PIECES`].
fn vector<'m>(slices: impl Iterator<Item = VolatileSlice<'m>>, limit: usize) -> Vec<iovec> {
    let mut room = limit;
    slices
        .take(MAX_PIECES)
        .map_while(|slice| {
            let len = slice.len().min(room);
            room -= len;
            (len > 0 || slice.is_empty()).then(|| iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: len,
            })
        })
        .collect()
}

fn message(vector: &mut [iovec]) -> msghdr {
    // SAFETY: a message header is plain data for which all zeros is a valid value.
    let mut message: msghdr = unsafe { mem::zeroed() };
    message.msg_iov = vector.as_mut_ptr();
    // The field's type depends on the C library.
    #[allow(clippy::cast_possible_truncation)] // at most 1,024
    {
        message.msg_iovlen = vector.len() as _;
    }
    message
}

fn send_vector(socket: &UnixStream, mut vector: Vec<iovec>) -> io::Result<usize> {
    let message = message(&mut vector);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pieces are readable: parts of guest memory that stays mapped while the caller's slices live, or of
    // slices that the caller holds. The message refers to the vector, which lives.
    let count = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    checked(count)
}

/// Copies what a socket will give next without taking it; 0 is the end of the stream.
pub(super) fn peek(socket: &UnixStream, target: &mut [u8]) -> io::Result<usize> {
    receive_bytes(socket, target, libc::MSG_PEEK)
}

/// Receives into memory of our own; 0 is the end of the stream.
pub(super) fn read(socket: &UnixStream, target: &mut [u8]) -> io::Result<usize> {
    receive_bytes(socket, target, 0)
}

fn receive_bytes(socket: &UnixStream, target: &mut [u8], flags: c_int) -> io::Result<usize> {
    let start = target.as_mut_ptr().cast::<c_void>();
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: the buffer is a live slice of exactly this length.
    let count = unsafe { libc::recv(socket.as_raw_fd(), start, target.len(), flags) };
    checked(count)
}

/// Whether a descriptor is a unix socket of this type, and listens or not.
pub(super) fn is_unix(socket: &impl AsFd, kind: c_int, listening: bool) -> io::Result<bool> {
    let socket = socket.as_fd();
    Ok(option(socket, libc::SO_DOMAIN)? == libc::AF_UNIX
        && option(socket, libc::SO_TYPE)? == kind
        && option(socket, libc::SO_ACCEPTCONN)? == c_int::from(listening))
}

/// Reads a socket option that is a number.
fn option(socket: BorrowedFd<'_>, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len: libc::socklen_t = 4;
    let target = (&raw mut value).cast::<c_void>();
    // SAFETY: value and length are live, and the length is that of the value.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, target, &raw mut len) };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The kernel's way of returning a count or an error.
fn checked(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
