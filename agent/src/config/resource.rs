//! What the resources of all observed processes say: `TRACE_SERVICE_NAME`,
//! `TRACE_SERVICE_VERSION`, `TRACE_ENVIRONMENT` and what they fall back to,
//! `OTEL_RESOURCE_ATTRIBUTES`. The more specific name wins.

use percent_encoding::percent_decode_str;

use super::{Environment, Error, Given};
use crate::discover::resource::Config;

/// `deployment.environment.name` where nobody says it.
pub const UNKNOWN_ENVIRONMENT: &str = "unknown";

pub(super) fn read(env: &Environment<'_>) -> Result<Config, Error> {
    let mut config = Config {
        environment: Some(UNKNOWN_ENVIRONMENT.into()),
        ..Config::default()
    };
    if let Some(Given { value: items, source }) = env.list(&["OTEL_RESOURCE_ATTRIBUTES"])? {
        for (place, item) in items.iter().enumerate() {
            let malformed = |problem: &str| Error::new(source, format_args!("entry {} {problem}", place + 1));
            let (key, value) = item.split_once('=').ok_or_else(|| malformed("has no `=`"))?;
            let decoded = |text: &str| {
                percent_decode_str(text.trim())
                    .decode_utf8()
                    .map(|text| text.into_owned())
                    .map_err(|_| malformed("is not percent-encoded UTF-8"))
            };
            config.attributes.push((decoded(key)?, decoded(value)?));
        }
    }
    let mut set = |key: &str, names: &[&'static str]| -> Result<(), Error> {
        if let Some(given) = env.text(names)? {
            config.attributes.retain(|(known, _)| known != key);
            config.attributes.push((key.to_owned(), given.value));
        }
        Ok(())
    };
    set("service.version", &["TRACE_SERVICE_VERSION", "SERVICE_VERSION"])?;
    set("deployment.environment.name", &["TRACE_ENVIRONMENT", "ENVIRONMENT"])?;
    if let Some(name) = env.text(&["TRACE_SERVICE_NAME", "OTEL_SERVICE_NAME", "SERVICE_NAME"])? {
        config.service_name = Some(name.value.into());
    }
    Ok(config)
}
