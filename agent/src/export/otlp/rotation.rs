//! A file that is appended to and changes under the writer: it is put aside when it has its
//! size, and so is found moved when somebody else (logrotate) put it aside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often it is looked whether the path still leads to the open file.
const LOOK: Duration = Duration::from_millis(500);

/// When a file is put aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes from which on; none: never.
    pub size: Option<u64>,
    /// How many that were put aside are kept: `FILE.1` is the newest.
    pub keep: usize,
}

impl Default for Rotation {
    fn default() -> Self {
        Rotation { size: None, keep: 3 }
    }
}

/// What happened to the file before a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// It was put aside for its size.
    pub rotated: bool,
    /// For that the oldest was given up.
    pub discarded: bool,
    /// Somebody else moved it, and it was made anew.
    pub reopened: bool,
}

/// The open file.
#[derive(Debug)]
pub struct Rotated {
    path: PathBuf,
    file: File,
    identity: (u64, u64),
    written: u64,
    rotation: Rotation,
    looked: Instant,
}

impl Rotated {
    /// Opens it, or makes it; only its owner may read it.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let (file, identity, written) = open(path)?;
        Ok(Rotated {
            path: path.to_owned(),
            file,
            identity,
            written,
            rotation,
            looked: Instant::now(),
        })
    }

    /// Makes ready for `bytes` more.
    ///
    /// # Errors
    /// What the system said; the old file is still open then.
    pub fn prepare(&mut self, bytes: usize) -> io::Result<Moved> {
        let mut moved = Moved::default();
        // One that somebody else moved is no longer there to be put aside.
        if self.looked.elapsed() >= LOOK || self.is_full(bytes) {
            self.looked = Instant::now();
            let there = fs::metadata(&self.path).ok().map(|m| (m.dev(), m.ino()));
            if there != Some(self.identity) {
                self.reopen()?;
                moved.reopened = true;
            }
        }
        if self.is_full(bytes) {
            moved.discarded = self.aside(self.rotation.keep).exists();
            for number in (1..self.rotation.keep).rev() {
                match fs::rename(self.aside(number), self.aside(number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            match self.rotation.keep {
                0 => fs::remove_file(&self.path)?,
                _ => fs::rename(&self.path, self.aside(1))?,
            }
            moved.discarded |= self.rotation.keep == 0;
            self.reopen()?;
            moved.rotated = true;
        }
        Ok(moved)
    }

    /// Whether `bytes` more are too many for the file.
    fn is_full(&self, bytes: usize) -> bool {
        let more = self.written.saturating_add(bytes as u64);
        self.rotation.size.is_some_and(|size| self.written > 0 && more > size)
    }

    /// `FILE.1`, `FILE.2`, …
    fn aside(&self, number: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.identity, self.written) = open(&self.path)?;
        Ok(())
    }

    /// Appends some of `bytes`: how many.
    ///
    /// # Errors
    /// What the system said.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    /// What was written is on the disk.
    ///
    /// # Errors
    /// What the system said.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The file, which one it is, and its length.
fn open(path: &Path) -> io::Result<(File, (u64, u64), u64)> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let data = file.metadata()?;
    let identity = (data.dev(), data.ino());
    Ok((file, identity, data.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spans");
        let rotation = Rotation {
            size: Some(10),
            keep: 2,
        };
        let mut file = Rotated::open(&path, rotation).unwrap();
        let mut all = Vec::new();
        // The first is larger than a file may be: it has one of its own.
        for text in ["twelve bytes", "two", "more", "more", "last"] {
            all.push(file.prepare(text.len()).unwrap());
            assert_eq!(file.write(text.as_bytes()).unwrap(), text.len());
        }
        let of = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!((of("spans.1"), of("spans")), ("twomore".into(), "morelast".into()));
        assert_eq!(of("spans.2"), "twelve bytes");
        assert_eq!(all.iter().filter(|m| m.rotated).count(), 2);
        assert!(!all.iter().any(|m| m.discarded || m.reopened));
        for text in ["and", "yet", "another", "one"] {
            all.push(file.prepare(text.len()).unwrap());
            file.write(text.as_bytes()).unwrap();
        }
        assert!(all.iter().any(|m| m.discarded));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_file_that_somebody_moved_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spans");
        let mut file = Rotated::open(&path, Rotation::default()).unwrap();
        file.write(b"old").unwrap();
        fs::rename(&path, folder.path().join("spans-old")).unwrap();
        std::thread::sleep(LOOK);
        assert!(file.prepare(3).unwrap().reopened);
        file.write(b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    /// At once, not when it is looked for the next time: what comes till then would be lost.
    #[test]
    fn a_full_file_that_somebody_moved_is_made_anew_and_not_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spans");
        let rotation = Rotation { size: Some(4), keep: 2 };
        let mut file = Rotated::open(&path, rotation).unwrap();
        file.write(b"old").unwrap();
        fs::rename(&path, folder.path().join("moved")).unwrap();
        let moved = file.prepare(3).unwrap();
        assert!(moved.reopened && !moved.rotated);
        file.write(b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }
}
