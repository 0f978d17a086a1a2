//! Encrypted connections without a line of C: rustls on graviola, which is Rust and verified assembly.

use ureq::config::ConfigBuilder;
use ureq::typestate::AgentScope;

use super::error::HubError;

/// An agent's settings with what `https` needs.
///
/// # Errors
/// A file of certificates (`SSL_CERT_FILE`) that cannot be used.
#[cfg(all(feature = "https", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) fn with_tls(config: ConfigBuilder<AgentScope>) -> Result<ConfigBuilder<AgentScope>, HubError> {
    use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
    let roots = match std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) {
        None => RootCerts::WebPki,
        Some(path) => {
            let pem = std::fs::read(&path).map_err(HubError::io(&path))?;
            let certificate = |item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            };
            let certificates: Vec<Certificate<'static>> = parse_pem(&pem).filter_map(certificate).collect();
            if certificates.is_empty() {
                return Err(HubError::io(&path)(std::io::Error::other("holds no certificate")));
            }
            RootCerts::new_with_certs(&certificates)
        }
    };
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(std::sync::Arc::new(rustls_graviola::default_provider()));
    Ok(config.tls_config(tls.build()))
}

/// An agent's settings as they are: there is no `https` here.
///
/// # Errors
/// None.
#[cfg(not(all(feature = "https", any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub(super) fn with_tls(config: ConfigBuilder<AgentScope>) -> Result<ConfigBuilder<AgentScope>, HubError> {
    Ok(config)
}

/// Whether `https` works on this machine. The library ends the process where it does not, so this is asked before.
///
/// # Errors
/// [`HubError::NoTls`].
pub(super) fn check() -> Result<(), HubError> {
    #[cfg(all(feature = "https", target_arch = "x86_64"))]
    {
        use std::arch::is_x86_feature_detected as has;
        let all = has!("aes") && has!("pclmulqdq") && has!("ssse3") && has!("bmi1") && has!("bmi2");
        if !(all && has!("adx") && has!("avx") && has!("avx2")) {
            return Err(HubError::NoTls("a processor with AES, PCLMULQDQ, ADX, BMI2 and AVX2"));
        }
        Ok(())
    }
    #[cfg(all(feature = "https", target_arch = "aarch64"))]
    {
        use std::arch::is_aarch64_feature_detected as has;
        if !(has!("neon") && has!("aes") && has!("pmull") && has!("sha2")) {
            return Err(HubError::NoTls("a processor with the AES, PMULL and SHA2 extensions"));
        }
        Ok(())
    }
    #[cfg(not(all(feature = "https", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    Err(HubError::NoTls("a program built with the feature `https`, for x86-64 or aarch64"))
}
