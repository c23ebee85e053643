//! The public HPACK test cases (github.com/http2jp/hpack-test-case): the header blocks that a dozen
//! encoders made of the same stories. They are read where cargo put the package that carries them, and
//! nothing of them is kept here.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::Decoder;
use super::differential::{Pair, is_true_or_unknown, whole};
use super::tests::{decode, hex};

/// The package that carries them.
const PACKAGE: &str = "httlib-hpack";
/// Encoders, and stories of each at least: fewer would be another version of the package.
const ENCODERS: usize = 14;
const STORIES: usize = 31;

/// A block, what is in it, and the table size that its peer had announced before it, if it changed.
struct Case {
    block: Vec<u8>,
    fields: Vec<Pair>,
    limit: Option<u32>,
}

/// Where cargo unpacked the test cases.
fn folder() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == PACKAGE).unwrap();
    let manifest = Path::new(package["manifest_path"].as_str().unwrap());
    manifest.with_file_name("fixtures")
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

fn story(file: &Path) -> Vec<Case> {
    let story: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let case = |case: &Value| {
        let field = |field: &Value| {
            let (name, value) = field.as_object().unwrap().iter().next().unwrap();
            (name.clone().into_bytes(), value.as_str().unwrap().as_bytes().to_vec())
        };
        Case {
            block: hex(case["wire"].as_str().unwrap()),
            fields: case["headers"].as_array().unwrap().iter().map(field).collect(),
            limit: case["header_table_size"].as_u64().map(|size| size as u32),
        }
    };
    story["cases"].as_array().unwrap().iter().map(case).collect()
}

#[test]
fn every_public_story_is_read_as_it_was_told() {
    let (mut encoders, mut blocks, mut late, mut unknown) = (0, 0, 0, 0);
    for encoder in sorted(&folder()).iter().filter(|path| path.is_dir()) {
        encoders += 1;
        let files = sorted(encoder);
        assert!(files.len() >= STORIES, "{}", encoder.display());
        for file in files {
            let cases = story(&file);
            let mut decoder = Decoder::new(true);
            for (number, case) in cases.iter().enumerate() {
                if let Some(limit) = case.limit {
                    decoder.set_limit(limit);
                }
                let is = decode(&mut decoder, &case.block);
                assert_eq!(is, Ok(whole(&case.fields)), "{}: block {number}", file.display());
                blocks += 1;
            }
            // Joined after two of its blocks, what is known is true.
            let mut decoder = Decoder::new(false);
            for (number, case) in cases.iter().enumerate().skip(2) {
                let seen = decode(&mut decoder, &case.block).unwrap();
                let whole = is_true_or_unknown(&seen, &case.fields);
                assert!(whole, "{}: block {number}, joined late", file.display());
                late += case.fields.len();
                unknown += seen
                    .iter()
                    .filter(|(name, value)| name.is_none() || value.is_none())
                    .count();
            }
        }
    }
    assert!(encoders >= ENCODERS, "{encoders} encoders only");
    println!("{encoders} encoders, {blocks} blocks; joined late {unknown} of {late} fields are unknown");
}
