//! What `attach`, `run` and `record` do alike: read the configuration, load the kernel
//! side, start the exporters, end in order.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::runtime::Handle;

use super::{Failure, Shared, View};
use crate::bpf::check;
use crate::bpf::load::{Kernel, Request};
use crate::config::sentry::Way;
use crate::config::{self, Config, Environment, Given, Links, LogFlags, LogLevel, Output};
use crate::discover::resource::Resources;
use crate::export::Exporter;
use crate::export::console::{ConsoleExporter, Look};
use crate::export::json::JsonExporter;
use crate::export::otlp::OtlpExporter;
use crate::export::otlp::file::FileExporter;
use crate::export::otlp::metrics::MetricsExporter;
use crate::export::sentry::otlp::SentryOtlp;
use crate::export::sentry::{self, SentryExporter};
use crate::health::{self, Pulse};
use crate::metrics::Metrics;
use crate::pipeline::{Change, Chooser, Pipeline, Until};
use crate::privacy::{Policy, Query};
use crate::propagation::head::Head;
use crate::propagation::identity::Propagators;
use crate::protocol::fields::Allow;
use crate::sampler::{self, Sampler};
use crate::span::build::Builder;
use crate::span::conventions::Conventions;
use crate::span::route;
use crate::telemetry::{self, Counters};
use crate::{clock, core};

/// How long the end may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long the last metrics may take, after that.
const NUMBERS: Duration = Duration::from_secs(2);

/// A configuration that was found good.
pub(super) struct Configured {
    config: Config,
    pub(super) builder: Builder,
    pub(super) allow: Allow,
    pub(super) counters: Arc<Counters>,
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) exporters: Vec<Box<dyn Exporter>>,
}

/// The same and what is asked of the kernel; nothing is attached yet.
pub(super) struct Prepared {
    configured: Configured,
    sampling: sampler::Config,
    injection: config::injection::Injection,
    request: Request,
    /// It is to run for long, as a service.
    pub(super) long: bool,
}

/// Checks all that can be checked before anything is attached. `share` of the traces is
/// kept if nobody says another.
pub(super) fn prepare(shared: &Shared, log: &LogFlags, default: Output, share: f64) -> Result<Prepared, Failure> {
    let configured = configure(&shared.view, log, default)?;
    let (sampling, warnings) =
        config::sampling::load(&shared.sampling, share, log).map_err(|e| Failure::Usage(e.to_string()))?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    tracing::debug!(
        ratio = sampling.head.root.ratio(),
        rules = sampling.head.rules.len(),
        errors = sampling.keep_errors,
        "sampling"
    );
    let env = Environment::of_process(log).map_err(|e| Failure::Usage(e.to_string()))?;
    let request = kernel_side(shared, &env).map_err(|e| Failure::Usage(e.to_string()))?;
    let injection = config::injection::load(&shared.injection, log).map_err(|e| Failure::Usage(e.to_string()))?;
    config::propagation::writable(injection.on, configured.config.propagators)
        .map_err(|e| Failure::Usage(e.to_string()))?;
    if injection.on && !request.links {
        tracing::warn!("--links off: with --inject every call's context begins a new trace");
    }
    if let Some(Given { value, source }) = &configured.config.health {
        health::check(value).map_err(|e| Failure::Usage(format!("{source}: {e}")))?;
    }
    if configured.config.enabled.value {
        check::preflight().map_err(Failure::Other)?;
    }
    let request = Request {
        key: rand::random(),
        inject: injection.on,
        inject_despite: shared.injection.inject_despite_trial,
        log: matches!(configured.config.log_level, LogLevel::Debug | LogLevel::Trace),
        ..request
    };
    Ok(Prepared {
        configured,
        sampling,
        injection,
        request,
        long: false,
    })
}

/// What flags, variables and the file ask of the kernel side.
pub(super) fn kernel_side(shared: &Shared, env: &Environment<'_>) -> Result<Request, config::Error> {
    let size = |flag: Option<u32>, name: &'static str, variable: &'static str, default: u32| {
        let given = env.text(&[variable])?;
        match (flag, given) {
            (Some(size), _) => Ok((size, name)),
            (None, Some(given)) => match given.value.trim().parse() {
                Ok(size) => Ok((size, given.source)),
                Err(_) => Err(config::Error::new(
                    given.source,
                    format_args!("`{}` is not a whole number", given.value),
                )),
            },
            (None, None) => Ok((default, name)),
        }
    };
    let (ring, source) = size(shared.ring_buffer, "--ring-buffer", "TRACEWIRE_RING_BUFFER", 4096)?;
    if !ring.is_power_of_two() || !(64..=1 << 20).contains(&ring) {
        return Err(config::Error::new(
            source,
            format_args!("{ring} must be a power of two from 64 to 1048576 (KiB)"),
        ));
    }
    let (connections, source) = size(shared.connections, "--connections", "TRACEWIRE_CONNECTIONS", 16384)?;
    if connections == 0 {
        return Err(config::Error::new(source, "at least 1 is needed"));
    }
    let links = match (shared.links, env.text(&["TRACEWIRE_LINKS"])?) {
        (Some(links), _) => links,
        (None, Some(given)) => Links::of_word(&given.value)
            .ok_or_else(|| config::Error::new(given.source, format_args!("`{}` is not on or off", given.value)))?,
        (None, None) => Links::default(),
    };
    let helper = match env.text(&["TRACEWIRE_NODE_HELPER"])? {
        Some(given) => given.value.parse().map_err(|_| {
            config::Error::new(
                given.source,
                format_args!("`{}` is neither true nor false", given.value),
            )
        })?,
        None => false,
    };
    Ok(Request {
        ring_bytes: ring * 1024,
        connections,
        links: links == Links::On,
        node_helper: shared.node_helper || helper,
        rung: shared.hook,
        ..Request::default()
    })
}

impl View {
    /// What no flag says, as variables and the file say it.
    fn completed(&self, env: &mut Environment<'_>) -> Result<Self, config::Error> {
        let mut view = self.clone();
        for (list, variable) in [
            (&mut view.capture_request_header, "TRACEWIRE_CAPTURE_REQUEST_HEADERS"),
            (&mut view.capture_response_header, "TRACEWIRE_CAPTURE_RESPONSE_HEADERS"),
            (&mut view.route, "TRACEWIRE_ROUTES"),
        ] {
            if list.is_empty()
                && let Some(given) = env.list(&[variable])?
            {
                *list = given.value;
            }
        }
        if view.redact.is_empty()
            && let Some(given) = env.list(&["TRACEWIRE_REDACT"])?
        {
            for text in &given.value {
                let pattern = regex::Regex::new(text);
                view.redact
                    .push(pattern.map_err(|e| config::Error::new(given.source, e))?);
            }
        }
        view.show_queries |= env.boolean(&["TRACEWIRE_SHOW_QUERIES"]).is_some_and(|g| g.value);
        view.strict_routes |= env.boolean(&["TRACEWIRE_STRICT_ROUTES"]).is_some_and(|g| g.value);
        if view.semconv.is_none() {
            view.semconv = env.text(&["OTEL_SEMCONV_STABILITY_OPT_IN"])?.map(|g| g.value);
        }
        Ok(view)
    }
}

/// Checks what spans say and where they go, and makes the exporters.
pub(super) fn configure(shared: &View, log: &LogFlags, default: Output) -> Result<Configured, Failure> {
    let (config, view) = settings(shared, log)?;
    telemetry::init(config.log_level);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let builder = builder(&config, &view)?;
    let lower = |names: &[String]| names.iter().map(|n| Arc::from(n.to_ascii_lowercase())).collect();
    let allow = Allow {
        request: lower(&view.capture_request_header),
        response: lower(&view.capture_response_header),
    };
    // Before there are threads: they inherit it.
    crate::priority::give_way();
    let counters = Arc::new(Counters::default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("tracewire-io")
        .enable_all()
        .build()
        .map_err(|e| Failure::Other(format!("no runtime: {e}")))?;
    let exporters = exporters(&config, &view, log, default, runtime.handle(), &counters)?;
    Ok(Configured {
        config,
        builder,
        allow,
        counters,
        runtime,
        exporters,
    })
}

/// What flags, variables and the file say together.
fn settings(shared: &View, log: &LogFlags) -> Result<(Config, View), Failure> {
    let usage = |e: config::Error| Failure::Usage(e.to_string());
    let config = Config::load(&shared.export, log).map_err(usage)?;
    let mut env = Environment::of_process(log).map_err(usage)?;
    let view = shared.completed(&mut env).map_err(usage)?;
    Ok((config, view))
}

/// What spans say.
fn builder(config: &Config, shared: &View) -> Result<Builder, Failure> {
    let mut conventions = Conventions::default();
    if let Some(list) = &shared.semconv {
        conventions.opt_in(list);
    }
    if let Some(methods) = &config.http_known_methods {
        conventions.known_methods(&methods.join(","));
    }
    let mut routes = route::Config::default();
    if shared.strict_routes {
        routes.mode = route::Mode::Strict;
    }
    for pattern in &shared.route {
        let parsed = pattern
            .parse()
            .map_err(|e| Failure::Usage(format!("--route {pattern}: {e}")))?;
        routes.patterns.push(parsed);
    }
    let privacy = Policy {
        query: if shared.show_queries {
            Query::Redacted
        } else {
            Query::Off
        },
        patterns: shared.redact.clone().into(),
    };
    Ok(Builder::new(conventions, routes)
        .with_privacy(privacy)
        .with_limits(config.limits.clone()))
}

/// Where spans go.
fn exporters(
    config: &Config,
    shared: &View,
    log: &LogFlags,
    default: Output,
    runtime: &Handle,
    counters: &Arc<Counters>,
) -> Result<Vec<Box<dyn Exporter>>, Failure> {
    let mut exporters: Vec<Box<dyn Exporter>> = Vec::new();
    match config.output.unwrap_or(default) {
        Output::Tree => exporters.push(Box::new(ConsoleExporter::new(
            std::io::stdout(),
            Look::of_stdout(),
            counters.clone(),
        ))),
        Output::Json => exporters.push(Box::new(JsonExporter::new(std::io::stdout(), counters.clone()))),
        Output::None => {}
    }
    let (sentry, warnings) = config::sentry::load(&shared.sentry, log).map_err(|e| Failure::Usage(e.to_string()))?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    for otlp in config.otlp.iter().flat_map(config::Otlp::each) {
        let exporter = OtlpExporter::new(&otlp, &config.batch, runtime, counters.clone())
            .map_err(|e| Failure::Usage(e.to_string()))?;
        if otlp
            .endpoint
            .as_ref()
            .is_some_and(|e| sentry::otlp::is_sentry(&e.value.url))
        {
            let config = sentry.as_ref().map(|s| s.config.clone()).unwrap_or_default();
            exporters.push(Box::new(SentryOtlp::new(exporter, config)));
        } else {
            exporters.push(Box::new(exporter));
        }
    }
    if let Some(path) = &config.file {
        let exporter =
            FileExporter::new(path, config.rotation, counters.clone()).map_err(|e| Failure::Usage(e.to_string()))?;
        exporters.push(Box::new(exporter));
    }
    // After OTLP: it is also closed after it.
    if let Some(sentry) = sentry {
        exporters.extend(self::sentry(sentry, config, runtime, counters).map_err(|e| Failure::Usage(e.to_string()))?);
    }
    Ok(exporters)
}

/// Reads everything again, for an agent that runs: all of what may change, or what is wrong.
pub(super) struct Reload {
    shared: Shared,
    log: LogFlags,
    default: Output,
    share: f64,
    runtime: Handle,
    counters: Arc<Counters>,
    changes: Sender<Change>,
    /// Who is observed from then on.
    #[expect(clippy::type_complexity, reason = "one question, its answer and its failure")]
    select: Box<dyn Fn() -> Result<(Box<dyn Chooser>, Vec<u32>, Vec<u16>), Failure> + Send>,
}

impl Reload {
    fn read(&self) -> Result<Change, Failure> {
        let (config, view) = settings(&self.shared.view, &self.log)?;
        let (sampling, _) = config::sampling::load(&self.shared.sampling, self.share, &self.log)
            .map_err(|e| Failure::Usage(e.to_string()))?;
        let injection =
            config::injection::load(&self.shared.injection, &self.log).map_err(|e| Failure::Usage(e.to_string()))?;
        config::propagation::writable(injection.on, config.propagators).map_err(|e| Failure::Usage(e.to_string()))?;
        let builder = builder(&config, &view)?;
        let (chooser, pids, ports) = (self.select)()?;
        // Last: they open files and connections.
        let exporters = exporters(&config, &view, &self.log, self.default, &self.runtime, &self.counters)?;
        Ok(Change {
            sampling,
            injection: (injection.on, injection.to),
            builder,
            exporters,
            chooser,
            pids,
            ports,
        })
    }

    /// Watches the file and the flag that SIGHUP sets, from a thread of its own.
    fn watch(self, hangup: Arc<AtomicBool>) {
        let stamp = |path: &Option<std::path::PathBuf>| {
            let data = std::fs::metadata(path.as_deref()?).ok()?;
            Some((data.modified().ok()?, data.len()))
        };
        let mut before = stamp(&self.log.config);
        let watching = move || {
            loop {
                std::thread::sleep(LOOK);
                let now = stamp(&self.log.config);
                let changed = now.is_some() && now != before;
                if !hangup.swap(false, Ordering::Relaxed) && !changed {
                    continue;
                }
                before = now;
                match self.read() {
                    Ok(change) => {
                        if self.changes.send(change).is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        self.counters.reloads_failed.increment();
                        tracing::error!("configuration not taken, the old one holds: {error}");
                    }
                }
            }
        };
        if std::thread::Builder::new()
            .name("tracewire-reload".into())
            .spawn(watching)
            .is_err()
        {
            tracing::warn!("no thread for reloading: a changed configuration needs a restart");
        }
    }
}

/// The exporters to Sentry.
fn sentry(
    sentry: config::sentry::Sentry,
    config: &Config,
    runtime: &Handle,
    counters: &Arc<Counters>,
) -> Result<Vec<Box<dyn Exporter>>, config::Error> {
    const NAME: &str = "SENTRY_DSN";
    let mut exporters: Vec<Box<dyn Exporter>> = Vec::new();
    if let (Way::Otlp, Some(secret)) = (sentry.way, &sentry.config.default) {
        let (url, auth) = sentry::otlp::endpoint(secret.dsn());
        let otlp = config::Otlp {
            endpoint: Some(Given {
                value: config::Endpoint { url, is_base: true },
                source: NAME,
            }),
            headers: config::Headers::of("x-sentry-auth", &auth),
            certificate: sentry.certificate.clone(),
            ..config::Otlp::default()
        };
        let inner = OtlpExporter::new(&otlp, &config.batch, runtime, counters.clone())?;
        exporters.push(Box::new(SentryOtlp::new(inner, sentry.config.clone())));
    }
    let tls = sentry::tls(sentry.certificate.as_ref())?;
    let exporter =
        SentryExporter::new(sentry.config, tls, runtime, counters).map_err(|e| config::Error::new(NAME, e))?;
    exporters.push(Box::new(exporter));
    Ok(exporters)
}

/// The loaded agent, before it runs.
pub(super) struct Agent {
    pub(super) pipeline: Pipeline,
    counters: Arc<Counters>,
    pub(super) runtime: tokio::runtime::Runtime,
    exporters: Vec<Box<dyn Exporter>>,
    numbers: Option<MetricsExporter>,
    reload: Option<Reload>,
    /// Set it to end the run.
    pub(super) stop: Arc<AtomicBool>,
}

impl Configured {
    /// Which fields of requests are read for a parent.
    pub(super) fn propagators(&self) -> Propagators {
        self.config.propagators
    }
}

impl Prepared {
    /// What the resources of all processes say.
    pub(super) fn resources(&self) -> Resources {
        Resources::new(self.configured.config.resource.clone())
    }

    /// Who turned tracing off, if somebody did.
    pub(super) fn disabled(&self) -> Option<&'static str> {
        let enabled = &self.configured.config.enabled;
        (!enabled.value).then_some(enabled.source)
    }

    /// Header fields whose values the user asked for.
    pub(super) fn allow(&self) -> &Allow {
        &self.configured.allow
    }

    /// Loads the kernel side; nothing is observed yet.
    pub(super) fn load(
        self,
        resources: Resources,
        chooser: Box<dyn Chooser>,
        change: impl FnOnce(&mut Request),
        ports: &[u16],
    ) -> Result<Agent, Failure> {
        // A person who attaches for a while gets metrics by OTLP only if asked for.
        let long = self.long;
        let mut request = self.request;
        change(&mut request);
        let mut kernel = Kernel::load(request).map_err(|e| Failure::Other(e.to_string()))?;
        for (what, reason) in &kernel.missing {
            tracing::warn!("{what} are not seen: {reason}");
        }
        if let Err(reason) = kernel.follow(self.injection.on, &self.injection.to) {
            kernel.injection = Some(Err(reason));
        }
        match &kernel.injection {
            Some(Ok(injection)) if injection.counts => tracing::info!("contexts are written to requests"),
            Some(Ok(_)) => tracing::info!(
                "contexts are written to requests, but not of processes that ask how many bytes a socket holds \
                 (FIONREAD): this kernel answers that wrongly for sockets that are followed (Linux 929e30f93125)"
            ),
            Some(Err(reason)) => tracing::warn!("no context is written to requests: {reason}"),
            None => {}
        }
        for port in ports {
            if !kernel.choose_port(*port) {
                return Err(Failure::Other(format!("the kernel refused port {port}")));
            }
        }
        tracing::info!(hook = kernel.rung.name(), "kernel programs in place");
        let Configured {
            config,
            builder,
            allow,
            counters,
            runtime,
            exporters,
        } = self.configured;
        let exporters_named = counters.components.names();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            ratio = self.sampling.head.root.ratio(),
            keep_errors = self.sampling.keep_errors,
            "traces go to {}",
            if exporters_named.is_empty() {
                "no receiver"
            } else {
                &exporters_named
            }
        );
        let mut core = core::Core::new(allow, builder, request.key, clock::boot_to_unix_ns());
        core.read(config.propagators);
        core.sample(Head::new(self.sampling.head.clone()));
        let mut pipeline = Pipeline::new(kernel, core, resources, chooser, counters.clone())
            .ok_or_else(|| Failure::Other("the kernel programs lack a map: build tracewire anew".into()))?;
        pipeline.sample(Sampler::new(self.sampling));
        let by_otlp = config.metrics.0.filter(|_| config.metrics.1 || long);
        let metrics = Arc::new(Metrics::new(by_otlp.is_some() || config.health.is_some()));
        let pulse = Arc::new(Pulse::default());
        pipeline.measure(metrics.clone(), pulse.clone());
        if let Some(Given { value, source }) = &config.health {
            let address = health::serve(value, runtime.handle(), metrics.clone(), counters.clone(), pulse)
                .map_err(|e| Failure::Usage(format!("{source}: {e}")))?;
            tracing::info!("/metrics, /healthz and /readyz at http://{address}");
        }
        let numbers = match &by_otlp {
            Some(settings) => {
                let exporter = MetricsExporter::new(settings, runtime.handle(), metrics, counters.clone());
                Some(exporter.map_err(|e| Failure::Usage(e.to_string()))?)
            }
            None => None,
        };
        // SAFETY: malloc_trim takes a number and has no preconditions; loading parsed megabytes of BTF.
        unsafe { libc::malloc_trim(0) };
        Ok(Agent {
            pipeline,
            counters,
            runtime,
            exporters,
            numbers,
            reload: None,
            stop: Arc::default(),
        })
    }
}

impl Agent {
    /// Reads the configuration again when the file changes, or on SIGHUP.
    pub(super) fn reload_by(
        &mut self,
        shared: Shared,
        log: LogFlags,
        default: Output,
        share: f64,
        select: impl Fn() -> Result<(Box<dyn Chooser>, Vec<u32>, Vec<u16>), Failure> + Send + 'static,
    ) {
        self.reload = Some(Reload {
            shared,
            log,
            default,
            share,
            runtime: self.runtime.handle().clone(),
            counters: self.counters.clone(),
            changes: self.pipeline.changes(),
            select: Box::new(select),
        });
    }

    /// Says that probes are in place, runs to the end, says what was seen.
    pub(super) fn run(self, attached: &str, until: Until) -> Result<(), Failure> {
        let stop = self.stop;
        let flag = stop.clone();
        let hung_up = self.reload.map(|reload| {
            let hung_up = Arc::new(AtomicBool::new(false));
            reload.watch(hung_up.clone());
            hung_up
        });
        self.runtime.spawn(async move {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut terminate), Ok(mut hangup)) = (signal(SignalKind::terminate()), signal(SignalKind::hangup()))
            else {
                return;
            };
            loop {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => break,
                    _ = terminate.recv() => break,
                    _ = hangup.recv() => match &hung_up {
                        Some(hung_up) => hung_up.store(true, Ordering::Relaxed),
                        None => break,
                    },
                }
            }
            flag.store(true, Ordering::Relaxed);
            // A second one does not wait for the end.
            let _ = tokio::signal::ctrl_c().await;
            std::process::exit(1);
        });
        let mut stderr = std::io::stderr();
        // Whoever waits for this line may have closed the pipe: that is no reason to stop.
        let _ = writeln!(stderr, "attached {attached}");
        self.pipeline.run(until, &stop, self.exporters, DEADLINE);
        if let Some(numbers) = self.numbers {
            numbers.shutdown(NUMBERS);
        }
        let _ = writeln!(stderr, "{}", self.counters.summary());
        if std::env::var_os("TRACEWIRE_COUNTERS").is_some() {
            for (name, value) in self.counters.snapshot() {
                let _ = writeln!(stderr, "{name} {value}");
            }
        }
        self.runtime.shutdown_timeout(Duration::from_millis(200));
        Ok(())
    }
}

/// Tracing is turned off: nothing is loaded, nothing attached. A service stays until it
/// is told to end, so that whoever keeps it running does not start it again and again.
pub(super) fn idle(source: &str, stay: bool) -> Result<(), Failure> {
    let _ = writeln!(std::io::stderr(), "tracing is off by {source}: nothing is attached");
    if !stay {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Other(format!("no runtime: {e}")))?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(mut terminate) = signal(SignalKind::terminate()) else {
            return;
        };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    });
    Ok(())
}

/// The form that standard output takes if nobody says: trees for people, JSON for programs.
pub(super) fn default_output() -> Output {
    if std::io::stdout().is_terminal() {
        Output::Tree
    } else {
        Output::Json
    }
}
