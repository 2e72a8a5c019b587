//! A stand-in for the service that delivers models: it says which are desired (with an ETag), hands out
//! archives (with Range, and cut off where it is told to), and takes the records that come back.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

/// What the agent has to show.
pub const TOKEN: &str = "depot-token-0123456789";

#[derive(Default)]
struct Shelf {
    desired: Vec<u8>,
    version: u32,
    archives: BTreeMap<String, Vec<u8>>,
    /// Bytes after which the next answer for this archive breaks off.
    cuts: HashMap<String, Vec<usize>>,
    /// Requests, as `METHOD PATH STATUS RANGE`.
    log: Vec<String>,
    events: Vec<Value>,
}

pub struct Depot {
    port: u16,
    shelf: Arc<Mutex<Shelf>>,
}

impl Depot {
    pub fn start() -> Depot {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shelf: Arc<Mutex<Shelf>> = Arc::default();
        let shared = shelf.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shelf = shared.clone();
                std::thread::spawn(move || while serve(&stream, &shelf).unwrap_or(false) {});
            }
        });
        Depot { port, shelf }
    }

    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// This is desired from now on.
    pub fn desire(&self, text: &str) {
        let mut shelf = self.shelf();
        shelf.desired = text.as_bytes().to_vec();
        shelf.version += 1;
    }

    /// An archive to hand out, broken off after so many bytes the first times.
    pub fn put(&self, name: &str, archive: Vec<u8>, cuts: &[usize]) -> String {
        let mut shelf = self.shelf();
        shelf.archives.insert(name.to_owned(), archive);
        shelf.cuts.insert(name.to_owned(), cuts.to_vec());
        format!("http://127.0.0.1:{}/bundles/{name}", self.port)
    }

    pub fn log(&self) -> Vec<String> {
        self.shelf().log.clone()
    }

    /// All records that have come, in order, as often as they came.
    pub fn events(&self) -> Vec<Value> {
        self.shelf().events.clone()
    }

    /// The `data` of all records of models that have come, in order, each once.
    pub fn model_events(&self) -> Vec<Value> {
        let shelf = self.shelf();
        let mut seen = std::collections::BTreeSet::new();
        let models = shelf.events.iter().filter(|e| e["type"] == "io.andon.model.v1");
        models.filter(|e| seen.insert(e["id"].to_string())).map(|e| e["data"].clone()).collect()
    }
}

/// Answers one request; `false` when there are no more.
fn serve(stream: &TcpStream, shelf: &Mutex<Shelf>) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(false);
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
    let range = headers.get("range").cloned().unwrap_or_default();
    let (status, extra, answer, cut) = answer(&mut shelf, &method, &path, &headers, &body);
    shelf.log.push(format!("{method} {path} {status} {range}").trim_end().to_owned());
    drop(shelf);
    let mut out = stream;
    write!(out, "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n{extra}\r\n", answer.len())?;
    out.write_all(&answer[..cut.unwrap_or(answer.len())])?;
    if cut.is_some() {
        stream.shutdown(std::net::Shutdown::Both)?;
    }
    Ok(cut.is_none())
}

type Answer = (u16, String, Vec<u8>, Option<usize>);

fn answer(shelf: &mut Shelf, method: &str, path: &str, headers: &HashMap<String, String>, body: &[u8]) -> Answer {
    let plain = |status| (status, String::new(), Vec::new(), None);
    if headers.get("authorization") != Some(&format!("Bearer {TOKEN}")) {
        return plain(401);
    }
    if method == "POST" {
        let events: Vec<Value> = serde_json::from_slice(body).unwrap_or_default();
        shelf.events.extend(events);
        return plain(204);
    }
    if path == "/desired" {
        let etag = format!("\"v{}\"", shelf.version);
        if headers.get("if-none-match") == Some(&etag) {
            return plain(304);
        }
        return (200, format!("ETag: {etag}\r\n"), shelf.desired.clone(), None);
    }
    let Some(name) = path.strip_prefix("/bundles/") else { return plain(404) };
    let Some(archive) = shelf.archives.get(name).cloned() else { return plain(404) };
    let cuts = shelf.cuts.get_mut(name).filter(|c| !c.is_empty());
    let cut = cuts.map(|c| c.remove(0));
    let from = headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        Some(from) if from >= archive.len() => plain(416),
        Some(from) => {
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", archive.len() - 1, archive.len());
            let rest = archive[from..].to_vec();
            let cut = cut.map(|c| c.min(rest.len()));
            (206, range, rest, cut)
        }
        None => (200, String::new(), archive, cut),
    }
}
