//! The head decision's way into the kernel, where contexts are written: how it
//! decides by itself, and what was decided where it can't.

use aya::Ebpf;
use aya::maps::HashMap;
use tracewire_common::link::StreamKey;
use tracewire_common::plain::Plain;
use tracewire_common::sampling::Rule;
use tracewire_common::trace::Context;

/// A request as a key of the kernel's maps.
type Key = [u8; size_of::<StreamKey>()];
/// A context as its value.
type Value = [u8; size_of::<Context>()];

/// False: the kernel refused.
pub(super) fn decide_by(ebpf: &mut Ebpf, pid: u32, rule: Rule) -> bool {
    let map = ebpf.map_mut("HEADS");
    map.and_then(|m| HashMap::<_, u32, u64>::try_from(m).ok())
        .is_some_and(|mut heads| heads.insert(pid, rule.get(), 0).is_ok())
}

/// The process is gone, or observed no more.
pub(super) fn forget(ebpf: &mut Ebpf, pid: u32) {
    let map = ebpf.map_mut("HEADS");
    if let Some(mut heads) = map.and_then(|m| HashMap::<_, u32, u64>::try_from(m).ok()) {
        // Absent is as good as removed.
        let _ = heads.remove(&pid);
    }
}

/// Tells the context of a served request. The map keeps the latest.
pub(super) fn decided(ebpf: &mut Ebpf, request: &StreamKey, context: &Context) {
    let (Ok(key), Ok(value)) = (Key::try_from(request.bytes()), Value::try_from(context.bytes())) else {
        return;
    };
    let map = ebpf.map_mut("DECIDED");
    if let Some(mut decided) = map.and_then(|m| HashMap::<_, Key, Value>::try_from(m).ok())
        && let Err(error) = decided.insert(key, value, 0)
    {
        tracing::debug!("a decision did not reach the kernel: {error}");
    }
}
