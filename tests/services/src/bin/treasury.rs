//! `treasury`: knows owners and exchange rates. One ValidateAccount in 25 is
//! UNAVAILABLE; an empty owner is an INVALID_ARGUMENT.

use std::net::SocketAddr;
use std::pin::Pin;

use clap::Parser;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use tracewire_services::bank::treasury_server::{Treasury, TreasuryServer};
use tracewire_services::bank::{QuoteRatesRequest, Rate, ValidateAccountReply, ValidateAccountRequest};
use tracewire_services::{Turn, now_and_then_slow, serve};

/// Knows owners and exchange rates.
#[derive(Parser)]
struct Arguments {
    /// Address to serve on.
    #[arg(long, default_value = "127.0.0.1:7002")]
    listen: SocketAddr,
}

#[derive(Default)]
struct Desk {
    validations: Turn,
    quotes: Turn,
}

#[tonic::async_trait]
impl Treasury for Desk {
    async fn validate_account(
        &self,
        request: Request<ValidateAccountRequest>,
    ) -> Result<Response<ValidateAccountReply>, Status> {
        let turn = self.validations.next();
        now_and_then_slow(turn).await;
        if request.get_ref().owner.is_empty() {
            return Err(Status::invalid_argument("an account needs an owner"));
        }
        if turn % 25 == 12 {
            return Err(Status::unavailable("the register is being restarted"));
        }
        let risk_class = if turn.is_multiple_of(3) { "B" } else { "A" };
        Ok(Response::new(ValidateAccountReply {
            risk_class: risk_class.to_owned(),
        }))
    }

    type QuoteRatesStream = Pin<Box<dyn Stream<Item = Result<Rate, Status>> + Send>>;

    async fn quote_rates(
        &self,
        request: Request<QuoteRatesRequest>,
    ) -> Result<Response<Self::QuoteRatesStream>, Status> {
        now_and_then_slow(self.quotes.next()).await;
        let QuoteRatesRequest { currency, count } = request.into_inner();
        let rates = (0..count.min(100)).map(move |n| Rate {
            currency: currency.clone(),
            micros: 1_080_000 + i64::from(n),
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(rates).map(Ok))))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let router = tonic::transport::Server::builder().add_service(TreasuryServer::new(Desk::default()));
    serve("treasury", arguments.listen, router).await
}
