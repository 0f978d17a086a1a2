//! TLS, in builds that have it. The certificates are made by `openssl`; where there is none, the test says so.

#![cfg(feature = "tls")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Makes an authority (`ca.pem`) and a certificate for localhost vouched for by it (`cert.pem`, `key.pem`).
fn certificates(folder: &Path) -> bool {
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority \
                    -keyout ca.key -out ca.pem && \
                  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost \
                    -keyout key.pem -out cert.csr && \
                  printf 'subjectAltName=DNS:localhost\\nbasicConstraints=CA:FALSE\\n' > extensions && \
                  openssl x509 -req -in cert.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                    -extfile extensions -out cert.pem";
    let run = Command::new("sh").args(["-c", script]).current_dir(folder).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.0.kill();
        let _status = self.0.wait();
    }
}

fn serve(folder: &Path, certificate: &str, key: &str) -> (Process, Vec<String>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_millpond"))
        .args(["serve", "--port", "0", "-t", "1", "--ssl-cert-file", certificate, "--ssl-key-file", key])
        .current_dir(folder)
        .env_clear()
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        lines.push(line.unwrap());
        if lines.last().unwrap().contains("serving") {
            break;
        }
    }
    (Process(child), lines)
}

#[test]
fn a_client_that_knows_the_authority_is_answered_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    if !certificates(folder.path()) {
        eprintln!("skipped: there is no openssl to make certificates with");
        return;
    }
    let (_server, lines) = serve(folder.path(), "cert.pem", "key.pem");
    let address = lines.iter().find_map(|line| line.split_once("https://")).unwrap().1.trim().to_owned();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.path().join("ca.pem")).unwrap()).unwrap();
    let trusting = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let strict = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connect = |config: ClientConfig| {
            let address = address.clone();
            async move {
                let stream = tokio::net::TcpStream::connect(address).await?;
                let name = ServerName::try_from("localhost").unwrap();
                TlsConnector::from(Arc::new(config)).connect(name, stream).await
            }
        };
        let mut stream = connect(trusting).await.unwrap();
        stream
            .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        // The server may close without TLS's goodbye.
        let _ended = stream.read_to_end(&mut answer).await;
        assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 200"));
        assert!(connect(strict).await.is_err());
        // Who does not speak TLS is not answered.
        let mut plain = tokio::net::TcpStream::connect(&address).await.unwrap();
        plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ended = plain.read_to_end(&mut answer).await;
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    });
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    if !certificates(folder.path()) {
        eprintln!("skipped: there is no openssl to make certificates with");
        return;
    }
    for (certificate, key) in [("cert.pem", "ca.key"), ("missing.pem", "key.pem"), ("key.pem", "key.pem")] {
        let (mut server, lines) = serve(folder.path(), certificate, key);
        assert!(!server.0.wait().unwrap().success(), "{certificate} {key}: {lines:?}");
    }
}
