//! `load`: calls the ledger at a fixed rate for a fixed time, and says at the
//! end what it got, by method and status, so that it can be held against what
//! was observed. Bias: never more than the rate; a call that finds too many
//! under way is left out and counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout_at};
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tracewire_services::bank::ledger_client::LedgerClient;
use tracewire_services::bank::{CreateAccountRequest, Entry, WatchBalanceRequest};

/// Calls under way at once, at most.
const CONCURRENT: usize = 64;
/// How long the last calls may take after the time is up.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// Calls the ledger at a fixed rate for a fixed time.
#[derive(Parser)]
struct Arguments {
    /// Address of the ledger.
    #[arg(long, default_value = "127.0.0.1:7001")]
    ledger: SocketAddr,
    /// Calls a second.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Seconds to go on for.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

type Client = LedgerClient<Channel>;

/// One unary call; each tenth has no owner and is an INVALID_ARGUMENT.
async fn create_account(mut client: Client, n: u64) -> Result<(), Status> {
    let owner = if n.is_multiple_of(10) {
        String::new()
    } else {
        format!("owner {n}")
    };
    client
        .create_account(CreateAccountRequest {
            owner,
            currency: "EUR".to_owned(),
        })
        .await
        .map(drop)
}

/// One server stream; each eighth asks for an account that is not there.
async fn watch_balance(mut client: Client, n: u64) -> Result<(), Status> {
    let account = if n.is_multiple_of(8) { u64::MAX } else { 1 };
    let mut balances = client
        .watch_balance(WatchBalanceRequest { account, updates: 3 })
        .await?
        .into_inner();
    while balances.message().await?.is_some() {}
    Ok(())
}

/// A few entries for account 1.
fn entries(n: u64) -> impl tokio_stream::Stream<Item = Entry> + Send + 'static {
    let entry = move |k: i64| Entry {
        account: 1,
        cents: 100 * k,
        text: format!("entry {n}.{k}"),
    };
    tokio_stream::iter((1..=4).map(entry))
}

/// One client stream.
async fn import_entries(mut client: Client, n: u64) -> Result<(), Status> {
    client.import_entries(entries(n)).await.map(drop)
}

/// One stream in both directions.
async fn reconcile(mut client: Client, n: u64) -> Result<(), Status> {
    let entries = entries(n).throttle(Duration::from_millis(3));
    let mut verdicts = client.reconcile(entries).await?.into_inner();
    while verdicts.message().await?.is_some() {}
    Ok(())
}

/// Call number `n` of the mix: 5 CreateAccount, 2 WatchBalance, 2 ImportEntries
/// and 1 Reconcile of ten.
async fn call(client: Client, n: u64) -> (&'static str, Code) {
    let (round, place) = (n / 10, n % 10);
    let (method, result) = match place {
        1 | 6 => ("WatchBalance", watch_balance(client, 2 * round + place / 6).await),
        3 | 8 => ("ImportEntries", import_entries(client, n).await),
        5 => ("Reconcile", reconcile(client, n).await),
        _ => ("CreateAccount", create_account(client, n + 1).await),
    };
    (method, result.map_or_else(|status| status.code(), |()| Code::Ok))
}

/// Status name as in the gRPC documents: `INVALID_ARGUMENT`.
fn name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let endpoint = Endpoint::from_shared(format!("http://{}", arguments.ledger))?;
    let channel = endpoint
        .connect()
        .await
        .with_context(|| format!("no ledger at {}", arguments.ledger))?;
    let client = LedgerClient::new(channel);

    let limit = Arc::new(Semaphore::new(CONCURRENT));
    let mut calls = JoinSet::new();
    let mut left_out = 0_u64;
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut ticks = interval_at(Instant::now(), Duration::from_secs(1) / arguments.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut outcomes: BTreeMap<(&str, String), u64> = BTreeMap::new();
    let mut n = 0;
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            biased;
            _ = &mut stop => break,
            () = tokio::time::sleep_until(end) => break,
            Some(Ok((method, code))) = calls.join_next() => *outcomes.entry((method, name(code))).or_default() += 1,
            _ = ticks.tick() => {
                if let Ok(place) = Arc::clone(&limit).try_acquire_owned() {
                    let client = client.clone();
                    calls.spawn(async move { let _place = place; call(client, n).await });
                    n += 1;
                } else {
                    left_out += 1;
                }
            }
        }
    }
    let last = Instant::now() + LAST_CALLS;
    while let Ok(Some(call)) = timeout_at(last, calls.join_next()).await {
        if let Ok((method, code)) = call {
            *outcomes.entry((method, name(code))).or_default() += 1;
        }
    }

    println!("{n} calls made, {} unanswered, {left_out} left out", calls.len());
    for ((method, code), count) in outcomes {
        println!("  {method:<14} {code:<17} {count:>6}");
    }
    Ok(())
}
