//! Certificates made for a test: authorities, servers, clients, and the version 1 that `openssl x509 -req` makes.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SignatureAlgorithm, SigningKey,
};

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// Issues certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    subject: Vec<u8>,
}

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

/// A certificate that nobody else signed, with the name only in its common name.
pub fn self_signed(common_name: &str, is_authority: bool, is_expired: bool) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = params(common_name, &[]);
    if is_authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    if is_expired {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    Identity { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

impl Authority {
    pub fn new(common_name: &str) -> Self {
        Self::with_key(common_name, &PKCS_ECDSA_P256_SHA256)
    }

    /// The algorithm is that of its signatures.
    pub fn with_key(common_name: &str, algorithm: &'static SignatureAlgorithm) -> Self {
        let mut params = params(common_name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate_for(algorithm).unwrap()).unwrap();
        // Subject of version 1 certificates: this name alone, as rcgen writes it.
        let name = tlv(0x30, &[&[6, 3, 0x55, 4, 3], &tlv(0x0c, &[common_name.as_bytes()])]);
        Self { issuer, subject: tlv(0x30, &[&tlv(0x31, &[&name])]) }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate with these alternative names (host names or addresses).
    pub fn issue(&self, common_name: &str, names: &[&str]) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params(common_name, names).signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A certificate of version 1: no extensions, the name only in its common name.
    pub fn issue_version_1(&self, common_name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let ecdsa_sha256 = [0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
        let name = tlv(0x30, &[&[6, 3, 0x55, 4, 3], &tlv(0x0c, &[common_name.as_bytes()])]);
        let subject = tlv(0x30, &[&tlv(0x31, &[&name])]);
        let dates = tlv(0x30, &[b"\x17\x0d200101000000Z", b"\x17\x0d491231235959Z"]);
        let public_key = key.subject_public_key_info();
        let parts: [&[u8]; 6] = [&[2, 1, 1], &ecdsa_sha256, &self.subject, &dates, &subject, &public_key];
        let content = tlv(0x30, &parts);
        let signature = self.issuer.key().sign(&content).unwrap();
        let der = tlv(0x30, &[&content, &ecdsa_sha256, &tlv(3, &[&[0], &signature])]);
        Identity { certificate: pem(&der), key: key.serialize_pem() }
    }
}

/// A DER element.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len();
    let header = match length {
        0..128 => vec![tag, length as u8],
        128..256 => vec![tag, 0x81, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    [header, content].concat()
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
