//! TLS by rustls with libpq's meaning of sslmode and sslrootcert. Verifies exactly what the URL asks for, no less and no more.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::io::BufReader;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::ServerUrl;

use super::pem::certificates;
use super::transport::{Socket, Tls};
use super::verify::Verifier;
use super::{WireError, certificate};

/// rustls asks the socket for a few KiB at a time: this reads ahead, so that a flood costs few system calls.
const READ_AHEAD_BYTES: usize = 128 * 1024;

/// Does the handshake over a socket whose server has agreed to TLS.
pub(super) async fn handshake(socket: Socket, url: &ServerUrl, host: &str) -> Result<Tls, WireError> {
    let config = client_config(url, host)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| WireError::Tls(format!("\"{host}\" is neither a host name nor an address")))?;
    let socket = BufReader::with_capacity(READ_AHEAD_BYTES, socket);
    TlsConnector::from(Arc::new(config)).connect(name, socket).await.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidCertificate(reason)) => WireError::Tls(format!(
                "the certificate of {host} is refused: {} (sslmode and sslrootcert decide what is accepted)",
                words(reason)
            )),
            Some(error) => WireError::Tls(format!("the handshake with {host} failed: {error}")),
            None => WireError::Io(error),
        }
    })
}

fn words(reason: &CertificateError) -> String {
    match reason {
        CertificateError::UnknownIssuer => "no authority of sslrootcert issued it (unknown issuer)".to_owned(),
        CertificateError::NotValidForName => "it is not for this host name".to_owned(),
        CertificateError::Expired => "it has expired".to_owned(),
        CertificateError::NotValidYet => "it is not valid yet".to_owned(),
        CertificateError::BadSignature => "its signature is not that of the authority of this name".to_owned(),
        other => other.to_string(),
    }
}

/// `tls-server-end-point` (RFC 5929): the hash of the server's certificate by its signature's hash, SHA-256 for MD5 and SHA-1.
pub(super) fn end_point(stream: &Tls) -> Option<Vec<u8>> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    match parsed.signature_algorithm.algorithm.to_id_string().as_str() {
        // sha384WithRSAEncryption, ecdsa-with-SHA384
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Sha384::digest(certificate).to_vec()),
        // sha512WithRSAEncryption, ecdsa-with-SHA512
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Sha512::digest(certificate).to_vec()),
        // md5, sha1 and sha256 with RSA; ecdsa with SHA1 and SHA256
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => Some(Sha256::digest(certificate).to_vec()),
        // Ed25519 and the like name no hash: no binding, as libpq does.
        _ => None,
    }
}

fn client_config(url: &ServerUrl, host: &str) -> Result<ClientConfig, WireError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let keys = Arc::clone(&provider);
    let verifier = Arc::new(Verifier::new(url, host, Arc::clone(&provider))?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| WireError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match (&url.ssl_certificate, &url.ssl_key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate, "sslcert")?;
            Ok(builder.with_client_cert_resolver(Arc::new(client_identity(chain, key, &keys)?)))
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        _ => Err(WireError::Tls("sslcert and sslkey must be given together".to_owned())),
    }
}

/// libpq's rule of a key file (fe-secure-openssl.c, initialize_SSL): nobody but its owner reads it, or, of root's, its group.
fn must_be_private(key: &Path, facts: &Metadata) -> Result<(), WireError> {
    let (others, rule) = if facts.uid() == 0 { (0o037, "0640") } else { (0o077, "0600") };
    if !facts.is_file() || facts.mode() & others == 0 {
        return Ok(());
    }
    Err(WireError::Tls(format!(
        "sslkey {} has mode {:04o}, so that others may read or write it: chmod {rule} or less, as libpq demands",
        key.display(),
        facts.mode() & 0o7777
    )))
}

/// The client's certificate and its key. rustls' own `with_client_auth_cert` would refuse a certificate of version 1.
fn client_identity(
    chain: Vec<CertificateDer<'static>>,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<SingleCertAndKey, WireError> {
    let unreadable = |error: String| {
        WireError::Tls(format!(
            "sslkey {} cannot be read: {error} (a key in PEM form, without a passphrase)",
            key.display()
        ))
    };
    must_be_private(key, &fs::metadata(key).map_err(|error| unreadable(error.to_string()))?)?;
    let der = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(error.to_string()))?;
    let signing_key = provider.key_provider.load_private_key(der).map_err(|error| unreadable(error.to_string()))?;
    let certificate = chain.first().and_then(|der| certificate::parse(der).ok());
    let is_pair = match (certificate, signing_key.public_key()) {
        (Some(certificate), Some(public_key)) => certificate.public_key().raw == public_key.as_ref(),
        _ => false,
    };
    if !is_pair {
        return Err(WireError::Tls(format!(
            "sslcert and sslkey are no pair: {} is not the key of the first certificate in sslcert",
            key.display()
        )));
    }
    Ok(CertifiedKey::new(chain, signing_key).into())
}
