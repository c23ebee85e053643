//! The way through a proxy for gRPC, which tonic leaves to its users: `HTTPS_PROXY`,
//! `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` as reqwest reads them, by the same code
//! (hyper-util). The tunnel is made by CONNECT (RFC 9110 §9.3.6); TLS goes through it.

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

/// The connector for a receiver, if a proxy stands before it.
///
/// # Errors
/// In words, without the proxy's address, which may hold a password.
pub fn of(receiver: &Url) -> Option<Result<Tunnel<HttpConnector>, String>> {
    through(&Matcher::from_env(), receiver)
}

fn through(matcher: &Matcher, receiver: &Url) -> Option<Result<Tunnel<HttpConnector>, String>> {
    let receiver = receiver.as_str().parse().ok()?;
    let found = matcher.intercept(&receiver)?;
    let proxy = found.uri();
    if proxy.scheme_str() != Some("http") {
        let scheme = proxy.scheme_str().unwrap_or_default();
        return Some(Err(format!(
            "gRPC goes through proxies of http:// only, not {scheme}://"
        )));
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    let mut tunnel = Tunnel::new(proxy.clone(), connector);
    if let Some(secret) = found.basic_auth() {
        tunnel = tunnel.with_auth(secret.clone());
    }
    Some(Ok(tunnel))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_proxy_is_for_its_scheme_and_not_for_those_excepted() {
        let matcher = Matcher::builder()
            .https("http://user:hunter2@proxy:3128")
            .no("near,10.0.0.0/8")
            .build();
        let of = |url: &str| through(&matcher, &Url::parse(url).unwrap());
        assert!(of("https://far:4317").unwrap().is_ok());
        for direct in ["http://far:4317", "https://near:4317", "https://10.1.2.3:4317"] {
            assert!(of(direct).is_none(), "{direct}");
        }
        let secure = Matcher::builder().https("https://user:hunter2@proxy:3128").build();
        let error = through(&secure, &Url::parse("https://far:4317").unwrap())
            .unwrap()
            .map(|_| ())
            .unwrap_err();
        assert!(error.contains("https://") && !error.contains("hunter2"), "{error}");
    }
}
