//! The elided stream of one direction (`tracewire_common::elided`) → frames,
//! whole again wherever the records were cut.

use tracewire_common::elided::{BLOCK_LIMIT, FRAME_HEADER, Head, frame};

/// Longest payload that the kernel sends.
const LIMIT: u32 = BLOCK_LIMIT + 1024;

/// The bytes are not an elided stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an elided stream")]
pub struct Malformed;

/// Puts frames together again.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    rest: Vec<u8>,
}

impl Frames {
    /// Takes the next piece and gives every frame that is whole to `each`.
    pub fn feed(&mut self, piece: &[u8], mut each: impl FnMut(Head, &[u8])) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            // Nearly always a piece is whole frames, and nothing is copied.
            let used = frames(piece, &mut each)?;
            self.rest.extend_from_slice(piece.get(used..).unwrap_or_default());
            return Ok(());
        }
        self.rest.extend_from_slice(piece);
        let rest = std::mem::take(&mut self.rest);
        let used = frames(&rest, &mut each)?;
        self.rest = rest;
        self.rest.drain(..used);
        Ok(())
    }

    /// Bytes were lost: the part of a frame that was here will not be completed.
    pub fn lose(&mut self) {
        self.rest = Vec::new();
    }
}

/// Gives the whole frames at the start of `bytes` to `each`; how many bytes they took.
fn frames(bytes: &[u8], each: &mut impl FnMut(Head, &[u8])) -> Result<usize, Malformed> {
    let mut at = 0;
    while let Some(head) = bytes.get(at..).and_then(|b| b.first_chunk::<FRAME_HEADER>()) {
        let head = Head::parse(head);
        if head.length > LIMIT || !known(head.kind) {
            return Err(Malformed);
        }
        let start = at + FRAME_HEADER;
        let Some(payload) = bytes.get(start..start + head.length as usize) else {
            break;
        };
        each(head, payload);
        at = start + head.length as usize;
    }
    Ok(at)
}

fn known(kind: u8) -> bool {
    matches!(
        kind,
        frame::DATA
            | frame::HEADERS
            | frame::RST_STREAM
            | frame::SETTINGS
            | frame::PUSH_PROMISE
            | frame::GOAWAY
            | frame::CONTINUATION
            | frame::MESSAGE
            | frame::TRUNCATED
            | frame::WEB_TRAILER
            | frame::HEAD
            | frame::BODY_END
            | frame::TUNNEL
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_do_not_show() {
        let mut bytes = Vec::new();
        for (kind, payload) in [
            (frame::HEADERS, &b"abc"[..]),
            (frame::DATA, b""),
            (frame::MESSAGE, b"12345"),
        ] {
            bytes.extend(
                Head {
                    length: payload.len() as u32,
                    kind,
                    flags: 1,
                    stream: 5,
                }
                .bytes(),
            );
            bytes.extend(payload);
        }
        for step in 1..bytes.len() {
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                assert_eq!(
                    frames.feed(piece, |head, payload| seen.push((head.kind, payload.to_vec()))),
                    Ok(())
                );
            }
            assert_eq!(seen.len(), 3, "pieces of {step}");
            assert_eq!(seen[2].1, b"12345");
        }
    }

    #[test]
    fn garbage_is_refused() {
        assert_eq!(Frames::default().feed(&[0xff; 32], |_, _| ()), Err(Malformed));
    }
}
