//! What a person sees.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::attribute::Value;
use crate::export::example;
use crate::span::{Kind, Status};

const MS: u64 = 1_000_000;

fn span(service: &str, kind: Kind, ids: (u64, Option<u64>), name: &str, ms: (u64, u64), code: &'static str) -> Span {
    let mut span = example::server(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, ids.0, ids.1);
    span.resource = example::resource(service.len() as u64, service);
    span.kind = kind;
    span.name = name.into();
    span.start_unix_ns = example::START + ms.0 * MS;
    span.end_unix_ns = example::START + ms.1 * MS;
    span.attributes = match code.parse() {
        Ok(n) => vec![("http.response.status_code".into(), Value::Int(n))],
        Err(_) => vec![("rpc.status_code".into(), Value::Str(code.into()))],
    };
    span
}

fn shop() -> Vec<Span> {
    use Kind::{Client, Server};
    let mut late = span(
        "shop",
        Client,
        (6, Some(1)),
        "stock.Stock/Reserve",
        (60, 100),
        "UNAVAILABLE",
    );
    late.status = Status::Error(Some("connection refused".into()));
    let mut root = span("shop", Server, (1, None), "GET /orders/{id}", (0, 120), "503");
    root.status = Status::Error(None);
    // In the order of their ends, as exchanges finish.
    vec![
        span(
            "prices",
            Server,
            (5, Some(4)),
            "prices.v1.PriceService/GetPrices",
            (25, 40),
            "OK",
        ),
        span(
            "cart",
            Client,
            (4, Some(3)),
            "prices.v1.PriceService/GetPrices",
            (20, 45),
            "OK",
        ),
        span("cart", Server, (3, Some(2)), "cart.Cart/Checkout", (10, 50), "OK"),
        span("shop", Client, (2, Some(1)), "cart.Cart/Checkout", (5, 55), "OK"),
        late,
        root,
    ]
}

struct Screen {
    console: ConsoleExporter<Vec<u8>>,
    now: Instant,
}

impl Screen {
    fn new(look: Look) -> Self {
        Screen {
            console: ConsoleExporter::new(Vec::new(), look, Arc::default()),
            now: Instant::now(),
        }
    }

    fn after(&mut self, wait: Duration) -> String {
        self.now += wait;
        self.console.show_due(self.now);
        String::from_utf8(std::mem::take(&mut self.console.out)).unwrap()
    }

    fn take(&mut self, spans: &[Span]) {
        self.console.take(spans, self.now);
    }
}

fn drawn(spans: &[Span], look: Look) -> String {
    let mut screen = Screen::new(look);
    screen.take(spans);
    screen.after(QUIET_ORPHAN)
}

#[test]
fn a_trace_is_a_tree_with_a_waterfall() {
    insta::assert_snapshot!(drawn(&shop(), Look::default()), @r"
    trace 0af7651916cd43dd8448eb211c80319c  14:13:20.000Z  120 ms  6 spans
    ◂ shop GET /orders/{id}                       ━━━━━━━━━━━━━━   120 ms 503
    ├─→ shop cart.Cart/Checkout                   ╺━━━━━╸         50.0 ms OK
    │ ╰─◂ cart cart.Cart/Checkout                  ━━━━━          40.0 ms OK
    │   ╰─→ cart prices.v1.PriceService/GetPrices   ╺━━╸          25.0 ms OK
    │     ╰─◂ prices prices.v1.Pri…vice/GetPrices    ━╸           15.0 ms OK
    ╰─→ shop stock.Stock/Reserve                         ━━━━╸    40.0 ms ERROR
        UNAVAILABLE: connection refused
    ");
}

#[test]
fn a_wide_terminal_shows_more() {
    insta::assert_snapshot!(drawn(&shop(), Look { width: 120, ..Look::default() }), @r"
    trace 0af7651916cd43dd8448eb211c80319c  14:13:20.000Z  120 ms  6 spans
    ◂ shop GET /orders/{id}                           ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━   120 ms 503
    ├─→ shop cart.Cart/Checkout                         ━━━━━━━━━━━━━━━━━━╸                          50.0 ms OK
    │ ╰─◂ cart cart.Cart/Checkout                         ━━━━━━━━━━━━━━━                            40.0 ms OK
    │   ╰─→ cart prices.v1.PriceService/GetPrices            ╺━━━━━━━━━                              25.0 ms OK
    │     ╰─◂ prices prices.v1.PriceService/GetPrices          ╺━━━━━                                15.0 ms OK
    ╰─→ shop stock.Stock/Reserve                                            ╺━━━━━━━━━━━━━━╸         40.0 ms UNAVAILABLE
        connection refused
    ");
}

#[test]
fn calls_side_by_side_hang_on_one_line() {
    use Kind::{Client, Server};
    let spans = [
        span("web", Server, (1, None), "GET", (0, 30), "200"),
        span("web", Client, (2, Some(1)), "a.A/One", (1, 10), "OK"),
        span("a", Server, (3, Some(2)), "a.A/One", (2, 9), "OK"),
        span("web", Client, (4, Some(1)), "a.A/Two", (11, 20), "NOT_FOUND"),
        span("a", Server, (5, Some(4)), "a.A/Two", (12, 19), "NOT_FOUND"),
        span("web", Client, (6, Some(1)), "GET", (21, 29), "404"),
    ];
    insta::assert_snapshot!(drawn(&spans, Look::default()), @r"
    trace 0af7651916cd43dd8448eb211c80319c  14:13:20.000Z  30.0 ms  6 spans
    ◂ web GET       ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  30.0 ms 200
    ├─→ web a.A/One  ╺━━━━━━━━━━━━╸                               9.00 ms OK
    │ ╰─◂ a a.A/One    ━━━━━━━━━━                                 7.00 ms OK
    ├─→ web a.A/Two                 ━━━━━━━━━━━━━╸                9.00 ms NOT_FOUND
    │ ╰─◂ a a.A/Two                  ╺━━━━━━━━━━                  7.00 ms NOT_FOUND
    ╰─→ web GET                                    ━━━━━━━━━━━╸   8.00 ms 404
    ");
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    let mut spans = shop();
    spans[4].name = "a".repeat(300).into();
    spans[4].status = Status::Error(Some("b".repeat(300).into()));
    spans[3].resource = example::resource(9, &"c".repeat(300));
    for width in [MIN_WIDTH, 60, NARROW - 1, NARROW, 80, 120] {
        for line in drawn(
            &spans,
            Look {
                width,
                ..Look::default()
            },
        )
        .lines()
        {
            assert!(line.chars().count() <= width, "{line}");
        }
    }
}

#[test]
fn a_narrow_terminal_shows_what_matters() {
    let look = |width| Look {
        width,
        ..Look::default()
    };
    insta::assert_snapshot!(drawn(&shop(), look(60)), @r"
    trace 0af7651916cd43dd8448eb211c80319c  14:13:20.000Z
    ◂ shop GET /orders/{id}                    120 ms 503
    ├─→ shop cart.Cart/Checkout               50.0 ms OK
    │ ╰─◂ cart cart.Cart/Checkout             40.0 ms OK
    │   ╰─→ cart prices.v1.Pri…ice/GetPrices  25.0 ms OK
    │     ╰─◂ prices prices.v1.P…e/GetPrices  15.0 ms OK
    ╰─→ shop stock.Stock/Reserve              40.0 ms ERROR
        UNAVAILABLE: connection refused
    ");
    insta::assert_snapshot!(drawn(&shop(), look(40)), @r"
    trace 0af7651916cd43dd8448eb211c80319c
    ◂ shop GET /o…s/{id}   120 ms 503
    ├─→ shop cart.…ckout  50.0 ms OK
    │ ╰─◂ cart cart…kout  40.0 ms OK
    │   ╰─→ cart pri…ces  25.0 ms OK
    │     ╰─◂ prices p…s  15.0 ms OK
    ╰─→ shop stock…serve  40.0 ms ERROR
        UNAVAILABLE: connection refused
    ");
    for width in [40, 60] {
        let mut screen = Screen::new(look(width));
        screen.take(&shop());
        let table = screen.console.summary().unwrap();
        assert!(table.lines().all(|line| line.chars().count() <= width), "{table}");
        if width == 40 {
            insta::assert_snapshot!(table, @r"
            cart client prices.v1.Pri…vice/GetPrices
              calls 1  errors 0
              p50 25.0 ms  p99 25.0 ms
            cart server cart.Cart/Checkout
              calls 1  errors 0
              p50 40.1 ms  p99 40.1 ms
            prices server prices.v1.Pr…ice/GetPrices
              calls 1  errors 0
              p50 15.0 ms  p99 15.0 ms
            shop client cart.Cart/Checkout
              calls 1  errors 0
              p50 50.1 ms  p99 50.1 ms
            shop client stock.Stock/Reserve
              calls 1  errors 1
              p50 40.1 ms  p99 40.1 ms
            shop server GET /orders/{id}
              calls 1  errors 1
              p50 120 ms  p99 120 ms
            ");
        }
    }
}

#[test]
fn colours_are_only_there_when_asked_for() {
    assert!(!drawn(&shop(), Look::default()).contains('\x1b'));
    let coloured = drawn(
        &shop(),
        Look {
            colours: true,
            ..Look::default()
        },
    );
    assert!(coloured.contains("\x1b[31m503\x1b[0m"), "{coloured}");
    assert!(
        coloured.contains("\x1b[31mUNAVAILABLE: connection refused\x1b[0m"),
        "{coloured}"
    );
    assert!(coloured.contains("\x1b[32mOK\x1b[0m"), "{coloured}");
    let plain = anstream::adapter::strip_str(&coloured).to_string();
    assert_eq!(plain, drawn(&shop(), Look::default()));
}

#[test]
fn what_the_wire_says_cannot_drive_the_terminal() {
    let mut spans = shop();
    spans[5].name = "GET \x1b[2J\u{202e}evil".into();
    spans[4].status = Status::Error(Some("line\nbreak\x07".into()));
    let text = drawn(&spans, Look::default());
    assert!(text.contains("GET ·[2J·evil") && text.contains("line·break·"), "{text}");
}

#[test]
fn a_tree_waits_until_its_trace_is_quiet_and_whole() {
    let spans = shop();
    let mut screen = Screen::new(Look::default());
    screen.take(&spans[..5]);
    assert_eq!(screen.after(QUIET), "", "the root is still running");
    screen.take(&spans[5..]);
    assert_eq!(screen.after(QUIET / 2), "");
    assert_eq!(screen.after(QUIET / 2).matches("trace ").count(), 1);
    assert_eq!(screen.after(QUIET_ORPHAN), "", "and is shown once");
}

#[test]
fn a_caller_that_is_not_observed_does_not_hold_the_tree_back_for_ever() {
    let mut screen = Screen::new(Look::default());
    screen.take(&[span("a", Kind::Server, (2, Some(1)), "a.A/One", (0, 1), "OK")]);
    assert_eq!(screen.after(QUIET), "");
    assert!(screen.after(QUIET_ORPHAN).contains("a.A/One"));
}

#[test]
fn broken_ids_neither_hang_nor_hide_spans() {
    let spans = [
        span("a", Kind::Server, (1, Some(2)), "loop", (0, 1), "OK"),
        span("a", Kind::Server, (2, Some(1)), "loop", (0, 1), "OK"),
        span("a", Kind::Server, (3, Some(3)), "itself", (0, 1), "OK"),
        span("a", Kind::Server, (4, None), "twice", (0, 1), "OK"),
        span("a", Kind::Server, (4, None), "twice", (0, 1), "OK"),
    ];
    let text = drawn(&spans, Look::default());
    assert_eq!(["loop", "itself", "twice"].map(|n| text.matches(n).count()), [2, 1, 2]);
}

#[test]
fn shutdown_shows_what_is_held() {
    let mut screen = Screen::new(Look::default());
    screen.take(&shop()[..2]);
    screen.console.shutdown(Duration::ZERO);
    let text = String::from_utf8(screen.console.out).unwrap();
    let (trees, table) = text.split_once("service  kind").unwrap();
    assert!(trees.contains("prices"), "{text}");
    assert_eq!(table.lines().count(), 3, "the figures of the run come last: {text}");
}

#[test]
fn memory_is_bounded() {
    let mut screen = Screen::new(Look::default());
    for trace in 1..=2 * MAX_HELD as u128 {
        screen.take(&[example::server(trace, 1, Some(2))]);
        assert!(screen.console.held <= MAX_HELD);
    }
    screen.console.shutdown(Duration::ZERO);
    let shown = String::from_utf8(screen.console.out).unwrap().matches("trace ").count();
    assert_eq!(shown, 2 * MAX_HELD, "early, but shown");
}

#[test]
fn a_flood_is_cut_short_on_a_terminal_only() {
    for (live, shown) in [(true, MAX_TREES as usize), (false, 1000)] {
        let mut screen = Screen::new(Look {
            live,
            ..Look::default()
        });
        for trace in 1..=1000 {
            screen.take(&[example::server(trace, 1, None)]);
        }
        let text = screen.after(QUIET);
        assert_eq!(text.matches("trace ").count(), shown);
        assert_eq!(screen.console.counters.console_hidden.get(), 1000 - shown as u64);
    }
}

#[test]
fn a_reader_that_went_away_ends_the_output_and_is_reported_once() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut console = ConsoleExporter::new(Gone, Look::default(), Arc::default());
    console.export(&shop());
    console.shutdown(Duration::ZERO);
    assert_eq!(console.take_error().unwrap().kind(), io::ErrorKind::BrokenPipe);
    console.export(&shop());
    assert!(console.take_error().is_none());
    assert_eq!(console.counters.dropped_output.get(), 12);
}

#[test]
fn the_summary_counts_calls_and_errors_by_method() {
    let mut screen = Screen::new(Look::default());
    assert_eq!(screen.console.summary(), None);
    for _ in 0..3 {
        screen.take(&shop());
    }
    insta::assert_snapshot!(screen.console.summary().unwrap(), @r"
    service  kind    method                       calls   errors       p50       p99
    cart     client  prices.v1.Pr…ce/GetPrices        3        0   25.0 ms   25.0 ms
    cart     server  cart.Cart/Checkout               3        0   40.1 ms   40.1 ms
    prices   server  prices.v1.Pr…ce/GetPrices        3        0   15.0 ms   15.0 ms
    shop     client  cart.Cart/Checkout               3        0   50.1 ms   50.1 ms
    shop     client  stock.Stock/Reserve              3        3   40.1 ms   40.1 ms
    shop     server  GET /orders/{id}                 3        3    120 ms    120 ms
    ");
}

#[test]
fn durations_have_three_digits() {
    let cases = [
        0,
        999,
        1_000,
        12_345,
        999_499,
        999_500,
        12_345_678,
        999_499_999,
        1_500_000_000,
        75_000_000_000,
    ];
    let shown = cases.map(duration);
    let expected = [
        "0 ns", "999 ns", "1.00 µs", "12.3 µs", "999 µs", "1.00 ms", "12.3 ms", "999 ms", "1.50 s", "75.0 s",
    ];
    assert_eq!(shown, expected);
}
