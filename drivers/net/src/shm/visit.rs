//! Through a door and back: a ticket, and descriptors with it.

use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};

use super::{NAME, address};
use crate::NetError;

/// Connects to a door, and does not wait where too many do.
pub(super) fn connect(name: &[u8; NAME]) -> Result<UnixStream, NetError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connected = socket(AddressFamily::Unix, SockType::Stream, flags, None).and_then(|socket| {
        let door = UnixAddr::new_abstract(address(name).as_bytes())?;
        nix::sys::socket::connect(socket.as_raw_fd(), &door)?;
        Ok(UnixStream::from(socket))
    });
    let door = connected.map_err(|errno| NetError::Os(errno.into()))?;
    door.set_nonblocking(false)?;
    Ok(door)
}

/// Says what is said, the ticket first, and with it gives what is given; the answer may be read until the
/// deadline.
pub(super) fn show(
    door: &UnixStream,
    says: &[u8],
    gives: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> io::Result<()> {
    let left = |until: Instant| match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(ErrorKind::TimedOut)),
        left => Ok(Some(left)),
    };
    door.set_write_timeout(left(deadline)?)?;
    let files: Vec<RawFd> = gives.iter().map(AsRawFd::as_raw_fd).collect();
    let files = [ControlMessage::ScmRights(&files)];
    let files = if gives.is_some() { &files[..] } else { &[] };
    // So few bytes go whole or not at all.
    sendmsg::<()>(door.as_raw_fd(), &[IoSlice::new(says)], files, MsgFlags::MSG_NOSIGNAL, None)?;
    door.set_read_timeout(left(deadline)?)
}

/// A visit that failed: at its deadline, or for another reason.
pub(super) fn late(error: io::Error) -> NetError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => NetError::TimedOut,
        _ => NetError::Os(error),
    }
}

/// One message: how many bytes of it are in `into`, the descriptors that came with it, as many as `control` has
/// room for, and whether nothing of it was lost. (The wrapper that there is for this call forgets descriptors when some did not fit.)
pub(super) fn receive_some(
    door: &UnixStream,
    into: &mut [u8],
    control: &mut [u64],
) -> io::Result<(usize, Vec<OwnedFd>, bool)> {
    let mut bytes = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: a message header is plain numbers and pointers, for which zeros mean nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut bytes;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control) as _;
    let count = loop {
        // SAFETY: the header names `into` and `control` with their lengths, and both outlive the call.
        let count =
            unsafe { libc::recvmsg(door.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(count).map_err(|_| io::Error::last_os_error()) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            count => break count?,
        }
    };
    let mut files = Vec::new();
    // SAFETY: the kernel has filled the header in; the macros stay within the control bytes that it names.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: a header that the macros found is whole and lies in `control`.
        let (level, kind, length) =
            unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len as usize) };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: its data follow the header, up to its length.
            let (data, empty) = unsafe { (libc::CMSG_DATA(header), libc::CMSG_LEN(0) as usize) };
            for at in 0..(length - empty) / size_of::<RawFd>() {
                // SAFETY: the kernel has put a descriptor there that it made for us, and nobody else knows it.
                let file =
                    unsafe { OwnedFd::from_raw_fd(data.cast::<RawFd>().add(at).read_unaligned()) };
                files.push(file);
            }
        }
        // SAFETY: as for the first.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok((count, files, message.msg_flags & libc::MSG_CTRUNC == 0))
}
