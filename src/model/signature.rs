//! Signatures of bundles: OpenSSF Model Signing 1.0, `key` method. `model.sig` is a Sigstore bundle that
//! holds a DSSE envelope around an in-toto statement, which names every file of the bundle with its
//! SHA-256. ECDSA over P-256 or P-384.
//!
//! Stricter than the specification: no symbolic link, no file that is not signed (whatever
//! `ignore_paths` says), whole files only (no shards), SHA-256 only, one signature.
//! Source: ossf/model-signing-spec, spec/v1.0.md.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::digest;
use serde::Deserialize;
use serde_json::json;

use super::ModelError;
use super::bundle::{MAX_FILE, sha256};
use super::contents::Contents;

mod keys;

pub use keys::{PrivateKey, PublicKey};

/// The signature's file name.
pub const FILE: &str = "model.sig";
/// The largest signature that is read: some thousand files.
pub(super) const MAX_SIGNATURE: u64 = 1 << 20;
/// Files in a bundle; there are six in the usual one.
pub const MAX_FILES: usize = 64;
/// Directories below each other in a bundle.
const MAX_DEPTH: usize = 4;

const MEDIA_TYPES: [&str; 2] =
    ["application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.sigstore.bundle+json;version=0.3"];
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://model_signing/signature/v1.0";
/// What the specification leaves out of every signature.
const IGNORED: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SigstoreBundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    public_key: Option<KeyId>,
}

/// `hint`, or in older signatures the key itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyId {
    hint: Option<String>,
    raw_bytes: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Sig>,
}

#[derive(Deserialize)]
struct Sig {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Predicate {
    resources: Vec<Resource>,
    serialization: Serialization,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

#[derive(Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
}

/// What a good signature says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The key's fingerprint: SHA-256 of its PEM, hex.
    pub key: String,
    /// Files that are signed.
    pub files: usize,
}

/// Whether `dir/model.sig` is by one of `keys`, and every file of `dir` is as it was when it was signed.
///
/// # Errors
/// [`ModelError::Signature`] with the first thing that is not as it should be.
pub fn verify(dir: &Path, keys: &[PublicKey]) -> Result<Verified, ModelError> {
    check(dir, keys).map_err(|why| ModelError::Signature(format!("{}: {why}", dir.display())))
}

/// Whether there is a signature at all.
pub fn is_signed(dir: &Path) -> bool {
    dir.join(FILE).symlink_metadata().is_ok()
}

/// Signs all files of `dir` and writes `dir/model.sig`; an old one is replaced. Gives how many files.
///
/// # Errors
/// When a file cannot be signed or the signature not written.
pub fn sign(dir: &Path, key: &PrivateKey) -> Result<usize, ModelError> {
    let signed = files(dir).and_then(|files| Ok((files.len(), envelope(dir, &files, key)?)));
    let (n, text) = signed.map_err(|why| ModelError::Signature(format!("{}: {why}", dir.display())))?;
    let path = dir.join(FILE);
    let write = || {
        let file = tempfile::Builder::new().prefix(".sig-").tempfile_in(dir)?;
        fs::write(file.path(), text)?;
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.persist(&path).map_err(|e| e.error)
    };
    write().map_err(|source| ModelError::Read { path: path.display().to_string(), source })?;
    Ok(n)
}

/// The same for files that have been read, all of them.
///
/// # Errors
/// As [`verify`].
pub fn verify_contents(contents: &Contents, keys: &[PublicKey]) -> Result<Verified, ModelError> {
    let unsigned = || format!("it is not signed: there is no {FILE}");
    let text = contents.get(FILE).ok_or_else(unsigned);
    let checked = text.and_then(|text| check_files(text, &contents.digests(), keys));
    checked.map_err(|why| ModelError::Signature(format!("{}: {why}", contents.dir().display())))
}

fn check(dir: &Path, keys: &[PublicKey]) -> Result<Verified, String> {
    let text = read(&dir.join(FILE))?;
    // A signature that does not hold costs no reading of large files.
    statement(&text, keys)?;
    check_files(&text, &files(dir)?, keys)
}

fn check_files(text: &[u8], found: &BTreeMap<String, String>, keys: &[PublicKey]) -> Result<Verified, String> {
    let (statement, key) = statement(text, keys)?;
    let wanted = resources(&statement)?;
    if let Some(extra) = found.keys().find(|name| !wanted.contains_key(name.as_str())) {
        return Err(format!("{extra:?} is not signed; a bundle holds nothing but what was signed"));
    }
    for (name, digest) in &wanted {
        match found.get(*name) {
            None => return Err(format!("{name:?} is signed but missing")),
            Some(hash) if hash != digest => {
                return Err(format!("{name:?} is not as it was signed: SHA-256 {hash}, signed {digest}"));
            }
            Some(_) => {}
        }
    }
    Ok(Verified { key, files: wanted.len() })
}

/// The signed statement, and the fingerprint of the key that signed it.
fn statement(text: &[u8], keys: &[PublicKey]) -> Result<(Statement, String), String> {
    let bundle: SigstoreBundle =
        serde_json::from_slice(text).map_err(|e| format!("{FILE} is no Sigstore bundle: {e}"))?;
    if !MEDIA_TYPES.contains(&bundle.media_type.as_str()) {
        return Err(format!("{FILE} has the media type {:?}; {:?} is read here", bundle.media_type, MEDIA_TYPES[0]));
    }
    let envelope = bundle.dsse_envelope;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(format!("{FILE} holds {:?}, not {PAYLOAD_TYPE:?}", envelope.payload_type));
    }
    let [Sig { sig }] = &envelope.signatures[..] else {
        return Err(format!("{FILE} holds {} signatures; it has to be one", envelope.signatures.len()));
    };
    let decode = |text: &str, what| BASE64_STANDARD.decode(text).map_err(|e| format!("{FILE}: {what}: {e}"));
    let (payload, sig) = (decode(&envelope.payload, "payload")?, decode(sig, "sig")?);
    let Some(id) = bundle.verification_material.public_key else {
        return Err(format!("{FILE} is not signed by the key method; certificates and keyless signing are not taken"));
    };
    let meant: Vec<&PublicKey> = keys.iter().filter(|k| id.may_be(k)).collect();
    if meant.is_empty() {
        let hint = id.hint.as_deref().unwrap_or("that is not named");
        return Err(format!("{FILE} is by a key that is not trusted: fingerprint {hint}"));
    }
    let message = pae(&payload);
    let Some(key) = meant.into_iter().find(|k| k.verifies(&message, &sig)) else {
        return Err(format!("{FILE} is forged or damaged: its key did not sign this"));
    };
    let statement = serde_json::from_slice(&payload).map_err(|e| format!("{FILE}: what it signs: {e}"))?;
    Ok((statement, key.fingerprint().to_owned()))
}

impl KeyId {
    fn may_be(&self, key: &PublicKey) -> bool {
        match (&self.hint, &self.raw_bytes) {
            (Some(hint), _) if !hint.is_empty() => hint == key.fingerprint(),
            (_, Some(raw)) if !raw.is_empty() => BASE64_STANDARD.decode(raw).is_ok_and(|raw| key.is(&raw)),
            _ => true,
        }
    }
}

/// Digests by file name, if the statement is one of this kind and hangs together.
fn resources(statement: &Statement) -> Result<BTreeMap<&str, String>, String> {
    if statement.kind != STATEMENT || statement.predicate_type != PREDICATE {
        let (kind, predicate) = (&statement.kind, &statement.predicate_type);
        return Err(format!("{FILE} signs {kind:?} {predicate:?}, which is not the signature of a model"));
    }
    let Serialization { method, hash_type } = &statement.predicate.serialization;
    if method != "files" || hash_type != "sha256" {
        return Err(format!("{FILE} is made by {method:?} with {hash_type:?}; \"files\" with \"sha256\" is read here"));
    }
    let (mut out, mut root) = (BTreeMap::new(), digest::Context::new(&digest::SHA256));
    for r in &statement.predicate.resources {
        let digest = r.digest.to_ascii_lowercase();
        let bytes = unhex(&digest).filter(|b| b.len() == 32 && r.algorithm == "sha256");
        let Some(bytes) = bytes else { return Err(format!("{FILE}: the digest of {:?} is no SHA-256", r.name)) };
        if !is_relative(&r.name) {
            return Err(format!("{FILE} names {:?}, which is no file of the bundle", r.name));
        }
        if out.insert(r.name.as_str(), digest).is_some() {
            return Err(format!("{FILE} names {:?} twice", r.name));
        }
        root.update(&bytes);
    }
    let [Subject { digest }] = &statement.subject[..] else { return Err(format!("{FILE} has not one subject")) };
    if digest.get("sha256").map(String::as_str) != Some(hex(root.finish().as_ref()).as_str()) {
        return Err(format!("{FILE}: its subject is not what its resources hash to"));
    }
    if out.is_empty() { Err(format!("{FILE} signs no file")) } else { Ok(out) }
}

/// Whether a name stays below the bundle: parts between single slashes, none of them `.` or `..`.
pub fn is_relative(name: &str) -> bool {
    !name.contains(['\\', '\0']) && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// SHA-256 of every file below `dir` but the signature, by name.
fn files(dir: &Path) -> Result<BTreeMap<String, String>, String> {
    let mut out = BTreeMap::new();
    for (name, path) in names(dir)?.into_iter().filter(|(name, _)| name != FILE) {
        let digest = hash(&path).map_err(|e| format!("{name:?} cannot be read: {e}"))?;
        out.insert(name, digest);
    }
    Ok(out)
}

/// Every file below `dir`, the signature among them: its name within the bundle, and its path.
pub(super) fn names(dir: &Path) -> Result<BTreeMap<String, std::path::PathBuf>, String> {
    let mut out = BTreeMap::new();
    walk(dir, "", 0, &mut out)?;
    if out.keys().all(|name| name == FILE) { Err("there is no file in it".into()) } else { Ok(out) }
}

fn walk(dir: &Path, prefix: &str, depth: usize, out: &mut BTreeMap<String, std::path::PathBuf>) -> Result<(), String> {
    let unreadable = |e: std::io::Error| format!("{prefix:?} cannot be read: {e}");
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let Ok(part) = entry.file_name().into_string() else {
            return Err(format!("{:?} is not a name in UTF-8", entry.file_name()));
        };
        let name = format!("{prefix}{part}");
        let kind = entry.file_type().map_err(unreadable)?;
        if kind.is_dir() && depth < MAX_DEPTH {
            walk(&entry.path(), &format!("{name}/"), depth + 1, out)?;
        } else if !kind.is_file() {
            return Err(format!("{name:?} is not a plain file: links and the like are not taken"));
        } else {
            // One more than the files that are signed: the signature itself.
            if out.len() > MAX_FILES {
                return Err(format!("it holds more than {MAX_FILES} files"));
            }
            out.insert(name, entry.path());
        }
    }
    Ok(())
}

/// SHA-256 of a file, hex.
pub(super) fn hash(path: &Path) -> std::io::Result<String> {
    let file = fs::File::open(path)?;
    if file.metadata()?.len() > MAX_FILE {
        return Err(std::io::Error::other(format!("larger than {MAX_FILE} bytes")));
    }
    let mut reader = std::io::BufReader::with_capacity(1 << 16, std::io::Read::take(file, MAX_FILE));
    let mut context = digest::Context::new(&digest::SHA256);
    loop {
        let chunk = std::io::BufRead::fill_buf(&mut reader)?;
        if chunk.is_empty() {
            return Ok(hex(context.finish().as_ref()));
        }
        context.update(chunk);
        let n = chunk.len();
        std::io::BufRead::consume(&mut reader, n);
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => format!("it is not signed: there is no {FILE}"),
        _ => format!("{FILE}: {e}"),
    };
    let meta = fs::symlink_metadata(path).map_err(unreadable)?;
    if !meta.is_file() || meta.len() > MAX_SIGNATURE {
        return Err(format!("{FILE} is not a plain file of at most {MAX_SIGNATURE} bytes"));
    }
    fs::read(path).map_err(unreadable)
}

/// What DSSE signs: the payload and its type, each behind its length.
fn pae(payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

/// The text of `model.sig`.
fn envelope(dir: &Path, files: &BTreeMap<String, String>, key: &PrivateKey) -> Result<String, String> {
    let mut root = digest::Context::new(&digest::SHA256);
    files.values().filter_map(|d| unhex(d)).for_each(|d| root.update(&d));
    let resource = |(name, digest)| json!({"name": name, "algorithm": "sha256", "digest": digest});
    let resources: Vec<_> = files.iter().map(resource).collect();
    let absolute = dir.canonicalize().map_err(|e| e.to_string())?;
    let name = absolute.file_name().and_then(|n| n.to_str()).unwrap_or("model");
    let ignored: Vec<&str> = IGNORED.into_iter().chain([FILE]).collect();
    let statement = json!({
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": hex(root.finish().as_ref())}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": ignored},
            "resources": resources,
        },
    });
    let payload = statement.to_string().into_bytes();
    let sig = key.sign(&pae(&payload))?;
    let bundle = json!({
        "mediaType": MEDIA_TYPES[0],
        "verificationMaterial": {"publicKey": {"hint": key.public().fingerprint()}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": BASE64_STANDARD.encode(&payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": BASE64_STANDARD.encode(sig), "keyid": ""}],
        },
    });
    Ok(bundle.to_string() + "\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let pair = |p: &[u8]| Some(digit(p[0])? * 16 + digit(*p.get(1)?)?);
    text.as_bytes().chunks(2).map(pair).collect()
}

/// The fingerprint of a key as its PEM has it.
fn fingerprint(pem: &str) -> String {
    sha256(pem.as_bytes())
}

#[cfg(test)]
mod tests;
