//! Selectors.
use super::Resource;
use super::resource::Resources;
/// Selector.
#[derive(Clone, Debug, Default)]
pub struct Selector;
impl Selector {
    /// New.
    pub fn new(_e: &[String], _p: &[u16], _s: &[String]) -> Result<Self, String> { Ok(Selector) }
    /// Chooses.
    pub fn chooses(&self, _pid: u32, _r: &Resource) -> bool { true }
}
/// Existing.
pub fn existing(_s: &Selector, _r: &mut Resources) -> Vec<u32> { vec![] }
/// Check.
pub fn check_pid(_pid: u32) -> Result<(), String> { Ok(()) }
/// Desc.
pub fn with_descendants(pids: &[u32]) -> Vec<u32> { pids.to_vec() }
