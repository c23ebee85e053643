//! Modules of a Go program and their versions, as the linker wrote them
//! (`runtime/debug.BuildInfo`); they are there in stripped programs too.

use std::collections::HashMap;

use memchr::memmem;

use crate::binary::Binary;

/// Before and after the text (`cmd/go/internal/modload.ModInfoProg`).
const START: [u8; 16] = *b"\x30\x77\xaf\x0c\x92\x74\x08\x02\x41\xe1\xc1\x07\xe6\xd6\x18\xe6";
const END: [u8; 16] = *b"\xf9\x32\x43\x31\x86\x18\x20\x72\x00\x82\x42\x10\x41\x16\xd8\xf2";
/// Longest text that is read, bytes.
const LIMIT: usize = 4 << 20;

/// Versions by module path.
#[derive(Debug, Default)]
pub struct Modules(HashMap<String, String>);

impl Modules {
    /// Of a program; empty where it says nothing.
    pub fn of(binary: &Binary) -> Self {
        let bytes = binary.bytes();
        for start in memmem::find_iter(bytes, &START) {
            let text = &bytes[start + START.len()..];
            let text = &text[..text.len().min(LIMIT)];
            if let Some(end) = memmem::find(text, &END)
                && let Ok(text) = std::str::from_utf8(&text[..end])
                && text.starts_with("path\t")
            {
                return Self::parse(text);
            }
        }
        Modules::default()
    }

    fn parse(text: &str) -> Self {
        let mut modules = HashMap::new();
        let mut last = None;
        for line in text.lines() {
            let mut parts = line.split('\t');
            match (parts.next(), parts.next(), parts.next()) {
                (Some("dep" | "mod"), Some(path), Some(version)) => {
                    modules.insert(path.to_owned(), version.to_owned());
                    last = Some(path.to_owned());
                }
                // What it was replaced by decides.
                (Some("=>"), Some(_), version) => {
                    if let Some(path) = last.take() {
                        modules.insert(path, version.unwrap_or("(replaced)").to_owned());
                    }
                }
                _ => {}
            }
        }
        Modules(modules)
    }

    /// A module's version, like `v1.85.0`.
    pub fn version(&self, module: &str) -> Option<&str> {
        self.0.get(module).map(String::as_str)
    }

    /// Its first two numbers.
    pub fn number(&self, module: &str) -> Option<(u32, u32)> {
        let mut parts = self.version(module)?.strip_prefix('v')?.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_replacements() {
        let modules = Modules::parse(
            "path\tx\nmod\tx\t(devel)\t\ndep\ta.b/c\tv1.60.1\th1:x=\ndep\ta.b/d\tv1.2.3\n=>\te.f/g\tv1.4.0\th1:y=\n",
        );
        assert_eq!(modules.number("a.b/c"), Some((1, 60)));
        assert_eq!(modules.number("a.b/d"), Some((1, 4)));
        assert_eq!(modules.number("x"), None);
    }
}
