//! The command line. Everything that can be wrong is found before anything is
//! attached, and said in one message: what, where, and what to do.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Environment, ExportFlags, InjectionFlags, Links, LogFlags, SamplingFlags, SentryFlags};
use crate::discover::select::Selector;

mod agent;
mod attach;
mod check;
mod config;
mod pages;
mod record;
mod replay;
mod run;

/// Trace services that nobody changed.
///
/// tracewire watches the socket calls of running processes with eBPF, rebuilds
/// every gRPC and HTTP request from them, and makes OpenTelemetry spans.
/// The observed process is neither stopped nor changed; with --inject its requests carry a trace context.
#[derive(Debug, Parser)]
#[command(name = "tracewire", version, propagate_version = true, max_term_width = 100, after_long_help = pages::MORE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trace these processes and their children, until Ctrl-C or until they all ended
    Attach(attach::Args),
    /// Trace the processes that selectors choose, new ones from their first call
    Run(run::Args),
    /// Write what the kernel says of these processes to a file, header values that no span needs left out
    Record(record::Args),
    /// Make spans of a recording
    Replay(replay::Args),
    /// Print every setting, its value and who gave it; nothing is attached
    Config(config::Args),
    /// Say what this kernel, these privileges and this lockdown allow
    Check(check::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page of tracewire, or of one of its commands: `tracewire manual run | man -l -`
    Manual {
        /// The command
        command: Option<String>,
    },
}

/// Flags about what spans say and where they go.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct View {
    #[command(flatten)]
    export: ExportFlags,
    #[command(flatten)]
    sentry: SentryFlags,
    /// Keep this request header field (or gRPC metadata) as an attribute; none is kept unless named here
    #[arg(long, value_name = "NAME", help_heading = "Privacy")]
    capture_request_header: Vec<String>,
    /// Keep this response header field or trailer as an attribute
    #[arg(long, value_name = "NAME", help_heading = "Privacy")]
    capture_response_header: Vec<String>,
    /// Show query strings, their private values left out; they are off unless this is given
    #[arg(long, help_heading = "Privacy")]
    show_queries: bool,
    /// Also hide what this regular expression matches, in every text of a span
    #[arg(long, value_name = "REGEX", help_heading = "Privacy")]
    redact: Vec<regex::Regex>,
    /// A route of your HTTP services, like /users/{id} or /files/*rest; tried before learned ones
    #[arg(long, value_name = "PATTERN", help_heading = "Naming")]
    route: Vec<String>,
    /// Name no route that no pattern matches
    #[arg(long, help_heading = "Naming")]
    strict_routes: bool,
    /// Also write the older rpc.* attributes; also OTEL_SEMCONV_STABILITY_OPT_IN
    #[arg(long, value_name = "LIST", help_heading = "Naming")]
    semconv: Option<String>,
}

/// Flags about what is observed.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Selection")]
pub(crate) struct Selection {
    /// Choose processes by the path of their program, or by its last part
    #[arg(long, value_name = "GLOB")]
    executable: Vec<String>,
    /// Choose processes that listen on this port
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    /// Choose processes by their service.name
    #[arg(long, value_name = "GLOB")]
    service: Vec<String>,
}

impl Selection {
    /// What flags, else variables, else the file choose.
    fn selector(&self, log: &LogFlags) -> Result<Selector, Failure> {
        let usage = |e: crate::config::Error| Failure::Usage(e.to_string());
        let env = Environment::of_process(log).map_err(usage)?;
        let mut all = self.clone();
        for (list, variable) in [
            (&mut all.executable, "TRACEWIRE_EXECUTABLE"),
            (&mut all.service, "TRACEWIRE_SERVICE"),
        ] {
            if list.is_empty()
                && let Some(given) = env.list(&[variable]).map_err(usage)?
            {
                *list = given.value;
            }
        }
        if all.port.is_empty()
            && let Some(given) = env.list(&["TRACEWIRE_PORT"]).map_err(usage)?
        {
            for text in &given.value {
                let port = text
                    .parse()
                    .map_err(|_| Failure::Usage(format!("{}: `{text}` is not a port (1 to 65535)", given.source)))?;
                all.port.push(port);
            }
        }
        Selector::new(&all.executable, &all.port, &all.service)
            .map_err(|e| Failure::Usage(format!("run: {e}; see `tracewire run --help` on GLOB")))
    }
}

/// Flags that `attach`, `run` and `record` share.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Shared {
    #[command(flatten)]
    view: View,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// Size of the buffer between kernel and agent, KiB (a power of two) [default: 4096]
    #[arg(long, value_name = "KIB", help_heading = "Kernel")]
    ring_buffer: Option<u32>,
    /// Connections followed at a time [default: 16384]
    #[arg(long, value_name = "N", help_heading = "Kernel")]
    connections: Option<u32>,
    /// off: no probes that find out which calls a service makes for which request, which cost it the
    /// most; its calls then begin traces of their own [default: on]
    #[arg(long, value_enum, value_name = "WORD", help_heading = "Kernel")]
    links: Option<Links>,
    /// Put a script into Node processes, by their inspector, that tells which calls are made for which
    /// request; without it Node's calls begin traces of their own. It is taken out at the end
    #[arg(long, help_heading = "Kernel")]
    node_helper: bool,
    #[command(flatten)]
    injection: InjectionFlags,
    /// Use this way of seeing socket data and no other; see `tracewire check`
    #[arg(long, value_enum, value_name = "RUNG", help_heading = "Kernel")]
    hook: Option<crate::bpf::load::Rung>,
}

/// What went wrong, and the exit code that says whose fault it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Usage or configuration: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Everything else: exit code 1.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    fn code(&self) -> ExitCode {
        match self {
            Failure::Usage(_) => ExitCode::from(2),
            Failure::Other(_) => ExitCode::from(1),
        }
    }
}

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let result = match cli.command {
        Command::Attach(args) => attach::main(args, &cli.log),
        Command::Run(args) => run::main(args, &cli.log),
        Command::Record(args) => record::main(args, &cli.log),
        Command::Replay(args) => replay::main(args, &cli.log),
        Command::Config(args) => config::main(args, &cli.log, matches.subcommand_matches("config")),
        Command::Check(args) => check::main(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "tracewire", &mut std::io::stdout());
            Ok(())
        }
        Command::Manual { command } => pages::print(Cli::command(), command.as_deref(), &mut std::io::stdout()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            anstream::eprintln!("tracewire: {failure}");
            failure.code()
        }
    }
}
