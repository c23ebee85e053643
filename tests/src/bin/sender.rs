//! `sender NUMBER…`: for each line on standard input, an address, sends the
//! streams of those numbers ([`tracewire_tests::bytes::Kind::ALL`]) there, one
//! connection each, half-closes, and reads the answer until its end. Its
//! sockets never block; it waits by edge-triggered epoll. With `late` instead of a
//! number the socket blocks from behind its first write on, with `zerocopy` the kernel
//! takes the bytes without a copy and tells which it has done with. Writes a line at the end.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tracewire_tests::bytes::{ANSWER, Kind, noise};

/// A socket that does not block even while it connects.
fn connect(address: SocketAddr) -> Result<TcpStream> {
    let SocketAddr::V4(address) = address else {
        bail!("IPv4 only")
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_INET, kind, 0) };
    ensure!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
    // SAFETY: just made, and nobody else's.
    let stream = unsafe { TcpStream::from_raw_fd(fd) };
    let to = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(*address.ip()).to_be(),
        },
        sin_zero: [0; 8],
    };
    let size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the address lies there and has that size.
    let begun = unsafe { libc::connect(fd, (&raw const to).cast(), size) };
    let error = std::io::Error::last_os_error();
    ensure!(
        begun == 0 || error.raw_os_error() == Some(libc::EINPROGRESS),
        "connect: {error}"
    );
    Ok(stream)
}

fn wait(epoll: &OwnedFd) -> Result<()> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: one event has room there.
    let n = unsafe { libc::epoll_wait(epoll.as_raw_fd(), &raw mut event, 1, 20_000) };
    ensure!(n == 1, "nobody wakes this process");
    Ok(())
}

fn send(address: SocketAddr, kind: Kind) -> Result<()> {
    let mut stream = connect(address)?;
    // SAFETY: no memory is passed.
    let epoll = unsafe { libc::epoll_create1(0) };
    ensure!(epoll >= 0, "epoll_create1");
    // SAFETY: just made, and nobody else's.
    let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
    let mut event = libc::epoll_event {
        events: (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32,
        u64: 0,
    };
    // SAFETY: both are open, the event lives through the call.
    let added = unsafe {
        libc::epoll_ctl(
            epoll.as_raw_fd(),
            libc::EPOLL_CTL_ADD,
            stream.as_raw_fd(),
            &raw mut event,
        )
    };
    ensure!(added == 0, "epoll_ctl");
    wait(&epoll)?;
    let bytes = kind.bytes();
    // The connection's beginning in one write, then writes of changing sizes.
    let sizes = [200, 1, 8, 4000, 70_000, 17, 300_000];
    let (mut at, mut turn) = (0, 0);
    while at < bytes.len() {
        let end = (at + sizes[turn % sizes.len()]).min(bytes.len());
        match stream.write(&bytes[at..end]) {
            Ok(n) => {
                at += n;
                turn += 1;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait(&epoll)?,
            Err(e) => return Err(e).context("write"),
        }
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer: Vec<u8> = Vec::new();
    loop {
        let mut piece = vec![0; 50_000];
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => answer.extend(&piece[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait(&epoll)?,
            Err(e) => return Err(e).context("read"),
        }
    }
    ensure!(
        answer == noise(99, ANSWER),
        "the answer changed: {} bytes",
        answer.len()
    );
    Ok(())
}

/// Blocks after its first write; then waits in a read while what it wrote and its end are acknowledged.
fn send_late(address: SocketAddr) -> Result<()> {
    let mut stream = connect(address)?;
    std::thread::sleep(Duration::from_millis(50));
    let bytes = Kind::Http2.bytes();
    let (first, rest) = bytes.split_at(200);
    stream.write_all(first)?;
    stream.set_nonblocking(false)?;
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting)?;
    std::thread::sleep(Duration::from_millis(500));
    stream.write_all(rest)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("a read that waits")?;
    ensure!(
        answer == noise(99, ANSWER),
        "the answer changed: {} bytes",
        answer.len()
    );
    Ok(())
}

/// Sends by MSG_ZEROCOPY from the second write on, and waits until the kernel has told of each call, once.
fn send_zerocopy(address: SocketAddr) -> Result<()> {
    let mut stream = connect(address)?;
    std::thread::sleep(Duration::from_millis(50));
    let on: libc::c_int = 1;
    // SAFETY: the option's value lies at the address and has the size that are given.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    ensure!(set == 0, "SO_ZEROCOPY: {}", std::io::Error::last_os_error());
    let bytes = Kind::Http2.bytes();
    stream.write_all(&bytes[..200])?;
    let (mut at, mut calls) = (200, 0u64);
    while at < bytes.len() {
        let piece = &bytes[at..(at + 50_000).min(bytes.len())];
        let flags = libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL;
        // SAFETY: the piece lies there until the end of this function, which waits for the kernel.
        let n = unsafe { libc::send(stream.as_raw_fd(), piece.as_ptr().cast(), piece.len(), flags) };
        match usize::try_from(n) {
            Ok(n) => {
                at += n;
                calls += 1;
            }
            Err(_) => {
                let error = std::io::Error::last_os_error();
                let full = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS));
                ensure!(full, "send: {error}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    stream.shutdown(Shutdown::Write)?;
    let start = std::time::Instant::now();
    let mut next = 0;
    while next < calls {
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "the kernel told of {next} of {calls} calls"
        );
        match told(&stream) {
            Some((first, last)) => {
                ensure!(u64::from(first) == next, "told of call {first} in place of {next}");
                next = u64::from(last) + 1;
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    ensure!(next == calls, "told of {next} of {calls} calls");
    stream.set_nonblocking(false)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer == noise(99, ANSWER), "the answer changed");
    Ok(())
}

/// First and last call of which the kernel tells next (`struct sock_extended_err`).
fn told(stream: &TcpStream) -> Option<(u32, u32)> {
    let mut control = [0u64; 16];
    // SAFETY: all zero is a valid header.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: the header points to the control buffer, which outlives the call.
    if unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE) } < 0 {
        return None;
    }
    // cmsghdr of 16 bytes, then ee_errno, four bytes, ee_info, ee_data.
    let words: Vec<u32> = control.iter().flat_map(|w| [*w as u32, (*w >> 32) as u32]).collect();
    Some((words[6], words[7]))
}

fn main() -> Result<()> {
    let mut kinds = Vec::new();
    let late = std::env::args().nth(1).is_some_and(|word| word == "late");
    let zerocopy = std::env::args().nth(1).is_some_and(|word| word == "zerocopy");
    for word in std::env::args().skip(1).filter(|_| !late && !zerocopy) {
        kinds.push(*Kind::ALL.get(word.parse::<usize>()?).context("no such stream")?);
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let address = line.trim().parse()?;
    if late {
        send_late(address)?;
    }
    if zerocopy {
        send_zerocopy(address)?;
    }
    for kind in kinds {
        send(address, kind).with_context(|| format!("{kind:?}"))?;
    }
    println!("sent");
    Ok(())
}
