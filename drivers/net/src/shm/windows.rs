//! The client's end: windows, and what is read through them.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};

use super::{NAME, ROW, TICKET, WINDOWS_MAX, address};
use crate::NetError;

/// Bytes behind those that were read for which the processor is asked ahead: about as many as it can have on
/// their way.
const AHEAD: usize = 1024;
/// How long the pages of windows are looked up ahead, in all: hugepages of some hundred GiB, or ordinary ones of
/// one. The others are when they are first read, which takes twice the time of a copy.
const LOOK_UP: Duration = Duration::from_millis(100);
/// Bytes that are looked up in one call.
const STEP: usize = 64 << 20;

/// Memory of a server, as this process has it mapped: to read, and at no known address.
#[derive(Debug)]
pub struct Windows(Vec<MmapRaw>);

impl Windows {
    /// Gets all windows of the door of this name and maps them.
    ///
    /// # Errors
    /// [`NetError::TimedOut`] at the deadline; else the system's: most often that no such door is on this
    /// machine, that too many wait there, or that nothing was handed out.
    pub fn open(
        name: &[u8; NAME],
        ticket: &[u8; TICKET],
        deadline: Instant,
    ) -> Result<Windows, NetError> {
        let door = connect(name)?;
        let step = |set: &dyn Fn(Option<Duration>) -> io::Result<()>| {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { set(Some(left)) }
        };
        let told = step(&|left| door.set_write_timeout(left))
            .and_then(|()| (&door).write_all(ticket))
            .and_then(|()| step(&|left| door.set_read_timeout(left)))
            .and_then(|()| receive(&door));
        let (table, files) = told.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => NetError::TimedOut,
            _ => NetError::Os(error),
        })?;
        let rows = table.chunks_exact(ROW).map(|row| row.split_at(ROW / 2));
        let windows = rows.zip(files).map(|((start, length), file)| {
            let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
            map(file, number(start), number(length))
        });
        let windows: Vec<MmapRaw> = windows.collect::<io::Result<_>>().map_err(NetError::Os)?;
        let windows = Windows(windows);
        windows.look_up(deadline.min(Instant::now() + LOOK_UP));
        Ok(windows)
    }

    /// Has the pages of all windows mapped, as many as can be until then.
    fn look_up(&self, until: Instant) {
        for window in &self.0 {
            for at in (0..window.len()).step_by(STEP) {
                let length = STEP.min(window.len() - at);
                let done = window.advise_range(Advice::PopulateRead, at, length);
                // A hint, which systems before Linux 5.14 do not know.
                if done.is_err() || Instant::now() >= until {
                    return;
                }
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.0.len() as u32
    }

    /// Whether these bytes are in a window.
    pub fn holds(&self, window: u32, offset: u64, length: u64) -> bool {
        let window = self.0.get(window as usize).map_or(0, MmapRaw::len);
        offset.checked_add(length).is_some_and(|end| end <= window as u64)
    }

    /// Copies what stands at `offset` of a window into all of `into`. The server may be writing there if it
    /// is not what it should be: only the copy's CRC says what was copied.
    ///
    /// # Panics
    /// When the window does not [hold](Windows::holds) it.
    pub fn read(&self, window: u32, offset: u64, into: &mut [u8]) {
        assert!(self.holds(window, offset, into.len() as u64), "what is read lies in a window");
        let window = &self.0[window as usize];
        // SAFETY: the source lies in the mapping, as was just checked, whose file cannot become shorter.
        // The destination is ours alone, so they do not overlap. No reference is made of what another
        // process may write; bytes that change meanwhile are copied as one or the other.
        unsafe {
            let from = window.as_ptr().add(offset as usize);
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len());
        }
        // What stands behind it is most likely read next.
        let end = offset as usize + into.len();
        ask_for(window, end..window.len().min(end + AHEAD));
    }
}

/// Has the processor fetch these bytes of a window. A hint.
#[cfg(target_arch = "x86_64")]
fn ask_for(window: &MmapRaw, bytes: std::ops::Range<usize>) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    for at in bytes.step_by(64) {
        // SAFETY: the byte is in the window, and it is not read: nothing happens if it were not there.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(window.as_ptr().add(at).cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn ask_for(_window: &MmapRaw, _bytes: std::ops::Range<usize>) {}

/// Connects to a door, and does not wait where too many do.
fn connect(name: &[u8; NAME]) -> Result<UnixStream, NetError> {
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

/// Receives the table and the descriptors that it tells of, one for each row.
fn receive(door: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut table = vec![0; ROW * WINDOWS_MAX];
    let (count, files, whole) = receive_some(door, &mut table)?;
    table.truncate(count);
    match count {
        0 => Err(io::Error::new(ErrorKind::PermissionDenied, "the door gave nothing")),
        _ if whole && count == ROW * files.len() => Ok((table, files)),
        _ => Err(io::Error::new(ErrorKind::InvalidData, "another number of windows than was told")),
    }
}

/// One message: how many bytes of it are in `into`, the descriptors that came with it, and whether nothing of
/// it was lost. (The wrapper that there is for this call forgets descriptors when some did not fit.)
fn receive_some(door: &UnixStream, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>, bool)> {
    // Room for the descriptors and their header, aligned as headers are.
    let mut control = [0_u64; 8 + WINDOWS_MAX / 2];
    let mut bytes = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: a message header is plain numbers and pointers, for which zeros mean nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut bytes;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header names `into` and `control` with their lengths, and both outlive the call.
    let count =
        unsafe { libc::recvmsg(door.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
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

/// Maps a window to read. Memory that could become shorter under us would be a signal one day.
fn map(file: OwnedFd, start: u64, length: u64) -> io::Result<MmapRaw> {
    let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate)?;
    let file = File::from(file);
    let end = start.checked_add(length).filter(|_| length > 0);
    let whole = end.is_some_and(|end| file.metadata().is_ok_and(|file| end <= file.len()));
    let length = usize::try_from(length).ok().filter(|_| whole);
    let (Some(length), true) = (length, seals.contains(SealFlag::F_SEAL_SHRINK)) else {
        return Err(io::Error::new(ErrorKind::InvalidData, "a window that may become shorter"));
    };
    let window = MmapOptions::new().offset(start).len(length).map_raw_read_only(&file)?;
    // Of no use to who looks for what went wrong here, and not ours to show. A hint.
    let _ = window.advise(Advice::DontDump);
    Ok(window)
}
