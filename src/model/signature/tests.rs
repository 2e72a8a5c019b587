//! Signing and verifying: round trips, what was changed after signing, keys of others.

use super::*;

/// A signed bundle of three files, one of them in a directory, and the key.
fn signed() -> (tempfile::TempDir, PrivateKey) {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("more")).expect("made");
    for (name, text) in [("model.json", "{}"), ("model.onnx", "onnx"), ("more/notes.txt", "")] {
        fs::write(dir.path().join(name), text).expect("written");
    }
    let key = PrivateKey::generate().expect("a key").0;
    assert_eq!(sign(dir.path(), &key).expect("signed"), 3);
    (dir, key)
}

fn refused(dir: &Path, key: &PrivateKey) -> String {
    verify(dir, &[key.public().clone()]).expect_err("refused").to_string()
}

#[test]
fn what_is_signed_verifies_and_by_no_other_key() {
    let (dir, key) = signed();
    let other = PrivateKey::generate().expect("a key").0;
    let keys = [other.public().clone(), key.public().clone()];
    let verified = verify(dir.path(), &keys).expect("verified");
    assert_eq!((verified.key.as_str(), verified.files), (key.public().fingerprint(), 3));
    assert!(refused(dir.path(), &other).contains("not trusted"));
    assert!(verify(dir.path(), &[]).is_err());
}

#[test]
fn every_byte_of_every_file_counts() {
    let (dir, key) = signed();
    for name in ["model.json", "model.onnx"] {
        let good = fs::read(dir.path().join(name)).expect("read");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(dir.path().join(name), &bad).expect("written");
            let why = refused(dir.path(), &key);
            assert!(why.contains(name) && why.contains("not as it was signed"), "{why}");
        }
        fs::write(dir.path().join(name), good).expect("written");
    }
    verify(dir.path(), &[key.public().clone()]).expect("as it was");
    fs::write(dir.path().join("more/notes.txt"), "x").expect("written");
    assert!(refused(dir.path(), &key).contains("more/notes.txt"));
}

#[test]
fn no_change_of_the_signature_lets_anything_else_through() {
    let (dir, key) = signed();
    let good = fs::read(dir.path().join(FILE)).expect("read");
    let bundle: serde_json::Value = serde_json::from_slice(&good).expect("JSON");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(dir.path().join(FILE), &bad).expect("written");
        // What does not matter may change (an unknown key's name, the key's id); what is signed may not.
        if verify(dir.path(), &[key.public().clone()]).is_ok() {
            let still: serde_json::Value = serde_json::from_slice(&bad).expect("JSON");
            for part in ["payload", "payloadType"] {
                assert_eq!(still["dsseEnvelope"][part], bundle["dsseEnvelope"][part], "byte {at}");
            }
        }
        fs::write(dir.path().join(FILE), &good[..at]).expect("written");
        if at < good.len() - 1 {
            verify(dir.path(), &[key.public().clone()]).expect_err("truncated");
        }
    }
}

#[test]
fn what_is_more_or_less_than_was_signed_is_refused() {
    let (dir, key) = signed();
    for extra in ["extra.bin", "more/extra", ".gitignore"] {
        fs::write(dir.path().join(extra), "x").expect("written");
        assert!(refused(dir.path(), &key).contains("is not signed"), "{extra}");
        fs::remove_file(dir.path().join(extra)).expect("removed");
    }
    std::os::unix::fs::symlink("model.json", dir.path().join("link")).expect("linked");
    assert!(refused(dir.path(), &key).contains("not a plain file"));
    fs::remove_file(dir.path().join("link")).expect("removed");
    fs::rename(dir.path().join("model.onnx"), dir.path().join("..onnx")).expect("moved");
    std::os::unix::fs::symlink("..onnx", dir.path().join("model.onnx")).expect("linked");
    assert!(refused(dir.path(), &key).contains("not a plain file"));
    fs::remove_file(dir.path().join("model.onnx")).expect("removed");
    fs::remove_file(dir.path().join("..onnx")).expect("removed");
    assert!(refused(dir.path(), &key).contains("signed but missing"));
    fs::remove_file(dir.path().join(FILE)).expect("removed");
    assert!(refused(dir.path(), &key).contains("it is not signed"));
}

/// The statement of a signature, changed and signed anew by the right key.
fn resigned(change: impl Fn(&mut serde_json::Value, &mut serde_json::Value)) -> String {
    let (dir, key) = signed();
    let mut bundle: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join(FILE)).expect("read")).expect("JSON");
    let payload = BASE64_STANDARD.decode(bundle["dsseEnvelope"]["payload"].as_str().expect("text")).expect("base64");
    let mut statement: serde_json::Value = serde_json::from_slice(&payload).expect("JSON");
    change(&mut statement, &mut bundle);
    let payload = statement.to_string().into_bytes();
    bundle["dsseEnvelope"]["payload"] = BASE64_STANDARD.encode(&payload).into();
    if let Some(sig) = bundle["dsseEnvelope"]["signatures"].get_mut(0) {
        sig["sig"] = BASE64_STANDARD.encode(key.sign(&pae(&payload)).expect("signed")).into();
    }
    fs::write(dir.path().join(FILE), bundle.to_string()).expect("written");
    match verify(dir.path(), &[key.public().clone()]) {
        Ok(_) => "good".into(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn a_signature_of_something_else_is_no_signature_of_a_model() {
    assert_eq!(resigned(|_, _| {}), "good");
    let refused = |word: &str, change: fn(&mut serde_json::Value, &mut serde_json::Value)| {
        let why = resigned(change);
        assert!(why.contains(word), "{word}: {why}");
    };
    refused("not the signature of a model", |s, _| s["predicateType"] = "https://slsa.dev/provenance/v1".into());
    refused("not the signature of a model", |s, _| s["_type"] = "https://in-toto.io/Statement/v0.1".into());
    refused("file-shard-1048576", |s, _| s["predicate"]["serialization"]["method"] = "file-shard-1048576".into());
    refused("blake3", |s, _| s["predicate"]["serialization"]["hash_type"] = "blake3".into());
    refused("no SHA-256", |s, _| s["predicate"]["resources"][0]["digest"] = "abc".into());
    refused("no SHA-256", |s, _| s["predicate"]["resources"][0]["digest"] = "ü".repeat(32).into());
    refused("its subject", |s, _| s["subject"][0]["digest"]["sha256"] = "00".repeat(32).into());
    for name in ["../model.json", "/etc/passwd", "a/../b", "", "a//b", "./model.json", "a\\b"] {
        let why = resigned(|s, _| s["predicate"]["resources"][0]["name"] = name.into());
        assert!(why.contains("no file of the bundle"), "{name}: {why}");
    }
    refused("twice", |s, _| s["predicate"]["resources"][0]["name"] = "model.onnx".into());
    refused("media type", |_, b| b["mediaType"] = "application/json".into());
    refused("signatures", |_, b| b["dsseEnvelope"]["signatures"] = json!([]));
    refused("key method", |_, b| b["verificationMaterial"] = json!({"certificate": {"rawBytes": "AAAA"}}));
    refused("not trusted", |_, b| b["verificationMaterial"]["publicKey"]["hint"] = "00".into());
    refused("Sigstore bundle", |_, b| b["mediaType"] = json!(7));
}

#[test]
fn older_signatures_name_the_key_itself() {
    for id in [json!({}), json!({"rawBytes": ""})] {
        assert_eq!(resigned(|_, b| b["verificationMaterial"]["publicKey"] = id.clone()), "good");
    }
    let key = PrivateKey::generate().expect("a key").0;
    let raw = json!({"rawBytes": BASE64_STANDARD.encode(key.public().pem())});
    assert!(resigned(|_, b| b["verificationMaterial"]["publicKey"] = raw.clone()).contains("not trusted"));
}

#[test]
fn keys_are_read_from_pem() {
    let (key, pem) = PrivateKey::generate().expect("a key");
    let again = PrivateKey::from_pem(pem.as_bytes()).expect("read");
    assert_eq!(again.public(), key.public());
    assert_eq!(&PublicKey::from_pem(key.public().pem().as_bytes()).expect("read"), key.public());
    assert!(!format!("{key:?}").contains("PRIVATE KEY-"));
    assert!(PublicKey::from_pem(pem.as_bytes()).expect_err("private").contains("public half"));
    assert!(PrivateKey::from_pem(b"-----BEGIN X-----").is_err() && PublicKey::from_pem(b"").is_err());
    let rsa = "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf\n9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==\n-----END PUBLIC KEY-----\n";
    assert!(PublicKey::from_pem(rsa.as_bytes()).expect_err("RSA").contains("P-256 or P-384"));
}
