//! Ways to move bytes through a socket, each with other system calls. The only
//! unsafe code beside process control: one block a call.

use std::io::{Error, Result};
use std::os::fd::RawFd;
use std::ptr;

/// How bytes go in and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `write`, `read`: all in one call, tens of frames.
    Whole,
    /// `write`, `read`: one byte a call.
    Bytes,
    /// `sendto`, `recvfrom` in pieces that no frame has the length of.
    Pieces,
    /// `writev`, `readv` with more buffers than anybody uses.
    Vectors,
    /// `sendmsg`, `recvmsg` with buffers of one byte among longer ones.
    Messages,
    /// `sendmmsg`, `recvmmsg`: several messages a call.
    ManyMessages,
    /// `recv` with MSG_PEEK before each `read`.
    Peek,
    /// `recv` with MSG_WAITALL.
    WaitAll,
    /// `pwritev2`, `preadv2`, which sockets take too.
    Positioned,
}

impl Way {
    /// All ways.
    pub const ALL: [Way; 9] = [
        Way::Whole,
        Way::Bytes,
        Way::Pieces,
        Way::Vectors,
        Way::Messages,
        Way::ManyMessages,
        Way::Peek,
        Way::WaitAll,
        Way::Positioned,
    ];

    /// Its name on the command line.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// The way of that name.
    pub fn named(name: &str) -> Option<Way> {
        Way::ALL.into_iter().find(|way| way.name() == name)
    }

    /// Sends all.
    ///
    /// # Errors
    /// The socket's.
    pub fn send(self, socket: RawFd, mut bytes: &[u8]) -> Result<()> {
        let mut turn = 0;
        while !bytes.is_empty() {
            let sent = self.send_some(socket, bytes, turn)?;
            bytes = bytes.get(sent..).unwrap_or_default();
            turn += 1;
        }
        Ok(())
    }

    /// Receives `length` bytes.
    ///
    /// # Errors
    /// The socket's; an early end.
    pub fn receive(self, socket: RawFd, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut done = 0;
        let mut turn = 0;
        while done < length {
            let rest = bytes.get_mut(done..).unwrap_or_default();
            let received = self.receive_some(socket, rest, turn)?;
            if received == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            done += received;
            turn += 1;
        }
        Ok(bytes)
    }

    fn send_some(self, socket: RawFd, bytes: &[u8], turn: usize) -> Result<usize> {
        let part = |length: usize| bytes.get(..length.min(bytes.len())).unwrap_or_default();
        match self {
            Way::Whole | Way::Peek | Way::WaitAll => write(socket, bytes),
            Way::Bytes => write(socket, part(1)),
            Way::Pieces => {
                let part = part([7, 1, 13, 64, 3, 9, 1021][turn % 7]);
                // SAFETY: the pointer and length are those of a live slice; no address is given.
                let n = unsafe { libc::sendto(socket, part.as_ptr().cast(), part.len(), 0, ptr::null(), 0) };
                checked(n)
            }
            Way::Vectors => {
                let vectors = vectors(part(3 * 300).chunks(3));
                // SAFETY: each vector is of a live slice; their number is that of the list.
                let n = unsafe { libc::writev(socket, vectors.as_ptr(), vectors.len() as libc::c_int) };
                checked(n)
            }
            Way::Positioned => {
                let vectors = vectors(part(1000).chunks(61));
                // SAFETY: each vector is of a live slice; offset -1 means none.
                let n = unsafe { libc::pwritev2(socket, vectors.as_ptr(), vectors.len() as libc::c_int, -1, 0) };
                checked(n)
            }
            Way::Messages => {
                let mut vectors = uneven(part(700));
                let header = header(&mut vectors);
                // SAFETY: the header names live vectors of live slices and nothing else.
                let n = unsafe { libc::sendmsg(socket, &raw const header, 0) };
                checked(n)
            }
            Way::ManyMessages => {
                let parts: Vec<&[u8]> = part(5 * 401).chunks(401).collect();
                let mut lists: Vec<Vec<libc::iovec>> = parts.iter().map(|part| uneven(part)).collect();
                let mut messages: Vec<libc::mmsghdr> = lists
                    .iter_mut()
                    .map(|list| libc::mmsghdr {
                        msg_hdr: header(list),
                        msg_len: 0,
                    })
                    .collect();
                // SAFETY: the headers name live vectors of live slices and nothing else.
                let n = unsafe { libc::sendmmsg(socket, messages.as_mut_ptr(), messages.len() as u32, 0) };
                let n = checked(n as isize)?;
                Ok(messages.iter().take(n).map(|message| message.msg_len as usize).sum())
            }
        }
    }

    fn receive_some(self, socket: RawFd, into: &mut [u8], turn: usize) -> Result<usize> {
        let room = into.len();
        match self {
            Way::Whole => read(socket, into),
            Way::Bytes => read(socket, into.get_mut(..1).unwrap_or_default()),
            Way::Pieces => {
                let into = into
                    .get_mut(..[5, 17, 2, 91, 1][turn % 5].min(room))
                    .unwrap_or_default();
                // SAFETY: the pointer and length are those of a live slice; no address is asked for.
                let n = unsafe {
                    libc::recvfrom(
                        socket,
                        into.as_mut_ptr().cast(),
                        into.len(),
                        0,
                        ptr::null_mut(),
                        ptr::null_mut(),
                    )
                };
                checked(n)
            }
            Way::Vectors => {
                let vectors = room_for(into, 5, 200);
                // SAFETY: each vector is of a live slice that nothing else uses.
                let n = unsafe { libc::readv(socket, vectors.as_ptr(), vectors.len() as libc::c_int) };
                checked(n)
            }
            Way::Positioned => {
                let vectors = room_for(into, 77, 9);
                // SAFETY: each vector is of a live slice that nothing else uses; offset -1 means none.
                let n = unsafe { libc::preadv2(socket, vectors.as_ptr(), vectors.len() as libc::c_int, -1, 0) };
                checked(n)
            }
            Way::Messages => {
                let mut vectors = room_for(into, 11, 60);
                let mut header = header(&mut vectors);
                // SAFETY: the header names live vectors of live slices and nothing else.
                let n = unsafe { libc::recvmsg(socket, &raw mut header, 0) };
                checked(n)
            }
            Way::ManyMessages => self.receive_messages(socket, into),
            Way::Peek => {
                // SAFETY: the pointer and length are those of a live slice.
                let n = unsafe { libc::recv(socket, into.as_mut_ptr().cast(), room.min(900), libc::MSG_PEEK) };
                let seen = checked(n)?;
                read(socket, into.get_mut(..seen).unwrap_or_default())
            }
            Way::WaitAll => {
                // SAFETY: the pointer and length are those of a live slice.
                let n = unsafe { libc::recv(socket, into.as_mut_ptr().cast(), room, libc::MSG_WAITALL) };
                checked(n)
            }
        }
    }

    fn receive_messages(self, socket: RawFd, into: &mut [u8]) -> Result<usize> {
        const PART: usize = 333;
        let mut lists: Vec<Vec<libc::iovec>> = into
            .chunks_mut(PART)
            .take(4)
            .map(|part| room_for(part, 50, 16))
            .collect();
        let mut messages: Vec<libc::mmsghdr> = lists
            .iter_mut()
            .map(|list| libc::mmsghdr {
                msg_hdr: header(list),
                msg_len: 0,
            })
            .collect();
        // Waits for the first message only, takes what else is there.
        let flags = libc::MSG_WAITFORONE;
        // SAFETY: the headers name live vectors of live slices; no time limit is given.
        let n = unsafe {
            libc::recvmmsg(
                socket,
                messages.as_mut_ptr(),
                messages.len() as u32,
                flags,
                ptr::null_mut(),
            )
        };
        let n = checked(n as isize)?;
        // A short message leaves a hole before the next one: the bytes are moved together.
        let mut total = 0;
        for (number, message) in messages.iter().take(n).enumerate() {
            let length = message.msg_len as usize;
            into.copy_within(number * PART..number * PART + length, total);
            total += length;
        }
        Ok(total)
    }
}

fn checked(n: isize) -> Result<usize> {
    usize::try_from(n).map_err(|_| Error::last_os_error())
}

fn write(socket: RawFd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the pointer and length are those of a live slice.
    checked(unsafe { libc::write(socket, bytes.as_ptr().cast(), bytes.len()) })
}

fn read(socket: RawFd, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the pointer and length are those of a live slice.
    checked(unsafe { libc::read(socket, into.as_mut_ptr().cast(), into.len()) })
}

fn vectors<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Vec<libc::iovec> {
    parts
        .map(|part| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        })
        .collect()
}

/// Vectors of one byte, none, and more.
fn uneven(mut bytes: &[u8]) -> Vec<libc::iovec> {
    let mut parts = Vec::new();
    for length in [1, 0, 4, 9, 0, 2, 31].into_iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (part, rest) = bytes.split_at(length.min(bytes.len()));
        parts.push(part);
        bytes = rest;
    }
    vectors(parts.into_iter())
}

fn room_for(into: &mut [u8], each: usize, most: usize) -> Vec<libc::iovec> {
    into.chunks_mut(each)
        .take(most)
        .map(|part| libc::iovec {
            iov_base: part.as_mut_ptr().cast(),
            iov_len: part.len(),
        })
        .collect()
}

fn header(vectors: &mut Vec<libc::iovec>) -> libc::msghdr {
    libc::msghdr {
        msg_name: ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: vectors.as_mut_ptr(),
        msg_iovlen: vectors.len(),
        msg_control: ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}
