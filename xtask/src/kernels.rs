//! `cargo xtask kernels`: the agent under other kernels. Each boots in a
//! virtual machine, where a Go service and its client make 60 calls under each
//! hook that the kernel is said to have; every call must come out as one server
//! and one client span, and none may have a field unseen.
//! Bias: a hook that refuses is a failure, since the README says where each works.

use std::process::ExitCode;

use anyhow::Result;

use crate::build;
use crate::command::{command, shown};
use crate::place;
use crate::vm;

/// Kernels of Debian's archive, the hooks that must work there, and what their command line has more.
const KERNELS: [(&str, &str, &str); 5] = [
    ("5.10", "trampolines system-calls", ""),
    ("6.1", "trampolines system-calls", ""),
    ("6.12", "socket-tracepoints trampolines system-calls", ""),
    ("6.18", "socket-tracepoints", "lockdown=integrity"),
    ("latest", "socket-tracepoints", ""),
];

/// Longest time for each kernel, s: emulated, a hook takes about half a minute.
const TIMEOUT: u64 = 600;

const SCRIPT: &str = r#"
agent=$1 workload=$2; shift 2
cd /tmp; ip link set lo up 2>/dev/null; code=0
"$agent" check --programs >programs || code=1
echo "$(uname -r)  most instructions verified: $(awk '$NF ~ /^[0-9]+$/' programs | awk '{print $NF, $1}' | sort -rn | head -2 | tr '\n' ' ')"
for hook; do
    rm -f calls spans told
    "$workload" server --log served --listen 127.0.0.1:5999 >server.out 2>&1 & server=$!
    sleep 1
    "$workload" client --log calls --target 127.0.0.1:5999 --scenario mixed --calls 60 --start-delay-ms 30000 >client.out 2>&1 & client=$!
    "$agent" attach --pid $server --pid $client --hook $hook --output json >spans 2>told & observer=$!
    wait $client; sleep 3; kill -INT $observer; wait $observer; kill $server; wait $server 2>/dev/null
    calls=$(wc -l <calls) served=$(grep -c '"SERVER"' spans) made=$(grep -c '"CLIENT"' spans) unseen=$(grep -c tracewire.unseen spans)
    echo "$(uname -r)  $hook: $calls calls, $served server and $made client spans, $unseen with something unseen"
    [ "$calls $served $made $unseen" = "60 60 60 0" ] || { code=1; grep -E 'ERROR|WARN|refuse|tracewire:' told | head -5; }
done
exit $code
"#;

/// Which kernels.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Series of Debian kernels; all of them if none is named
    #[arg(value_name = "KERNEL", value_parser = KERNELS.map(|(series, ..)| series))]
    kernels: Vec<String>,
}

/// Builds the agent, unless TRACEWIRE_BIN names one, and tries it under each kernel.
///
/// # Errors
/// When something does not build or a virtual machine can't be made.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let agent = match std::env::var_os("TRACEWIRE_BIN") {
        Some(agent) => agent.into(),
        None => {
            build::run()?;
            place::agent()
        }
    };
    let workload = place::root().join("target/workloads/go");
    let script = place::root().join("tests/workloads/go/build.sh");
    shown(command("bash").arg(&script).arg(&workload))?;
    let mut result = ExitCode::SUCCESS;
    for (series, hooks, append) in KERNELS {
        if !arguments.kernels.is_empty() && !arguments.kernels.iter().any(|wanted| wanted == series) {
            continue;
        }
        let mut words = ["sh", "-c", SCRIPT, "sh"].map(ToOwned::to_owned).to_vec();
        words.push(agent.to_string_lossy().into_owned());
        words.push(workload.join("run").to_string_lossy().into_owned());
        words.extend(hooks.split(' ').map(ToOwned::to_owned));
        let ended = vm::run(&vm::Arguments::of(series, words, append, TIMEOUT))?;
        if ended != ExitCode::SUCCESS {
            result = ended;
        }
    }
    Ok(result)
}
