//! One server, its clients and the agent, from the first call to the last.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};

use crate::agent::{Agent, Report};
use crate::compare::{self, Comparison};
use crate::folder::Folder;
use crate::tls::Tls;
use crate::truth::{self, Truth};
use crate::workload::{Client, Language, Load, Server, free_port};

/// How long all calls may take: far more than they do on a machine at work.
pub const CALLS: Duration = Duration::from_secs(150);
/// Clients wait at least so long before their first call, in which the agent attaches.
const DELAY: Duration = Duration::from_millis(1500);
/// Attempts to be attached before the first call, each with a longer wait.
const ATTEMPTS: u32 = 4;

/// What was done, and what was seen of it.
#[derive(Debug)]
pub struct Session {
    /// What it was.
    pub title: String,
    /// Both sides' logs.
    pub truth: Truth,
    /// The agent's spans and counters.
    pub report: Report,
    /// Where the server listened.
    pub address: String,
    /// Keeps the logs while the test may fail.
    pub folder: Folder,
}

/// What the last attach took on this machine, from the clients' start.
static ATTACH: Mutex<Duration> = Mutex::new(DELAY);

fn usual_attach() -> Duration {
    *ATTACH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which sides are observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// Server and clients.
    Both,
    /// The clients.
    Clients,
    /// The server.
    Server,
}

/// Who is observed, TLS, flags of the agent's.
type How<'a> = (Sides, Option<&'a Tls>, &'a [&'a str]);

impl Session {
    /// Runs all loads at the same time; the agent is there before the first call.
    ///
    /// # Errors
    /// When a program fails, or the machine is so slow that the agent never came first.
    pub fn run(server: Language, client: Language, loads: &[Load]) -> Result<Self> {
        Self::run_on(server, client, loads, None, Sides::Both)
    }

    /// The same on an address of the caller's, with a choice of sides.
    ///
    /// # Errors
    /// As there.
    pub fn run_on(
        server: Language,
        client: Language,
        loads: &[Load],
        address: Option<&str>,
        sides: Sides,
    ) -> Result<Self> {
        Self::run_as(server, client, loads, address, (sides, None, &[]))
    }

    /// The same with TLS between them.
    ///
    /// # Errors
    /// As there.
    pub fn run_tls(server: Language, client: Language, loads: &[Load], mutual: bool) -> Result<Self> {
        let folder = Folder::new()?;
        let tls = Tls::new(&folder, mutual)?;
        Self::run_as(server, client, loads, None, (Sides::Both, Some(&tls), &[]))
    }

    /// Both sides observed, with flags of the agent's.
    ///
    /// # Errors
    /// As there.
    pub fn run_with(server: Language, client: Language, loads: &[Load], flags: &[&str]) -> Result<Self> {
        Self::run_as(server, client, loads, None, (Sides::Both, None, flags))
    }

    fn run_as(server: Language, client: Language, loads: &[Load], address: Option<&str>, how: How<'_>) -> Result<Self> {
        client.build()?;
        for attempt in 1..=ATTEMPTS {
            let delay = DELAY.max(2 * usual_attach()) * attempt;
            if let Some(session) = Self::attempt(server, client, loads, address, how, delay)? {
                return Ok(session);
            }
        }
        bail!("the agent was never attached before the first call");
    }

    /// None: calls began before the agent was attached, which is another test's business.
    fn attempt(
        server: Language,
        client: Language,
        loads: &[Load],
        address: Option<&str>,
        (sides, tls, flags): How<'_>,
        delay: Duration,
    ) -> Result<Option<Self>> {
        let folder = Folder::new()?;
        let mut title = format!("{server} ← {client}:");
        let mut server = match address {
            Some(address) => Server::start_with(server, address, &folder, tls)?,
            None => Server::start_with(server, &format!("127.0.0.1:{}", free_port()?), &folder, tls)?,
        };
        let began = Instant::now();
        let mut clients = Vec::new();
        for (number, load) in loads.iter().enumerate() {
            title += &format!(" {load}");
            clients.push(Client::start_with(
                client,
                &server.address,
                *load,
                delay,
                number,
                &folder,
                |command| {
                    if let Some(tls) = tls {
                        tls.tell(command);
                    }
                },
            )?);
        }
        let mut pids = Vec::new();
        if sides != Sides::Clients {
            pids.push(server.running.pid());
        }
        if sides != Sides::Server {
            pids.extend(clients.iter().map(|client| client.running.pid()));
        }
        let agent = Agent::attach_with(&pids, flags, &folder)?;
        let attached = now();
        *ATTACH.lock().unwrap_or_else(PoisonError::into_inner) = began.elapsed();
        let mut truth = Truth::new();
        for client in &mut clients {
            client.finish(CALLS)?;
            truth::read(&client.log, &mut truth)?;
        }
        let late = truth.values().any(|call| call.start_ns < attached);
        let calls: u64 = loads.iter().map(|load| u64::from(load.calls)).sum();
        ensure!(
            truth.len() as u64 == calls,
            "{title}: {} calls made, {calls} wanted",
            truth.len()
        );
        server.running.end()?;
        truth::read(&server.log, &mut truth)?;
        let report = agent.finish()?;
        Ok((!late).then(|| Session {
            title,
            truth,
            report,
            address: server.address.clone(),
            folder,
        }))
    }

    /// Compares spans with the truth and prints what was allowed for.
    ///
    /// # Panics
    /// With a list of all that is wrong.
    pub fn assert_true(&self, sides: Sides) {
        let comparison = compare::whole(&self.truth, &self.report.spans, &self.address, sides);
        self.assert(&comparison);
    }

    /// Prints what was allowed for.
    ///
    /// # Panics
    /// With a list of all that is wrong.
    pub fn assert(&self, comparison: &Comparison) {
        println!(
            "{}: {} calls, {} spans",
            self.title,
            self.truth.len(),
            self.report.spans.len()
        );
        for (allowance, count) in &comparison.allowed {
            println!("  allowed for {count} times: {allowance}");
        }
        assert!(
            comparison.problems.is_empty(),
            "{}: {} problems\n{}\ncounters: {:?}\n{}",
            self.title,
            comparison.problems.len(),
            comparison.shown(),
            self.report.counters,
            self.report.messages,
        );
    }
}

/// Unix time, ns.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
