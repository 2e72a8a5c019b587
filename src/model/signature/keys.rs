//! ECDSA keys over P-256 and P-384, from and to PEM.

use std::fmt;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair, UnparsedPublicKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};

/// The largest key file that is read.
const MAX_KEY: u64 = 64 << 10;
/// Characters in a line of PEM.
const LINE: usize = 64;

/// A curve with the hash that goes with it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
}

const CURVES: [Curve; 2] = [Curve::P256, Curve::P384];

impl Curve {
    /// SubjectPublicKeyInfo up to the point, in DER: `id-ecPublicKey` and the curve.
    fn head(self) -> &'static [u8] {
        match self {
            Curve::P256 => {
                b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00"
            }
            Curve::P384 => b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00",
        }
    }

    /// The AlgorithmIdentifier in there.
    fn algorithm(self) -> &'static [u8] {
        let head = self.head();
        &head[2..head.len() - 3]
    }

    fn verification(self) -> &'static signature::EcdsaVerificationAlgorithm {
        match self {
            Curve::P256 => &signature::ECDSA_P256_SHA256_ASN1,
            Curve::P384 => &signature::ECDSA_P384_SHA384_ASN1,
        }
    }

    fn signing(self) -> &'static signature::EcdsaSigningAlgorithm {
        match self {
            Curve::P256 => &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
            Curve::P384 => &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
        }
    }
}

/// A key that signatures are held against.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    curve: Curve,
    /// Uncompressed.
    point: Vec<u8>,
    pem: String,
    fingerprint: String,
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint)
    }
}

impl PublicKey {
    /// From PEM (`BEGIN PUBLIC KEY`).
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn from_pem(text: &[u8]) -> Result<PublicKey, String> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text).map_err(|_| {
            let private = String::from_utf8_lossy(text).contains("PRIVATE KEY");
            if private { "holds a private key; its public half is wanted" } else { "is no public key in PEM" }
                .to_owned()
        })?;
        let fits = |c: &Curve| der.strip_prefix(c.head()).is_some();
        let curve = CURVES.into_iter().find(fits).ok_or("is not an ECDSA key over P-256 or P-384")?;
        Ok(PublicKey::new(curve, der[curve.head().len()..].to_vec()))
    }

    /// The same from a file.
    ///
    /// # Errors
    /// As [`PublicKey::from_pem`], with the file's name.
    pub fn read(path: &Path) -> Result<PublicKey, String> {
        bytes(path).and_then(|text| PublicKey::from_pem(&text)).map_err(|e| format!("{} {e}", path.display()))
    }

    fn new(curve: Curve, point: Vec<u8>) -> PublicKey {
        let pem = pem(&[curve.head(), &point].concat());
        PublicKey { curve, point, fingerprint: super::fingerprint(&pem), pem }
    }

    /// SHA-256 of its PEM, hex: how signatures name it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// As PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Whether these bytes are this key: as PEM, or as the end of its DER.
    pub(super) fn is(&self, raw: &[u8]) -> bool {
        raw.trim_ascii() == self.pem.trim_ascii().as_bytes() || raw == [self.curve.head(), &self.point].concat()
    }

    pub(super) fn verifies(&self, message: &[u8], sig: &[u8]) -> bool {
        UnparsedPublicKey::new(self.curve.verification(), &self.point).verify(message, sig).is_ok()
    }
}

/// A key to sign with. Never shown.
pub struct PrivateKey {
    pair: EcdsaKeyPair,
    public: PublicKey,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey of {}", self.public.fingerprint)
    }
}

impl PrivateKey {
    /// From PEM, as `openssl genpkey` or `openssl ecparam -genkey` writes it; not encrypted.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn from_pem(text: &[u8]) -> Result<PrivateKey, String> {
        let der = PrivateKeyDer::from_pem_slice(text).map_err(|_| "is no unencrypted private key in PEM".to_owned())?;
        for curve in CURVES {
            let pkcs8 = match &der {
                PrivateKeyDer::Pkcs8(key) => key.secret_pkcs8_der().to_vec(),
                PrivateKeyDer::Sec1(key) => wrap(curve, key.secret_sec1_der()),
                _ => return Err("is not an ECDSA key".into()),
            };
            if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve.signing(), &pkcs8, &SystemRandom::new()) {
                let public = PublicKey::new(curve, pair.public_key().as_ref().to_vec());
                return Ok(PrivateKey { pair, public });
            }
        }
        Err("is not an ECDSA key over P-256 or P-384 with its public half".into())
    }

    /// The same from a file.
    ///
    /// # Errors
    /// As [`PrivateKey::from_pem`], with the file's name.
    pub fn read(path: &Path) -> Result<PrivateKey, String> {
        bytes(path).and_then(|text| PrivateKey::from_pem(&text)).map_err(|e| format!("{} {e}", path.display()))
    }

    /// A new one over P-256, and its PEM (PKCS #8).
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn generate() -> Result<(PrivateKey, String), String> {
        let der = EcdsaKeyPair::generate_pkcs8(Curve::P256.signing(), &SystemRandom::new());
        let der = der.map_err(|_| "no randomness to be had".to_owned())?;
        let pem = armour("PRIVATE KEY", der.as_ref());
        PrivateKey::from_pem(pem.as_bytes()).map(|key| (key, pem))
    }

    /// Its public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs; ASN.1.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let sig = self.pair.sign(&SystemRandom::new(), message).map_err(|_| "it cannot be signed".to_owned())?;
        Ok(sig.as_ref().to_vec())
    }
}

/// An ECPrivateKey (SEC 1) as PKCS #8.
fn wrap(curve: Curve, sec1: &[u8]) -> Vec<u8> {
    tlv(0x30, &[&[0x02, 0x01, 0x00], curve.algorithm(), &tlv(0x04, sec1)].concat())
}

/// A value in DER behind its tag and length. Keys are shorter than 64 KiB.
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let n = value.len();
    let head = match n {
        0..0x80 => vec![tag, n as u8],
        0x80..0x100 => vec![tag, 0x81, n as u8],
        _ => vec![tag, 0x82, (n >> 8) as u8, n as u8],
    };
    [&head[..], value].concat()
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let meta = fs::metadata(path).map_err(|e| format!("cannot be read: {e}"))?;
    if !meta.is_file() || meta.len() > MAX_KEY {
        return Err(format!("is not a file of at most {MAX_KEY} bytes"));
    }
    fs::read(path).map_err(|e| format!("cannot be read: {e}"))
}

fn pem(der: &[u8]) -> String {
    armour("PUBLIC KEY", der)
}

fn armour(what: &str, der: &[u8]) -> String {
    let body = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = body.as_bytes().chunks(LINE).filter_map(|l| std::str::from_utf8(l).ok()).collect();
    format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", lines.join("\n"))
}
