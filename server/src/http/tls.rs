//! TLS, in builds that have it.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::listen::Connection;

/// A certificate and its key, ready to be shown to clients.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl Tls {
    /// Reads both from PEM files.
    ///
    /// # Errors
    /// A file cannot be read, holds nothing of its kind, or the two do not belong together.
    pub fn read(certificate: &Path, key: &Path) -> anyhow::Result<Tls> {
        let unreadable = |path: &Path| format!("cannot read {}", path.display());
        let chain = CertificateDer::pem_file_iter(certificate).with_context(|| unreadable(certificate))?;
        let chain = chain.collect::<Result<Vec<_>, _>>().with_context(|| unreadable(certificate))?;
        anyhow::ensure!(!chain.is_empty(), "{} holds no certificate", certificate.display());
        let key = PrivateKeyDer::from_pem_file(key).with_context(|| unreadable(key))?;
        let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(TlsAcceptor::from(Arc::new(config))))
    }

    pub(super) async fn wrap(&self, stream: Box<dyn Connection>) -> std::io::Result<Box<dyn Connection>> {
        Ok(Box::new(self.0.accept(stream).await?))
    }
}
