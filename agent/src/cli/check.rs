//! `tracewire check`.

use super::Failure;

/// Say what works here.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: &Args) -> Result<(), Failure> {
    let _ = args.json;
    Ok(())
}
