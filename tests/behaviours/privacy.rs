//! A corpus of secrets, sent by ordinary services through every protocol, plain
//! and encrypted, in every place of a message: none comes out of the agent.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tracewire_tests::folder::Folder;
use tracewire_tests::running::Running;
use tracewire_tests::span::Span;
use tracewire_tests::tls::Tls;
use tracewire_tests::workload::{Language, free_port};
use tracewire_tests::{agent, alone, place};

#[expect(dead_code, reason = "what is harmless is the unit tests' business")]
#[path = "../../agent/src/privacy/corpus.rs"]
mod corpus;

const PATIENCE: Duration = Duration::from_secs(60);
/// How long the last spans may take.
const SETTLED: Duration = Duration::from_secs(20);

/// Bodies as they came, unpacked.
type Bodies = Arc<Mutex<Vec<Vec<u8>>>>;

/// Takes what an exporter to Sentry posts, and keeps the bytes as they come.
fn sink() -> Result<(u16, Bodies)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let came = Bodies::default();
    let kept = came.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let kept = kept.clone();
            std::thread::spawn(move || take(stream, &kept));
        }
    });
    Ok((port, came))
}

fn take(mut stream: TcpStream, kept: &Mutex<Vec<Vec<u8>>>) {
    let mut bytes = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
            match stream.read(&mut piece) {
                Ok(n) if n > 0 => bytes.extend_from_slice(&piece[..n]),
                _ => return,
            }
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let whole = end + 4 + length.and_then(|n| n.trim().parse::<usize>().ok()).unwrap_or(0);
        while bytes.len() < whole {
            match stream.read(&mut piece) {
                Ok(n) if n > 0 => bytes.extend_from_slice(&piece[..n]),
                _ => return,
            }
        }
        let mut body = bytes[end + 4..whole].to_vec();
        if head.contains("content-encoding: gzip") {
            let packed = std::mem::take(&mut body);
            let mut packed = flate2::read::GzDecoder::new(packed.as_slice());
            packed.read_to_end(&mut body).unwrap();
        }
        kept.lock().unwrap().push(body);
        bytes.drain(..whole);
        if stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            .is_err()
        {
            return;
        }
    }
}

fn page(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(stream, "GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The corpus as the services are given it: what to hide, the text of an error that it is in, what
/// stands in the user agent and in paths, and whether it has a form that is known anywhere.
fn secrets() -> Vec<serde_json::Value> {
    let told = |secret: &&str, anywhere: bool| {
        let text = format!("no access for {secret}, go away");
        json!({"secret": secret, "text": text, "agent": secret, "path": secret, "anywhere": anywhere})
    };
    let exact = corpus::EXACT.iter().map(|secret| told(secret, true));
    let drawn = corpus::DRAWN.iter().map(|secret| told(secret, false));
    // Hidden for the word before it: in an error's text, and in fields that nobody asked for.
    let phrases = corpus::PHRASES.iter().map(|(text, secret)| {
        let agent = text.replace('\n', " ");
        json!({"secret": secret, "text": text, "agent": agent, "path": "nothing", "anywhere": false})
    });
    exact.chain(drawn).chain(phrases).collect()
}

/// The secret as it is, or as it stands in an address.
fn encoded(secret: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.!~*'()".contains(&b);
    let one = |b: u8| {
        if plain(b) {
            char::from(b).to_string()
        } else {
            format!("%{b:02X}")
        }
    };
    secret.bytes().map(one).collect()
}

fn talk(arguments: &[&str], modules: &Path) -> Command {
    let mut command = Command::new("node");
    command.arg(place::workload_source("secrets").join("talk.js"));
    command.args(arguments).env("NODE_PATH", modules);
    command
}

/// Spans by side and protocol, and what the agent said of connections.
fn missing(seen: &[Span], log: &str) -> String {
    let mut kinds = std::collections::BTreeMap::new();
    for span in seen {
        let scheme = span
            .attributes
            .get("url.scheme")
            .and_then(|s| s.as_str())
            .unwrap_or("?");
        let port = span
            .attributes
            .get("server.port")
            .map_or_else(String::new, ToString::to_string);
        let protocol = span
            .attributes
            .get("rpc.system.name")
            .and_then(|s| s.as_str())
            .unwrap_or("http");
        *kinds
            .entry(format!("{} {protocol} {scheme} {port}", span.side()))
            .or_insert(0) += 1;
    }
    let said: Vec<&str> = log
        .lines()
        .filter(|l| l.contains("WARN") || l.contains("ERROR"))
        .collect();
    format!("{} spans: {kinds:?}\n{}", seen.len(), said.join("\n"))
}

#[test]
fn no_secret_that_services_let_slip_comes_out_anywhere() -> Result<()> {
    let _turn = alone()?;
    Language::Node.build()?;
    let modules = place::workload("node").join("node_modules");
    let folder = Folder::new()?;
    let tls = Tls::new(&folder, false)?;
    let tls = tls.folder.to_str().context("a path is text")?;
    let secrets = secrets();
    let list = folder.file("secrets.json");
    fs::write(&list, serde_json::to_vec(&secrets)?)?;
    let list = list.to_str().context("a path is text")?;

    let out = folder.file("serve");
    let mut command = talk(&["serve", tls, list], &modules);
    let mut server = Running::start_into("services", &mut command, &out, &folder.file("serve.err"))?;
    let line = server.wait_for_line(&out, "listening ", PATIENCE)?;
    let ports = line.trim_start_matches("listening ");
    let mut command = talk(&["call", tls, list, ports], &modules);
    let calls = folder.file("call");
    command.stdin(Stdio::piped()).stdout(fs::File::create(&calls)?);
    command.stderr(fs::File::create(folder.file("call.err"))?);
    let mut client = Running::start("callers", &mut command)?;

    // Everything that can be turned on is on.
    let (sentry, envelopes) = sink()?;
    let health = free_port()?;
    let (spans, log, exported) = (folder.file("spans"), folder.file("log"), folder.file("otlp"));
    let (recorded, recorder_log) = (folder.file("recording"), folder.file("recorder"));
    let pids = [server.pid(), client.pid()].map(|pid| pid.to_string());
    let asked = [
        "--pid",
        &pids[0],
        "--pid",
        &pids[1],
        "--log-level",
        "trace",
        "--show-queries",
        "--capture-request-header",
        "x-asked",
        "--capture-request-header",
        "authorization",
        "--capture-request-header",
        "cookie",
        "--capture-response-header",
        "x-asked",
        "--capture-response-header",
        "set-cookie",
    ];
    let mut command = agent::command(&["attach", "--output", "json"])?;
    command.args(asked).arg("--otlp-file").arg(&exported);
    command.args(["--health-listen", &format!("127.0.0.1:{health}")]);
    command.env("SENTRY_DSN", format!("http://key@127.0.0.1:{sentry}/7"));
    let mut tracer = Running::start_into("agent", &mut command, &spans, &log)?;
    tracer.wait_for_line(&log, "attached ", PATIENCE)?;
    let mut command = agent::command(&["record", "--out"])?;
    command.arg(&recorded).args(asked);
    let mut recorder = Running::start_into("recorder", &mut command, &folder.file("nothing"), &recorder_log)?;
    recorder.wait_for_line(&recorder_log, "attached ", PATIENCE)?;

    client.take_stdin().context("an input")?.write_all(b"go\n")?;
    let status = client.wait(PATIENCE)?;
    ensure!(status.success(), "{}", fs::read_to_string(folder.file("call.err"))?);
    let said = fs::read_to_string(&calls)?;
    let made: usize = said.trim().trim_start_matches("calls ").parse()?;
    // There is something to look through: each call on both sides. Of a TLS connection with one
    // request on a busy machine the server's side is missing now and then (one of six runs, one
    // of 1,288 spans): why is not known, so two may be.
    let deadline = Instant::now() + SETTLED;
    let mut seen = Span::read(&spans)?;
    while seen.len() < 2 * made && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        seen = Span::read(&spans)?;
    }
    let said = fs::read_to_string(&log)?;
    ensure!(seen.len() + 2 >= 2 * made, "of {made} calls: {}", missing(&seen, &said));
    let numbers = page(health)?;
    server.end()?;
    for running in [&mut tracer, &mut recorder] {
        running.signal(libc::SIGINT);
        ensure!(running.wait(PATIENCE)?.success(), "{}", fs::read_to_string(&log)?);
    }
    let replayed = |form: &str| -> Result<String> {
        let mut command = agent::command(&["replay", "--output", form])?;
        command.arg(&recorded).args(&asked[6..]);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };

    let envelopes: Vec<u8> = envelopes.lock().unwrap().concat();
    let envelopes = String::from_utf8_lossy(&envelopes).into_owned();
    assert!(envelopes.contains("\"transaction\"") && envelopes.contains("\"exception\""));
    let outputs = [
        ("spans", fs::read_to_string(&spans)?),
        ("the log", fs::read_to_string(&log)?),
        ("the recorder's log", fs::read_to_string(&recorder_log)?),
        ("OTLP", fs::read_to_string(&exported)?),
        ("metrics", numbers),
        ("envelopes", envelopes),
        (
            "the recording",
            String::from_utf8_lossy(&fs::read(&recorded)?).into_owned(),
        ),
        ("its spans", replayed("json")?),
        ("its trees", replayed("tree")?),
    ];
    let mut wrong = Vec::new();
    for (what, text) in &outputs {
        assert!(text.len() > 100, "{what} is empty");
        for secret in &secrets {
            let secret = secret["secret"].as_str().unwrap();
            for form in [secret.to_owned(), encoded(secret)] {
                if let Some(at) = text.find(&form) {
                    let around = text.get(at.saturating_sub(150)..).unwrap_or(&text[at..]);
                    let around: String = around.chars().take(300).collect();
                    wrong.push(format!("{secret} in {what}: …{around}…"));
                    break;
                }
            }
        }
    }
    let all = wrong.len();
    wrong.truncate(12);
    ensure!(wrong.is_empty(), "{all}\n{}", wrong.join("\n\n"));
    Ok(())
}
