//! Certificates for a test, made by openssl.

use std::path::Path;
use std::process::Command;

pub fn openssl(dir: &Path, arguments: &str) {
    let out = Command::new("openssl").args(arguments.split_whitespace()).current_dir(dir).output();
    let out = out.expect("openssl is not installed: tests/run sets up all that the tests need");
    assert!(out.status.success(), "{arguments}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A CA, a server and a client that it knows, and a CA that nobody knows.
pub fn certificates(dir: &Path) {
    std::fs::write(dir.join("server.ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").expect("writing");
    std::fs::write(dir.join("client.ext"), "extendedKeyUsage=clientAuth\n").expect("writing");
    for ca in ["ca", "other"] {
        openssl(
            dir,
            &format!("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.pem"),
        );
    }
    for who in ["server", "client"] {
        openssl(dir, &format!("req -newkey rsa:2048 -nodes -subj /CN={who} -keyout {who}.key -out {who}.csr"));
        openssl(
            dir,
            &format!(
                "x509 -req -in {who}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile {who}.ext -out {who}.pem"
            ),
        );
    }
}
