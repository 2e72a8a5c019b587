//! HTTPS with a private CA and client certificates, made on the spot by the `openssl` program.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use andon::forward::memory::MemoryOutbox;
use andon::metrics::Health;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::rig::{config, fill, start, until};

fn openssl(dir: &Path, arguments: &str) {
    let mut command = Command::new("openssl");
    let output = command.current_dir(dir).args(arguments.split(' ')).output().expect("openssl is installed");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `NAME.pem` and `NAME.key` for a CA of this name.
fn ca(dir: &Path, name: &str) {
    openssl(
        dir,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
             -keyout {name}.key -out {name}.pem"
        ),
    );
}

/// `NAME.pem` and `NAME.key`, signed by that CA, for 127.0.0.1.
fn signed(dir: &Path, name: &str, by: &str) {
    std::fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").expect("written");
    openssl(
        dir,
        &format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ),
    );
    openssl(
        dir,
        &format!(
            "x509 -req -in {name}.csr -CA {by}.pem -CAkey {by}.key -CAcreateserial -days 2 -extfile san -out {name}.pem"
        ),
    );
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_reader_iter(File::open(path).expect("a file")).map(|c| c.expect("a certificate")).collect()
}

/// Answers every request with 202 to those who show a certificate of `clients`; returns its port.
fn https_server(dir: &Path, server: &str, clients: &str) -> u16 {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&dir.join(format!("{clients}.pem"))));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().expect("a verifier");
    let chain = certificates(&dir.join(format!("{server}.pem")));
    let key = PrivateKeyDer::from_pem_file(dir.join(format!("{server}.key"))).expect("a key");
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .expect("a certificate");
    let (tls, listener) = (Arc::new(tls), TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(tls.clone()).expect("a session");
            // One connection after the other is enough; those that fail are the client's to tell.
            let _ = requests(BufReader::new(StreamOwned::new(connection, stream)));
        }
    });
    port
}

fn requests(mut stream: BufReader<impl Read + Write>) -> std::io::Result<()> {
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            if line == "\r\n" {
                break;
            }
        }
        std::io::copy(&mut stream.by_ref().take(length), &mut std::io::sink())?;
        stream.get_mut().write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")?;
    }
}

#[tokio::test]
async fn mutual_tls_with_a_private_ca_and_renewed_files() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path();
    ca(dir, "plant");
    ca(dir, "stranger");
    signed(dir, "server", "plant");
    signed(dir, "gateway", "plant");
    signed(dir, "impostor", "stranger");
    let port = https_server(dir, "server", "plant");
    let file = |name: &str| dir.join(name).display().to_string();
    let put = |from: &str, to: &str| assert!(std::fs::copy(dir.join(from), dir.join(to)).expect("copied") > 0);
    put("stranger.pem", "ca.pem");
    put("impostor.pem", "our.pem");
    put("impostor.key", "our.key");
    let more =
        format!("tls = {{ ca = {:?}, cert = {:?}, key = {:?} }}", file("ca.pem"), file("our.pem"), file("our.key"));
    let outbox = Arc::new(MemoryOutbox::new(100));
    fill(&outbox, 0..10);
    let (shared, sink) = start(config(&format!("https://127.0.0.1:{port}/"), &more), &outbox, Duration::from_secs(1));
    let board = || shared.board.components().remove("cloud");
    until("a stranger's certificate is refused", || board().is_some_and(|c| c.health == Health::Down)).await;
    assert!(board().is_some_and(|c| c.detail.contains("certificate")), "{:?}", board());
    assert_eq!(outbox.waiting(), 10);
    // The right files take their place, one after the other: no restart is needed.
    let before = board().map(|c| c.detail);
    put("plant.pem", "ca.pem");
    until("the server refuses the impostor", || board().map(|c| c.detail) != before).await;
    assert_eq!(outbox.waiting(), 10);
    put("gateway.key", "our.key");
    put("gateway.pem", "our.pem");
    until("all is delivered", || outbox.waiting() == 0).await;
    assert_eq!(outbox.acked(), 10);
    shared.stop.cancel();
    sink.await.expect("the sink ends");
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_gets_nothing_without() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path();
    ca(dir, "plant");
    signed(dir, "server", "plant");
    let port = https_server(dir, "server", "plant");
    let outbox = Arc::new(MemoryOutbox::new(100));
    fill(&outbox, 0..10);
    let more = format!("tls = {{ ca = {:?} }}", dir.join("plant.pem").display().to_string());
    let (shared, sink) = start(config(&format!("https://127.0.0.1:{port}/"), &more), &outbox, Duration::ZERO);
    let down = || shared.board.components().get("cloud").is_some_and(|c| c.health == Health::Down);
    until("the server has refused", down).await;
    assert_eq!((outbox.waiting(), outbox.dead().len()), (10, 0));
    shared.stop.cancel();
    sink.await.expect("the sink ends");
}
