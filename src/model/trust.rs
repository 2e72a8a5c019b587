//! Whose models are used: the keys of `[models]`, and whether a bundle has to be signed at all.

use std::path::Path;

use super::ModelError;
use super::contents::Contents;
use super::signature::{self, PrivateKey, PublicKey, Verified};
use crate::settings::Section;

/// Keys that may be trusted at a time: the old and the new one of some makers.
const MAX_KEYS: usize = 32;

/// The part of `[models]` that says whom to trust.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Whose signatures count; the public half of `own` is one of them.
    pub keys: Vec<PublicKey>,
    /// Whether the bundles in `models_dir` have to be signed; delivered ones always have to.
    pub required: bool,
    /// The gateway's own key: signs what it learns.
    pub own: Option<std::sync::Arc<PrivateKey>>,
}

impl Trust {
    /// Reads `trusted_keys`, `signing_key` and `require_signature`.
    pub fn read(s: &Section<'_>) -> Trust {
        let mut keys = Vec::new();
        let paths = s.paths_of("trusted_keys").unwrap_or_default();
        if paths.len() > MAX_KEYS {
            s.problem("trusted_keys", format_args!("are {}; {MAX_KEYS} are the most", paths.len()));
        }
        for path in paths.iter().take(MAX_KEYS) {
            match PublicKey::read(path) {
                Ok(key) => keys.push(key),
                Err(why) => s.problem("trusted_keys", why),
            }
        }
        let given = !paths.is_empty();
        let own = s.path_of("signing_key").and_then(|path| match PrivateKey::read(&path) {
            Ok(key) => Some(std::sync::Arc::new(key)),
            Err(why) => {
                s.problem("signing_key", why);
                None
            }
        });
        keys.extend(own.iter().map(|own| own.public().clone()));
        let required = s.boolean("require_signature");
        if required == Some(true) && !given && own.is_none() {
            s.problem("require_signature", "needs `trusted_keys`: without them no signature counts");
        }
        Trust { keys, required: required.unwrap_or(given), own }
    }

    /// Reads a bundle of `models_dir`, if it may be used: signed if it has to be, and never with a
    /// signature that does not hold where keys are given. What is read is what was verified.
    ///
    /// # Errors
    /// [`ModelError::Signature`]; [`ModelError::Read`] when it cannot be read.
    pub fn admit(&self, dir: &Path) -> Result<Admitted, ModelError> {
        if !self.required && (self.keys.is_empty() || !signature::is_signed(dir)) {
            return Ok(Admitted { contents: Contents::read(dir)?, verified: None });
        }
        // Without a signature nothing else is read.
        if !signature::is_signed(dir) {
            signature::verify(dir, &self.keys)?;
        }
        let contents = Contents::read_all(dir)?;
        let verified = Some(signature::verify_contents(&contents, &self.keys)?);
        Ok(Admitted { contents, verified })
    }
}

/// A bundle that may be used.
#[derive(Debug)]
pub struct Admitted {
    /// Its files.
    pub contents: Contents,
    /// By whom it is signed, where that is asked.
    pub verified: Option<Verified>,
}
