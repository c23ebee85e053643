//! What the kernel holds for an agent: the numbers of its programs and links, and
//! whether any of them outlived it. By number, since other agents may be at work.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::programs::{loaded_links, loaded_programs};

/// The kernel frees what nobody holds a little later, in the background.
const FREED: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);

/// Programs and links of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    programs: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Attached {
    /// Those that a process holds by its file descriptors.
    ///
    /// # Errors
    /// When its descriptors can't be read.
    pub fn by(pid: u32) -> Result<Self> {
        let folder = format!("/proc/{pid}/fdinfo");
        let mut attached = Attached::default();
        for file in fs::read_dir(&folder).with_context(|| folder.clone())? {
            // A descriptor may be closed meanwhile.
            let text = fs::read_to_string(file?.path()).unwrap_or_default();
            let number = |name: &str| text.lines().find_map(|l| l.strip_prefix(name))?.trim().parse().ok();
            // A link says which program it is of, too.
            if let Some(link) = number("link_id:") {
                attached.links.insert(link);
            } else if let Some(program) = number("prog_id:") {
                attached.programs.insert(program);
            }
        }
        Ok(attached)
    }

    /// Whether there is anything.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.links.is_empty()
    }

    /// Which of them the kernel still has.
    fn left(&self) -> Self {
        let programs = loaded_programs().filter_map(|p| Some(p.ok()?.id()));
        let links = loaded_links().filter_map(|l| Some(l.ok()?.id()));
        Attached {
            programs: programs.filter(|id| self.programs.contains(id)).collect(),
            links: links.filter(|id| self.links.contains(id)).collect(),
        }
    }

    /// Waits until the kernel has none of them any more.
    ///
    /// # Errors
    /// When some stay.
    pub fn gone(&self) -> Result<()> {
        let deadline = Instant::now() + FREED;
        loop {
            let left = self.left();
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "still in the kernel: {left:?}");
            std::thread::sleep(PAUSE);
        }
    }
}
