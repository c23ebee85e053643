"""An HTTP/1.1 server and client right on GnuTLS's C functions: key updates, renegotiation,
resumption, records sent in parts and tried again, corked ones, memory in place of sockets, an end
in mid-record. The client prints a JSON line for each request. EXERCISE_TLS names a folder
with ca.pem, cert.pem and key.pem."""

import ctypes
import json
import os
import select
import socket
import sys
import threading
import time

FOLDER = os.environ["EXERCISE_TLS"]
p, i, u, z, s = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_ssize_t
tls = ctypes.CDLL("libgnutls.so.30", use_errno=True)


def function(name, result, *arguments):
    found = getattr(tls, "gnutls_" + name)
    found.restype, found.argtypes = result, arguments
    return found


allocate = function("certificate_allocate_credentials", i, p)
trust = function("certificate_set_x509_trust_file", i, p, ctypes.c_char_p, i)
key_file = function("certificate_set_x509_key_file", i, p, ctypes.c_char_p, ctypes.c_char_p, i)
init = function("init", i, p, u)
deinit = function("deinit", None, p)
credentials = function("credentials_set", i, p, i, p)
priority = function("priority_set_direct", i, p, ctypes.c_char_p, p)
set_int = function("transport_set_int2", None, p, i, i)
set_ptr = function("transport_set_ptr", None, p, p)
set_push = function("transport_set_push_function", None, p, p)
set_pull = function("transport_set_pull_function", None, p, p)
set_timeout = function("transport_set_pull_timeout_function", None, p, p)
set_errno = function("transport_set_errno", None, p, i)
handshake = function("handshake", i, p)
rehandshake = function("rehandshake", i, p)
key_update = function("session_key_update", i, p, u)
send = function("record_send", s, p, p, z)
receive = function("record_recv", s, p, p, z)
cork = function("record_cork", None, p)
uncork = function("record_uncork", i, p, u)
bye = function("bye", i, p, i)
ticket_key = function("session_ticket_key_generate", i, p)
ticket_enable = function("session_ticket_enable_server", i, p, p)
session_get = function("session_get_data2", i, p, p)
session_set = function("session_set_data", i, p, p, z)
resumed = function("session_is_resumed", i, p)
direction = function("record_get_direction", i, p)

SERVER, CLIENT, NONBLOCK = 1, 2, 8
AGAIN, INTERRUPTED, REHANDSHAKE, EAGAIN = -28, -52, -37, 11
TLS12 = b"NORMAL:-VERS-ALL:+VERS-TLS1.2:%SAFE_RENEGOTIATION"


class Datum(ctypes.Structure):
    _fields_ = [("data", p), ("size", u)]


def path(name):
    return os.path.join(FOLDER, name).encode()


def trusting():
    made = p()
    assert allocate(ctypes.byref(made)) == 0
    assert trust(made, path("ca.pem"), 1) > 0
    assert key_file(made, path("cert.pem"), path("key.pem"), 1) == 0
    return made


PUSH = ctypes.CFUNCTYPE(s, p, p, z)
PULL = ctypes.CFUNCTYPE(s, p, p, z)
TIMEOUT = ctypes.CFUNCTYPE(i, p, u)


class Connection:
    """A TLS connection on a socket, which the library reads and writes itself."""

    def __init__(self, made, sock, flags, words=b"NORMAL", blocking=True):
        self.session, self.sock, self.buffered = p(), sock, b""
        if not blocking:
            flags |= NONBLOCK
        assert init(ctypes.byref(self.session), flags) == 0
        assert priority(self.session, words, None) == 0
        assert credentials(self.session, 1, made) == 0
        sock.setblocking(blocking)
        self.transport()

    def transport(self):
        set_int(self.session, self.sock.fileno(), self.sock.fileno())

    def wait(self, result):
        if result in (AGAIN, INTERRUPTED):
            way = [self.sock]
            select.select(*((([], way, []) if direction(self.session) else (way, [], []))))
        else:
            raise EOFError(f"GnuTLS: {result}")

    def until(self, call, done=lambda n: n > 0):
        while not done(result := call()):
            self.wait(result)
        return result

    def greet(self):
        self.until(lambda: handshake(self.session), done=lambda n: n == 0)

    def send(self, text):
        buffer = ctypes.create_string_buffer(text, len(text))
        at, done = ctypes.addressof(buffer), 0
        while done < len(text):
            # The same buffer again where it must be tried again.
            done += self.until(lambda: send(self.session, at + done, len(text) - done))

    def receive(self):
        buffer = ctypes.create_string_buffer(16384)
        n = self.until(lambda: receive(self.session, ctypes.addressof(buffer), 16384))
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
        bye(self.session, 1)
        deinit(self.session)
        self.sock.close()


class Memory(Connection):
    """The same where the library works on memory."""

    def transport(self):
        self.out, self.came = b"", b""

        def push(_, data, length):
            self.out += ctypes.string_at(data, length)
            return length

        def pull(_, data, length):
            if not self.came:
                set_errno(self.session, EAGAIN)
                return -1
            taken, self.came = self.came[:length], self.came[length:]
            ctypes.memmove(data, taken, len(taken))
            return len(taken)

        self.kept = PUSH(push), PULL(pull), TIMEOUT(lambda _, __: 1)
        set_ptr(self.session, None)
        for setter, kept in zip((set_push, set_pull, set_timeout), self.kept):
            setter(self.session, ctypes.cast(kept, p))

    def flush(self):
        text, self.out = self.out, b""
        if text:
            self.sock.sendall(text)

    def wait(self, result):
        self.flush()
        if result not in (AGAIN, INTERRUPTED):
            raise EOFError(f"GnuTLS: {result}")
        if not self.came:
            # Less than a record at a time.
            self.came = self.sock.recv(77)
            if not self.came:
                raise EOFError("end")

    def send(self, text):
        super().send(text)
        self.flush()

    def greet(self):
        super().greet()
        self.flush()


def serve_one(made, key, sock):
    connection = Connection(made, sock, SERVER)
    ticket_enable(connection.session, ctypes.byref(key))
    try:
        connection.greet()
        while True:
            line, fields = connection.message()
            time.sleep(float(fields.get("x-delay", 0)))
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            if "x-again" in fields:
                assert rehandshake(connection.session) == 0
                connection.greet()
    except EOFError:
        connection.close()


def serve(port):
    made, key = trusting(), Datum()
    assert ticket_key(ctypes.byref(key)) == 0
    listener = socket.create_server(("127.0.0.1", port))
    # Small, so that a client has to wait.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    print("listening", flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve_one, args=(made, key, sock), daemon=True).start()


class Client:
    def __init__(self, port):
        self.port, self.made, self.trusts = port, 0, trusting()

    def open(self, words=b"NORMAL", blocking=True, session=None, kind=Connection):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        sock.connect(("127.0.0.1", self.port))
        connection = kind(self.trusts, sock, CLIENT, words, blocking and kind is not Memory)
        if kind is Memory:
            sock.setblocking(True)
        if session:
            assert session_set(connection.session, session.data, session.size) == 0
        connection.greet()
        assert not session or resumed(connection.session)
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

    def twice(self, name, between=lambda connection: None, **how):
        connection = self.open(**how)
        self.ask(connection, name)
        between(connection)
        self.ask(connection, name)
        return connection

    def run(self):
        def updated(connection):
            assert key_update(connection.session, 1) == 0

        self.twice("plain").close()
        self.twice("old", words=TLS12).close()
        self.twice("key-update", updated).close()
        again = self.open(words=TLS12)
        self.ask(again, "renegotiate", more="x-again: 1\r\n")
        assert receive(again.session, ctypes.addressof(ctypes.create_string_buffer(9)), 9) == REHANDSHAKE
        again.greet()
        self.ask(again, "renegotiate")
        again.close()
        for name, words in (("resume", b"NORMAL"), ("resume-old", TLS12)):
            connection, session = self.twice(name, words=words), Datum()
            assert session_get(connection.session, ctypes.byref(session)) == 0
            connection.close()
            self.twice(name, words=words, session=session).close()

        body = bytes(2 << 20)
        for name, blocking in (("upload", True), ("again", False)):
            upload = self.open(blocking=blocking)
            for _ in range(2):
                self.ask(upload, name, "POST", f"Content-Length: {len(body)}\r\n", body)
            upload.close()

        wait = self.open(blocking=False)
        self.ask(wait, "want-read", more="x-delay: 0.05\r\n")
        self.ask(wait, "want-read")
        wait.close()

        corked = self.open()
        for _ in range(2):
            call, text = self.head("corked")
            cork(corked.session)
            corked.send(text[:20])
            corked.send(text[20:])
            assert uncork(corked.session, 1) >= 0
            line, _ = corked.message()
            self.say(call, status=int(line.split()[1]))
        corked.close()

        memory = self.open(kind=Memory)
        for _ in range(4):
            self.ask(memory, "memory")
        call, text = self.head("cut")
        Connection.send(memory, text)
        self.say(call, cut=True)
        memory.sock.sendall(memory.out[:-20])
        time.sleep(0.2)
        memory.sock.close()
        self.twice("after").close()


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    # The agent is there first.
    sys.stdin.readline()
    time.sleep(1)
    Client(int(sys.argv[2])).run()
    time.sleep(0.3)
