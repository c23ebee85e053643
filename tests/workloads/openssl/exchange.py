"""An HTTP/1.1 server and client right on libssl's C functions, which do what
well-behaved programs rarely do: key updates, renegotiation, resumption, early
data, writes that are cut or must be tried again, ends in mid-record. The client
prints a JSON line for each request. EXERCISE_TLS names a folder with ca.pem,
cert.pem and key.pem; EXERCISE_LIBSSL the library."""

import ctypes
import json
import os
import select
import socket
import sys
import threading
import time

FOLDER = os.environ["EXERCISE_TLS"]
LIBRARY = os.environ["EXERCISE_LIBSSL"]
p, i, l, z = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_size_t
ssl = ctypes.CDLL(LIBRARY)


def function(name, result, *arguments):
    found = getattr(ssl, name)
    found.restype, found.argtypes = result, arguments
    return found


method = function("TLS_method", p)
ctx_new = function("SSL_CTX_new", p, p)
ctx_ctrl = function("SSL_CTX_ctrl", l, p, i, l, p)
ctx_options = function("SSL_CTX_set_options", ctypes.c_uint64, p, ctypes.c_uint64)
ctx_chain = function("SSL_CTX_use_certificate_chain_file", i, p, ctypes.c_char_p)
ctx_key = function("SSL_CTX_use_PrivateKey_file", i, p, ctypes.c_char_p, i)
ctx_ca = function("SSL_CTX_load_verify_locations", i, p, ctypes.c_char_p, ctypes.c_char_p)
ctx_verify = function("SSL_CTX_set_verify", None, p, i, p)
ctx_early = function("SSL_CTX_set_max_early_data", i, p, ctypes.c_uint32)
ctx_id = function("SSL_CTX_set_session_id_context", i, p, ctypes.c_char_p, ctypes.c_uint)
new = function("SSL_new", p, p)
free = function("SSL_free", None, p)
set_fd = function("SSL_set_fd", i, p, i)
accept = function("SSL_accept", i, p)
connect = function("SSL_connect", i, p)
connect_state = function("SSL_set_connect_state", None, p)
handshake = function("SSL_do_handshake", i, p)
read = function("SSL_read", i, p, p, i)
write = function("SSL_write", i, p, p, i)
read_ex = function("SSL_read_ex", i, p, p, z, p)
write_ex = function("SSL_write_ex", i, p, p, z, p)
read_early = function("SSL_read_early_data", i, p, p, z, p)
write_early = function("SSL_write_early_data", i, p, p, z, p)
error = function("SSL_get_error", i, p, i)
key_update = function("SSL_key_update", i, p, i)
renegotiate = function("SSL_renegotiate", i, p)
get_session = function("SSL_get1_session", p, p)
set_session = function("SSL_set_session", i, p, p)
reused = function("SSL_session_reused", i, p)
early_status = function("SSL_get_early_data_status", i, p)
shutdown = function("SSL_shutdown", i, p)
bio_new = function("BIO_new", p, p)
bio_memory = function("BIO_s_mem", p)
bio_read = function("BIO_read", i, p, p, i)
bio_write = function("BIO_write", i, p, p, i)
set_bio = function("SSL_set_bio", None, p, p, p)

WANT_READ, WANT_WRITE = 2, 3
MODE, SESSION_CACHE, MIN_VERSION, MAX_VERSION = 33, 44, 123, 124
PARTIAL = 1
TLS12 = 0x303
# SSL_OP_NO_ANTI_REPLAY, SSL_OP_ALLOW_CLIENT_RENEGOTIATION
OPTIONS = 1 << 24 | 1 << 8


def path(name):
    return os.path.join(FOLDER, name).encode()


def context(server, version=0, mode=0):
    made = ctx_new(method())
    ctx_options(made, OPTIONS)
    assert ctx_chain(made, path("cert.pem")) == 1 and ctx_key(made, path("key.pem"), 1) == 1
    assert ctx_ca(made, path("ca.pem"), None) == 1
    ctx_verify(made, 3 if server else 1, None)
    ctx_id(made, b"exchange", 8)
    if server:
        ctx_early(made, 16384)
    else:
        ctx_ctrl(made, SESSION_CACHE, 1, None)
    if version:
        ctx_ctrl(made, MAX_VERSION, version, None)
    if mode:
        ctx_ctrl(made, MODE, mode, None)
    return made


class Connection:
    """A TLS connection on a socket, which the library reads and writes itself."""

    def __init__(self, made, sock, blocking=True):
        self.ssl, self.sock = new(made), sock
        self.buffered = b""
        self.counted = False
        sock.setblocking(blocking)
        set_fd(self.ssl, sock.fileno())

    def wait(self, result):
        why = error(self.ssl, result)
        if why == WANT_READ:
            select.select([self.sock], [], [])
        elif why == WANT_WRITE:
            select.select([], [self.sock], [])
        else:
            raise EOFError(f"SSL_get_error: {why}")

    def until(self, call):
        while (result := call()) <= 0:
            self.wait(result)
        return result

    def send(self, text):
        buffer = ctypes.create_string_buffer(text, len(text))
        at, done = ctypes.addressof(buffer), 0
        count = z()
        while done < len(text):
            # The same buffer again where it must be tried again.
            if self.counted:
                self.until(lambda: write_ex(self.ssl, at + done, len(text) - done, ctypes.addressof(count)))
                done += count.value
            else:
                done += self.until(lambda: write(self.ssl, at + done, len(text) - done))

    def receive(self):
        buffer = ctypes.create_string_buffer(16384)
        at, count = ctypes.addressof(buffer), z()
        if self.counted:
            self.until(lambda: read_ex(self.ssl, at, 16384, ctypes.addressof(count)))
            n = count.value
        else:
            n = self.until(lambda: read(self.ssl, at, 16384))
        self.buffered += buffer.raw[:n]

    def message(self):
        while b"\r\n\r\n" not in self.buffered:
            self.receive()
        head, rest = self.buffered.split(b"\r\n\r\n", 1)
        lines = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        length = int(fields.get("content-length", 0))
        self.buffered = rest
        while len(self.buffered) < length:
            self.receive()
        self.buffered = self.buffered[length:]
        return lines[0], fields

    def close(self):
        shutdown(self.ssl)
        free(self.ssl)
        self.sock.close()


class Memory(Connection):
    """The same where the library works on memory."""

    def __init__(self, made, sock):
        self.ssl, self.sock = new(made), sock
        self.buffered, self.counted = b"", False
        self.incoming, self.outgoing = bio_new(bio_memory()), bio_new(bio_memory())
        set_bio(self.ssl, self.incoming, self.outgoing)
        connect_state(self.ssl)

    def pending(self):
        buffer = ctypes.create_string_buffer(65536)
        n = bio_read(self.outgoing, ctypes.addressof(buffer), 65536)
        return buffer.raw[:n] if n > 0 else b""

    def flush(self):
        if text := self.pending():
            self.sock.sendall(text)

    def wait(self, result):
        self.flush()
        if error(self.ssl, result) != WANT_READ:
            raise EOFError("memory")
        # Less than a record at a time.
        text = self.sock.recv(77)
        if not text:
            raise EOFError("end")
        bio_write(self.incoming, text, len(text))

    def send(self, text):
        super().send(text)
        self.flush()


def answer(connection, fields, line):
    time.sleep(float(fields.get("x-delay", 0)))
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    if "key-update" in line:
        assert key_update(connection.ssl, 1) == 1


def serve_one(made, sock):
    connection = Connection(made, sock)
    connection.counted = True
    buffer, count = ctypes.create_string_buffer(16384), z()
    while True:
        state = read_early(connection.ssl, ctypes.addressof(buffer), 16384, ctypes.addressof(count))
        if state == 0:
            return
        connection.buffered += buffer.raw[: count.value]
        if state == 2:
            break
    if accept(connection.ssl) != 1:
        return
    try:
        while True:
            line, fields = connection.message()
            answer(connection, fields, line)
    except EOFError:
        connection.close()


def serve(port):
    made = context(True)
    listener = socket.create_server(("127.0.0.1", port))
    # Small, so that a client has to wait.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    print("listening", flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve_one, args=(made, sock), daemon=True).start()


class Client:
    def __init__(self, port):
        self.port, self.made = port, 0

    def open(self, made, blocking=True, session=None, kind=Connection):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        sock.connect(("127.0.0.1", self.port))
        connection = Memory(made, sock) if kind is Memory else Connection(made, sock, blocking)
        if session:
            assert set_session(connection.ssl, session) == 1
        return connection

    def head(self, name, method="GET", more=""):
        self.made += 1
        call = f"{name}-{self.made}"
        text = f"{method} /{name} HTTP/1.1\r\nHost: localhost\r\nx-call-id: {call}\r\n{more}\r\n"
        return call, text.encode()

    def say(self, call, **more):
        print(json.dumps({"id": call, "path": "/" + call.rsplit("-", 1)[0], **more}), flush=True)

    def ask(self, connection, name, method="GET", more="", body=b""):
        call, text = self.head(name, method, more)
        connection.send(text + body)
        line, _ = connection.message()
        self.say(call, status=int(line.split()[1]))

    def twice(self, name, made, between=lambda connection: None, **how):
        connection = self.open(made, **how)
        connection.until(lambda: connect(connection.ssl))
        self.ask(connection, name)
        between(connection)
        self.ask(connection, name)
        connection.close()

    def resumed(self, name, made):
        connection = self.open(made)
        connection.until(lambda: connect(connection.ssl))
        self.ask(connection, name)
        session = get_session(connection.ssl)
        connection.close()
        connection = self.open(made, session=session)
        connection.until(lambda: connect(connection.ssl))
        assert reused(connection.ssl) == 1
        self.ask(connection, name)
        return connection

    def run(self):
        default, old = context(False), context(False, TLS12)

        def counted(connection):
            connection.counted = True

        def updated(connection):
            assert key_update(connection.ssl, 1) == 1

        def negotiated(connection):
            assert renegotiate(connection.ssl) == 1
            connection.until(lambda: handshake(connection.ssl))

        self.twice("plain", default)
        self.twice("counted", default, counted)
        self.twice("key-update", default, updated)
        self.twice("renegotiate", old, negotiated)
        self.resumed("resume-old", old).close()
        connection = self.resumed("resume", default)
        session = get_session(connection.ssl)
        connection.close()

        early = self.open(default, session=session)
        connect_state(early.ssl)
        call, text = self.head("early")
        count = z()
        assert write_early(early.ssl, text, len(text), ctypes.addressof(count)) == 1
        assert count.value == len(text)
        early.until(lambda: connect(early.ssl))
        assert early_status(early.ssl) == 2
        line, _ = early.message()
        self.say(call, status=int(line.split()[1]))
        self.ask(early, "early")
        early.close()

        body = bytes(2 << 20)
        for name, mode in (("partial", PARTIAL), ("again", 0)):
            upload = self.open(context(False, mode=mode), blocking=False)
            upload.until(lambda: connect(upload.ssl))
            for _ in range(2):
                self.ask(upload, name, "POST", f"Content-Length: {len(body)}\r\n", body)
            upload.close()

        wait = self.open(default, blocking=False)
        wait.until(lambda: connect(wait.ssl))
        self.ask(wait, "want-read", more="x-delay: 0.05\r\n")
        self.ask(wait, "want-read")
        wait.close()

        memory = self.open(default, kind=Memory)
        memory.until(lambda: handshake(memory.ssl))
        for _ in range(4):
            self.ask(memory, "memory")
        call, text = self.head("cut")
        Connection.send(memory, text)
        self.say(call, cut=True)
        memory.sock.sendall(memory.pending()[:-20])
        time.sleep(0.2)
        memory.sock.close()
        self.twice("after", default)


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    # The agent is there first.
    sys.stdin.readline()
    time.sleep(1)
    Client(int(sys.argv[2])).run()
    time.sleep(0.3)
