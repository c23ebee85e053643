//! Where functions begin and end, by the tables for unwinding
//! (`.eh_frame_hdr`, LSB Core 10.6): they survive stripping.

use gimli::{BaseAddresses, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, UnwindSection};

use super::{Binary, Function};

impl Binary {
    /// The function (or the split-off cold part of one) that holds this address, by its frame description.
    pub fn function_at(&self, address: u64) -> Option<Function> {
        let header_at = self.frame_header()?;
        let header = EhFrameHdr::new(self.rest(header_at)?, LittleEndian);
        let bases = BaseAddresses::default().set_eh_frame_hdr(header_at);
        let parsed = header.parse(&bases, 8).ok()?;
        let gimli::Pointer::Direct(frames_at) = parsed.eh_frame_ptr() else {
            return None;
        };
        let frames: EhFrame<EndianSlice<'_, LittleEndian>> = EhFrame::new(self.rest(frames_at)?, LittleEndian);
        let bases = bases.set_eh_frame(frames_at);
        let description = parsed
            .table()?
            .fde_for_address(&frames, &bases, address, EhFrame::cie_from_offset)
            .ok()?;
        let start = description.initial_address();
        let function = Function {
            address: start,
            end: start.checked_add(description.len())?,
        };
        (function.contains(address) && self.executable(address)).then_some(function)
    }
}
