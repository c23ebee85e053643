//! How well routes are learned: concrete paths are made from known templates
//! (`tests/routes/templates.txt`), and the names that come out are held
//! against them. The figures are printed; the bounds are what must not get
//! worse.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const TEMPLATES: &str = include_str!("../../../../tests/routes/templates.txt");

/// A deterministic source of numbers (splitmix64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n
    }

    /// Few come often, many seldom.
    fn skewed(&mut self, n: usize) -> usize {
        let x = self.below(1 << 20) as f64 / f64::from(1 << 20);
        ((n as f64).powf(x) as usize).saturating_sub(1).min(n - 1)
    }

    fn chars(&mut self, alphabet: &str, n: usize) -> String {
        let alphabet = alphabet.as_bytes();
        (0..n)
            .map(|_| char::from(alphabet[self.below(alphabet.len())]))
            .collect()
    }

    /// One of 400 pronounceable words, as names of people and things are.
    fn word(&mut self) -> String {
        let mut inner = Draw(self.skewed(400) as u64 * 7919 + 1);
        let syllables = 2 + inner.below(2);
        (0..syllables)
            .map(|_| inner.chars("bcdfghklmnprstvw", 1) + &inner.chars("aeiou", 1))
            .collect::<String>()
            + ["", "n", "r", "x"][inner.below(4)]
    }

    fn value(&mut self, kind: &str) -> String {
        const HEX: &str = "0123456789abcdef";
        const BASE62: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        match kind {
            "number" => (1 + self.below(90_000)).to_string(),
            "name" => self.word(),
            "project" | "slugname" => match self.below(3) {
                0 => self.word(),
                1 => format!("{}-{}", self.word(), self.word()),
                _ => format!("{}-{}{}", self.word(), self.word(), 1 + self.below(3)),
            },
            "slug" => (0..3 + self.below(4))
                .map(|_| self.word())
                .collect::<Vec<_>>()
                .join("-"),
            "constant" => format!("{}_{}", self.word(), self.word()).to_uppercase(),
            "sha" => self.chars(HEX, 40),
            "hex" => self.chars(HEX, 20),
            "token" => {
                let length = 14 + self.below(10);
                format!(
                    "{}_{}",
                    ["ch", "cus", "pi", "in"][self.below(4)],
                    self.chars(BASE62, length)
                )
            }
            "secret" => self.chars(BASE62, 43),
            "uuid" => [8, 4, 4, 4, 12].map(|n| self.chars(HEX, n)).join("-"),
            "ulid" => format!("01{}", self.chars("0123456789ABCDEFGHJKMNPQRSTVWXYZ", 24)),
            "pod" => format!(
                "{}-{}-{}",
                self.word(),
                self.chars("bcdf456789", 9),
                self.chars("bcdfghjk24567", 5)
            ),
            "email" => format!("{}.{}%40example.com", self.word(), self.word()),
            "date" => format!("2024-{:02}-{:02}", 1 + self.below(12), 1 + self.below(28)),
            "month" => format!("2024-{:02}", 1 + self.below(12)),
            "asset" => format!("{}.{}.js", self.word(), self.chars(HEX, 8)),
            "account" => [6, 6, 6].map(|n| self.chars("0123456789ABCDEF", n)).join("-"),
            "region" => format!(
                "{}-{}{}",
                ["us", "europe", "asia"][self.below(3)],
                ["west", "east"][self.below(2)],
                1 + self.below(9)
            ),
            other => panic!("no such kind: {other}"),
        }
    }

    fn path(&mut self, template: &str) -> String {
        let mut path = String::new();
        let mut left = template;
        while let Some((before, rest)) = left.split_once('{') {
            let (kind, after) = rest.split_once('}').unwrap();
            path += before;
            path += &self.value(kind);
            left = after;
        }
        path + left
    }
}

/// The template without its parameters' names.
fn shape(template: &str) -> String {
    let mut shape = String::new();
    let mut inside = false;
    for c in template.chars() {
        inside = c == '{' || (inside && c != '}');
        if !inside || c == '{' {
            shape.push(c);
        }
    }
    shape
}

fn services() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut services: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut current = "";
    for line in TEMPLATES
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        match line.strip_prefix("== ") {
            Some(name) => current = name,
            None => services.entry(current).or_default().push(line),
        }
    }
    services
}

#[test]
fn learned_routes_against_known_ones() {
    let mut total = [0usize; 5];
    println!("service     templates  right  right-named requests  names given  (paths)");
    for (number, (service, templates)) in services().into_iter().enumerate() {
        let mut routes = Routes::new(Config::default());
        let mut draw = Draw(number as u64 + 1);
        let mut names = BTreeSet::new();
        let mut paths = BTreeSet::new();
        let mut latest = BTreeSet::new();
        for _ in 0..4000 {
            let template = templates[draw.below(templates.len())];
            let path = draw.path(template);
            names.extend(routes.name(9, "GET", &path).template);
            paths.insert(path);
        }
        let (mut right, mut hits, mut tries) = (0, 0, 0);
        let mut missed = Vec::new();
        for template in &templates {
            let mut found = 0;
            for _ in 0..50 {
                let path = draw.path(template);
                let named = routes
                    .name(9, "GET", &path)
                    .template
                    .map(|t| t.to_string())
                    .unwrap_or_default();
                if shape(&named) == shape(template) {
                    found += 1;
                } else if missed.len() < 60 {
                    missed.push(format!("    {template}: {named}"));
                }
                names.insert(named.as_str().into());
                latest.insert(named);
                paths.insert(path);
            }
            right += usize::from(found >= 48);
            hits += found;
            tries += 50;
        }
        println!(
            "{service:<11} {:>9}  {right:>5}  {:>10.1} %          {:>11}  ({})",
            templates.len(),
            100.0 * hits as f64 / tries as f64,
            names.len(),
            paths.len()
        );
        if std::env::var_os("ROUTES_MISSED").is_some() {
            missed.dedup();
            println!("{}\n{names:#?}", missed.join("\n"));
        }
        assert!(
            latest.len() <= templates.len() * 2 + 8,
            "{service}: {} names after learning",
            latest.len()
        );
        for (sum, value) in total.iter_mut().zip([templates.len(), right, hits, tries, names.len()]) {
            *sum += value;
        }
    }
    let [templates, right, hits, tries, names] = total;
    println!(
        "all         {templates:>9}  {right:>5}  {:>10.1} %          {names:>11}",
        100.0 * hits as f64 / tries as f64
    );
    assert!(right * 100 >= templates * 85, "{right} of {templates} templates found");
    assert!(hits * 100 >= tries * 90, "{hits} of {tries} requests named right");
    assert!(names <= templates * 5, "{names} names for {templates} templates");
}
