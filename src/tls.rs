//! TLS settings shared by everything that dials out, and the one rustls client configuration.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::settings::Section;

/// `tls = { ca = "…", cert = "…", key = "…" }`: files in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Who signs the other side; absent: no one is trusted unless the caller adds system roots.
    pub ca: Option<PathBuf>,
    /// Our certificate chain, for peers that ask who we are.
    pub cert: Option<PathBuf>,
    /// The key to `cert`.
    pub key: Option<PathBuf>,
}

impl Tls {
    /// Reads the `tls` table below `section`; an absent one is the default.
    pub fn read(section: &Section<'_>) -> Tls {
        let Some(s) = section.section("tls") else { return Tls::default() };
        let tls = Tls { ca: s.path_of("ca"), cert: s.path_of("cert"), key: s.path_of("key") };
        if tls.cert.is_some() != tls.key.is_some() {
            s.problem("cert", "`cert` and `key` go together: give both or neither");
        }
        tls
    }

    /// Builds the client side from the files as they are now, so that renewed certificates are
    /// taken up at the next connection.
    pub fn client_config(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        if let Some(ca) = &self.ca {
            let (added, _) = roots.add_parsable_certificates(certificates(ca)?);
            ensure!(added > 0, "{} holds no usable CA certificate", ca.display());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choosing TLS versions")?
            .with_root_certificates(roots);
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let private = PrivateKeyDer::from_pem_file(key)
                    .with_context(|| format!("reading the private key {}", key.display()))?;
                builder.with_client_auth_cert(chain, private).context("using the client certificate")
            }
            _ => Ok(builder.with_no_client_auth()),
        }
    }
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(|certs| certs.collect()).map_err(|e| anyhow::anyhow!("{e}"));
    let all = all.with_context(|| format!("reading certificates from {}", path.display()))?;
    ensure!(!all.is_empty(), "{} holds no certificate", path.display());
    Ok(all)
}
