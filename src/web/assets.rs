//! The page's own files, served from the binary: as they are, or compressed for browsers that ask for it.

use std::io::Write;
use std::sync::OnceLock;

use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use flate2::Compression;
use flate2::write::GzEncoder;

/// One file of the page.
pub struct Asset {
    /// Where it is asked for.
    pub path: &'static str,
    kind: &'static str,
    /// What it holds.
    pub text: &'static str,
    packed: OnceLock<Option<Bytes>>,
}

impl Asset {
    const fn new(path: &'static str, kind: &'static str, text: &'static str) -> Asset {
        Asset { path, kind, text, packed: OnceLock::new() }
    }

    /// Compressed, once; `None` where that fails.
    pub fn packed(&self) -> Option<Bytes> {
        let pack = || {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
            gzip.write_all(self.text.as_bytes()).ok()?;
            gzip.finish().ok().map(Bytes::from)
        };
        self.packed.get_or_init(pack).clone()
    }

    /// Answers requests for it.
    pub fn route<S: Clone + Send + Sync + 'static>(&'static self) -> MethodRouter<S> {
        get(move |headers: HeaderMap| async move { self.answer(&headers) })
    }

    fn answer(&self, headers: &HeaderMap) -> Response {
        let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
        let gzip = accepted.flat_map(|v| v.split(',')).any(|c| c.trim() == "gzip");
        match gzip.then(|| self.packed()).flatten() {
            Some(packed) => {
                let headers = [(header::CONTENT_TYPE, self.kind), (header::CONTENT_ENCODING, "gzip")];
                (headers, packed).into_response()
            }
            None => ([(header::CONTENT_TYPE, self.kind)], self.text).into_response(),
        }
    }
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// All of them. They tell nothing of the plant, so anybody may fetch them.
pub static ALL: [Asset; 9] = [
    Asset::new("/", "text/html; charset=utf-8", include_str!("assets/index.html")),
    Asset::new("/app.css", "text/css; charset=utf-8", include_str!("assets/app.css")),
    Asset::new("/words.js", SCRIPT, include_str!("assets/words.js")),
    Asset::new("/app.js", SCRIPT, include_str!("assets/app.js")),
    Asset::new("/live.js", SCRIPT, include_str!("assets/live.js")),
    Asset::new("/machines.js", SCRIPT, include_str!("assets/machines.js")),
    Asset::new("/alarms.js", SCRIPT, include_str!("assets/alarms.js")),
    Asset::new("/pages.js", SCRIPT, include_str!("assets/pages.js")),
    Asset::new("/icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
];
