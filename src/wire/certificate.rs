//! What OpenSSL accepts of a server's certificate and rustls does not: a host's name in the common name, and certificates of
//! X.509 version 1, which `openssl x509 -req` makes. Pure and total over any bytes; trusts nobody by itself.

use std::net::IpAddr;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

/// Reads a certificate.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    X509Certificate::from_der(der).map(|(_, parsed)| parsed).map_err(|_| CertificateError::BadEncoding)
}

/// Whether it is of version 1, which rustls refuses to look at.
pub(super) fn is_version_1(der: &CertificateDer<'_>) -> bool {
    parse(der).is_ok_and(|parsed| parsed.version() == X509Version::V1)
}

/// Checks the dates.
pub(super) fn check_dates(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now > certificate.validity().not_after.timestamp() {
        return Err(CertificateError::Expired);
    }
    if now < certificate.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    Ok(())
}

/// Whether the certificate is for this host: one of its alternative names, or, if none of them is of the host's sort (name or
/// address), the first common name (`pgtls_verify_peer_name_matches_certificate_guts` in
/// `src/interfaces/libpq/fe-secure-openssl.c`).
pub(super) fn is_for_host(certificate: &X509Certificate<'_>, host: &str) -> bool {
    let address = host.parse::<IpAddr>().ok();
    let mut is_common_name_asked = true;
    let names = certificate.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(pattern) => {
                is_common_name_asked &= address.is_some();
                if name_matches(pattern, host) {
                    return true;
                }
            }
            GeneralName::IPAddress(bytes) => {
                is_common_name_asked &= address.is_none();
                let is_same = match address {
                    Some(IpAddr::V4(address)) => *bytes == address.octets(),
                    Some(IpAddr::V6(address)) => *bytes == address.octets(),
                    None => false,
                };
                if is_same {
                    return true;
                }
            }
            _ => {}
        }
    }
    let common_name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    is_common_name_asked && common_name.is_some_and(|pattern| name_matches(pattern, host))
}

/// Equal but for case, or `*.rest` for a host with one more label.
fn name_matches(pattern: &str, host: &str) -> bool {
    // A name with a zero byte inside would look shorter to others than it is.
    if pattern.contains('\0') || host.is_empty() {
        return false;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(suffix), Some((label, rest))) = (pattern.strip_prefix("*."), host.split_once('.')) else { return false };
    !label.is_empty() && !suffix.is_empty() && suffix.eq_ignore_ascii_case(rest)
}

/// Whether one of the given authorities issued the certificate itself: subject, signature and dates. For version 1 only,
/// where there is nothing more to check.
pub(super) fn check_issued_by(
    der: &CertificateDer<'_>,
    authorities: &[CertificateDer<'_>],
    now: UnixTime,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<(), CertificateError> {
    let certificate = parse(der)?;
    check_dates(&certificate, now)?;
    let signed = Signed::read(der).ok_or(CertificateError::BadEncoding)?;
    let mut refusal = CertificateError::UnknownIssuer;
    for authority in authorities {
        let Ok(authority) = parse(authority) else { continue };
        let may_issue = authority.version() == X509Version::V1 || authority.is_ca();
        if !may_issue || authority.subject().as_raw() != certificate.issuer().as_raw() {
            continue;
        }
        let is_signed = PublicKey::read(authority.public_key().raw).is_some_and(|key| {
            algorithms.all.iter().any(|algorithm| {
                algorithm.signature_alg_id().as_ref() == signed.algorithm
                    && key.verifies(*algorithm, signed.content, signed.signature)
            })
        });
        match check_dates(&authority, now) {
            Ok(()) if is_signed => return Ok(()),
            Err(error) if is_signed => refusal = error,
            _ => refusal = CertificateError::BadSignature,
        }
    }
    Err(refusal)
}

/// Checks a TLS 1.2 handshake's signature by the key of a certificate of version 1.
pub(super) fn check_handshake(
    der: &CertificateDer<'_>,
    message: &[u8],
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<(), CertificateError> {
    let certificate = parse(der)?;
    let key = PublicKey::read(certificate.public_key().raw).ok_or(CertificateError::BadEncoding)?;
    let is_signed =
        algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signature.scheme).any(|(_, algorithms)| {
            algorithms.iter().any(|algorithm| key.verifies(*algorithm, message, signature.signature()))
        });
    if is_signed { Ok(()) } else { Err(CertificateError::BadSignature) }
}

/// The three parts of a certificate (RFC 5280, 4.1): what is signed, how, and the signature.
struct Signed<'a> {
    content: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let (certificate, _) = element(der, SEQUENCE)?;
        let (_, rest) = element(certificate, SEQUENCE)?;
        let content = certificate.get(..certificate.len() - rest.len())?;
        let (algorithm, rest) = element(rest, SEQUENCE)?;
        let (signature, _) = element(rest, BIT_STRING)?;
        // The first byte counts unused bits.
        Some(Self { content, algorithm, signature: signature.get(1..)? })
    }
}

/// SubjectPublicKeyInfo (RFC 5280, 4.1.2.7).
struct PublicKey<'a> {
    algorithm: &'a [u8],
    key: &'a [u8],
}

impl<'a> PublicKey<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let (content, _) = element(der, SEQUENCE)?;
        let (algorithm, rest) = element(content, SEQUENCE)?;
        let (key, _) = element(rest, BIT_STRING)?;
        Some(Self { algorithm, key: key.get(1..)? })
    }

    fn verifies(&self, algorithm: &dyn SignatureVerificationAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        algorithm.public_key_alg_id().as_ref() == self.algorithm
            && algorithm.verify_signature(self.key, message, signature).is_ok()
    }
}

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// The content of the DER element at the start, which must have this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SigningKey};

    use super::*;

    fn algorithms() -> WebPkiSupportedAlgorithms {
        rustls::crypto::ring::default_provider().signature_verification_algorithms
    }

    /// A certificate with this common name and these alternative names; is it for the host?
    fn check_name(common_name: &str, names: &[&str], host: &str, expected: bool) {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone();
        let is_for = is_for_host(&parse(&der).unwrap(), host);
        assert_eq!(is_for, expected, "CN={common_name}, {names:?}, host {host}");
    }

    #[test]
    fn a_host_is_found_where_libpq_finds_it() {
        for (common_name, names, host, expected) in [
            ("db.example", &[][..], "db.example", true),
            ("db.example", &[], "DB.Example", true),
            ("db.example", &[], "other.example", false),
            ("*.example.com", &[], "db.example.com", true),
            ("*.example.com", &[], "a.db.example.com", false),
            ("*.example.com", &[], "example.com", false),
            ("*.example.com", &[], ".example.com", false),
            ("*", &[], "db", false),
            ("127.0.0.1", &[], "127.0.0.1", true),
            // The common name counts only where no alternative name of the same sort stands.
            ("db.example", &["other.example"], "db.example", false),
            ("x", &["a.example", "db.example"], "db.example", true),
            ("x", &["*.example"], "db.example", true),
            ("db.example", &["10.0.0.1"], "db.example", true),
            ("127.0.0.1", &["db.example"], "127.0.0.1", true),
            ("127.0.0.1", &["10.0.0.1"], "127.0.0.1", false),
            ("x", &["127.0.0.1"], "127.0.0.1", true),
            ("x", &["::1"], "::1", true),
            ("x", &["::1"], "::2", false),
        ] {
            check_name(common_name, names, host, expected);
        }
    }

    fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let mut bytes = vec![tag, 0x82];
        bytes.extend((content.len() as u16).to_be_bytes());
        bytes.extend(content);
        bytes
    }

    /// A certificate of version 1 for `CN=localhost`, signed by `authority` from 2020 to 2049.
    fn version_1(authority: &CertificateDer<'_>, authority_key: &KeyPair) -> CertificateDer<'static> {
        let authority = parse(authority).unwrap();
        let subject_key = KeyPair::generate().unwrap();
        let ecdsa_sha256 = [0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
        let common_name = tlv(0x30, &[&[6, 3, 0x55, 4, 3], b"\x0c\x09localhost"]);
        let name = tlv(0x30, &[&tlv(0x31, &[&common_name])]);
        let dates = tlv(0x30, &[b"\x17\x0d200101000000Z", b"\x17\x0d491231235959Z"]);
        let key = rcgen::PublicKeyData::subject_public_key_info(&subject_key);
        let issuer = authority.subject().as_raw();
        let content = tlv(0x30, &[&[2, 1, 1], &ecdsa_sha256, issuer, &dates, &name, &key]);
        let signature = authority_key.sign(&content).unwrap();
        tlv(0x30, &[&content, &ecdsa_sha256, &tlv(3, &[&[0], &signature])]).into()
    }

    fn authority(common_name: &str, is_ca: bool) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn a_certificate_of_version_1_is_believed_if_a_given_authority_signed_it() {
        let (right, namesake, no_authority) = (authority("a", true), authority("a", true), authority("a", false));
        let der = version_1(right.der(), right.key());
        assert!(is_version_1(&der) && !is_version_1(right.der()));
        assert!(is_for_host(&parse(&der).unwrap(), "localhost"));
        let check = |given: &[CertificateDer<'_>], year: u64| {
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs((year - 1970) * 31_557_600));
            check_issued_by(&der, given, now, &algorithms())
        };
        assert_eq!(check(&[namesake.der().clone(), right.der().clone()], 2030), Ok(()));
        assert_eq!(check(&[namesake.der().clone()], 2030), Err(CertificateError::BadSignature));
        assert_eq!(check(&[authority("b", true).der().clone()], 2030), Err(CertificateError::UnknownIssuer));
        assert_eq!(check(&[], 2030), Err(CertificateError::UnknownIssuer));
        assert_eq!(check(&[right.der().clone()], 2060), Err(CertificateError::Expired));
        assert_eq!(check(&[right.der().clone()], 2010), Err(CertificateError::NotValidYet));
        let der = version_1(no_authority.der(), no_authority.key());
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
        let refused = check_issued_by(&der, &[no_authority.der().clone()], now, &algorithms());
        assert_eq!(refused, Err(CertificateError::UnknownIssuer));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), at in 0usize..300, byte: u8) {
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
            let _ = check_issued_by(&CertificateDer::from(bytes.clone()), &[], now, &algorithms());
            let _ = (Signed::read(&bytes), PublicKey::read(&bytes));
            // A real one with one byte changed.
            let issuer = authority("a", true);
            let mut der = version_1(issuer.der(), issuer.key()).to_vec();
            let at = at % der.len();
            let is_changed = der[at] != byte;
            der[at] = byte;
            let result = check_issued_by(&der.into(), &[issuer.der().clone()], now, &algorithms());
            prop_assert!(!is_changed || at < 4 || result.is_err());
        }
    }
}
