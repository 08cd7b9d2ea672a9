//! Whom TLS trusts, and who we are to it: the system's authorities (or SSL_CERT_FILE), `--ca`, and for single hosts
//! `certs.d/HOST[:PORT]/`, where `*.crt` are authorities and `*.cert` with `*.key` is our certificate, as with docker.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use super::url::Origin;
use crate::error::{Context, Error, Result};

const SYSTEM_DIRS: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

pub struct Certificates {
    /// Of `--ca`.
    own: Vec<Certificate<'static>>,
    dirs: Vec<PathBuf>,
    provider: Arc<CryptoProvider>,
    /// The system's; read when the first https host is asked.
    system: OnceLock<Vec<Certificate<'static>>>,
}

impl Certificates {
    /// `dir` stands in for the system's certs.d.
    pub fn new(ca: &[PathBuf], dir: Option<&Path>) -> Result<Self> {
        let own = ca.iter().map(|path| authorities(path)).collect::<Result<Vec<_>>>()?.concat();
        let dirs = dir.map_or_else(|| SYSTEM_DIRS.map(PathBuf::from).to_vec(), |dir| vec![dir.to_owned()]);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(Self { own, dirs, provider, system: OnceLock::new() })
    }

    pub fn for_host(&self, origin: &Origin, insecure: bool) -> Result<TlsConfig> {
        let mut roots = Vec::new();
        let mut client = None;
        if origin.https {
            roots.extend(self.system.get_or_init(system).iter().chain(&self.own).cloned());
            for dir in self.host_dirs(origin) {
                for path in files(&dir)? {
                    match path.extension().and_then(|extension| extension.to_str()) {
                        Some("crt") => roots.extend(authorities(&path)?),
                        Some("cert") => client = Some(self.client(&path)?),
                        _ => (),
                    }
                }
            }
        }
        Ok(TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .client_cert(client)
            .disable_verification(insecure)
            .unversioned_rustls_crypto_provider(self.provider.clone())
            .build())
    }

    /// `HOST:PORT`, and `HOST` if the port is the usual one.
    fn host_dirs(&self, origin: &Origin) -> Vec<PathBuf> {
        let names = [Some(origin.authority()), (origin.port == 443).then(|| origin.host.clone())];
        let dirs = self.dirs.iter().flat_map(|dir| names.iter().flatten().map(move |name| dir.join(name)));
        dirs.filter(|dir| dir.is_dir()).collect()
    }

    /// Our certificate, with the key beside it.
    fn client(&self, path: &Path) -> Result<ClientCert> {
        let key_path = path.with_extension("key");
        let wrong = |path: &Path, why: String| Error::new(format!("read {}: {why}", path.display()));
        let chain: Vec<_> = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|e| wrong(path, e.to_string()))?;
        let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|e| wrong(&key_path, e.to_string()))?;
        // ureq would panic on a pair that does not fit.
        rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                let builder = builder.with_root_certificates(rustls::RootCertStore::empty());
                builder.with_client_auth_cert(chain.clone(), key.clone_key())
            })
            .map_err(|e| wrong(path, format!("{e}, with the key {}", key_path.display())))?;
        let key_pem = std::fs::read(&key_path).context(|| format!("read {}", key_path.display()))?;
        let key = PrivateKey::from_pem(&key_pem).map_err(|e| wrong(&key_path, e.to_string()))?;
        let chain: Vec<_> = chain.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        Ok(ClientCert::new_with_certs(&chain, key))
    }
}

fn system() -> Vec<Certificate<'static>> {
    // What cannot be read is one authority less; if it was the one, the error names the certificate.
    let found = rustls_native_certs::load_native_certs();
    found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect()
}

fn authorities(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let what = || format!("read authorities {}", path.display());
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found = found.map_err(|e| Error::new(format!("{}: {e}", what())))?;
    if found.is_empty() {
        return Err(Error::new(format!("{}: there is no certificate in it", what())));
    }
    Ok(found.iter().map(|der| Certificate::from_der(der).to_owned()).collect())
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("read {}", dir.display());
    let entries = std::fs::read_dir(dir).context(what)?;
    let mut paths = entries.map(|entry| Ok(entry.context(what)?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
