"""What a service with Sentry's own SDK sends, that continues a trace if it is given one and is
left by another call: python sdk.py DSN [SENTRY-TRACE]. Prints what it would send to the next."""

import sys

import sentry_sdk

dsn, *header = sys.argv[1:]
sentry_sdk.init(
    dsn=dsn,
    traces_sample_rate=1.0,
    release="ledger@1.2.3",
    environment="staging",
    default_integrations=False,
    auto_enabling_integrations=False,
)
headers = {"sentry-trace": header[0]} if header else {}
transaction = sentry_sdk.continue_trace(
    headers, op="grpc.server", name="bank.v1.Ledger/Transfer", source="route"
)
with sentry_sdk.start_transaction(transaction):
    with sentry_sdk.start_span(op="grpc.client", name="bank.v1.Treasury/Reserve") as span:
        span.set_status("internal_error")
        print(sentry_sdk.get_traceparent())
        print(sentry_sdk.get_baggage())
    try:
        raise RuntimeError("no vault is open")
    except RuntimeError as error:
        sentry_sdk.capture_exception(error)
sentry_sdk.flush()
