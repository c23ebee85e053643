//! `ledger`: keeps accounts and their entries, and asks the treasury about
//! both. One ImportEntries in ten is INTERNAL; an unknown account is NOT_FOUND;
//! what the treasury refuses is passed on with its status.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Parser;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tracewire_services::bank::ledger_server::{Ledger, LedgerServer};
use tracewire_services::bank::treasury_client::TreasuryClient;
use tracewire_services::bank::{
    Account, Balance, CreateAccountRequest, Entry, ImportSummary, QuoteRatesRequest, Rate, ValidateAccountRequest,
    Verdict, WatchBalanceRequest,
};
use tracewire_services::{Turn, now_and_then_slow, serve};

/// Keeps accounts and their entries.
#[derive(Parser)]
struct Arguments {
    /// Address to serve on.
    #[arg(long, default_value = "127.0.0.1:7001")]
    listen: SocketAddr,
    /// Address of the treasury; it need not be up yet.
    #[arg(long, default_value = "127.0.0.1:7002")]
    treasury: SocketAddr,
}

struct Books {
    treasury: TreasuryClient<Channel>,
    accounts: Arc<Mutex<HashMap<u64, i64>>>,
    opened: Turn,
    imports: Turn,
    watches: Turn,
}

impl Books {
    fn accounts(&self) -> MutexGuard<'_, HashMap<u64, i64>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Ledger for Books {
    async fn create_account(&self, request: Request<CreateAccountRequest>) -> Result<Response<Account>, Status> {
        let CreateAccountRequest { owner, currency } = request.into_inner();
        let question = ValidateAccountRequest { owner, currency };
        let risk_class = self
            .treasury
            .clone()
            .validate_account(question)
            .await?
            .into_inner()
            .risk_class;
        let id = self.opened.next();
        self.accounts().insert(id, 0);
        Ok(Response::new(Account { id, risk_class }))
    }

    type WatchBalanceStream = Answers<Balance>;

    async fn watch_balance(
        &self,
        request: Request<WatchBalanceRequest>,
    ) -> Result<Response<Self::WatchBalanceStream>, Status> {
        let WatchBalanceRequest { account, updates } = request.into_inner();
        now_and_then_slow(self.watches.next()).await;
        let cents = self.accounts().get(&account).copied();
        let cents = cents.ok_or_else(|| Status::not_found(format!("there is no account {account}")))?;
        let balances = (0..updates.min(100)).map(move |n| {
            Ok(Balance {
                account,
                cents: cents + i64::from(n),
            })
        });
        Ok(Response::new(Box::pin(
            tokio_stream::iter(balances).throttle(Duration::from_millis(5)),
        )))
    }

    async fn import_entries(&self, request: Request<Streaming<Entry>>) -> Result<Response<ImportSummary>, Status> {
        let mut entries = request.into_inner();
        let mut booked = 0;
        while let Some(entry) = entries.message().await? {
            *self.accounts().entry(entry.account).or_default() += entry.cents;
            booked += 1;
        }
        let turn = self.imports.next();
        now_and_then_slow(turn).await;
        if turn.is_multiple_of(10) {
            return Err(Status::internal("the journal's checksum does not match"));
        }
        Ok(Response::new(ImportSummary { booked }))
    }

    type ReconcileStream = Answers<Verdict>;

    async fn reconcile(&self, request: Request<Streaming<Entry>>) -> Result<Response<Self::ReconcileStream>, Status> {
        let mut entries = request.into_inner();
        let question = QuoteRatesRequest {
            currency: "EUR".to_owned(),
            count: 3,
        };
        let mut rates = self.treasury.clone().quote_rates(question).await?.into_inner();
        let (answers, receiver) = mpsc::channel(16);
        let accounts = Arc::clone(&self.accounts);
        tokio::spawn(async move {
            loop {
                let entry = match entries.message().await {
                    Ok(Some(entry)) => entry,
                    Ok(None) => return,
                    Err(status) => return drop(answers.send(Err(status)).await),
                };
                let rate = rates.message().await.ok().flatten().unwrap_or(Rate {
                    currency: String::new(),
                    micros: 1_000_000,
                });
                let agrees = accounts
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .contains_key(&entry.account);
                let verdict = Verdict {
                    account: entry.account,
                    agrees,
                    micros: rate.micros,
                };
                if answers.send(Ok(verdict)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let channel = Endpoint::from_shared(format!("http://{}", arguments.treasury))?.connect_lazy();
    let books = Books {
        treasury: TreasuryClient::new(channel),
        accounts: Arc::default(),
        opened: Turn::default(),
        imports: Turn::default(),
        watches: Turn::default(),
    };
    let router = tonic::transport::Server::builder().add_service(LedgerServer::new(books));
    serve("ledger", arguments.listen, router).await
}
