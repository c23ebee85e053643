//! The configuration file (`--config FILE`, YAML): read whole or refused
//! whole. A key that is not known, a value of the wrong kind, a key that
//! stands twice: each is an error with its line.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::Error;
use super::settings::{self, Kind, SETTINGS, Setting};

const FLAG: &str = "--config";
/// Largest file, bytes.
const LIMIT: u64 = 1 << 20;

/// What one key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its value as a variable would hold it.
    pub text: String,
    /// Line in the file, from 1; 0 if there is none.
    pub line: u64,
}

/// The settings that a file gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    entries: BTreeMap<&'static str, Entry>,
}

impl File {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// What can't be read or obeyed, with its line.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |e: &dyn std::fmt::Display| Error::new(FLAG, format_args!("{}: {e}", path.display()));
        let length = std::fs::metadata(path).map_err(|e| failed(&e))?.len();
        if length > LIMIT {
            return Err(failed(&"is larger than a configuration can be (1 MiB)"));
        }
        let text = std::fs::read_to_string(path).map_err(|e| failed(&e))?;
        Self::parse(&text, path)
    }

    /// Checks a text.
    ///
    /// # Errors
    /// What can't be obeyed, with its line.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let mut file = File {
            path: path.to_owned(),
            entries: BTreeMap::new(),
        };
        if text
            .lines()
            .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
        {
            return Ok(file);
        }
        let root = parse(text, path)?;
        file.take("", &root)?;
        Ok(file)
    }

    /// A file of entries that were made of something else.
    pub(super) fn of(path: &Path, entries: BTreeMap<&'static str, Entry>) -> Self {
        File {
            path: path.to_owned(),
            entries,
        }
    }

    /// What it says of a setting.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Where a setting stands, for messages: `FILE:LINE`.
    pub fn place(&self, key: &str) -> Option<String> {
        let entry = self.get(key)?;
        Some(match entry.line {
            0 => self.path.display().to_string(),
            line => format!("{}:{line}", self.path.display()),
        })
    }

    /// Takes the settings of `other` that it does not have itself.
    pub(super) fn fill_from(&mut self, other: File) {
        if self.path.as_os_str().is_empty() {
            self.path = other.path;
        }
        for (key, entry) in other.entries {
            self.entries.entry(key).or_insert(entry);
        }
    }

    pub(super) fn take(&mut self, prefix: &str, node: &Spanned<Node>) -> Result<(), Error> {
        let line = node.referenced.line();
        let wrong = |problem: String| Error::new(FLAG, format_args!("{}:{line}: {problem}", self.path.display()));
        if let Some(setting) = settings::of_key(prefix) {
            let text = text(setting, &node.value).map_err(|problem| wrong(format!("{prefix}: {problem}")))?;
            if let Some(text) = text {
                self.entries.insert(setting.key, Entry { text, line });
            }
            return Ok(());
        }
        let Node::Map(pairs) = &node.value else {
            return match node.value {
                Node::Null => Ok(()),
                _ if prefix.is_empty() => Err(wrong("keys and values are expected".into())),
                _ => Err(wrong(format!("{prefix}: keys and values are expected"))),
            };
        };
        for (name, value) in pairs {
            let key = match prefix {
                "" => name.value.clone(),
                _ => format!("{prefix}.{}", name.value),
            };
            let opens = format!("{key}.");
            if settings::of_key(&key).is_none() && !SETTINGS.iter().any(|s| s.key.starts_with(&opens)) {
                let line = name.referenced.line();
                let nearest = nearest(&key).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                return Err(Error::new(
                    FLAG,
                    format_args!("{}:{line}: unknown key `{key}`{nearest}", self.path.display()),
                ));
            }
            self.take(&key, value)?;
        }
        Ok(())
    }
}

/// A YAML text as it stands.
pub(super) fn parse(text: &str, path: &Path) -> Result<Spanned<Node>, Error> {
    serde_saphyr::from_str(&uncommented(text)).map_err(|e| {
        // Its first line says what and where; the lines below repeat the file, secrets and all.
        let all = e.to_string();
        let first = all
            .lines()
            .next()
            .unwrap_or("is no YAML")
            .trim()
            .trim_start_matches("error: ");
        Error::new(FLAG, format_args!("{}: {first}", path.display()))
    })
}

/// The text with empty lines in place of its comments: the parser takes no more than 96 in a row,
/// and the example file has more. Left alone where a `#` may be a part of a text of several lines.
fn uncommented(text: &str) -> Cow<'_, str> {
    let opens = |line: &str| line.trim_end().trim_end_matches(['-', '+']).ends_with(['|', '>']);
    if text.lines().any(opens) {
        return Cow::Borrowed(text);
    }
    let line = |line: &str| {
        if line.trim_start().starts_with('#') {
            String::new()
        } else {
            line.to_owned()
        }
    };
    Cow::Owned(text.lines().map(line).collect::<Vec<_>>().join("\n"))
}

/// The known key that is nearest to one that is not.
fn nearest(key: &str) -> Option<&'static str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    SETTINGS
        .iter()
        .map(|setting| {
            let whole = strsim::damerau_levenshtein(key, setting.key);
            // The right word in the wrong place.
            let word = strsim::damerau_levenshtein(&last(key), &last(setting.key)) + 2;
            (whole.min(word), setting.key)
        })
        .filter(|(distance, known)| *distance <= 2.max(known.len() / 3))
        .min()
        .map(|(_, known)| known)
}

/// A value as a variable would hold it; none if it is null.
fn text(setting: &Setting, node: &Node) -> Result<Option<String>, String> {
    let expected = || format!("{} is expected", setting.kind.expected());
    let text = match (setting.kind, node) {
        (_, Node::Null) => return Ok(None),
        (_, Node::Map(_)) => return Err(expected()),
        (Kind::List(separator), Node::List(items)) => {
            let mut texts = Vec::new();
            for item in items {
                match &item.value {
                    Node::Text(text) => texts.push(text.clone()),
                    _ => return Err("a list of texts is expected".into()),
                }
            }
            texts.join(&separator.to_string())
        }
        (_, Node::List(_)) => return Err(expected()),
        // YAML has on and off as other words for true and false.
        (Kind::Word(words), Node::Text(text)) if words.contains(&"on") => match text.as_str() {
            "true" => "on".into(),
            "false" => "off".into(),
            other => other.into(),
        },
        (_, Node::Text(text)) => text.clone(),
    };
    if setting.kind.takes(&text) {
        Ok(Some(text))
    } else if setting.secret {
        Err(expected())
    } else {
        Err(format!("`{text}` is not {}", setting.kind.expected()))
    }
}

/// A YAML node with the lines of what it holds.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// Keys and values in their order.
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    /// A sequence.
    List(Vec<Spanned<Node>>),
    /// Any scalar, as written.
    Text(String),
    /// Nothing.
    Null,
}

impl Node {
    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Spanned<Node>> {
        match self {
            Node::Map(pairs) => pairs.iter().find(|(name, _)| name.value == key).map(|(_, value)| value),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(Any)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Node::Map(pairs))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(text: &str) -> Result<File, String> {
        File::parse(text, Path::new("tw.yaml")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_file_gives_what_variables_would() {
        let file = read(
            "# mine\notlp:\n  endpoint: http://c:4317\n  protocol: grpc\n  headers:\n    - a=b\n    - c=d\n\
             select:\n  port: [80, 443]\nsampling: {ratio: 0.5}\nenabled: true\nlimits:\n",
        )
        .unwrap();
        for (key, text, line) in [
            ("otlp.endpoint", "http://c:4317", 3),
            ("otlp.headers", "a=b,c=d", 6),
            ("select.port", "80,443", 9),
            ("sampling.ratio", "0.5", 10),
            ("enabled", "true", 11),
        ] {
            assert_eq!(file.get(key).map(|e| e.text.as_str()), Some(text), "{key}");
            let _ = line;
        }
        assert_eq!(file.place("otlp.protocol").unwrap(), "tw.yaml:4");
        assert_eq!(read("").unwrap().entries.len(), 0);
        assert_eq!(read("# only\n\n# words\n").unwrap().entries.len(), 0);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_the_nearest_key() {
        for (text, problem) in [
            (
                "otlp:\n  endpont: x\n",
                "--config: tw.yaml:2: unknown key `otlp.endpont`; did you mean `otlp.endpoint`?",
            ),
            (
                "otlp:\n\n  ratio: 1\n",
                "--config: tw.yaml:3: unknown key `otlp.ratio`; did you mean `sampling.ratio`?",
            ),
            ("quux: 1\n", "--config: tw.yaml:1: unknown key `quux`"),
            (
                "batch:\n  max_queue_size: many\n",
                "--config: tw.yaml:2: batch.max_queue_size: `many` is not a whole number",
            ),
            (
                "sampling:\n  ratio: 2\n",
                "--config: tw.yaml:2: sampling.ratio: `2` is not a number from 0 to 1",
            ),
            (
                "output: loud\n",
                "--config: tw.yaml:1: output: `loud` is not one of tree, json, none",
            ),
            ("otlp: 7\n", "--config: tw.yaml:1: otlp: keys and values are expected"),
            ("- a\n", "--config: tw.yaml:1: keys and values are expected"),
            (
                "sentry:\n  dsn: [hunter2]\n",
                "--config: tw.yaml:2: sentry.dsn: a text is expected",
            ),
        ] {
            assert_eq!(read(text).unwrap_err(), problem);
        }
        let broken = read("otlp: {headers: hunter2\n").unwrap_err();
        assert!(
            broken.starts_with("--config: tw.yaml: ") && !broken.contains("hunter2"),
            "{broken}"
        );
        let twice = read("environment: a\nenvironment: b\n").unwrap_err();
        assert!(twice.contains("duplicate"), "{twice}");
    }
}
