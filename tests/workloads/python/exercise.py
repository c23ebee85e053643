"""An ordinary gRPC service and its client, with the blocking API or, with
--aio, the asyncio one. Both sides write one JSON line per call to --log."""

import argparse
import asyncio
import base64
import json
import os
import queue
import random
import signal
import sys
import threading
import time
from concurrent import futures

import grpc
import grpc.aio

import exercise_pb2 as pb
import exercise_pb2_grpc as rpc

LANG = "python"
SERVICE = "tracewire.test.Exercise/"
MIB = 1024 * 1024
CODES = {code.value[0]: code for code in grpc.StatusCode}
LIMITS = [
    ("grpc.max_receive_message_length", 64 * MIB),
    ("grpc.max_send_message_length", 64 * MIB),
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.absolute_max_metadata_size", 64 * 1024),
]
SERVER_OPTIONS = LIMITS + [("grpc.so_reuseport", 0)]
CHANNEL_OPTIONS = LIMITS + [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
]
MIXED = ["unary", "errors", "server-stream", "client-stream", "bidi"]
SCENARIOS = MIXED + ["cancel", "deadline", "large", "metadata", "churn", "mixed"]


class Log:
    """Whole lines, each with one write to a file opened for appending."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, record):
        line = json.dumps(record, ensure_ascii=False) + "\n"
        os.write(self.fd, line.encode())


class Record:
    """What one side knows of one call; finish() writes it, once."""

    def __init__(self, log, side, call_id, method):
        self.log, self.side, self.id, self.method = log, side, call_id, method
        self.sent = self.received = 0
        self.traceparent = ""
        self.done = False
        self.start = time.time_ns()

    def finish(self, code, message):
        if self.done:
            return
        self.done = True
        self.log.write({
            "side": self.side,
            "id": self.id,
            "method": SERVICE + self.method,
            "code": code.name,
            "message": message or "",
            "start_ns": self.start,
            "end_ns": time.time_ns(),
            "sent": self.sent,
            "received": self.received,
            "traceparent": self.traceparent,
        })


# TLS, if EXERCISE_TLS names a folder with ca.pem, cert.pem and key.pem; EXERCISE_MUTUAL_TLS
# has the client show its certificate too.
TLS = os.environ.get("EXERCISE_TLS")
MUTUAL = bool(os.environ.get("EXERCISE_MUTUAL_TLS"))


def pem(name):
    with open(os.path.join(TLS, name), "rb") as file:
        return file.read()


def listen(server, address):
    if not TLS:
        server.add_insecure_port(address)
        return
    server.add_secure_port(address, grpc.ssl_server_credentials(
        [(pem("key.pem"), pem("cert.pem"))],
        root_certificates=pem("ca.pem") if MUTUAL else None,
        require_client_auth=MUTUAL,
    ))


def open_channel(api, target):
    if not TLS:
        return api.insecure_channel(target, options=CHANNEL_OPTIONS)
    own = (pem("key.pem"), pem("cert.pem")) if MUTUAL else (None, None)
    credentials = grpc.ssl_channel_credentials(pem("ca.pem"), *own)
    return api.secure_channel(target, credentials, options=CHANNEL_OPTIONS)


def answer(ask, n):
    return pb.Answer(id=ask.id, n=n, payload=b"a" * ask.reply_bytes)


def call_id_of(context):
    return dict(context.invocation_metadata()).get("x-call-id", "")


def traceparents_of(context):
    return ",".join(v for k, v in context.invocation_metadata() if k == "traceparent")


# --- server, blocking API -------------------------------------------------


class SyncService(rpc.ExerciseServicer):
    def __init__(self, log):
        self.log = log

    def begin(self, method, context):
        record = Record(self.log, "server", call_id_of(context), method)
        record.traceparent = traceparents_of(context)
        ended = threading.Event()
        if not context.add_callback(ended.set):
            ended.set()
        return record, ended

    def end(self, record, ended, context, ask):
        """Ends the call as its ask wishes; returns only if that is OK."""
        if ended.is_set():
            record.finish(grpc.StatusCode.CANCELLED, "")
            context.cancel()
        elif ask.code:
            record.finish(CODES[ask.code], ask.message)
            context.abort(CODES[ask.code], ask.message)
        else:
            record.finish(grpc.StatusCode.OK, "")

    def Unary(self, ask, context):
        record, ended = self.begin("Unary", context)
        record.received = 1
        if ask.delay_ms:
            ended.wait(ask.delay_ms / 1000)
        if not ask.code and not ended.is_set():
            record.sent = 1
        reply = answer(ask, 0)
        self.end(record, ended, context, ask)
        return reply

    def ServerStream(self, ask, context):
        record, ended = self.begin("ServerStream", context)
        record.received = 1
        try:
            if ask.delay_ms:
                ended.wait(ask.delay_ms / 1000)
            for n in range(ask.replies):
                if n and ask.gap_ms:
                    ended.wait(ask.gap_ms / 1000)
                if ended.is_set():
                    break
                record.sent += 1
                yield answer(ask, n)
            self.end(record, ended, context, ask)
        finally:
            record.finish(grpc.StatusCode.CANCELLED, "")

    def ClientStream(self, asks, context):
        record, ended = self.begin("ClientStream", context)
        try:
            last = pb.Ask()
            for ask in asks:
                record.received += 1
                last = ask
            if last.delay_ms:
                ended.wait(last.delay_ms / 1000)
            if not last.code and not ended.is_set():
                record.sent = 1
            reply = answer(last, record.received)
            self.end(record, ended, context, last)
            return reply
        finally:
            record.finish(grpc.StatusCode.CANCELLED, "")

    def Bidi(self, asks, context):
        record, ended = self.begin("Bidi", context)
        try:
            last = pb.Ask()
            for ask in asks:
                record.received += 1
                last = ask
                if ask.delay_ms:
                    ended.wait(ask.delay_ms / 1000)
                record.sent += 1
                yield answer(ask, record.sent - 1)
            self.end(record, ended, context, last)
        finally:
            record.finish(grpc.StatusCode.CANCELLED, "")


def serve_sync(args):
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=64), options=SERVER_OPTIONS
    )
    rpc.add_ExerciseServicer_to_server(SyncService(Log(args.log)), server)
    listen(server, args.listen)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server.start()
    print("listening", flush=True)
    stop.wait()
    server.stop(1).wait()


# --- server, asyncio API --------------------------------------------------


class AioService(rpc.ExerciseServicer):
    def __init__(self, log):
        self.log = log

    async def handle(self, method, context, body):
        record = Record(self.log, "server", call_id_of(context), method)
        record.traceparent = traceparents_of(context)
        try:
            ask, reply = await body(record)
        except BaseException:
            # The task is cancelled when the client gives up.
            record.finish(grpc.StatusCode.CANCELLED, "")
            raise
        if ask.code:
            record.finish(CODES[ask.code], ask.message)
            await context.abort(CODES[ask.code], ask.message)
        if reply is not None:
            record.sent += 1
        record.finish(grpc.StatusCode.OK, "")
        return reply

    async def Unary(self, ask, context):
        async def body(record):
            record.received = 1
            await asyncio.sleep(ask.delay_ms / 1000)
            return ask, answer(ask, 0)

        return await self.handle("Unary", context, body)

    async def ServerStream(self, ask, context):
        async def body(record):
            record.received = 1
            await asyncio.sleep(ask.delay_ms / 1000)
            for n in range(ask.replies):
                if n:
                    await asyncio.sleep(ask.gap_ms / 1000)
                await context.write(answer(ask, n))
                record.sent += 1
            return ask, None

        await self.handle("ServerStream", context, body)

    async def ClientStream(self, asks, context):
        async def body(record):
            last = pb.Ask()
            async for ask in asks:
                record.received += 1
                last = ask
            await asyncio.sleep(last.delay_ms / 1000)
            return last, answer(last, record.received)

        return await self.handle("ClientStream", context, body)

    async def Bidi(self, asks, context):
        async def body(record):
            last = pb.Ask()
            async for ask in asks:
                record.received += 1
                last = ask
                await asyncio.sleep(ask.delay_ms / 1000)
                await context.write(answer(ask, record.sent))
                record.sent += 1
            return last, None

        await self.handle("Bidi", context, body)


async def serve_aio(args):
    server = grpc.aio.server(options=SERVER_OPTIONS)
    rpc.add_ExerciseServicer_to_server(AioService(Log(args.log)), server)
    listen(server, args.listen)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    print("listening", flush=True)
    await stop.wait()
    await server.stop(1)


# --- client ---------------------------------------------------------------


class Plan:
    """What call number n of a scenario is: its kind, asks and options."""

    def __init__(self, scenario, n):
        self.id = f"{LANG}-{scenario}-{n}-{os.getpid()}"
        self.metadata = [("x-call-id", self.id)]
        self.timeout = None
        self.cancel = False
        self.asks = 1
        self.gap = 0.0
        kind = MIXED[n % len(MIXED)] if scenario == "mixed" else scenario
        fields = dict(id=self.id, reply_bytes=64, payload=b"q" * 64)
        self.method = "Unary"
        if kind == "errors":
            fields.update(code=n % 17, message=f"expected failure {n}: naïve % text")
        elif kind == "server-stream":
            self.method = "ServerStream"
            fields.update(replies=3, gap_ms=5)
            if n % 4 == 3:
                fields.update(code=10, message=f"expected failure {n}: naïve % text")
        elif kind == "client-stream":
            self.method, self.asks, self.gap = "ClientStream", 4, 0.002
        elif kind == "bidi":
            self.method, self.asks = "Bidi", 3
        elif kind == "cancel":
            self.method, self.cancel = "ServerStream", True
            fields.update(replies=1000, gap_ms=5)
        elif kind == "deadline":
            self.timeout = 0.06
            fields.update(delay_ms=400)
        elif kind == "large":
            fields.update(reply_bytes=4 * MIB, payload=b"q" * (4 * MIB))
        elif kind == "metadata":
            filler = base64.b32encode(random.randbytes(10_000)).decode()
            self.metadata.append(("x-filler", filler))
        self.ask = pb.Ask(**fields)


def sync_call(stub, plan, log):
    record = Record(log, "client", plan.id, plan.method)
    options = dict(metadata=plan.metadata, timeout=plan.timeout)
    answered = queue.SimpleQueue()

    def asks():
        for n in range(plan.asks):
            if n and plan.gap:
                time.sleep(plan.gap)
            if n and plan.method == "Bidi" and not answered.get():
                return
            record.sent += 1
            yield plan.ask
        if plan.method == "Bidi":
            answered.get()

    try:
        if plan.method == "Unary":
            record.sent = 1
            stub.Unary(plan.ask, **options)
            record.received = 1
        elif plan.method == "ClientStream":
            stub.ClientStream(asks(), **options)
            record.received = 1
        else:
            if plan.method == "ServerStream":
                record.sent = 1
                call = stub.ServerStream(plan.ask, **options)
            else:
                call = stub.Bidi(asks(), **options)
            for _ in call:
                record.received += 1
                answered.put(True)
                if plan.cancel:
                    call.cancel()
        record.finish(grpc.StatusCode.OK, "")
    except grpc.RpcError as error:
        answered.put(False)
        record.finish(error.code(), error.details())


def run_sync(args):
    log = Log(args.log)

    def connect():
        return open_channel(grpc, args.target)

    channels = []
    if args.scenario != "churn":
        channels = [connect() for _ in range(args.connections)]
    stubs = [rpc.ExerciseStub(channel) for channel in channels]
    numbers = iter(range(args.calls))
    lock = threading.Lock()
    failures = []

    def work():
        try:
            while True:
                with lock:
                    n = next(numbers, None)
                if n is None:
                    return
                plan = Plan(args.scenario, n)
                if stubs:
                    sync_call(stubs[n % len(stubs)], plan, log)
                else:
                    with connect() as channel:
                        sync_call(rpc.ExerciseStub(channel), plan, log)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(args.concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for channel in channels:
        channel.close()
    return 1 if failures else 0


async def aio_call(stub, plan, log):
    record = Record(log, "client", plan.id, plan.method)
    options = dict(metadata=plan.metadata, timeout=plan.timeout)
    if plan.method == "Unary":
        call = stub.Unary(plan.ask, **options)
        record.sent = 1
    elif plan.method == "ServerStream":
        call = stub.ServerStream(plan.ask, **options)
        record.sent = 1
    elif plan.method == "ClientStream":
        call = stub.ClientStream(**options)
    else:
        call = stub.Bidi(**options)
    try:
        if plan.method == "ServerStream":
            async for _ in call:
                record.received += 1
                if plan.cancel:
                    call.cancel()
                    break
        elif plan.method == "Bidi":
            for _ in range(plan.asks):
                await call.write(plan.ask)
                record.sent += 1
                if await call.read() is grpc.aio.EOF:
                    break
                record.received += 1
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                record.received += 1
        else:
            if plan.method == "ClientStream":
                for n in range(plan.asks):
                    if n:
                        await asyncio.sleep(plan.gap)
                    await call.write(plan.ask)
                    record.sent += 1
                await call.done_writing()
            await call
            record.received = 1
    except (grpc.RpcError, asyncio.InvalidStateError):
        pass  # the status of the call says why
    record.finish(await call.code(), await call.details())


async def run_aio(args):
    log = Log(args.log)

    def connect():
        return open_channel(grpc.aio, args.target)

    channels = []
    if args.scenario != "churn":
        channels = [connect() for _ in range(args.connections)]
    stubs = [rpc.ExerciseStub(channel) for channel in channels]
    numbers = iter(range(args.calls))

    async def work():
        for n in numbers:
            plan = Plan(args.scenario, n)
            if stubs:
                await aio_call(stubs[n % len(stubs)], plan, log)
            else:
                async with connect() as channel:
                    await aio_call(rpc.ExerciseStub(channel), plan, log)

    await asyncio.gather(*(work() for _ in range(args.concurrency)))
    for channel in channels:
        await channel.close()
    return 0


def main():
    parser = argparse.ArgumentParser()
    sides = parser.add_subparsers(dest="side", required=True)
    server = sides.add_parser("server")
    server.add_argument("--listen", required=True)
    client = sides.add_parser("client")
    client.add_argument("--target", required=True)
    client.add_argument("--scenario", required=True, choices=SCENARIOS)
    client.add_argument("--calls", type=int, required=True)
    client.add_argument("--concurrency", type=int, default=1)
    client.add_argument("--connections", type=int, default=1)
    client.add_argument("--start-delay-ms", type=int, default=0)
    for side in (server, client):
        side.add_argument("--log", required=True)
        side.add_argument("--aio", action="store_true")
    args = parser.parse_args()
    if args.side == "server":
        if args.aio:
            asyncio.run(serve_aio(args))
        else:
            serve_sync(args)
        return 0
    time.sleep(args.start_delay_ms / 1000)
    return asyncio.run(run_aio(args)) if args.aio else run_sync(args)


if __name__ == "__main__":
    sys.exit(main())
