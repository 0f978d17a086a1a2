//! `millpond ps`: servers on this machine. Each is asked: what is listed answers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::args::PsArgs;
use super::running::{self, Running};
use super::{list, machine, output};
use crate::http::config::DEFAULT_PORT;

/// How long a server gets to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs the command.
///
/// # Errors
/// The reader of the output has gone.
pub(crate) fn run(args: &PsArgs) -> anyhow::Result<()> {
    let servers = servers();
    if args.json {
        let servers: Vec<_> = servers.iter().map(Server::json).collect();
        return output::line(&serde_json::to_string_pretty(&servers)?);
    }
    let mut table =
        vec![["PROCESS", "ADDRESS", "MODEL", "STATE", "MEMORY", "SINCE"].map(str::to_owned).to_vec()];
    table.extend(servers.iter().map(Server::cells));
    output::table(&table)
}

/// A server that answers.
struct Server {
    running: Option<Running>,
    address: String,
    state: &'static str,
}

impl Server {
    fn memory(&self) -> Option<u64> {
        machine::resident(self.running.as_ref()?.process)
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "process": self.running.as_ref().map(|running| running.process),
            "address": self.address,
            "model": self.running.as_ref().map(|running| &running.model),
            "state": self.state,
            "memory": self.memory(),
            "started": self.running.as_ref().map(|running| running.started),
        })
    }

    fn cells(&self) -> Vec<String> {
        let unknown = || "-".to_owned();
        let of = |value: Option<String>| value.unwrap_or_else(unknown);
        let running = self.running.as_ref();
        let since = running.and_then(|running| UNIX_EPOCH.checked_add(Duration::from_secs(running.started)));
        vec![
            of(running.map(|running| running.process.to_string())),
            self.address.clone(),
            of(running.map(|running| running.model.clone())),
            self.state.to_owned(),
            of(self.memory().map(output::bytes)),
            list::age(since.filter(|time| *time <= SystemTime::now())),
        ]
    }
}

/// The servers that have told of themselves and answer, and one at the usual port that has not. Files of servers that
/// are gone are removed.
fn servers() -> Vec<Server> {
    let mut servers = Vec::new();
    for (path, running) in running::told() {
        match state(&running.address) {
            Some(state) => {
                servers.push(Server { address: running.address.clone(), running: Some(running), state });
            }
            None => {
                if let Err(error) = std::fs::remove_file(&path) {
                    tracing::debug!(%error, path = %path.display(), "a run file stays behind");
                }
            }
        }
    }
    let usual = format!("http://127.0.0.1:{DEFAULT_PORT}");
    if !servers.iter().any(|server| server.address == usual)
        && let Some(state) = state(&usual)
    {
        servers.push(Server { running: None, address: usual, state });
    }
    servers
}

/// What a server at an address says of itself; `None` if nobody answers.
fn state(address: &str) -> Option<&'static str> {
    if let Some(host) = address.strip_prefix("https://") {
        // Whose certificate it shows is nobody's business here.
        return std::net::TcpStream::connect(host).is_ok().then_some("listening");
    }
    if !address.starts_with("http://") {
        return socket_answers(address).then_some("listening");
    }
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .build();
    let response = config.new_agent().get(format!("{address}/ready")).call().ok()?;
    match response.status().as_u16() {
        200 => Some("ready"),
        503 => Some("loading or stopping"),
        _ => Some("another program"),
    }
}

#[cfg(unix)]
fn socket_answers(path: &str) -> bool {
    std::os::unix::net::UnixStream::connect(path).is_ok()
}

#[cfg(not(unix))]
fn socket_answers(_path: &str) -> bool {
    false
}
