//! As much HTTP as a page on the same machine needs. Requests are answered one to a connection.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::Value;

const LONGEST_HEAD: u64 = 16 << 10;
const LONGEST_BODY: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// A request.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// JSON; null without a body.
    pub(crate) body: Value,
}

/// Why a request is not served.
pub(crate) enum Refusal {
    /// It is no HTTP that this server speaks.
    Malformed(&'static str),
    /// It comes from another site's page: the browser says so, or was led here by a name that is not ours.
    Foreign,
}

impl Refusal {
    pub(crate) fn status(&self) -> u16 {
        match self {
            Refusal::Malformed(_) => 400,
            Refusal::Foreign => 403,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Malformed(what) => f.write_str(what),
            Refusal::Foreign => f.write_str("only the app's own page may ask"),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Refusal {
        Refusal::Malformed("the request did not arrive whole")
    }
}

impl Request {
    /// Reads a request from a page of this server, which listens at `port`.
    pub(crate) fn read(stream: &TcpStream, port: u16) -> Result<Request, Refusal> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(stream);
        let mut head = reader.by_ref().take(LONGEST_HEAD);
        let mut line = String::new();
        head.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(method), Some(path)) = (words.next(), words.next()) else {
            return Err(Refusal::Malformed("no request line"));
        };
        let own = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
        let (mut to_us, mut json, mut length) = (false, false, 0);
        loop {
            line.clear();
            if head.read_line(&mut line)? == 0 {
                return Err(Refusal::Malformed("the head does not end"));
            }
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "host" => to_us = own.iter().any(|own| own == value),
                "origin" if !own.iter().any(|own| value == format!("http://{own}")) => {
                    return Err(Refusal::Foreign);
                }
                "content-type" => json = value.starts_with("application/json"),
                "content-length" => {
                    length = value.parse().map_err(|_| Refusal::Malformed("the length is no number"))?;
                }
                _ => {}
            }
        }
        // Other sites' forms cannot send JSON without asking first, and nobody answers them.
        if !to_us || (method == "POST" && !json) {
            return Err(Refusal::Foreign);
        }
        if length > LONGEST_BODY {
            return Err(Refusal::Malformed("the body is too long"));
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = match length {
            0 => Value::Null,
            _ => serde_json::from_slice(&body).map_err(|_| Refusal::Malformed("the body is no JSON"))?,
        };
        Ok(Request { method, path, body })
    }
}

/// Ends a connection. What a refused client still sends is read and dropped: a system that finds it unread takes the
/// answer back.
pub(crate) fn part(stream: &TcpStream) {
    if stream.shutdown(Shutdown::Write).is_ok() {
        // However this ends, the connection is over.
        let _dropped = io::copy(&mut stream.take(LONGEST_BODY as u64), &mut io::sink());
    }
}

/// The answer to a request.
pub(crate) struct Reply<'s>(&'s TcpStream);

impl<'s> Reply<'s> {
    pub(crate) fn new(stream: &'s TcpStream) -> Reply<'s> {
        Reply(stream)
    }

    fn head(&mut self, status: u16, kind: &str) -> io::Result<()> {
        write!(
            self.0,
            "HTTP/1.1 {status} \r\nContent-Type: {kind}; charset=utf-8\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
    }

    pub(crate) fn html(mut self, page: &str) -> io::Result<()> {
        self.head(200, "text/html")?;
        self.0.write_all(page.as_bytes())
    }

    pub(crate) fn json(mut self, status: u16, value: &Value) -> io::Result<()> {
        self.head(status, "application/json")?;
        self.0.write_all(value.to_string().as_bytes())
    }

    /// Begins a stream of events.
    pub(crate) fn events(mut self) -> io::Result<Events<'s>> {
        self.head(200, "text/event-stream")?;
        Ok(Events(self.0))
    }
}

/// A stream of server-sent events.
pub(crate) struct Events<'s>(&'s TcpStream);

impl Events<'_> {
    pub(crate) fn send(&mut self, value: &Value) -> io::Result<()> {
        self.0.write_all(format!("data: {value}\n\n").as_bytes())
    }
}
