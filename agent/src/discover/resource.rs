//! Resource of a process.
use std::sync::Arc;
use super::Resource;
/// Resources.
#[derive(Default)]
pub struct Resources;
impl Resources {
    /// New.
    pub fn of(&mut self, pid: u32) -> Arc<Resource> {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
        Arc::new(Resource { id: u64::from(pid), service_name: Arc::from(name.as_str()), attributes: vec![("service.name".into(), crate::attribute::Value::Shared(Arc::from(name.as_str())))] })
    }
    /// F.
    pub fn forget(&mut self, _pid: u32) {}
    /// E.
    pub fn exec(&mut self, _pid: u32) {}
}
