//! Bugsink: a server of its own that makes Issues of Sentry's events, refuses
//! transactions with a rate limit, and tells what it has by an API.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::peers;

/// How long it may take to start, or to digest.
const PATIENCE: Duration = Duration::from_secs(60);

const SETUP: &str = "
from teams.models import Team
from projects.models import Project
from bsmain.models import AuthToken
project = Project.objects.create(name='p', team=Team.objects.create(name='t'))
print('MADE', project.dsn, AuthToken.create_full_access().token)
";

/// A running Bugsink with one project.
pub struct Bugsink {
    child: Child,
    home: PathBuf,
    port: u16,
    token: String,
    /// Of its project.
    pub dsn: String,
}

impl Drop for Bugsink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Bugsink {
    /// Installs it if need be, and starts it. `None`: it can't be had, which was said.
    pub fn start() -> Option<Self> {
        let bin = peers::python("bugsink", &["bugsink<2.6.2"])?;
        let port = free_port();
        let home = peers::folder().join(format!("bugsink-{}-{port}", std::process::id()));
        fs::create_dir_all(&home).unwrap();
        let program = |name: &str| {
            let mut command = Command::new(bin.join(name));
            command
                .current_dir(&home)
                .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
                .stdin(Stdio::null());
            command
        };
        let done = |command: &mut Command| {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        done(program("bugsink-create-conf").args(["--template=local", "--host=127.0.0.1", &format!("--port={port}")]));
        let conf = home.join("bugsink_conf.py");
        let mut text = fs::read_to_string(&conf).unwrap();
        text.push_str("\nBUGSINK[\"PHONEHOME\"] = False\n");
        fs::write(&conf, text).unwrap();
        done(program("bugsink-manage").arg("migrate"));
        done(program("bugsink-manage").args(["migrate", "snappea", "--database=snappea"]));
        let said = done(program("bugsink-manage").args(["shell", "-c", SETUP]));
        let made = said.lines().find_map(|l| l.strip_prefix("MADE ")).unwrap();
        let (dsn, token) = made.split_once(' ').unwrap();
        let log = fs::File::create(home.join("log")).unwrap();
        let child = program("gunicorn")
            .args(["--workers=1", &format!("--bind=127.0.0.1:{port}"), "bugsink.wsgi"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let bugsink = Bugsink {
            child,
            port,
            token: token.to_owned(),
            dsn: dsn.to_owned(),
            home: home.clone(),
        };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < PATIENCE, "Bugsink does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(bugsink)
    }

    /// All issues of the project.
    pub fn issues(&self) -> Vec<Json> {
        self.list("issues/?project=1")
    }

    /// All events of an issue, whole.
    pub fn events(&self, issue: &Json) -> Vec<Json> {
        let id = issue["id"].as_str().unwrap();
        let list = self.list(&format!("events/?issue={id}"));
        list.iter()
            .map(|event| self.get(&format!("events/{}/", event["id"].as_str().unwrap()))["data"].clone())
            .collect()
    }

    /// Waits until so many events were digested.
    pub fn wait_for(&self, events: u64) -> Vec<Json> {
        let start = Instant::now();
        loop {
            let issues = self.issues();
            let count: u64 = issues.iter().map(|i| i["digested_event_count"].as_u64().unwrap()).sum();
            if count >= events {
                return issues;
            }
            assert!(start.elapsed() < PATIENCE, "{count} of {events} events: {issues:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn list(&self, what: &str) -> Vec<Json> {
        let answer = self.get(what);
        let list = answer["results"].as_array().or(answer.as_array());
        list.unwrap_or_else(|| panic!("{answer}")).clone()
    }

    fn get(&self, what: &str) -> Json {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let (port, token) = (self.port, &self.token);
        write!(
            stream,
            "GET /api/canonical/0/{what} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"))
    }
}
