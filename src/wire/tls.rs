//! TLS by rustls with libpq's meaning of sslmode and sslrootcert. Verifies exactly what the URL asks for, no less and no more.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{ServerUrl, SslMode};

use super::WireError;
use super::transport::Socket;

/// Does the handshake over a socket whose server has agreed to TLS.
pub(super) async fn handshake(socket: Socket, url: &ServerUrl, host: &str) -> Result<TlsStream<Socket>, WireError> {
    let config = client_config(url)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| WireError::Tls(format!("\"{host}\" is neither a host name nor an address")))?;
    TlsConnector::from(Arc::new(config)).connect(name, socket).await.map_err(|error| {
        let is_certificate = error.get_ref().is_some_and(|inner| inner.to_string().contains("certificate"));
        if is_certificate {
            WireError::Tls(format!(
                "the certificate of {host} is refused: {error} (sslmode and sslrootcert decide what is accepted)"
            ))
        } else {
            WireError::Io(error)
        }
    })
}

/// `tls-server-end-point` (RFC 5929): the hash of the server's certificate by its signature's hash, SHA-256 for MD5 and SHA-1.
pub(super) fn end_point(stream: &TlsStream<Socket>) -> Option<Vec<u8>> {
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

fn client_config(url: &ServerUrl) -> Result<ClientConfig, WireError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Verifier::new(url, Arc::clone(&provider))?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| WireError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match (&url.ssl_certificate, &url.ssl_key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate, "sslcert")?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| WireError::Tls(format!("sslkey {} cannot be read: {error}", key.display())))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| WireError::Tls(format!("sslcert and sslkey: {error}")))
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        _ => Err(WireError::Tls("sslcert and sslkey must be given together".to_owned())),
    }
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, WireError> {
    let unreadable = |error: String| WireError::Tls(format!("{key} {} cannot be read: {error}", path.display()));
    let pem = fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| unreadable(error.to_string()))?;
    if found.is_empty() {
        return Err(unreadable("it holds no certificate in PEM form".to_owned()));
    }
    Ok(found)
}

/// What must hold of the server's certificate.
#[derive(Debug)]
enum Check {
    /// Anything: sslmode up to `require` without `sslrootcert`.
    Nothing,
    /// The chain: `verify-ca`, and `require` with `sslrootcert`.
    Chain,
    /// Chain and name: `verify-full`.
    ChainAndName,
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    /// The given certificates themselves: a server certificate that is one of them is trusted though it is no authority.
    given: Vec<CertificateDer<'static>>,
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(url: &ServerUrl, provider: Arc<CryptoProvider>) -> Result<Self, WireError> {
        let check = match (url.ssl_mode, &url.ssl_root_certificate) {
            (SslMode::VerifyFull, _) => Check::ChainAndName,
            (SslMode::VerifyCa, _) | (SslMode::Require, Some(_)) => Check::Chain,
            _ => Check::Nothing,
        };
        if matches!(check, Check::Nothing) {
            return Ok(Self { check, given: Vec::new(), chain: None, provider });
        }
        let given = match &url.ssl_root_certificate {
            Some(path) if path != Path::new("system") => certificates(path, "sslrootcert")?,
            _ => rustls_native_certs::load_native_certs().certs,
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(given.iter().cloned());
        let chain = if roots.is_empty() {
            None
        } else {
            let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
            Some(built.map_err(|error| WireError::Tls(format!("sslrootcert: {error}")))?)
        };
        Ok(Self { check, given, chain, provider })
    }

    /// A server certificate that stands in sslrootcert itself: only its dates and, if asked for, its name are left to check.
    fn verify_given(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
        let now = now.as_secs() as i64;
        if now > parsed.validity().not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        if now < parsed.validity().not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        if matches!(self.check, Check::ChainAndName) {
            rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if matches!(self.check, Check::Nothing) {
            return Ok(ServerCertVerified::assertion());
        }
        if self.given.iter().any(|given| given == end_entity) {
            return self.verify_given(end_entity, name, now);
        }
        let chain = self.chain.as_ref().ok_or(CertificateError::UnknownIssuer)?;
        match chain.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            // The name is checked after the chain: only the name was wrong.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if matches!(self.check, Check::Chain) => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
