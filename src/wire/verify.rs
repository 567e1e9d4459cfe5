//! The judgement on a server's certificate, by libpq's meaning of sslmode and sslrootcert. Does no handshake.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::{ServerUrl, SslMode};

use super::pem::certificates;
use super::{WireError, certificate};

/// What must hold of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    /// Anything: sslmode up to `require` without `sslrootcert`.
    Nothing,
    /// The chain: `verify-ca`, and `require` with `sslrootcert`.
    Chain,
    /// Chain and name: `verify-full`.
    ChainAndName,
}

/// Accepts or refuses the certificate of one host.
#[derive(Debug)]
pub(super) struct Verifier {
    check: Check,
    host: String,
    /// The trusted certificates themselves: a server certificate that is one of them is trusted though it is no authority.
    given: Vec<CertificateDer<'static>>,
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// What the URL asks for of this host. Reads the files that it names.
    pub(super) fn new(url: &ServerUrl, host: &str, provider: Arc<CryptoProvider>) -> Result<Self, WireError> {
        let check = match (url.ssl_mode, &url.ssl_root_certificate) {
            (SslMode::VerifyFull, _) => Check::ChainAndName,
            (SslMode::VerifyCa, _) | (SslMode::Require, Some(_)) => Check::Chain,
            _ => Check::Nothing,
        };
        let given = match &url.ssl_root_certificate {
            _ if check == Check::Nothing => Vec::new(),
            Some(path) if path != Path::new("system") => certificates(path, "sslrootcert")?,
            // Everybody can have a certificate of a public authority: without the name it says nothing.
            _ if check != Check::ChainAndName => {
                return Err(WireError::Tls(
                    "without a file in sslrootcert the system's authorities would be trusted, and any of their certificates \
                     would pass: name a file, or use sslmode=verify-full"
                        .to_owned(),
                ));
            }
            _ => rustls_native_certs::load_native_certs().certs,
        };
        if given.is_empty() && check != Check::Nothing {
            return Err(WireError::Tls(
                "sslmode=verify-full, and the system has no certificates of authorities: name a file in sslrootcert, \
                 or install ca-certificates"
                    .to_owned(),
            ));
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(given.iter().cloned());
        Ok(Self { check, host: host.to_owned(), given, roots, algorithms: provider.signature_verification_algorithms })
    }

    fn check_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        if self.given.iter().any(|given| given == end_entity) {
            return Ok(certificate::check_dates(&certificate::parse(end_entity)?, now)?);
        }
        if certificate::is_version_1(end_entity) {
            return Ok(certificate::check_issued_by(end_entity, &self.given, now, &self.algorithms)?);
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, self.algorithms.all)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        self.check_chain(end_entity, intermediates, now)?;
        if self.check == Check::ChainAndName && !certificate::is_for_host(&certificate::parse(end_entity)?, &self.host)
        {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        end_entity: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if certificate::is_version_1(end_entity) {
            certificate::check_handshake(end_entity, message, signature, &self.algorithms)?;
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, end_entity, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        end_entity: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if certificate::is_version_1(end_entity) {
            let parsed = certificate::parse(end_entity)?;
            let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw);
            return verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms);
        }
        verify_tls13_signature(message, end_entity, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
