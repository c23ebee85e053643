//! The decoder against `loona-hpack`, against a peer written naively, and against itself joined late.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::huffman::tests::encode as huffman;
use super::tests::{Seen, decode};
use super::{Decoder, Error, integer};

pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// How a field goes on the wire.
#[derive(Clone, Debug)]
enum Step {
    /// As an index if there is one, else as a literal: 0 with indexing, 1 without, 2 never. The flags:
    /// Huffman code, name by index.
    Field {
        name: usize,
        value: usize,
        literal: u8,
        huffman: bool,
        by_index: bool,
    },
    /// Begins a block that starts with these size updates.
    Block { sizes: Vec<u32> },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let field = (0..12_usize, 0..8_usize, 0..3_u8, any::<bool>(), any::<bool>()).prop_map(
        |(name, value, literal, huffman, by_index)| Step::Field {
            name,
            value,
            literal,
            huffman,
            by_index,
        },
    );
    let size = prop_oneof![Just(0), 30..200_u32, 200..4097_u32, Just(4096)];
    let block = prop::collection::vec(size, 0..=2).prop_map(|sizes| Step::Block { sizes });
    let plain = Just(Step::Block { sizes: Vec::new() });
    prop::collection::vec(prop_oneof![12 => field, 3 => plain, 1 => block], 1..120)
}

/// A peer that is written the naive way, and in no haste to evict by anything but the RFC's letter.
struct Peer {
    table: Vec<Pair>,
    size: usize,
}

impl Peer {
    fn evict(&mut self, room: usize) {
        while self.table.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>() + room > self.size
            && self.table.pop().is_some()
        {}
    }

    fn find(&self, test: impl Fn(&[u8], &[u8]) -> bool) -> Option<u32> {
        let fixed = super::table::STATIC.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        let all = fixed.chain(self.table.iter().map(|(n, v)| (&n[..], &v[..])));
        all.enumerate()
            .filter(|(_, (n, v))| test(n, v))
            .last()
            .map(|(i, _)| i as u32 + 1)
    }

    fn write(&mut self, out: &mut Vec<u8>, step: &Step) -> Option<Pair> {
        let Step::Field {
            name,
            value,
            literal,
            huffman: coded,
            by_index,
        } = step
        else {
            return None;
        };
        const NAMES: [&str; 12] = [
            ":path",
            ":authority",
            ":status",
            "content-type",
            "user-agent",
            "x",
            "grpc-timeout",
            "traceparent",
            "a-b",
            "cookie",
            "x-request-id",
            "te",
        ];
        let name = NAMES[*name].as_bytes().to_vec();
        let value = match value {
            0 => Vec::new(),
            1 => b"200".to_vec(),
            2 => b"/helloworld.Greeter/SayHello".to_vec(),
            3 => (0..=255).collect(),
            4 => vec![b'v'; 1500],
            5 => vec![b'w'; 4100],
            n => vec![b'0' + *n as u8; *n],
        };
        if let Some(index) = self.find(|n, v| n == name && v == value).filter(|_| *literal == 0) {
            integer::write(out, 0x80, 7, index);
            return Some((name, value));
        }
        let index = self.find(|n, _| n == name).filter(|_| *by_index).unwrap_or(0);
        match literal {
            0 => integer::write(out, 0x40, 6, index),
            1 => integer::write(out, 0x00, 4, index),
            _ => integer::write(out, 0x10, 4, index),
        }
        for text in [&name, &value].into_iter().skip(usize::from(index != 0)) {
            let (high, text) = if *coded {
                (0x80, huffman(text))
            } else {
                (0, text.clone())
            };
            integer::write(out, high, 7, text.len() as u32);
            out.extend(text);
        }
        if *literal == 0 {
            let takes = name.len() + value.len() + 32;
            self.evict(takes);
            if takes <= self.size {
                self.table.insert(0, (name.clone(), value.clone()));
            }
        }
        Some((name, value))
    }
}

/// The blocks that a peer makes of the steps, with what is in them.
fn blocks(steps: &[Step]) -> Vec<(Vec<u8>, Vec<Pair>)> {
    let mut peer = Peer {
        table: Vec::new(),
        size: 4096,
    };
    let mut blocks = vec![(Vec::new(), Vec::new())];
    for step in steps {
        if let Step::Block { sizes } = step {
            // A block without fields would be malformed, so that updates gather until there is one.
            if blocks.last().is_none_or(|(_, fields)| !fields.is_empty()) {
                blocks.push((Vec::new(), Vec::new()));
            }
            for &size in sizes {
                integer::write(&mut blocks.last_mut().unwrap().0, 0x20, 5, size);
                peer.size = size as usize;
                peer.evict(0);
            }
        }
        let (block, fields) = blocks.last_mut().unwrap();
        fields.extend(peer.write(block, step));
    }
    blocks.retain(|(_, fields)| !fields.is_empty());
    blocks
}

pub(super) fn whole(fields: &[Pair]) -> Vec<Seen> {
    fields.iter().cloned().map(|(n, v)| (Some(n), Some(v))).collect()
}

/// Whether each field is the true one as far as it is known.
pub(super) fn is_true_or_unknown(seen: &[Seen], truth: &[Pair]) -> bool {
    seen.len() == truth.len()
        && seen.iter().zip(truth).all(|((n, v), (name, value))| {
            n.as_ref().is_none_or(|n| n == name) && v.as_ref().is_none_or(|v| v == value)
        })
}

proptest! {
    // loona decodes bit by bit; the fuzz target runs for longer.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_fresh_decoder_reads_what_loona_wrote(lists in prop::collection::vec(prop::collection::vec((0..9_usize, 0..40_usize), 1..12), 1..12)) {
        let (mut ours, mut loona) = (Decoder::new(true), loona_hpack::Encoder::new());
        for list in lists {
            let fields: Vec<Pair> =
                list.iter().map(|(n, v)| (vec![b'a' + *n as u8; *n + 1], vec![b'0' + (*v % 10) as u8; v * 9])).collect();
            let block = loona.encode(fields.iter().map(|(n, v)| (&n[..], &v[..])));
            prop_assert_eq!(decode(&mut ours, &block), Ok(whole(&fields)));
        }
    }

    #[test]
    fn a_fresh_decoder_reads_what_the_peer_wrote(steps in steps()) {
        let (mut ours, mut loona) = (Decoder::new(true), loona_hpack::Decoder::new());
        for (block, fields) in blocks(&steps) {
            prop_assert_eq!(decode(&mut ours, &block), Ok(whole(&fields)));
            prop_assert_eq!(loona.decode(&block).ok(), Some(fields));
        }
        prop_assert_eq!(ours.unknown_indexes(), 0);
    }

    #[test]
    fn joined_late_each_field_is_the_true_one_or_unknown(steps in steps(), join in 0..30_usize, lost in 0..30_usize) {
        let mut late = Decoder::new(false);
        let mut lossy = Decoder::new(true);
        for (i, (block, fields)) in blocks(&steps).iter().enumerate() {
            if i >= join {
                let seen = decode(&mut late, block);
                prop_assert!(seen.as_ref().is_ok_and(|seen| is_true_or_unknown(seen, fields)), "{seen:?} {fields:?}");
            }
            if i == lost {
                lossy.lose();
            } else {
                let seen = decode(&mut lossy, block);
                prop_assert!(seen.as_ref().is_ok_and(|seen| is_true_or_unknown(seen, fields)), "{seen:?} {fields:?}");
            }
        }
    }

    #[test]
    fn random_octets_do_no_harm(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6)) {
        let (mut fresh, mut late, mut loona) = (Decoder::new(true), Decoder::new(false), loona_hpack::Decoder::new());
        let mut comparable = true;
        for part in parts {
            let ours = decode(&mut fresh, &part);
            let lately = decode(&mut late, &part);
            if let (Ok(_), Err(e)) = (&ours, &lately) {
                prop_assert!(false, "late refuses what fresh reads: {e}");
            }
            // loona has no limit for sizes, allows updates anywhere but at the end, and reads shorter integers.
            let theirs = loona.decode(&part);
            use loona_hpack::decoder::{DecoderError, IntegerDecodingError};
            comparable &= !matches!(ours, Err(Error::SizeUpdate | Error::Integer));
            comparable &= !matches!(
                theirs,
                Err(DecoderError::SizeUpdateAtEnd
                    | DecoderError::IntegerDecodingError(IntegerDecodingError::TooManyOctets))
            );
            if comparable {
                prop_assert_eq!(ours.clone().ok(), theirs.ok().map(|fields| whole(&fields)));
            }
            comparable &= ours.is_ok();
        }
    }
}
