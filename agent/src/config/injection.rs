//! Whether contexts are written to requests, and to whom. Bias: a destination
//! that can't be understood ends the start; none is guessed.

use std::net::{IpAddr, ToSocketAddrs};

use tracewire_common::inject::DESTINATION;

use crate::bpf::inject::Destination;

use super::{Environment, Error, LogFlags};

/// Flags of it.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Propagation")]
pub struct InjectionFlags {
    /// Write a traceparent into the requests that the traced processes make; off unless this is given
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pub inject: Option<bool>,
    /// Write it only to what goes to this host or network, like api.internal:8080, 10.0.0.0/8 or `[fd00::]/8:443`; may
    /// be given several times
    #[arg(long, value_name = "HOST[/BITS][:PORT]")]
    pub inject_to: Vec<String>,
    /// Write it even for processes to which this kernel would say wrongly how many bytes a socket holds: for tests of
    /// the agent
    #[arg(long, hide = true)]
    pub inject_despite_trial: bool,
}

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// Whether contexts are written.
    pub on: bool,
    /// To whom; empty: to all.
    pub to: Vec<Destination>,
}

/// Reads it.
///
/// # Errors
/// Names the flag or variable that can't be obeyed.
pub fn load(flags: &InjectionFlags, common: &LogFlags) -> Result<Injection, Error> {
    read(flags, &mut Environment::of_process(common)?)
}

fn read(flags: &InjectionFlags, env: &mut Environment<'_>) -> Result<Injection, Error> {
    let on = flags.inject.or_else(|| Some(env.boolean(&["TRACEWIRE_INJECT"])?.value));
    let given = env.list(&["TRACEWIRE_INJECT_TO"])?;
    let (texts, source) = match given {
        Some(given) if flags.inject_to.is_empty() => (given.value, given.source),
        _ => (flags.inject_to.clone(), "--inject-to"),
    };
    let mut to = Vec::new();
    for text in &texts {
        to.extend(destinations(text).map_err(|problem| Error::new(source, format_args!("`{text}`: {problem}")))?);
    }
    Ok(Injection {
        on: on.unwrap_or(false),
        to,
    })
}

/// All that a text names: a host's name may have several addresses.
fn destinations(text: &str) -> Result<Vec<Destination>, String> {
    let (host, after) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, after)) => (host, after),
        // An IPv6 address without brackets has no port.
        None if text.matches(':').count() > 1 => text.split_at(text.find('/').unwrap_or(text.len())),
        None => text.split_at(text.find(['/', ':']).unwrap_or(text.len())),
    };
    let (bits, port) = match after.split_once(':') {
        Some((bits, port)) => (
            bits,
            port.parse::<u16>().ok().filter(|port| *port != 0).ok_or("no port")?,
        ),
        None => (after, 0),
    };
    let addresses: Vec<IpAddr> = match host.parse() {
        Ok(address) => vec![address],
        Err(_) if host.is_empty() => return Err("no host".to_owned()),
        Err(_) => (host, 0)
            .to_socket_addrs()
            .map_err(|e| e.to_string())?
            .map(|address| address.ip())
            .collect(),
    };
    addresses
        .into_iter()
        .map(|address| {
            let most: u32 = if address.is_ipv4() { 32 } else { 128 };
            let bits = match bits.strip_prefix('/') {
                Some(bits) => bits
                    .parse()
                    .ok()
                    .filter(|bits| *bits <= most)
                    .ok_or("no number of bits")?,
                None if bits.is_empty() => most,
                None => return Err("neither a port nor a number of bits".to_owned()),
            };
            let address = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            let mut key = [0; DESTINATION];
            key[..2].copy_from_slice(&port.to_be_bytes());
            key[2..].copy_from_slice(&address.octets());
            Ok(Destination {
                key,
                bits: 16 + 128 - most + bits,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn one(text: &str) -> (u16, String, u32) {
        let found = destinations(text).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        let only = found[0];
        let address: [u8; 16] = only.key[2..].try_into().unwrap();
        let port = u16::from_be_bytes([only.key[0], only.key[1]]);
        (
            port,
            std::net::Ipv6Addr::from(address).to_canonical().to_string(),
            only.bits,
        )
    }

    #[test]
    fn hosts_networks_and_ports_are_understood() {
        assert_eq!(one("10.0.0.0/8"), (0, "10.0.0.0".into(), 16 + 96 + 8));
        assert_eq!(one("10.1.2.3"), (0, "10.1.2.3".into(), 144));
        assert_eq!(one("10.1.2.3:443"), (443, "10.1.2.3".into(), 144));
        assert_eq!(one("10.1.0.0/16:80"), (80, "10.1.0.0".into(), 128));
        assert_eq!(one("fd00::/8"), (0, "fd00::".into(), 24));
        assert_eq!(one("[fd00::]/8:443"), (443, "fd00::".into(), 24));
        assert_eq!(one("[::1]:8080"), (8080, "::1".into(), 144));
        assert_eq!(one("0.0.0.0/0"), (0, "0.0.0.0".into(), 112));
        let named = destinations("localhost:80").unwrap();
        assert!(!named.is_empty() && named.iter().all(|d| d.bits == 144), "{named:?}");
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in [
            "",
            ":80",
            "10.0.0.0/33",
            "10.0.0.0/8:0",
            "10.0.0.0:http",
            "[::1]x",
            "fd00::/129",
            "1.2.3.4/",
        ] {
            assert!(destinations(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_flag_wins() {
        let mut env = Environment::new(|name| (name == "TRACEWIRE_INJECT").then(|| "true".into()));
        assert!(read(&InjectionFlags::default(), &mut env).unwrap().on);
        let off = InjectionFlags {
            inject: Some(false),
            ..InjectionFlags::default()
        };
        assert!(!read(&off, &mut env).unwrap().on);
    }
}
