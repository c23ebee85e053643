//! `tracewire config`.

use std::io::Write;
use std::path::Path;

use super::agent::{self, default_output};
use super::run::SHARE;
use super::{Failure, Selection, Shared};
use crate::config::{self, Environment, LogFlags, example, show};

/// Print every setting.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print an example file with every setting instead
    #[arg(long, conflicts_with = "schema")]
    example: bool,
    /// Print the JSON schema of the file instead
    #[arg(long)]
    schema: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    shared: Shared,
}

pub(crate) fn main(args: Args, log: &LogFlags) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let failed = |e: std::io::Error| Failure::Other(format!("standard output: {e}"));
    if args.example {
        return out.write_all(example::example().as_bytes()).map_err(failed);
    }
    if args.schema {
        return writeln!(out, "{:#}", example::schema()).map_err(failed);
    }
    let usage = |e: config::Error| Failure::Usage(e.to_string());
    // Whatever `run` would refuse is refused here, too.
    args.selection.selector(log)?;
    agent::configure(&args.shared.view, log, default_output())?;
    config::sampling::load(&args.shared.sampling, SHARE, log).map_err(usage)?;
    config::injection::load(&args.shared.injection, log).map_err(usage)?;
    let env = Environment::of_process(log).map_err(usage)?;
    agent::kernel_side(&args.shared, &env).map_err(usage)?;
    let all = show::all(&env, |flag| given(&args, log, flag)).map_err(usage)?;
    if args.json {
        let object: serde_json::Map<_, _> = all
            .iter()
            .map(|s| {
                (
                    s.key.to_owned(),
                    serde_json::json!({"value": s.value, "source": s.source}),
                )
            })
            .collect();
        return writeln!(out, "{:#}", serde_json::Value::Object(object)).map_err(failed);
    }
    let key = all.iter().map(|s| s.key.len()).max().unwrap_or(0);
    let value = all.iter().map(|s| s.value.chars().count()).max().unwrap_or(0).min(40);
    for shown in &all {
        writeln!(out, "{:key$}  {:value$}  {}", shown.key, shown.value, shown.source).map_err(failed)?;
    }
    Ok(())
}

/// What the command line says of a flag.
fn given(args: &Args, log: &LogFlags, flag: &str) -> Option<String> {
    let list = |items: &[String], separator: &str| (!items.is_empty()).then(|| items.join(separator));
    let path = |path: &Option<std::path::PathBuf>| path.as_deref().map(Path::display).map(|p| p.to_string());
    let word = |value: Option<clap::builder::PossibleValue>| value.map(|v| v.get_name().to_owned());
    let (shared, view, sampling) = (&args.shared, &args.shared.view, &args.shared.sampling);
    use clap::ValueEnum as _;
    match flag {
        "executable" => list(&args.selection.executable, ","),
        "service" => list(&args.selection.service, ","),
        "port" => list(&args.selection.port.iter().map(u16::to_string).collect::<Vec<_>>(), ","),
        "output" => word(view.export.output.and_then(|v| v.to_possible_value())),
        "otlp-endpoint" => view.export.otlp_endpoint.clone(),
        "otlp-protocol" => word(view.export.otlp_protocol.and_then(|v| v.to_possible_value())),
        "otlp-compression" => word(view.export.otlp_compression.and_then(|v| v.to_possible_value())),
        "otlp-certificate" => path(&view.export.otlp_certificate),
        "otlp-file" => path(&view.export.otlp_file),
        "health-listen" => view.export.health_listen.clone(),
        "sample-ratio" => sampling.sample_ratio.map(|n| n.to_string()),
        "sample-rule" => list(&sampling.sample_rule, ";"),
        "sample-limit" => sampling.sample_limit.map(|n| n.to_string()),
        "trust-sampling" => word(sampling.trust_sampling.and_then(|v| v.to_possible_value())),
        "keep-slower-than" => sampling.keep_slower_than.map(|n| n.to_string()),
        "show-queries" => view.show_queries.then(|| "true".into()),
        "redact" => list(
            &view.redact.iter().map(|r| r.as_str().to_owned()).collect::<Vec<_>>(),
            ";",
        ),
        "capture-request-header" => list(&view.capture_request_header, ","),
        "capture-response-header" => list(&view.capture_response_header, ","),
        "route" => list(&view.route, ";"),
        "strict-routes" => view.strict_routes.then(|| "true".into()),
        "semconv" => view.semconv.clone(),
        "sentry-dsn-file" => path(&view.sentry.sentry_dsn_file),
        "sentry-environment" => view.sentry.sentry_environment.clone(),
        "sentry-release" => view.sentry.sentry_release.clone(),
        "sentry-traces-sample-rate" => view.sentry.sentry_traces_sample_rate.map(|n| n.to_string()),
        "sentry-traces" => word(view.sentry.sentry_traces.and_then(|v| v.to_possible_value())),
        "log-level" => word(log.log_level.and_then(|v| v.to_possible_value())),
        "links" => word(shared.links.and_then(|v| v.to_possible_value())),
        "inject" => shared.injection.inject.map(|on| on.to_string()),
        "inject-to" => list(&shared.injection.inject_to, ","),
        "ring-buffer" => shared.ring_buffer.map(|n| n.to_string()),
        "connections" => shared.connections.map(|n| n.to_string()),
        _ => None,
    }
}
