//! Certificates out of PEM files. Trusts none of them.

use std::fs;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::WireError;

/// At least one; `key` is what the URL calls the file.
pub(super) fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, WireError> {
    let unreadable = |error: String| WireError::Tls(format!("{key} {} cannot be read: {error}", path.display()));
    let pem = fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| unreadable(error.to_string()))?;
    if found.is_empty() {
        return Err(unreadable("it holds no certificate in PEM form".to_owned()));
    }
    Ok(found)
}
