//! The bytes of the exchange (RFC 9113, RFC 7541, gRPC over HTTP/2) and what
//! is true of them.

/// `:authority` of all calls.
pub const AUTHORITY: &str = "peer.test:8080";
/// Calls on one connection.
pub const CALLS: usize = 14;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// PRIORITY_UPDATE (RFC 9218 §7.1), one of the extension frames that are sent at all: skipped (RFC 9113 §5.5).
const PRIORITY_UPDATE: u8 = 0x10;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;

/// What is true of one call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expected {
    /// `CLIENT` or `SERVER`.
    pub kind: &'static str,
    /// Value of `x-call-id`.
    pub id: String,
    /// `rpc.method`.
    pub method: String,
    /// `rpc.status_code`.
    pub code: String,
    /// `error.type`.
    pub error: Option<String>,
    /// Status description.
    pub message: Option<String>,
    /// Messages of the request and of the response.
    pub messages: (i64, i64),
}

/// All bytes of both directions; the server's follow the client's.
#[derive(Clone, Debug, Default)]
pub struct Flights {
    /// From the connection preface on.
    pub client: Vec<u8>,
    /// From its SETTINGS on.
    pub server: Vec<u8>,
    /// What is true of it.
    pub expected: Vec<Expected>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn message(length: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    // Bytes that look like frame headers and HTTP must not be taken for them.
    bytes.extend(
        b"\0\0\x04\x01\x05\0\0\0\x01HTTP/1.1 200 OK\r\n\r\n"
            .iter()
            .cycle()
            .take(length),
    );
    bytes
}

/// String literal without Huffman coding (RFC 7541 §5.2).
fn string(text: &str, into: &mut Vec<u8>) {
    match u8::try_from(text.len()) {
        Ok(length) if length < 127 => into.push(length),
        _ => {
            into.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                into.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            into.push(rest as u8);
        }
    }
    into.extend(text.bytes());
}

/// Literal field with a new name: `first` says how it is indexed (RFC 7541 §6.2).
fn literal(first: u8, name: &str, value: &str, into: &mut Vec<u8>) {
    into.push(first);
    string(name, into);
    string(value, into);
}

/// Literal field with a name of the static table, index below the prefix's limit.
fn named(first: u8, value: &str, into: &mut Vec<u8>) {
    into.push(first);
    string(value, into);
}

const WITHOUT_INDEXING: u8 = 0x00;
const NEVER_INDEXED: u8 = 0x10;
const INCREMENTAL: u8 = 0x40;

fn request(number: usize, path: &str, id: &str, filler: usize) -> Vec<u8> {
    // :method POST, :scheme http
    let mut block = vec![0x83, 0x86];
    named(0x04, path, &mut block);
    if number == 0 {
        named(INCREMENTAL | 1, AUTHORITY, &mut block);
        named(INCREMENTAL | 31, "application/grpc", &mut block);
        literal(INCREMENTAL, "te", "trailers", &mut block);
    } else {
        // Dynamic table: the last one put in has index 62 (RFC 7541 §2.3.3).
        block.extend([0x80 | 64, 0x80 | 63, 0x80 | 62]);
    }
    if filler > 0 {
        literal(WITHOUT_INDEXING, "x-filler", &"f".repeat(filler), &mut block);
    }
    literal(NEVER_INDEXED, "x-call-id", id, &mut block);
    block
}

fn response(first: bool) -> Vec<u8> {
    // :status 200
    let mut block = vec![0x88];
    if first {
        named(INCREMENTAL | 31, "application/grpc", &mut block);
    } else {
        block.push(0x80 | 62);
    }
    block
}

fn trailers(code: u32, message: Option<&str>) -> Vec<u8> {
    let mut block = Vec::new();
    literal(WITHOUT_INDEXING, "grpc-status", &code.to_string(), &mut block);
    if let Some(message) = message {
        literal(WITHOUT_INDEXING, "grpc-message", message, &mut block);
    }
    block
}

impl Flights {
    /// The exchange, with ids that begin with `name`.
    pub fn new(name: &str) -> Self {
        let mut flights = Flights::default();
        flights.client.extend(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        flights.client.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]));
        flights.server.extend(frame(SETTINGS, 0, 0, &[]));
        flights.server.extend(frame(SETTINGS, 1, 0, &[]));
        for number in 0..CALLS {
            flights.call(number, &format!("{name}-{number}"));
        }
        flights
    }

    fn expect(&mut self, id: &str, method: &str, code: &str, message: Option<&str>, messages: (i64, i64)) {
        for kind in ["CLIENT", "SERVER"] {
            let failed = match code {
                "OK" => false,
                "INTERNAL" | "UNAVAILABLE" => true,
                _ => kind == "CLIENT",
            };
            let error = if code == "UNAVAILABLE" { "stream_reset_7" } else { code };
            self.expected.push(Expected {
                kind,
                id: id.to_owned(),
                method: method.to_owned(),
                code: code.to_owned(),
                error: failed.then(|| error.to_owned()),
                message: message.filter(|_| failed).map(str::to_owned),
                messages,
            });
        }
    }

    fn answer(&mut self, stream: u32, first: bool, data: &[u8], code: u32, text: Option<&str>) {
        self.server
            .extend(frame(HEADERS, END_HEADERS, stream, &response(first)));
        if !data.is_empty() {
            self.server.extend(frame(DATA, 0, stream, data));
        }
        self.server
            .extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &trailers(code, text)));
    }

    fn call(&mut self, number: usize, id: &str) {
        let stream = 2 * number as u32 + 1;
        let method = format!("peer.Service/Kind{number}");
        let path = format!("/{method}");
        match number {
            // Trailers only, with a message beyond ASCII.
            1 => {
                self.client
                    .extend(frame(HEADERS, END_HEADERS, stream, &request(number, &path, id, 0)));
                self.client.extend(frame(DATA, END_STREAM, stream, &message(20)));
                let mut block = response(false);
                block.extend(trailers(5, Some("na%C3%AFve 100 %25")));
                self.server
                    .extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
                self.expect(id, &method, "NOT_FOUND", Some("naïve 100 %"), (1, 0));
            }
            // Padding, priority, a block in three frames.
            2 => {
                let block = request(number, &path, id, 5000);
                let (first, rest) = block.split_at(7);
                let (second, third) = rest.split_at(4000);
                let mut padded = vec![9, 0x80, 0, 0, 0, 15];
                padded.extend(first);
                padded.extend([0; 9]);
                self.client.extend(frame(HEADERS, PADDED | PRIORITY, stream, &padded));
                self.client.extend(frame(CONTINUATION, 0, stream, second));
                self.client.extend(frame(CONTINUATION, END_HEADERS, stream, third));
                let mut data = vec![200];
                data.extend(message(33));
                data.extend([0; 200]);
                self.client.extend(frame(DATA, PADDED | END_STREAM, stream, &data));
                self.answer(stream, false, &message(1), 0, None);
                self.expect(id, &method, "OK", None, (1, 1));
            }
            // Messages that do not end where frames do.
            3 => {
                self.client
                    .extend(frame(HEADERS, END_HEADERS, stream, &request(number, &path, id, 0)));
                let mut data = message(40);
                data.extend(message(50));
                let (first, rest) = data.split_at(3);
                let (second, third) = rest.split_at(44);
                self.client.extend(frame(DATA, 0, stream, first));
                self.client.extend(frame(DATA, 0, stream, second));
                self.client.extend(frame(DATA, END_STREAM, stream, third));
                let mut data = message(0);
                data.extend(message(100));
                data.extend(message(7));
                self.answer(stream, false, &data, 0, None);
                self.expect(id, &method, "OK", None, (2, 3));
            }
            // The client gives up.
            4 => {
                self.client
                    .extend(frame(HEADERS, END_HEADERS, stream, &request(number, &path, id, 0)));
                self.client.extend(frame(DATA, END_STREAM, stream, &message(5)));
                self.client.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
                self.expect(id, &method, "CANCELLED", None, (1, 0));
            }
            // The server does not want it.
            5 => {
                self.client
                    .extend(frame(HEADERS, END_HEADERS, stream, &request(number, &path, id, 0)));
                self.client.extend(frame(DATA, END_STREAM, stream, &message(5)));
                self.server
                    .extend(frame(RST_STREAM, 0, stream, &REFUSED_STREAM.to_be_bytes()));
                self.expect(id, &method, "UNAVAILABLE", None, (1, 0));
            }
            // Frames of other kinds in between.
            6 => {
                self.client.extend(frame(PING, 0, 0, b"01234567"));
                self.client
                    .extend(frame(HEADERS, END_HEADERS, stream, &request(number, &path, id, 0)));
                self.client.extend(frame(PRIORITY_UPDATE, 0xff, 0, &[0xff; 300]));
                self.client.extend(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]));
                self.client.extend(frame(DATA, 0, stream, &[]));
                self.client.extend(frame(DATA, 0, stream, &message(60)));
                self.client.extend(frame(DATA, END_STREAM, stream, &[]));
                self.server.extend(frame(PING, 1, 0, b"01234567"));
                self.answer(stream, false, &[], 13, Some("broken"));
                self.expect(id, &method, "INTERNAL", Some("broken"), (1, 0));
            }
            _ => {
                self.client
                    .extend(frame(HEADERS, END_HEADERS, stream, &request(number, &path, id, 0)));
                self.client
                    .extend(frame(DATA, END_STREAM, stream, &message(10 * number)));
                self.answer(stream, number == 0, &message(500), 0, None);
                self.expect(id, &method, "OK", None, (1, 1));
            }
        }
    }
}
