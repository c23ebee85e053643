//! `caller ADDRESS CHILDREN`: after a line on standard input, that many child
//! processes make one HTTP request each and are gone with the last byte of the
//! response, their sockets open. Every third replaces its program first, every
//! third is a grandchild. Writes a line for each: call id and process id.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// One call; returns when the whole response was read.
fn call(address: &str, id: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let head = format!("GET /200 HTTP/1.1\r\nHost: {address}\r\nx-call-id: {id}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 512];
    while !answer.ends_with(b"good\n") {
        let n = stream.read(&mut piece)?;
        ensure!(n > 0, "the response ended early");
        answer.extend(piece.get(..n).unwrap_or_default());
    }
    // Written at once, so that lines of several processes do not mix.
    std::io::stdout().write_all(format!("{id} {}\n", std::process::id()).as_bytes())?;
    std::mem::forget(stream);
    Ok(())
}

/// Ends this process on the spot: nothing is closed in order.
fn gone(result: Result<()>) -> ! {
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error:#}");
            1
        }
    };
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// A child that does `work` and is gone; its process id.
fn child(work: impl FnOnce() -> Result<()>) -> Result<libc::pid_t> {
    // SAFETY: this program has one thread, so the child may do what the parent may.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        gone(work());
    }
    ensure!(pid > 0, "fork: {}", std::io::Error::last_os_error());
    Ok(pid)
}

fn wait(pid: libc::pid_t) -> Result<()> {
    let mut status = 0;
    // SAFETY: `status` is live for the call.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    ensure!(waited == pid && status == 0, "a child failed: {status}");
    Ok(())
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let address = words.first().context("caller ADDRESS CHILDREN")?;
    if let Some(id) = words.get(1).and_then(|word| word.strip_prefix("call=")) {
        gone(call(address, id));
    }
    let children: usize = words.get(1).context("caller ADDRESS CHILDREN")?.parse()?;
    std::io::stdin().read_line(&mut String::new())?;
    for number in 0..children {
        let id = format!("child-{number}");
        match number % 3 {
            0 => wait(child(|| call(address, &id))?)?,
            1 => {
                let status = Command::new(std::env::current_exe()?)
                    .arg(address)
                    .arg(format!("call={id}"))
                    .status()?;
                ensure!(status.success(), "a child failed: {status}");
            }
            _ => wait(child(|| wait(child(|| call(address, &id))?))?)?,
        }
    }
    Ok(())
}
