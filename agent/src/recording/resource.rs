//! What a recording says of a process: a few names as JSON, no more. Command
//! lines, paths and environments stay out.

use std::sync::Arc;

use serde_json::{Map, Value as Json};

use crate::attribute::Value;
use crate::discover::Resource;

/// Attributes that are kept, by their semantic-convention names.
const KEPT: [&str; 8] = [
    "deployment.environment.name",
    "process.executable.name",
    "process.pid",
    "service.instance.id",
    "service.name",
    "service.namespace",
    "service.version",
    "telemetry.sdk.language",
];
/// Attributes read of one resource.
const LIMIT: usize = 64;

/// The resource as an entry's payload.
pub(super) fn encode(resource: &Resource) -> Vec<u8> {
    let attributes = resource.attributes.iter().filter(|(key, _)| KEPT.contains(&&**key));
    let attributes: Map<String, Json> = attributes
        .filter_map(|(key, value)| Some((key.to_string(), json(value)?)))
        .collect();
    let mut object = Map::new();
    object.insert("name".to_owned(), Json::from(&*resource.service_name));
    object.insert("attributes".to_owned(), Json::Object(attributes));
    Json::Object(object).to_string().into_bytes()
}

/// Reads a payload. Its `id` is 0.
pub(super) fn decode(bytes: &[u8]) -> Option<Resource> {
    let object: Map<String, Json> = serde_json::from_slice(bytes).ok()?;
    let attributes = object.get("attributes")?.as_object()?;
    let attributes = attributes
        .iter()
        .take(LIMIT)
        .filter_map(|(key, value)| Some((key.clone().into(), plain(value)?)));
    Some(Resource {
        id: 0,
        service_name: Arc::from(object.get("name")?.as_str()?),
        attributes: attributes.collect(),
    })
}

fn json(value: &Value) -> Option<Json> {
    Some(match value {
        Value::Str(text) => Json::from(&**text),
        Value::Shared(text) => Json::from(&**text),
        Value::Int(number) => Json::from(*number),
        Value::Bool(truth) => Json::from(*truth),
        Value::Double(_) | Value::Strings(_) => return None,
    })
}

fn plain(value: &Json) -> Option<Value> {
    match value {
        Json::String(text) => Some(Value::Shared(Arc::from(&**text))),
        Json::Number(number) => number.as_i64().map(Value::Int),
        Json::Bool(truth) => Some(Value::Bool(*truth)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_are_kept_and_command_lines_are_not() {
        let resource = Resource {
            id: 7,
            service_name: "shop".into(),
            attributes: vec![
                ("service.name".into(), Value::Str("shop".into())),
                ("process.pid".into(), Value::Int(12)),
                ("process.command_line".into(), Value::Str("shop --password x".into())),
            ],
        };
        let read = decode(&encode(&resource)).unwrap();
        assert_eq!(&*read.service_name, "shop");
        let mut names: Vec<_> = read.attributes.iter().map(|(key, _)| &**key).collect();
        names.sort_unstable();
        assert_eq!(names, ["process.pid", "service.name"]);
        assert!(decode(b"[]").is_none());
    }
}
