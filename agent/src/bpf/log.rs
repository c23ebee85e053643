//! The kernel programs' own log, joined with the agent's: on only where details are asked for.

use ::log::{Log, Metadata, Record};
use aya::Ebpf;
use aya_log::EbpfLogger;

/// The map that the programs write to, and the level up to which they do.
pub(super) const MAP: &str = "AYA_LOGS";
/// As said.
pub(super) const LEVEL: &str = "AYA_LOG_LEVEL";
/// Bytes of the map while nobody reads it: the least that the kernel makes.
pub(super) const SMALLEST: u32 = 4096;
/// The same while it is read.
pub(super) const ROOMY: u32 = 128 * 1024;
/// Values of [`LEVEL`].
pub(super) const ALL: u8 = u8::MAX;
/// As said.
pub(super) const NOTHING: u8 = 0;

/// Hands records over to the agent's log.
pub(super) struct Handed;

impl Log for Handed {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        tracing::debug!(target: "tracewire::kernel", "{}", record.args());
    }

    fn flush(&self) {}
}

/// Reads what the programs told; None: they tell nothing.
pub(super) struct KernelLog(Option<EbpfLogger<Handed>>);

impl KernelLog {
    /// `wanted`: the programs were loaded to tell.
    pub(super) fn of(ebpf: &mut Ebpf, wanted: bool) -> Self {
        let logger = wanted.then(|| EbpfLogger::init_with_logger(ebpf, Handed));
        KernelLog(logger.and_then(|logger| {
            logger
                .inspect_err(|error| tracing::warn!("the kernel programs' log can't be read: {error}"))
                .ok()
        }))
    }

    /// Hands over what there is.
    pub(super) fn flush(&mut self) {
        if let Some(logger) = &mut self.0 {
            logger.flush();
        }
    }
}
