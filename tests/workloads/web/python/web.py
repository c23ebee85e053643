"""An ordinary HTTP service and its client, with the standard library alone.

The client begins after a line on standard input, and writes one JSON line per
request to --log. Where curl is installed it makes some of the requests.
"""

import argparse
import base64
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time

PIECE = b"x" * 100


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def plain(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def pieces(self, kind, pieces, pause):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            time.sleep(pause)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self):
        if self.path == "/length":
            self.plain(200, PIECE * 30)
        elif self.path == "/chunked":
            self.pieces("text/plain", [PIECE] * 4, 0)
        elif self.path == "/events":
            self.pieces("text/event-stream", [b"data: %d\n\n" % n for n in range(4)], 0.05)
        elif self.path == "/close":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(PIECE)
            self.close_connection = True
        else:
            self.plain(int(self.path.strip("/")), b"no\n")

    do_HEAD = do_GET

    def do_POST(self):
        self.plain(200, b"%d\n" % len(self.body()))

    do_PUT = do_POST


class Forking(socketserver.ForkingMixIn, http.server.HTTPServer):
    pass


def serve(arguments):
    address = ("127.0.0.1", int(arguments.listen.rsplit(":")[-1]))
    kind = Forking if arguments.fork else http.server.ThreadingHTTPServer
    kind.daemon_threads = True
    kind.request_queue_size = 128
    server = kind(address, Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("listening", flush=True)
    server.serve_forever(0.05)
    server.server_close()


class Client:
    def __init__(self, arguments):
        self.host, port = arguments.target.rsplit(":", 1)
        self.port = int(port)
        self.features = arguments.features.split(",")
        self.log = open(arguments.log, "a", buffering=1)
        self.count = 0

    def begin(self, client, method, path, version="1.1", **more):
        self.count += 1
        return {
            "id": f"{client}-{self.count}-{os.getpid()}",
            "protocol": "http",
            "method": method,
            "path": path,
            "version": version,
            "start_ns": time.time_ns(),
            **more,
        }

    def end(self, call, status):
        call["end_ns"] = time.time_ns()
        call["status"] = status
        self.log.write(json.dumps(call) + "\n")

    def request(self, connection, method, path, body=None, headers=(), **more):
        call = self.begin("python", method, path, **more)
        headers = {"x-call-id": call["id"], **dict(headers)}
        connection.request(method, path, body, headers, encode_chunked="Transfer-Encoding" in headers)
        response = connection.getresponse()
        response.read()
        self.end(call, response.status)

    def keep_alive(self):
        connection = http.client.HTTPConnection(self.host, self.port)
        for _ in range(3):
            self.request(connection, "GET", "/length")
            self.request(connection, "HEAD", "/length")
            self.request(connection, "GET", "/chunked")
            self.request(connection, "POST", "/echo", b"y" * 200_000)
            chunked = {"Transfer-Encoding": "chunked"}
            self.request(connection, "PUT", "/echo", iter([b"a" * 10, b"b" * 5000]), chunked)
            self.request(connection, "GET", "/404")
            self.request(connection, "GET", "/500")
        self.request(connection, "GET", "/events", least_ns=200_000_000)
        connection.close()
        connection = http.client.HTTPConnection(self.host, self.port)
        self.request(connection, "GET", "/close")

    def socket(self):
        return socket.create_connection((self.host, self.port))

    def head(self, call, *fields):
        lines = [f"{call['method']} {call['path']} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        lines += [f"x-call-id: {call['id']}", *fields, "", ""]
        return "\r\n".join(lines).encode()

    def pipelined(self):
        """Three requests in one write, the first with a body."""
        calls = [self.begin("pipelined", method, path) for method, path in
                 [("POST", "/echo"), ("HEAD", "/length"), ("GET", "/404"), ("GET", "/length")]]
        wire = self.head(calls[0], "Content-Length: 300") + b"z" * 300
        wire += b"".join(self.head(call) for call in calls[1:])
        with self.socket() as connection:
            connection.sendall(wire)
            for call in calls:
                response = http.client.HTTPResponse(connection, method=call["method"])
                # One reader for all, since it reads ahead.
                response.fp.close()
                response.fp = calls_reader(connection)
                response.begin()
                response.read()
                self.end(call, response.status)

    def web_socket(self):
        call = self.begin("websocket", "GET", "/ws")
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {key}"]
        with self.socket() as connection:
            connection.sendall(self.head(call, *upgrade, "Sec-WebSocket-Version: 13"))
            reader = connection.makefile("rb")
            status = int(reader.readline().split()[1])
            while reader.readline().strip():
                pass
            self.end(call, status)
            for n in range(5):
                text = b"GET / HTTP/1.1 %d" % n
                connection.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
                length = reader.read(2)[1]
                assert reader.read(length) == text
            connection.sendall(bytes([0x88, 0x80, 0, 0, 0, 0]))
            reader.read()

    def curl(self):
        if not shutil.which("curl"):
            return
        url = f"http://{self.host}:{self.port}"
        runs = [
            (["-0"], "GET", "/length", "1.0"),
            ([], "GET", "/close", "1.1"),
            (["-H", "Expect: 100-continue", "--data-binary", "@-"], "POST", "/echo", "1.1"),
            (["-T", "-"], "PUT", "/echo", "1.1"),
            (["-I"], "HEAD", "/length", "1.1"),
        ]
        if "h2c" in self.features:
            runs += [
                (["--http2"], "GET", "/length", "2"),
                (["--http2-prior-knowledge"], "GET", "/length", "2"),
                (["--http2-prior-knowledge"], "GET", "/404", "2"),
                (["--http2-prior-knowledge", "--data-binary", "@-"], "POST", "/echo", "2"),
            ]
        for flags, method, path, version in runs:
            call = self.begin("curl", method, path, version)
            command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *flags]
            command += ["-H", f"x-call-id: {call['id']}", url + path]
            done = subprocess.run(command, input=b"w" * 20_000, stdout=subprocess.PIPE, check=True)
            self.end(call, int(done.stdout))

    def run(self):
        self.keep_alive()
        self.pipelined()
        if "websocket" in self.features:
            self.web_socket()
        self.curl()


READERS = {}


def calls_reader(connection):
    if connection not in READERS:
        reader = connection.makefile("rb")
        reader.close = lambda: None
        READERS[connection] = reader
    return READERS[connection]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["server", "client"])
    parser.add_argument("--listen")
    parser.add_argument("--fork", action="store_true")
    parser.add_argument("--target")
    parser.add_argument("--features", default="")
    parser.add_argument("--log")
    arguments = parser.parse_args()
    if arguments.side == "server":
        serve(arguments)
    else:
        sys.stdin.readline()
        Client(arguments).run()


main()
