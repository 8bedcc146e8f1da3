//! TLS and mutual TLS on rustls.

use crate::settings::TlsConfig;
use fl_app::exit::BadInput;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::WebPkiClientVerifier,
};
use std::{io, path::Path, sync::Arc};
use tokio_rustls::TlsAcceptor;

/// Reads certificate and key and builds the TLS acceptor.
///
/// With `TLS_CLIENT_CA`, a client certificate of another authority fails the handshake. A client without
/// a certificate reaches only the probes: a kubelet has none.
///
/// # Errors
/// If a file is missing, or is not valid PEM of its kind.
pub fn acceptor(config: &TlsConfig) -> anyhow::Result<TlsAcceptor> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("TLS_CLIENT_CA", path)? {
                roots
                    .add(certificate)
                    .map_err(|error| BadInput(format!("TLS_CLIENT_CA={}: {error}", path.display())))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&config.key)
        .map_err(|error| unusable("TLS_KEY", &config.key, "a private key", error))?;
    let mut server = builder
        .with_single_cert(certificates("TLS_CERT", &config.cert)?, key)
        .map_err(|error| BadInput(format!("TLS_CERT and TLS_KEY do not belong together: {error}")))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

fn certificates(setting: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(setting, path, "a certificate", error))?;
    if certificates.is_empty() {
        return Err(BadInput(format!("{setting}={}: it holds no certificate in PEM", path.display())).into());
    }
    Ok(certificates)
}

/// A file that is missing or is not what it should be is bad input; any other failure is the system's.
fn unusable(setting: &str, path: &Path, what: &str, error: pem::Error) -> anyhow::Error {
    let setting = format!("{setting}={}", path.display());
    match error {
        pem::Error::Io(error) if error.kind() != io::ErrorKind::NotFound => {
            anyhow::Error::new(error).context(setting)
        }
        pem::Error::Io(error) => BadInput(format!("{setting}: {error}")).into(),
        error => BadInput(format!("{setting}: it is not {what} in PEM ({error})")).into(),
    }
}
