//! A real Prometheus that scrapes the agent, and the text that it scrapes.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;

use crate::folder::Folder;
use crate::otlp::get;
use crate::place;
use crate::running::Running;
use crate::workload::free_port;

const PATIENCE: Duration = Duration::from_secs(30);

/// A running server.
#[derive(Debug)]
pub struct Prometheus {
    _running: Running,
    address: String,
}

impl Prometheus {
    /// One that scrapes this address each second; none if it is not on this machine.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(scraped: &str, folder: &Folder) -> Result<Option<Self>> {
        let Some(program) = place::program("prometheus", "prometheus") else {
            return Ok(None);
        };
        let config = folder.file("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 500ms}}\n\
                 scrape_configs: [{{job_name: tracewire, static_configs: [{{targets: [\"{scraped}\"]}}]}}]\n"
            ),
        )?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.file("tsdb").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--enable-feature=exemplar-storage");
        let (out, err) = (folder.file("prometheus.out"), folder.file("prometheus.err"));
        let running = Running::start_into("prometheus", &mut command, &out, &err)?;
        let deadline = Instant::now() + PATIENCE;
        while !get(&address, "/-/ready").is_ok_and(|(status, _)| status == 200) {
            ensure!(
                Instant::now() < deadline,
                "prometheus is not ready:\n{}",
                fs::read_to_string(&err).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Some(Prometheus {
            _running: running,
            address,
        }))
    }

    fn ask(&self, path: &str) -> Result<Json> {
        let (status, body) = get(&self.address, path)?;
        // Go sends it in chunks if it is long: each is preceded by its size.
        let start = body.find('{').context("no JSON")?;
        let end = body.rfind('}').context("no JSON")?;
        let text: String = body.get(start..=end).unwrap_or_default().to_owned();
        ensure!(status == 200, "{path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until a query's only value is this.
    ///
    /// # Errors
    /// When it never is.
    pub fn wait_for(&self, query: &str, wanted: f64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(&format!("/api/v1/query?query={}", encoded(query)))?;
            let value = answer.pointer("/data/result/0/value/1").and_then(Json::as_str);
            let value: Option<f64> = value.and_then(|text| text.parse().ok());
            if value.is_some_and(|value| (value - wanted).abs() < 1e-9) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{query}: {answer}, {wanted} was expected; targets: {}",
                self.ask("/api/v1/targets")?
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Trace ids of a series' exemplars.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn exemplars(&self, query: &str) -> Result<Vec<String>> {
        let answer = self.ask(&format!(
            "/api/v1/query_exemplars?query={}&start=0&end=99999999999",
            encoded(query)
        ))?;
        let series = answer
            .pointer("/data")
            .and_then(Json::as_array)
            .cloned()
            .unwrap_or_default();
        let ids = series
            .iter()
            .filter_map(|s| s.get("exemplars")?.as_array())
            .flatten()
            .filter_map(|e| Some(e.pointer("/labels/trace_id")?.as_str()?.to_owned()));
        Ok(ids.collect())
    }
}

fn encoded(query: &str) -> String {
    query.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// The sum of the samples of a name whose labels contain all of these, in a scraped text.
pub fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{'])) && labels.iter().all(|label| line.contains(label))
        })
        .filter_map(|line| {
            let sample = line.split(" # ").next().unwrap_or_default();
            sample.rsplit(' ').next()?.parse::<f64>().ok()
        })
        .sum()
}
