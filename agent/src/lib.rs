//! The user side of tracewire. Rooms stand in the order in which data flows;
//! a room imports only from rooms left of it, and [`pipeline`] alone knows
//! them all.
//!
//! `bpf → connection → protocol → request → propagation → span → sampler → export`
//!
//! [`privacy`] is used by all that show a text of the wire.
//! [`recording`] stands beside them: it keeps what [`core`] is given, and gives it again.

pub mod attribute;
pub mod binary;
pub mod bpf;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connection;
pub mod core;
pub mod discover;
pub mod export;
pub mod health;
pub mod metrics;
pub mod pipeline;
pub mod priority;
pub mod privacy;
pub mod propagation;
pub mod protocol;
pub mod recording;
pub mod request;
pub mod sampler;
pub mod span;
pub mod telemetry;
