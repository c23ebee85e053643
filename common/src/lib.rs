//! The contract between the kernel programs and the agent: what they send
//! (`event`), what the agent asks for (`settings`), and what went wrong
//! (`fault`). Everything here is plain bytes in host byte order unless a
//! field says otherwise; nothing allocates and nothing panics.
#![no_std]

pub mod elided;
pub mod event;
pub mod fault;
pub mod inject;
pub mod link;
pub mod plain;
pub mod sampling;
pub mod settings;
pub mod tls;
pub mod trace;
