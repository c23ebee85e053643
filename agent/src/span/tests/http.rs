//! Spans of plain HTTP as a backend would show them.

use super::*;

#[test]
fn an_http_server_span() {
    let mut exchange = exchange(Role::Server, Protocol::Http);
    exchange.request.user_agent = value("curl/8");
    exchange.request.forwarded_for = Some("2001:db8::7".parse().unwrap());
    exchange.request.forwarded_host = Some("shop.example".into());
    exchange.request.captured = vec![("x-tenant".into(), "a".into())];
    let span = span(&exchange);
    assert_eq!((&*span.name, status(&span)), ("GET /carts/{cart_id}", "unset"));
    for (key, expected) in [
        ("http.request.method", "GET"),
        ("http.route", "/carts/{cart_id}"),
        ("url.path", "/carts/42"),
        ("url.path_param.cart_id", "42"),
        ("url.query", "-"),
        ("url.scheme", "http"),
        ("url.full", "-"),
        ("http.response.status_code", "200"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "curl/8"),
        ("client.address", "2001:db8::7"),
        ("server.address", "shop.example"),
        ("server.port", "-"),
        ("network.peer.address", "10.0.0.2"),
        ("http.request.header.x-tenant", "a"),
        ("tracewire.unseen", "-"),
    ] {
        assert_eq!(text(&span, key), expected, "{key}");
    }
}

#[test]
fn an_http_client_span_shows_neither_query_nor_password() {
    for (target, authority, full, port) in [
        (
            "/carts/42?coupon=secret",
            "cart.example:8080",
            "http://cart.example:8080/carts/42",
            "8080",
        ),
        ("/carts/42", "cart.example", "http://cart.example/carts/42", "80"),
        (
            "http://u:pw@cart.example/carts/a@b.example?x",
            "proxy:3128",
            "http://cart.example/carts/REDACTED",
            "-",
        ),
        ("/carts/42", "u:pw@[::1]:81", "http://[::1]:81/carts/42", "81"),
    ] {
        let mut exchange = exchange(Role::Client, Protocol::Http);
        exchange.request.path = value(target);
        exchange.request.authority = value(authority);
        let span = span(&exchange);
        assert_eq!((&*span.name, span.kind), ("GET /carts/{cart_id}", Kind::Client));
        assert_eq!(
            (text(&span, "url.full"), text(&span, "server.port")),
            (full.to_owned(), port.to_owned())
        );
        assert_eq!(
            (&*text(&span, "url.template"), &*text(&span, "url.path")),
            ("/carts/{cart_id}", "-")
        );
    }
}

#[test]
fn http_errors_by_side() {
    use Outcome::*;
    for (role, http, outcome, error, cancelled) in [
        (Role::Server, 404, Complete, "-", "-"),
        (Role::Client, 404, Complete, "404", "-"),
        (Role::Server, 500, Complete, "500", "-"),
        (Role::Client, 302, Complete, "-", "-"),
        (Role::Client, 0, Reset { local: true, code: 8 }, "-", "true"),
        (Role::Server, 200, Reset { local: false, code: 8 }, "-", "true"),
        (
            Role::Client,
            200,
            Reset { local: false, code: 8 },
            "stream_reset_8",
            "-",
        ),
        (Role::Client, 200, Reset { local: true, code: 0 }, "-", "-"),
        (Role::Client, 0, ConnectionLost { error: 104 }, "connection_reset", "-"),
        (Role::Server, 503, ConnectionLost { error: 0 }, "503", "-"),
        (Role::Client, 0, Refused { code: 0 }, "goaway", "-"),
        (Role::Client, 500, Unfinished, "-", "-"),
    ] {
        let mut exchange = exchange(role, Protocol::Http);
        exchange.response.status = if http == 0 { Seen::Absent } else { Seen::Value(http) };
        exchange.outcome = outcome;
        let span = span(&exchange);
        assert_eq!(text(&span, "error.type"), error, "{role:?} {http} {outcome:?}");
        assert_eq!(status(&span), if error == "-" { "unset" } else { "error" });
        assert_eq!(text(&span, "tracewire.cancelled"), cancelled);
        assert_eq!(
            text(&span, "http.response.status_code"),
            if http == 0 { "-".into() } else { http.to_string() }
        );
    }
}

#[test]
fn an_unknown_method_is_not_a_name() {
    let mut exchange = exchange(Role::Server, Protocol::Http);
    exchange.request.method = value("BREW");
    let brew = span(&exchange);
    assert_eq!(&*brew.name, "HTTP /carts/{cart_id}");
    assert_eq!(text(&brew, "http.request.method"), "_OTHER");
    assert_eq!(text(&brew, "http.request.method_original"), "BREW");
    exchange.request.method = Seen::Unknown;
    exchange.request.path = Seen::Unknown;
    exchange.response.status = Seen::Unknown;
    let unseen = span(&exchange);
    assert_eq!((&*unseen.name, status(&unseen)), ("HTTP", "unset"));
    assert_eq!(
        text(&unseen, "tracewire.unseen"),
        "http.request.method,http.response.status_code,url.path"
    );
}

#[test]
fn a_probe_for_what_is_not_there_gets_no_route() {
    let mut builder = builder();
    let mut probe = exchange(Role::Server, Protocol::Http);
    probe.request.path = value("/wp-admin/setup.php");
    probe.response.status = Seen::Value(404);
    let span = build(&mut builder, &probe);
    assert_eq!((&*span.name, &*text(&span, "http.route")), ("GET", "-"));
    assert_eq!(text(&span, "url.path"), "/wp-admin/setup.php");
}

#[test]
fn a_unix_socket_has_no_address_but_a_transport() {
    let mut exchange = exchange(Role::Client, Protocol::Http);
    exchange.peer = Arc::new(Peer {
        connection: 1,
        transport: Transport::Unix,
        local: None,
        remote: None,
    });
    exchange.request.authority = Seen::Absent;
    let span = span(&exchange);
    assert_eq!(text(&span, "network.transport"), "unix");
    assert_eq!(text(&span, "server.address"), "-");
    assert_eq!(text(&span, "network.peer.address"), "-");
    assert_eq!(text(&span, "tracewire.unseen"), "url.full");
}
