//! BoringSSL inside grpc-core, stripped: its functions have no names, but
//! grpc-core's `DoSslRead` and `DoSslWrite` log what failed, and call
//! `ERR_clear_error`, then the function that is sought, then `SSL_get_error`.
//!
//! Bias: the two are only taken if both have that form and share the first
//! and the third of their calls.

use super::{Kind, Library, points};
use crate::binary::{Binary, Function};
use crate::bpf::probe::Ability;

const READ: &[u8] = b"SSL_read failed with error ";
const WRITE: &[u8] = b"SSL_write failed with error ";

/// BoringSSL by grpc-core's use of it.
pub fn look(binary: &Binary) -> Option<Library> {
    if binary.strings(READ).is_empty() || binary.strings(WRITE).is_empty() {
        return None;
    }
    let points = match functions(binary) {
        Some((read, write)) => [(read, Kind::Read), (write, Kind::Write)]
            .into_iter()
            .map(|(function, kind)| points(binary, function, kind))
            .collect::<Option<Vec<_>>>()
            .map(|points| points.concat())
            .ok_or_else(|| "its functions are no code".to_owned()),
        None => Err("SSL_read and SSL_write were not found with certainty".to_owned()),
    };
    Some(Library {
        what: "BoringSSL in grpc-core".to_owned(),
        abilities: vec![Ability {
            name: "boringssl",
            points,
        }],
    })
}

fn functions(binary: &Binary) -> Option<(Function, Function)> {
    let using = binary.functions_using(&[READ, WRITE]);
    let [read, write] = using.as_slice() else { return None };
    let mut found = None;
    for read in candidates(binary, read) {
        for write in candidates(binary, write) {
            if (read[0], read[2]) != (write[0], write[2]) || read[1] == write[1] {
                continue;
            }
            let pair = (read[1], write[1]);
            if found.is_some_and(|other| other != pair) {
                return None;
            }
            found = Some(pair);
        }
    }
    let (read, write) = found?;
    let whole = |address| binary.function_at(address).filter(|f| f.address == address);
    Some((whole(read)?, whole(write)?))
}

/// The first three calls of each function that may be the one which logs: itself, or what branches into its cold part.
fn candidates(binary: &Binary, using: &[Function]) -> Vec<[u64; 3]> {
    let mut all = using.to_vec();
    for function in using {
        all.extend(binary.branches_into(*function));
    }
    all.sort_unstable();
    all.dedup();
    all.iter()
        .filter_map(|function| {
            let calls: Vec<u64> = binary
                .code(*function)?
                .calls()
                .iter()
                .filter(|call| !call.tail)
                .map(|call| call.target)
                .take(3)
                .collect();
            <[u64; 3]>::try_from(calls).ok()
        })
        .collect()
}
