"""The relay of proto/relay.proto over HTTP/1.1, its messages in JSON, in the ways in which
a Python service may be built: a thread a connection, wsgiref, one request at a
time; and in ways in which a thread says nothing: pools, loops."""

import argparse
import asyncio
import http.client
import http.server
import json
import os
import queue
import random
import select
import signal
import socket
import socketserver
import threading
import time
import wsgiref.simple_server


def pause(hop):
    return random.random() * hop.get("delay", 0) / 1000


def onward(hop, k):
    ask = {**hop, "id": f"{hop['id']}/{k}", "route": hop["route"][1:], "count": 0}
    head = {"x-call-id": ask["id"], "Content-Type": "application/json"}
    return json.dumps(ask), head


class Connections(threading.local):
    """Those of a thread, kept open."""

    def __init__(self):
        self.by_address = {}

    def post(self, address, body, head):
        if address not in self.by_address:
            self.by_address[address] = http.client.HTTPConnection(address, timeout=flags.timeout)
        connection = self.by_address[address]
        connection.request("POST", "/pass", body, head)
        return json.loads(connection.getresponse().read())


CONNECTIONS = Connections()


def onwards(hop):
    if not hop["route"]:
        return 0
    count = 0
    for k in range(max(hop.get("fan", 0), 1)):
        time.sleep(pause(hop))
        body, head = onward(hop, k)
        count += CONNECTIONS.post(hop["route"][0], body, head)["count"]
    return count


def answer(body):
    hop = json.loads(body)
    return json.dumps({"id": hop["id"], "count": onwards(hop) + 1}).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        said = answer(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


def threads(address):
    """A thread a connection."""
    server = http.server.ThreadingHTTPServer(address, Handler)
    server.request_queue_size = 128
    server.socket.listen(128)
    serving(server.serve_forever)


class OneByOne(Handler):
    """Without keep-alive, or the first connection would keep the others waiting."""

    protocol_version = "HTTP/1.0"


def single(address):
    """One request at a time."""
    server = http.server.HTTPServer(address, OneByOne)
    server.socket.listen(128)
    serving(server.serve_forever)


def wsgi(address):
    """wsgiref, a thread a connection."""

    class Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
        daemon_threads = True

    class Quiet(wsgiref.simple_server.WSGIRequestHandler):
        def log_message(self, *_):
            pass

    def application(environ, start_response):
        said = answer(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        start_response("200 OK", [("Content-Length", str(len(said)))])
        return [said]

    server = Server(address, Quiet)
    server.socket.listen(128)
    server.set_app(application)
    serving(server.serve_forever)


def response(said):
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said)


def request(reader):
    """The body of the next request; None at the end."""
    length = None
    while True:
        line = reader.readline()
        if not line:
            return None
        if line == b"\r\n" and length is not None:
            return reader.read(length)
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])


def pool(address):
    """A thread a connection reads, a few others make the calls and answer: sockets that block."""
    jobs = queue.Queue()

    def work():
        while True:
            connection, body = jobs.get()
            connection.sendall(response(answer(body)))

    def read(connection):
        reader = connection.makefile("rb")
        while (body := request(reader)) is not None:
            jobs.put((connection, body))

    for _ in range(32):
        threading.Thread(target=work, daemon=True).start()
    listener = socket.create_server(address, backlog=128)

    def accept():
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=read, args=(connection,), daemon=True).start()

    serving(accept)


def swap(address):
    """Threads that read a request, put it on a heap, and take any from there."""
    heap, full = [], threading.Condition()

    def work(connection):
        reader = connection.makefile("rb")
        while (body := request(reader)) is not None:
            with full:
                heap.append((connection, body))
                if len(heap) > 1:
                    random.shuffle(heap)
                theirs, job = heap.pop()
            theirs.sendall(response(answer(job)))
            while True:
                with full:
                    if not heap:
                        break
                    theirs, job = heap.pop()
                theirs.sendall(response(answer(job)))

    listener = socket.create_server(address, backlog=128)

    def accept():
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=work, args=(connection,), daemon=True).start()

    serving(accept)


def loop(address):
    """One thread for all, by select, and sockets that block: as one should not do it, and some do."""
    listener = socket.create_server(address, backlog=128)
    readers, waiting, calls = {}, {}, {}

    def run():
        while True:
            pauses = [at for _, at, _ in calls.values()] + [time.monotonic() + 1]
            ready, _, _ = select.select([listener, *readers, *waiting], [], [], max(0, min(pauses) - time.monotonic()))
            for each in ready:
                if each is listener:
                    connection, _ = listener.accept()
                    readers[connection] = connection.makefile("rb")
                elif each in readers:
                    body = request(readers[each])
                    if body is None:
                        del readers[each]
                        continue
                    hop = json.loads(body)
                    if hop["route"]:
                        calls[each] = (hop, time.monotonic() + pause(hop), body)
                    else:
                        each.sendall(response(json.dumps({"id": hop["id"], "count": 1}).encode()))
                elif each in waiting:
                    whom, hop, onto = waiting.pop(each)
                    length = None
                    while (line := onto.readline()) != b"\r\n":
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    count = json.loads(onto.read(length))["count"] + 1
                    whom.sendall(response(json.dumps({"id": hop["id"], "count": count}).encode()))
                    each.close()
            now = time.monotonic()
            for whom in [w for w, (_, at, _) in calls.items() if at <= now]:
                hop, _, _ = calls.pop(whom)
                host, port = hop["route"][0].split(":")
                connection = socket.create_connection((host, int(port)))
                body, head = onward(hop, 0)
                lines = "".join(f"{k}: {v}\r\n" for k, v in head.items())
                connection.sendall(
                    f"POST /pass HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n{body}".encode()
                )
                waiting[connection] = (whom, hop, connection.makefile("rb"))

    serving(run)


async def exchange(address, body, head):
    reader, writer = await asyncio.open_connection(*address.split(":"))
    lines = "".join(f"{k}: {v}\r\n" for k, v in head.items())
    writer.write(f"POST /pass HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    length = 0
    while (line := await reader.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    said = await reader.readexactly(length)
    writer.close()
    return json.loads(said)


async def tasks_of(reader, writer):
    length = 0
    while line := await reader.readline():
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
        if line != b"\r\n":
            continue
        hop = json.loads(await reader.readexactly(length))

        async def one(k):
            await asyncio.sleep(pause(hop))
            return (await exchange(hop["route"][0], *onward(hop, k)))["count"]

        fan = range(max(hop.get("fan", 0), 1) if hop["route"] else 0)
        count = sum(await asyncio.gather(*(one(k) for k in fan)))
        writer.write(response(json.dumps({"id": hop["id"], "count": count + 1}).encode()))
        await writer.drain()
    writer.close()


def tasks(address):
    """asyncio."""

    async def run():
        server = await asyncio.start_server(tasks_of, *address, backlog=128)
        print("listening", flush=True)
        async with server:
            await server.serve_forever()

    asyncio.run(run())


def serving(run):
    print("listening", flush=True)
    run()


parser = argparse.ArgumentParser()
parser.add_argument("side", choices=["serve"])
parser.add_argument("--listen", default="127.0.0.1:0")
parser.add_argument("--connections", type=int, default=1)
parser.add_argument("--log")
parser.add_argument("--timeout", type=float, help="of calls; makes their sockets not block")
parser.add_argument("--way", default="threads", choices=["threads", "single", "wsgi", "pool", "swap", "loop", "tasks"])
flags = parser.parse_args()
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
host, port = flags.listen.split(":")
globals()[flags.way]((host, int(port)))
