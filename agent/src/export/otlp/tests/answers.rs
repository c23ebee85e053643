//! What each answer of a receiver is taken for, over the wire: the specification's list,
//! exactly; parts that were left out; requests that would be too large.

use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;

/// A request is tried again: it comes twice.
fn tries(requests: usize, what: &dyn std::fmt::Debug, again: bool) {
    assert_eq!(requests, 1 + usize::from(again), "{what:?}");
}

#[test]
fn each_code_of_grpc_is_tried_again_or_not_as_the_specification_lists_them() {
    let runtime = runtime();
    for number in 1..=16 {
        let code = tonic::Code::from_i32(number);
        let receiver = GrpcReceiver::start(&runtime, vec![Err(GrpcStatus::new(code, ""))], None);
        let (mut exporter, counters) = exporter(&runtime, &grpc(&receiver.url), &Batch::default());
        exporter.export(&spans(3));
        exporter.shutdown(PATIENCE);
        // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS
        let again = [1, 4, 10, 11, 14, 15].contains(&number);
        tries(receiver.requests().len(), &code, again);
        let taken = if again { 3 } else { 0 };
        assert_eq!(
            (counters.spans_exported.get(), counters.dropped()),
            (taken, 3 - taken),
            "{code:?}"
        );
    }
    // RESOURCE_EXHAUSTED: if the receiver says when.
    let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(50)));
    let status = GrpcStatus::with_error_details(tonic::Code::ResourceExhausted, "", details);
    let receiver = GrpcReceiver::start(&runtime, vec![Err(status)], None);
    let (mut exporter, counters) = exporter(&runtime, &grpc(&receiver.url), &Batch::default());
    let start = Instant::now();
    exporter.export(&spans(3));
    exporter.shutdown(PATIENCE);
    tries(receiver.requests().len(), &"RetryInfo", true);
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert_eq!(counters.spans_exported.get(), 3);
}

#[test]
fn each_status_of_http_is_tried_again_or_not_as_the_specification_lists_them() {
    let runtime = runtime();
    let statuses = [
        "301 Moved",
        "400 Bad",
        "401 Who",
        "403 No",
        "404 None",
        "408 Slow",
        "409 Other",
        "413 Large",
        "418 Teapot",
        "429 Often",
        "500 Oops",
        "501 What",
        "502 Bad",
        "503 Busy",
        "504 Late",
        "505 Old",
        "507 Full",
    ];
    for status in statuses {
        let receiver = HttpReceiver::start(vec![status], None);
        let (mut exporter, counters) = exporter(&runtime, &http(&receiver.url), &Batch::default());
        exporter.export(&spans(3));
        exporter.shutdown(PATIENCE);
        let again = ["429", "502", "503", "504"].iter().any(|s| status.starts_with(s));
        tries(receiver.posts().len(), &status, again);
        let taken = if again { 3 } else { 0 };
        assert_eq!(
            (counters.spans_exported.get(), counters.dropped()),
            (taken, 3 - taken),
            "{status}"
        );
    }
}

#[test]
fn what_a_receiver_leaves_out_is_counted_by_http_too() {
    let runtime = runtime();
    let proto = "200 OK\r\ncontent-type: application/x-protobuf\r\n\r\n\n\x07\x08\x02\x12\x03old";
    let json = "200 OK\r\ncontent-type: application/json\r\n\r\n{\"partialSuccess\":{\"rejectedSpans\":\"2\",\"errorMessage\":\"old\"}}";
    for (protocol, answer) in [("http/protobuf", proto), ("http/json", json)] {
        let receiver = HttpReceiver::start(vec![answer], None);
        let env = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ];
        let otlp = settings(&env).otlp.unwrap();
        let (mut exporter, counters) = exporter(&runtime, &otlp, &Batch::default());
        exporter.export(&spans(5));
        exporter.shutdown(PATIENCE);
        tries(receiver.posts().len(), &protocol, false);
        let counted = (counters.spans_exported.get(), counters.dropped_rejected.get());
        assert_eq!(counted, (3, 2), "{protocol}");
    }
}

#[test]
fn what_would_be_larger_than_a_request_may_be_goes_in_several() {
    let runtime = runtime();
    let receiver = HttpReceiver::start(vec![], None);
    let (mut exporter, counters) = exporter(&runtime, &http(&receiver.url), &Batch::default());
    let mut all = spans(40);
    let long: Arc<str> = "x".repeat(2 << 20).into();
    for span in &mut all {
        let value = crate::attribute::Value::Shared(long.clone());
        span.attributes.push(("rpc.request.metadata.x".into(), value));
    }
    exporter.export(&all);
    exporter.shutdown(PATIENCE);
    let posts = receiver.posts();
    let sent: usize = posts
        .iter()
        .map(|p| p.request.resource_spans[0].scope_spans[0].spans.len())
        .sum();
    assert_eq!((sent, counters.spans_exported.get(), counters.dropped()), (40, 40, 0));
    assert!(
        posts.len() > 1 && posts.iter().all(|p| p.bytes <= 64 << 20),
        "{} posts",
        posts.len()
    );
}
