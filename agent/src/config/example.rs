//! What is made of the list of settings for people and editors: the example
//! file and the schema.

use serde_json::{Map, Value, json};

use super::settings::{Kind, SETTINGS, Setting};

/// A file with every setting, each commented out, with its default and its other names.
pub fn example() -> String {
    let mut text = String::from(
        "# Settings of tracewire, all of them: `tracewire run --config FILE`.\n\
         # A flag wins over a variable, a variable over this file. `tracewire config` prints what holds.\n\
         # The line without its first `# ` is how to give one. (live): a running agent takes a new value.\n\
         # yaml-language-server: $schema=tracewire.schema.json\n",
    );
    let mut section = "";
    for setting in SETTINGS {
        let (head, name) = setting.key.split_once('.').unwrap_or(("", setting.key));
        if head != section {
            section = head;
            text.push('\n');
            if !head.is_empty() {
                text.push_str(&format!("{head}:\n"));
            }
        }
        let indent = if head.is_empty() { "" } else { "  " };
        let live = if setting.live { " (live)" } else { "" };
        text.push_str(&format!("{indent}# {}{live}\n", setting.about));
        text.push_str(&format!("{indent}# {}\n", names(setting)));
        text.push_str(&format!("{indent}# {name}: {}\n", sample(setting)));
    }
    text
}

fn names(setting: &Setting) -> String {
    let flag = (!setting.flag.is_empty()).then(|| format!("--{}", setting.flag));
    let names: Vec<String> = flag
        .into_iter()
        .chain(setting.variables.iter().map(|name| (*name).to_owned()))
        .collect();
    format!("also {}; default: {}", names.join(", "), setting.default)
}

/// A value that the setting takes.
fn sample(setting: &Setting) -> String {
    let is_default = setting.kind.takes(setting.default);
    match setting.kind {
        Kind::List(_) => "[]".into(),
        Kind::Word(words) if !is_default => words.first().copied().unwrap_or_default().into(),
        Kind::Boolean | Kind::Count | Kind::Number | Kind::Share | Kind::Milliseconds | Kind::Word(_) if is_default => {
            setting.default.into()
        }
        Kind::Boolean => "true".into(),
        Kind::Share | Kind::Number => "1".into(),
        Kind::Count | Kind::Milliseconds => "1000".into(),
        _ => "\"\"".into(),
    }
}

/// JSON Schema (2020-12) of the file.
pub fn schema() -> Value {
    let mut root = Map::new();
    for setting in SETTINGS {
        let value = of_setting(setting);
        match setting.key.split_once('.') {
            None => {
                root.insert(setting.key.into(), value);
            }
            Some((head, name)) => {
                let section = root.entry(head).or_insert_with(
                    || json!({"type": ["object", "null"], "additionalProperties": false, "properties": {}}),
                );
                if let Some(properties) = section.get_mut("properties").and_then(Value::as_object_mut) {
                    properties.insert(name.into(), value);
                }
            }
        }
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tracewire",
        "type": "object",
        "additionalProperties": false,
        "properties": root,
    })
}

fn of_setting(setting: &Setting) -> Value {
    let mut value = match setting.kind {
        Kind::Text | Kind::Path => json!({"type": "string"}),
        Kind::Word(words) => json!({"enum": words}),
        Kind::Boolean => json!({"type": "boolean"}),
        Kind::Count => json!({"type": "integer", "minimum": 0}),
        Kind::Milliseconds => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        Kind::Number => json!({"type": "number"}),
        Kind::Share => json!({"type": "number", "minimum": 0, "maximum": 1}),
        Kind::List(_) => json!({"anyOf": [
            {"type": "array", "items": {"type": ["string", "number"]}},
            {"type": "string"},
        ]}),
    };
    if let Some(object) = value.as_object_mut() {
        object.insert(
            "description".into(),
            format!("{} ({})", setting.about, names(setting)).into(),
        );
    }
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;

    use super::super::file::File;
    use super::*;

    /// The example with each setting given.
    fn given() -> String {
        let lines = example();
        let setting = |line: &&str| {
            let bare = line.trim_start().strip_prefix("# ").unwrap_or_default();
            let name = bare.split(':').next().unwrap_or_default();
            SETTINGS
                .iter()
                .any(|s| s.key == name || s.key.rsplit('.').next() == Some(name))
                && bare.contains(": ")
        };
        lines
            .lines()
            .map(|line| {
                if setting(&line) {
                    line.replacen("# ", "", 1)
                } else {
                    line.to_owned()
                }
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_example_is_a_file_whether_its_settings_are_given_or_not() {
        assert_eq!(
            File::parse(&example(), Path::new("x")).unwrap(),
            File::parse("", Path::new("x")).unwrap()
        );
        let file = File::parse(&given(), Path::new("x")).unwrap();
        for setting in SETTINGS {
            assert!(file.get(setting.key).is_some(), "{}", setting.key);
        }
    }

    /// `UPDATE=1 cargo test` writes them anew.
    #[test]
    fn the_files_in_deploy_are_those_of_the_list() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config");
        let schema = format!("{}\n", serde_json::to_string_pretty(&schema()).unwrap());
        for (name, text) in [("tracewire.yaml", example()), ("tracewire.schema.json", schema)] {
            let path = folder.join(name);
            if std::env::var_os("UPDATE").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&path, &text).unwrap();
            }
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                found == text,
                "{} is not up to date: UPDATE=1 cargo test writes it",
                path.display()
            );
        }
    }
}
