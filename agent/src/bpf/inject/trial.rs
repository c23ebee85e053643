//! The trial: a loopback connection whose near end is followed, and all that
//! its owner may do without blocking. Bias: one answer that a socket which is
//! not followed would not give ends it.
//!
//! Reads that block are not tried: no kernel keeps them right in a followed
//! socket, so sockets that block are not followed.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use aya::maps::{MapData, SockHash};

use crate::bpf::load::chain;

/// Bytes that are sent at a time.
const TRIAL: usize = 1000;
/// Bytes that no send buffer holds.
const LARGE: usize = 8 << 20;
/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long FIONREAD may take to be right.
const COUNTING: Duration = Duration::from_millis(250);
/// A key that is no socket's cookie: those count from 1.
const KEY: u64 = 0;

/// Tries it. True: followed sockets say how many bytes they hold.
///
/// # Errors
/// What a followed socket did wrong.
pub(super) fn run(sockets: &mut SockHash<&mut MapData, u64>) -> Result<bool, String> {
    let (mut near, mut far) = followed(sockets)?;
    let result = calls(&mut near, &mut far);
    // They are closed in a moment, which removes them too.
    let _ = sockets.remove(&KEY);
    let counts = result?;
    let (mut near, far) = followed(sockets)?;
    let result = reset(&mut near, far);
    let _ = sockets.remove(&KEY);
    result?;
    let (mut near, mut far) = followed(sockets)?;
    let result = let_go(&mut near, &mut far, sockets);
    let _ = sockets.remove(&KEY);
    result?;
    Ok(counts)
}

fn io(error: std::io::Error) -> String {
    format!("loopback: {error}")
}

/// A connection: the near end is followed and does not block.
fn followed(sockets: &mut SockHash<&mut MapData, u64>) -> Result<(TcpStream, TcpStream), String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(io)?;
    let near = TcpStream::connect(listener.local_addr().map_err(io)?).map_err(io)?;
    let (far, _) = listener.accept().map_err(io)?;
    near.set_nonblocking(true).map_err(io)?;
    far.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    far.set_write_timeout(Some(PATIENCE)).map_err(io)?;
    sockets.insert(KEY, near.as_raw_fd(), 0).map_err(|e| chain(&e))?;
    Ok((near, far))
}

/// Repeats what would block, until it does not.
fn patient<T>(what: &str, mut call: impl FnMut() -> std::io::Result<T>) -> Result<T, String> {
    let start = Instant::now();
    loop {
        match call() {
            Err(e) if e.kind() == ErrorKind::WouldBlock && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_micros(200));
            }
            result => return result.map_err(|e| format!("{what}: {e}")),
        }
    }
}

fn receive(near: &mut TcpStream, n: usize) -> Result<(), String> {
    let mut bytes = vec![0; n];
    let mut have = 0;
    while have < n {
        match patient("bytes did not arrive", || near.read(&mut bytes[have..]))? {
            0 => return Err("a connection ended before its time".to_owned()),
            more => have += more,
        }
    }
    if bytes.iter().any(|byte| *byte != b'x') {
        return Err("bytes changed on their way in".to_owned());
    }
    Ok(())
}

fn would_block(near: &mut TcpStream) -> Result<(), String> {
    match near.read(&mut [0; 8]) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
        other => Err(format!("a read of nothing says {other:?}")),
    }
}

fn calls(near: &mut TcpStream, far: &mut TcpStream) -> Result<bool, String> {
    let sent = [b'x'; TRIAL];
    let mut got = [0; TRIAL];
    // Out, where the injector looks at it and changes nothing.
    patient("bytes did not leave", || near.write_all(&sent))?;
    far.read_exact(&mut got).map_err(io)?;
    if got != sent {
        return Err("bytes changed on their way out".to_owned());
    }
    // In, in two pieces; the second is there before the first was taken.
    let edges = edges(near)?;
    would_block(near)?;
    far.write_all(&sent).map_err(io)?;
    woken(&edges)?;
    let mut counts = counted(near, TRIAL);
    far.write_all(&sent).map_err(io)?;
    woken(&edges)?;
    counts &= counted(near, 2 * TRIAL);
    patient("a look ahead", || near.peek(&mut got))?;
    receive(near, TRIAL)?;
    counts &= counted(near, TRIAL);
    receive(near, TRIAL)?;
    counts &= counted(near, 0);
    would_block(near)?;
    spliced(near, far)?;
    // More than fits, both ways at once.
    let mut peer = far.try_clone().map_err(io)?;
    let mut echo = far.try_clone().map_err(io)?;
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; LARGE];
        peer.read_exact(&mut all).is_ok() && all.iter().all(|byte| *byte == b'x')
    });
    let writer = std::thread::spawn(move || echo.write_all(&vec![b'x'; LARGE]).is_ok());
    let piece = vec![b'x'; LARGE / 16];
    let mut written = 0;
    let mut read = 0;
    let mut into = vec![0; LARGE / 16];
    let start = Instant::now();
    while written < LARGE || read < LARGE {
        let mut idle = true;
        let end = piece.len().min(LARGE - written);
        match near.write(&piece[..end]) {
            Ok(n) => {
                written += n;
                idle = n == 0;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(format!("many bytes did not leave: {e}")),
        }
        if read < LARGE {
            match near.read(&mut into) {
                Ok(n) if into[..n].iter().all(|byte| *byte == b'x') && n > 0 => {
                    read += n;
                    idle = false;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                other => return Err(format!("many bytes did not arrive: {other:?}")),
            }
        }
        if start.elapsed() > 5 * PATIENCE {
            return Err(format!("of {LARGE} bytes {written} left and {read} arrived"));
        }
        if idle {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    if !matches!((reader.join(), writer.join()), (Ok(true), Ok(true))) {
        return Err("many bytes did not come through".to_owned());
    }
    // Half-closed: the far end sees the end, the near end still hears and then sees it too.
    near.shutdown(Shutdown::Write).map_err(io)?;
    if far.read(&mut got).map_err(io)? != 0 {
        return Err("bytes came after a half-close".to_owned());
    }
    would_block(near)?;
    far.write_all(&sent).map_err(io)?;
    far.shutdown(Shutdown::Write).map_err(io)?;
    receive(near, TRIAL)?;
    for _ in 0..2 {
        match patient("the end of the connection", || near.read(&mut got))? {
            0 => {}
            n => return Err(format!("{n} bytes after the end")),
        }
    }
    Ok(counts)
}

/// A connection that is reset says so.
fn reset(near: &mut TcpStream, far: TcpStream) -> Result<(), String> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the option's value lies at the address and has the size that are given, `far` is open.
    let set = unsafe {
        libc::setsockopt(
            far.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    if set != 0 {
        return Err(io(std::io::Error::last_os_error()));
    }
    drop(far);
    match patient("", || match near.read(&mut [0; 8]) {
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Err(e),
        other => Err(std::io::Error::other(format!("{other:?}"))),
    }) {
        Ok(()) => Ok(()),
        Err(e) => Err(format!("a reset connection says{e}")),
    }
}

/// Nothing is lost where a socket that holds bytes is followed no more: so it is when the agent ends.
fn let_go(near: &mut TcpStream, far: &mut TcpStream, sockets: &mut SockHash<&mut MapData, u64>) -> Result<(), String> {
    far.write_all(&[b'x'; 2 * TRIAL]).map_err(io)?;
    receive(near, TRIAL)?;
    sockets.remove(&KEY).map_err(|e| chain(&e))?;
    far.write_all(&[b'x'; TRIAL]).map_err(io)?;
    receive(near, 2 * TRIAL).map_err(|e| format!("once let go, {e}"))?;
    would_block(near)
}

/// Waits until FIONREAD says `want`.
fn counted(near: &TcpStream, want: usize) -> bool {
    let start = Instant::now();
    loop {
        let mut n: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int, and the socket is open.
        let asked = unsafe { libc::ioctl(near.as_raw_fd(), libc::FIONREAD, &raw mut n) };
        if asked == 0 && usize::try_from(n) == Ok(want) {
            return true;
        }
        if start.elapsed() > COUNTING {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An edge-triggered epoll instance that waits for bytes.
fn edges(near: &TcpStream) -> Result<OwnedFd, String> {
    // SAFETY: no memory is passed.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if epoll < 0 {
        return Err(io(std::io::Error::last_os_error()));
    }
    // SAFETY: just made, and nobody else's.
    let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
    let mut event = libc::epoll_event {
        events: (libc::EPOLLIN | libc::EPOLLET) as u32,
        u64: 0,
    };
    // SAFETY: both are open, the event lives through the call.
    if unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, near.as_raw_fd(), &raw mut event) } != 0 {
        return Err(io(std::io::Error::last_os_error()));
    }
    Ok(epoll)
}

fn woken(edges: &OwnedFd) -> Result<(), String> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: one event has room where it is said to be.
    match unsafe {
        libc::epoll_wait(
            edges.as_raw_fd(),
            &raw mut event,
            1,
            PATIENCE.as_millis() as libc::c_int,
        )
    } {
        1 => Ok(()),
        _ => Err("bytes that arrive wake nobody who waits for them by epoll".to_owned()),
    }
}

/// Bytes are seen by `splice` too.
fn spliced(near: &TcpStream, far: &mut TcpStream) -> Result<(), String> {
    let mut ends = [0; 2];
    // SAFETY: two descriptors have room where they are said to be.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io(std::io::Error::last_os_error()));
    }
    // SAFETY: just made, and nobody else's.
    let _out = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: as above.
    let into = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    far.write_all(&[b'x'; TRIAL]).map_err(io)?;
    let mut left = TRIAL;
    while left > 0 {
        let moved = patient("splice out of a followed socket", || {
            // SAFETY: both are open, and no position is passed.
            let n = unsafe {
                libc::splice(
                    near.as_raw_fd(),
                    std::ptr::null_mut(),
                    into.as_raw_fd(),
                    std::ptr::null_mut(),
                    left,
                    libc::SPLICE_F_NONBLOCK,
                )
            };
            usize::try_from(n).map_err(|_| std::io::Error::last_os_error())
        })?;
        if moved == 0 {
            return Err("splice out of a followed socket sees its end".to_owned());
        }
        left -= moved.min(left);
    }
    Ok(())
}
