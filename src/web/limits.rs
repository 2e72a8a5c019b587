//! What callers of the web server may take: memory for bodies and answers, and guesses of the token.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::guard::{Problem, problem};
use crate::metrics::{Metrics, Pace, lock};

/// Bytes of request bodies in memory, over all connections.
pub const MAX_BODY_BYTES_IN_FLIGHT: usize = 32 << 20;
/// Bytes of answers in memory, over all connections.
pub const MAX_ANSWER_BYTES_IN_FLIGHT: usize = 64 << 20;
/// Answers up to this size are not counted: the number of connections bounds them.
const SMALL_ANSWER_BYTES: usize = 16 << 10;
/// Wrong tokens of one peer that are being answered at a time. Further tokens of that peer are refused unread.
pub const MAX_WRONG_TOKENS_PENDING: u32 = 4;
/// The answer to a peer's first wrong token takes this long, each further one twice as long ...
const FIRST_WRONG_TOKEN_PAUSE: Duration = Duration::from_millis(500);
/// ... up to this.
pub const LONGEST_WRONG_TOKEN_PAUSE: Duration = Duration::from_secs(4);
/// After this long without a wrong token a peer begins anew.
const WRONG_TOKENS_FORGOTTEN: Duration = Duration::from_secs(300);
/// Peers whose wrong tokens are remembered. Beyond it all further peers count as one.
const MAX_GUESSING_PEERS: usize = 1024;

/// Addresses that belong to one caller: an IPv4 address, or a /64 of IPv6. All of loopback is one.
pub fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// Counts requests and connections that are refused, and says so in the log now and then.
pub struct RefusalLog {
    metrics: Arc<Metrics>,
    paces: Mutex<HashMap<&'static str, Pace>>,
}

impl RefusalLog {
    /// Nothing is refused yet.
    pub fn new(metrics: Arc<Metrics>) -> RefusalLog {
        RefusalLog { metrics, paces: Mutex::default() }
    }

    /// One more is refused for `reason`, a label of the metric. `detail` is for the log and holds no untrusted text.
    pub fn refused(&self, reason: &'static str, peer: Option<IpAddr>, detail: &str) {
        self.metrics.web_refused.get_or_create(&[("reason", reason.to_owned())]).inc();
        let due = lock(&self.paces).entry(reason).or_default().due(1, Instant::now());
        if let Some(count) = due {
            let peer = peer.map_or_else(|| "unknown".to_owned(), |p| p.to_string());
            tracing::warn!(reason, count, peer, "the web server refuses requests: {detail}");
        }
    }
}

/// Memory for bodies and answers that are in flight.
pub struct ByteBudget {
    bodies: Arc<Semaphore>,
    answers: Arc<Semaphore>,
}

impl Default for ByteBudget {
    fn default() -> ByteBudget {
        ByteBudget {
            bodies: Arc::new(Semaphore::new(MAX_BODY_BYTES_IN_FLIGHT)),
            answers: Arc::new(Semaphore::new(MAX_ANSWER_BYTES_IN_FLIGHT)),
        }
    }
}

/// Bytes with their share of a budget, which is given back when the last reference to them is gone.
struct Charged {
    bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn charged(bytes: Bytes, share: OwnedSemaphorePermit) -> Bytes {
    Bytes::from_owner(Charged { bytes, _share: share })
}

fn take(from: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    from.clone().try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
}

impl ByteBudget {
    /// Reads a body of at most `most` bytes. Its share is taken before the first byte is read: the length that
    /// the caller gives, or `most`.
    ///
    /// # Errors
    /// 413 for a body that is too long, 503 when the budget is spent, 400 when it does not come whole.
    pub async fn read(&self, headers: &HeaderMap, body: Body, most: usize) -> Result<Bytes, Problem> {
        let given = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if given.is_some_and(|given| given > most) {
            return problem(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {most} bytes"));
        }
        let Some(share) = take(&self.bodies, given.unwrap_or(most)) else {
            let why = format!("{MAX_BODY_BYTES_IN_FLIGHT} bytes of other requests are being read; try again");
            return problem(StatusCode::SERVICE_UNAVAILABLE, why);
        };
        match to_bytes(body, most).await {
            Ok(bytes) => Ok(charged(bytes, share)),
            Err(e) => problem(StatusCode::BAD_REQUEST, format!("the body cannot be read: {e}")),
        }
    }

    /// The same answer with its bytes charged, or 503. Streams and small answers pass as they are.
    pub async fn charge(&self, response: Response, refusals: &RefusalLog) -> Response {
        let Some(size) = response.body().size_hint().exact().map(|n| usize::try_from(n).unwrap_or(usize::MAX)) else {
            return response;
        };
        if size <= SMALL_ANSWER_BYTES {
            return response;
        }
        let Some(share) = take(&self.answers, size) else {
            let why = format!("{MAX_ANSWER_BYTES_IN_FLIGHT} bytes of other answers wait for their readers; try again");
            refusals.refused("answer_bytes", None, &why);
            return Problem(StatusCode::SERVICE_UNAVAILABLE, why).into_response();
        };
        let (head, body) = response.into_parts();
        match to_bytes(body, size).await {
            Ok(bytes) => Response::from_parts(head, Body::from(charged(bytes, share))),
            Err(e) => Problem(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
        }
    }
}

/// Wrong tokens by peer. A person mistypes now and then; a program that guesses waits.
#[derive(Default)]
pub struct WrongTokens {
    peers: Mutex<HashMap<IpAddr, Guessing>>,
}

struct Guessing {
    /// Since the peer began.
    count: u32,
    pending: u32,
    last: Instant,
}

/// A wrong token that is being answered.
pub struct PendingAnswer<'w> {
    all: &'w WrongTokens,
    peer: IpAddr,
    /// After which the answer may be given.
    pub pause: Duration,
}

impl Drop for PendingAnswer<'_> {
    fn drop(&mut self) {
        if let Some(guessing) = lock(&self.all.peers).get_mut(&self.peer) {
            guessing.pending = guessing.pending.saturating_sub(1);
        }
    }
}

impl WrongTokens {
    /// Whether a token of this peer is looked at now.
    pub fn may_try(&self, peer: IpAddr, now: Instant) -> bool {
        let peers = lock(&self.peers);
        peers.get(&known(&peers, peer)).is_none_or(|g| g.pending < MAX_WRONG_TOKENS_PENDING || g.is_over(now))
    }

    /// A peer has shown a wrong token.
    pub fn wrong(&self, peer: IpAddr, now: Instant) -> PendingAnswer<'_> {
        let mut peers = lock(&self.peers);
        if peers.len() >= MAX_GUESSING_PEERS {
            peers.retain(|_, g| !g.is_over(now));
        }
        let peer = known(&peers, peer);
        let guessing = peers.entry(peer).or_insert(Guessing { count: 0, pending: 0, last: now });
        if guessing.is_over(now) {
            guessing.count = 0;
        }
        let pause = FIRST_WRONG_TOKEN_PAUSE * (1 << guessing.count.min(10));
        guessing.count = guessing.count.saturating_add(1);
        guessing.pending += 1;
        guessing.last = now;
        PendingAnswer { all: self, peer, pause: pause.min(LONGEST_WRONG_TOKEN_PAUSE) }
    }
}

impl Guessing {
    fn is_over(&self, now: Instant) -> bool {
        self.pending == 0 && now.saturating_duration_since(self.last) >= WRONG_TOKENS_FORGOTTEN
    }
}

/// The peer under which wrong tokens are counted.
fn known(peers: &HashMap<IpAddr, Guessing>, peer: IpAddr) -> IpAddr {
    let rest = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    if peers.contains_key(&peer) || peers.len() < MAX_GUESSING_PEERS { peer } else { rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_peer_that_guesses_waits_longer_and_longer_and_others_do_not() {
        let (tokens, now) = (WrongTokens::default(), Instant::now());
        let pauses: Vec<u128> = (0..6).map(|_| tokens.wrong(v4(1), now).pause.as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 4000, 4000]);
        assert_eq!(tokens.wrong(v4(2), now).pause.as_millis(), 500);
        let later = now + WRONG_TOKENS_FORGOTTEN;
        assert_eq!(tokens.wrong(v4(1), later).pause.as_millis(), 500);
    }

    #[test]
    fn so_many_wrong_tokens_of_a_peer_are_answered_at_a_time() {
        let (tokens, now) = (WrongTokens::default(), Instant::now());
        let pending: Vec<_> = (0..MAX_WRONG_TOKENS_PENDING).map(|_| tokens.wrong(v4(1), now)).collect();
        assert!(!tokens.may_try(v4(1), now) && tokens.may_try(v4(2), now));
        drop(pending);
        assert!(tokens.may_try(v4(1), now));
    }

    #[test]
    fn many_peers_do_not_grow_memory() {
        let (tokens, now) = (WrongTokens::default(), Instant::now());
        for n in 0..5_000_u32 {
            tokens.wrong(IpAddr::from(n.to_be_bytes()), now);
        }
        assert!(lock(&tokens.peers).len() <= MAX_GUESSING_PEERS + 1);
    }

    #[test]
    fn a_caller_with_a_whole_network_is_one_peer() {
        let peer = |text: &str| peer_of(text.parse().expect("an address"));
        assert_eq!(peer("2001:db8:1:2:3::4"), peer("2001:db8:1:2:ffff::1"));
        assert_ne!(peer("2001:db8:1:2::1"), peer("2001:db8:1:3::1"));
        assert_eq!(peer("::ffff:10.0.0.1"), v4(1));
    }

    #[tokio::test]
    async fn a_body_is_paid_for_before_it_is_read() {
        let budget = ByteBudget::default();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, "3".parse().expect("a value"));
        let held = budget.read(&headers, Body::from("abc"), 10).await.expect("read");
        assert_eq!(budget.bodies.available_permits(), MAX_BODY_BYTES_IN_FLIGHT - 3);
        drop(held);
        assert_eq!(budget.bodies.available_permits(), MAX_BODY_BYTES_IN_FLIGHT);
        let all = take(&budget.bodies, MAX_BODY_BYTES_IN_FLIGHT - 2);
        let refused = budget.read(&headers, Body::from("abc"), 10).await.expect_err("refused");
        assert_eq!(refused.0, StatusCode::SERVICE_UNAVAILABLE);
        drop(all);
        let refused = budget.read(&headers, Body::from("abc"), 2).await.expect_err("refused");
        assert_eq!(refused.0, StatusCode::PAYLOAD_TOO_LARGE);
        let unsaid = budget.read(&HeaderMap::new(), Body::from("abc"), 2).await.expect_err("refused");
        assert_eq!(unsaid.0, StatusCode::BAD_REQUEST);
    }
}
