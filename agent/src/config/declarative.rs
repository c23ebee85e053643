//! OpenTelemetry's declarative configuration (`OTEL_CONFIG_FILE`, SPEC
//! `configuration/`, data model 1.0): what of it concerns an agent, put as
//! settings. While it is given, the other `OTEL_*` variables mean nothing but
//! what `${NAME}` takes of them. Keys that mean nothing here are named in a
//! warning, not refused: the file is for SDKs as well.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_saphyr::Spanned;

use super::Error;
use super::file::{self, Entry, File, Node};
use super::settings;

const NAME: &str = "OTEL_CONFIG_FILE";
/// Keys that are read, of the root.
const KNOWN: [&str; 9] = [
    "file_format",
    "disabled",
    "log_level",
    "attribute_limits",
    "resource",
    "tracer_provider",
    "meter_provider",
    "propagator",
    "distribution",
];

/// The settings of such a file, and what of it is not obeyed.
///
/// # Errors
/// What can't be read, by line.
pub(super) fn read(path: &Path, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<(File, Vec<String>), Error> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::new(NAME, format_args!("{}: {e}", path.display())))?;
    parse(&text, path, variable)
}

fn parse(text: &str, path: &Path, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<(File, Vec<String>), Error> {
    let root = file::parse(text, path).map_err(|e| Error::new(NAME, e.problem))?;
    let mut reader = Reader {
        path,
        variable,
        entries: BTreeMap::new(),
        warnings: Vec::new(),
    };
    reader.root(&root)?;
    let mut read = File::of(path, reader.entries);
    let warnings = reader.warnings;
    if let Some(own) = root.value.get("distribution").and_then(|d| d.value.get("tracewire")) {
        let mut file = File::of(path, BTreeMap::new());
        file.take("", own).map_err(|e| Error::new(NAME, e.problem))?;
        file.fill_from(read);
        read = file;
    }
    Ok((read, warnings))
}

struct Reader<'a> {
    path: &'a Path,
    variable: &'a dyn Fn(&str) -> Option<OsString>,
    entries: BTreeMap<&'static str, Entry>,
    warnings: Vec<String>,
}

impl Reader<'_> {
    fn root(&mut self, root: &Spanned<Node>) -> Result<(), Error> {
        let Node::Map(pairs) = &root.value else {
            return Err(self.wrong(root, "keys and values are expected"));
        };
        for (name, _) in pairs.iter().filter(|(name, _)| !KNOWN.contains(&name.value.as_str())) {
            self.warnings
                .push(format!("{NAME}: `{}` means nothing to this agent", name.value));
        }
        let format = self.scalar(at(root, &["file_format"]))?;
        if !format.as_deref().is_some_and(|f| f == "1" || f.starts_with("1.")) {
            return Err(self.wrong(root, "file_format 1.0 is expected"));
        }
        if let Some(disabled) = self.scalar(at(root, &["disabled"]))? {
            let enabled = !disabled.eq_ignore_ascii_case("true");
            self.put("enabled", root, enabled.to_string())?;
        }
        self.copy(root, &["log_level"], "log.level")?;
        for limits in [
            at(root, &["attribute_limits"]),
            at(root, &["tracer_provider", "limits"]),
        ]
        .into_iter()
        .flatten()
        {
            for (name, key) in [
                ("attribute_value_length_limit", "limits.attribute_value_length"),
                ("attribute_count_limit", "limits.attribute_count"),
                ("event_count_limit", "limits.event_count"),
                ("link_count_limit", "limits.link_count"),
                ("event_attribute_count_limit", "limits.event_attribute_count"),
                ("link_attribute_count_limit", "limits.link_attribute_count"),
            ] {
                self.copy(limits, &[name], key)?;
            }
        }
        self.resource(root)?;
        if let Some(sampler) = at(root, &["tracer_provider", "sampler"]) {
            self.sampler(sampler)?;
        }
        self.propagators(root)?;
        self.processors(root)?;
        self.readers(root)
    }

    fn propagators(&mut self, root: &Spanned<Node>) -> Result<(), Error> {
        let mut list = Vec::new();
        for item in items(at(root, &["propagator", "composite"])) {
            if let Node::Map(pairs) = &item.value {
                list.extend(pairs.iter().map(|(name, _)| name.value.clone()));
            }
        }
        list.extend(self.scalar(at(root, &["propagator", "composite_list"]))?);
        if list.is_empty() {
            return Ok(());
        }
        self.put("propagation.propagators", root, list.join(","))
    }

    fn resource(&mut self, root: &Spanned<Node>) -> Result<(), Error> {
        let mut list = Vec::new();
        if let Some(text) = self.scalar(at(root, &["resource", "attributes_list"]))? {
            list.push(text);
        }
        for item in items(at(root, &["resource", "attributes"])) {
            let (name, value) = (self.scalar(at(item, &["name"]))?, self.scalar(at(item, &["value"]))?);
            if let (Some(name), Some(value)) = (name, value) {
                list.push(format!("{name}={}", utf8_percent_encode(&value, NON_ALPHANUMERIC)));
            }
        }
        if list.is_empty() {
            return Ok(());
        }
        self.put("resource.attributes", root, list.join(","))
    }

    fn sampler(&mut self, node: &Spanned<Node>) -> Result<(), Error> {
        let (prefix, node) = match at(node, &["parent_based"]) {
            Some(based) => ("parentbased_", at(based, &["root"]).unwrap_or(based)),
            None => ("", node),
        };
        let word = ["always_on", "always_off", "trace_id_ratio_based"]
            .into_iter()
            .find(|name| node.value.get(name).is_some());
        match word {
            Some("trace_id_ratio_based") => {
                self.put("sampling.sampler", node, format!("{prefix}traceidratio"))?;
                self.copy(node, &["trace_id_ratio_based", "ratio"], "sampling.sampler_argument")
            }
            Some(word) => self.put("sampling.sampler", node, format!("{prefix}{word}")),
            None if prefix.is_empty() => {
                self.warnings
                    .push(format!("{NAME}: this sampler is not supported and ignored"));
                Ok(())
            }
            None => self.put("sampling.sampler", node, "parentbased_always_on".into()),
        }
    }

    fn processors(&mut self, root: &Spanned<Node>) -> Result<(), Error> {
        let mut exporters = Vec::new();
        for processor in items(at(root, &["tracer_provider", "processors"])) {
            let Some(inner) = at(processor, &["batch"]).or(at(processor, &["simple"])) else {
                continue;
            };
            for (name, key) in [
                ("schedule_delay", "batch.schedule_delay"),
                ("export_timeout", "batch.export_timeout"),
                ("max_queue_size", "batch.max_queue_size"),
                ("max_export_batch_size", "batch.max_export_batch_size"),
            ] {
                self.copy(inner, &[name], key)?;
            }
            let Some(exporter) = at(inner, &["exporter"]) else {
                continue;
            };
            if exporter.value.get("console").is_some() {
                exporters.push("console");
            }
            if let Some(stream) = self.scalar(at(exporter, &["otlp_file/development", "output_stream"]))?
                && let Some(path) = stream.strip_prefix("file://")
            {
                self.put("otlp.file", exporter, path.to_owned())?;
            }
            for (name, protocol) in [("otlp_http", "http/protobuf"), ("otlp_grpc", "grpc")] {
                if let Some(otlp) = at(exporter, &[name]) {
                    exporters.push("otlp");
                    self.otlp(otlp, protocol)?;
                }
            }
        }
        if at(root, &["tracer_provider", "processors"]).is_some() {
            let chosen = if exporters.is_empty() {
                "none".into()
            } else {
                exporters.join(",")
            };
            self.put("traces.exporter", root, chosen)?;
        }
        Ok(())
    }

    fn otlp(&mut self, otlp: &Spanned<Node>, protocol: &str) -> Result<(), Error> {
        let json = self.scalar(at(otlp, &["encoding"]))?.is_some_and(|e| e == "json");
        self.put(
            "otlp.protocol",
            otlp,
            if json { "http/json".into() } else { protocol.to_owned() },
        )?;
        for (path, key) in [
            (&["endpoint"][..], "otlp.endpoint"),
            (&["compression"], "otlp.compression"),
            (&["timeout"], "otlp.timeout"),
            (&["tls", "ca_file"], "otlp.certificate"),
            (&["tls", "key_file"], "otlp.client_key"),
            (&["tls", "cert_file"], "otlp.client_certificate"),
            (&["tls", "insecure"], "otlp.insecure"),
        ] {
            self.copy(otlp, path, key)?;
        }
        let mut headers = Vec::new();
        if let Some(list) = self.scalar(at(otlp, &["headers_list"]))? {
            headers.push(list);
        }
        for item in items(at(otlp, &["headers"])) {
            let (name, value) = (self.scalar(at(item, &["name"]))?, self.scalar(at(item, &["value"]))?);
            if let (Some(name), Some(value)) = (name, value) {
                headers.push(format!("{name}={}", utf8_percent_encode(&value, NON_ALPHANUMERIC)));
            }
        }
        if headers.is_empty() {
            return Ok(());
        }
        self.put("otlp.headers", otlp, headers.join(","))
    }

    fn readers(&mut self, root: &Spanned<Node>) -> Result<(), Error> {
        for reader in items(at(root, &["meter_provider", "readers"])) {
            if let Some(periodic) = at(reader, &["periodic"]) {
                self.copy(periodic, &["interval"], "metrics.interval")?;
                for name in ["otlp_http", "otlp_grpc"] {
                    self.copy(periodic, &["exporter", name, "endpoint"], "metrics.endpoint")?;
                    self.copy(
                        periodic,
                        &["exporter", name, "temporality_preference"],
                        "metrics.temporality",
                    )?;
                }
            }
            if let Some(prometheus) = at(reader, &["pull", "exporter", "prometheus/development"]) {
                let host = self
                    .scalar(at(prometheus, &["host"]))?
                    .unwrap_or_else(|| "localhost".into());
                let port = self.scalar(at(prometheus, &["port"]))?.unwrap_or_else(|| "9464".into());
                self.put("health.listen", prometheus, format!("{host}:{port}"))?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, node: &Spanned<Node>, path: &[&str], key: &'static str) -> Result<(), Error> {
        let found = at(node, path);
        match (self.scalar(found)?, found) {
            (Some(text), Some(node)) => self.put(key, node, text),
            _ => Ok(()),
        }
    }

    fn put(&mut self, key: &'static str, node: &Spanned<Node>, text: String) -> Result<(), Error> {
        let takes = settings::of_key(key).is_some_and(|setting| setting.kind.takes(&text));
        if !takes {
            let expected = settings::of_key(key).map(|s| s.kind.expected()).unwrap_or_default();
            return Err(self.wrong(node, &format!("{key}: {expected} is expected")));
        }
        let line = node.referenced.line();
        self.entries.insert(key, Entry { text, line });
        Ok(())
    }

    fn wrong(&self, node: &Spanned<Node>, problem: &str) -> Error {
        let line = node.referenced.line();
        Error::new(NAME, format_args!("{}:{line}: {problem}", self.path.display()))
    }

    /// A scalar with its variables put in; none if it is not there, null or empty.
    fn scalar(&self, node: Option<&Spanned<Node>>) -> Result<Option<String>, Error> {
        let Some(node) = node else { return Ok(None) };
        match &node.value {
            Node::Null => Ok(None),
            Node::Text(text) => {
                let text = substitute(text, self.variable).map_err(|problem| self.wrong(node, &problem))?;
                Ok(Some(text).filter(|text| !text.is_empty()))
            }
            _ => Err(self.wrong(node, "a single value is expected")),
        }
    }
}

fn at<'n>(node: &'n Spanned<Node>, path: &[&str]) -> Option<&'n Spanned<Node>> {
    path.iter().try_fold(node, |node, key| node.value.get(key))
}

fn items(node: Option<&Spanned<Node>>) -> &[Spanned<Node>] {
    match node.map(|node| &node.value) {
        Some(Node::List(items)) => items,
        _ => &[],
    }
}

/// `${NAME}`, `${env:NAME}`, `${NAME:-default}`; `$$` is a dollar sign.
fn substitute(text: &str, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let Some(inner) = after.strip_prefix('{') else {
            out.push('$');
            rest = after;
            continue;
        };
        let (inner, after) = inner.split_once('}').ok_or("`${` without `}`")?;
        let (name, default) = inner.split_once(":-").unwrap_or((inner, ""));
        let name = name.strip_prefix("env:").unwrap_or(name);
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err("`${…}` does not hold the name of a variable".into());
        }
        let value = variable(name).and_then(|value| value.into_string().ok());
        out.push_str(value.as_deref().filter(|value| !value.is_empty()).unwrap_or(default));
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(text: &str) -> Result<(File, Vec<String>), String> {
        let variable = |name: &str| (name == "KEY").then(|| OsString::from("s3cret,"));
        parse(text, Path::new("otel.yaml"), &variable).map_err(|e| e.to_string())
    }

    #[test]
    fn what_concerns_an_agent_is_taken() {
        let (file, warnings) = read(
            "file_format: '1.0'\ndisabled: false\nattribute_limits: {attribute_count_limit: 99}\n\
             resource:\n  attributes:\n    - {name: deployment.environment.name, value: 'a b'}\n\
             logger_provider: {}\n\
             tracer_provider:\n  sampler: {parent_based: {root: {trace_id_ratio_based: {ratio: 0.25}}}}\n\
             \x20 processors:\n    - batch:\n        schedule_delay: 100\n        exporter:\n          otlp_http:\n\
             \x20           endpoint: ${HOST:-http://c:4318}/v1/traces\n            headers:\n              - {name: k, value: '${env:KEY}'}\n\
             distribution: {tracewire: {select: {port: [80]}, batch: {schedule_delay: 200}}}\n",
        )
        .unwrap();
        for (key, text) in [
            ("enabled", "true"),
            ("limits.attribute_count", "99"),
            ("resource.attributes", "deployment.environment.name=a%20b"),
            ("sampling.sampler", "parentbased_traceidratio"),
            ("sampling.sampler_argument", "0.25"),
            ("otlp.endpoint", "http://c:4318/v1/traces"),
            ("otlp.protocol", "http/protobuf"),
            ("otlp.headers", "k=s3cret%2C"),
            ("traces.exporter", "otlp"),
            ("select.port", "80"),
            ("batch.schedule_delay", "200"),
        ] {
            assert_eq!(file.get(key).map(|e| e.text.as_str()), Some(text), "{key}");
        }
        assert_eq!(
            warnings,
            ["OTEL_CONFIG_FILE: `logger_provider` means nothing to this agent"]
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, problem) in [
            (
                "disabled: true\n",
                "OTEL_CONFIG_FILE: otel.yaml:1: file_format 1.0 is expected",
            ),
            (
                "file_format: 1.0\nattribute_limits:\n  attribute_count_limit: many\n",
                "OTEL_CONFIG_FILE: otel.yaml:3: limits.attribute_count: a whole number is expected",
            ),
        ] {
            assert_eq!(read(text).unwrap_err(), problem);
        }
    }

    #[test]
    fn variables_are_put_in() {
        let variable = |name: &str| (name == "A").then(|| OsString::from("x"));
        for (text, result) in [
            ("${A}-${env:A}", "x-x"),
            ("${B:-y}", "y"),
            ("$${A} $A", "${A} $A"),
            ("${B}", ""),
        ] {
            assert_eq!(substitute(text, &variable).unwrap(), result);
        }
        assert!(substitute("${A", &variable).is_err());
        assert!(substitute("${A B}", &variable).is_err());
    }
}
