//! Questions to a larger model over the Open Inference Protocol: the engine decides what is asked, this
//! takes it there and brings back how it ended. Each ask ends, with an answer or with a reason.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::client::Client;
use crate::metrics::{Health, Shared};
use crate::types::{Answer, Ask, Outcome, ReceiptWaiter};

mod client;
mod config;
mod wire;

pub use client::probe;
pub use config::{Config, Policy};

/// The board's name for it.
const PART: &str = "inference";
/// Questions under way at a time: a slow answer must not hold up an alarm's.
const N_AT_A_TIME: usize = 4;

/// A question, and what to wait for before it is asked.
#[derive(Debug)]
pub struct Asked {
    /// The question.
    pub ask: Ask,
    /// Resolves when it is on disk that it is asked; `None`: it is already. What is asked before that
    /// could be paid for and forgotten.
    pub durable: Option<ReceiptWaiter>,
}

/// Waiting times that are not for the user to set.
#[derive(Clone, Debug)]
pub struct Tempo {
    /// The wait after a first failure; doubles from there.
    pub retry_first: Duration,
    /// The longest wait, a Retry-After included: what has to wait for longer ends as busy.
    pub retry_cap: Duration,
}

impl Default for Tempo {
    fn default() -> Tempo {
        Tempo { retry_first: Duration::from_millis(500), retry_cap: Duration::from_secs(10) }
    }
}

/// Asks until `asks` is closed or the agent stops; what is under way then is dropped, and asked again
/// after the next start. `asks` and `answers` are bounded by who made them.
pub async fn run(
    config: Config,
    tempo: Tempo,
    mut asks: mpsc::Receiver<Asked>,
    answers: mpsc::Sender<Answer>,
    shared: Shared,
) {
    let report = Report { shared: shared.clone(), url: format!("{:?}", config.url), trouble: None };
    let client = Arc::new(Client::new(config, tempo));
    let mut desk = Desk { client, waiting: VecDeque::new(), under_way: JoinSet::new(), answers, report };
    desk.report.shared.board.set(PART, Health::Starting, "nothing asked yet");
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            asked = asks.recv() => match asked {
                Some(asked) => desk.queue(asked),
                None => return,
            },
            Some(ended) = desk.under_way.join_next() => {
                if let Ok(Some(answer)) = ended && !desk.hand_back(answer).await {
                    return;
                }
            }
        }
        desk.start();
    }
}

struct Desk {
    client: Arc<Client>,
    /// The most urgent first. As many as the engine lets be pending.
    waiting: VecDeque<Asked>,
    under_way: JoinSet<Option<Answer>>,
    answers: mpsc::Sender<Answer>,
    report: Report,
}

impl Desk {
    fn queue(&mut self, asked: Asked) {
        let place = self.waiting.partition_point(|other| other.ask.reason <= asked.ask.reason);
        self.waiting.insert(place, asked);
    }

    fn start(&mut self) {
        while self.under_way.len() < N_AT_A_TIME
            && let Some(Asked { ask, durable }) = self.waiting.pop_front()
        {
            let client = self.client.clone();
            self.under_way.spawn(async move {
                if let Some(durable) = durable
                    && durable.await.is_err()
                {
                    // Not on disk, so after a restart it was never asked.
                    return None;
                }
                Some(client.ask(&ask).await)
            });
        }
    }

    /// `false` when nobody takes answers any more.
    async fn hand_back(&mut self, answer: Answer) -> bool {
        self.report.ended(&answer);
        self.answers.send(answer).await.is_ok()
    }
}

/// What is told of the server: the board, and one log line per change.
struct Report {
    shared: Shared,
    url: String,
    trouble: Option<Outcome>,
}

impl Report {
    fn ended(&mut self, answer: &Answer) {
        let board = &self.shared.board;
        if answer.outcome == Outcome::Answered {
            if self.trouble.take().is_some() {
                tracing::info!(url = self.url, "the larger model answers again");
            }
            return board.set(PART, Health::Up, self.url.as_str());
        }
        let (why, detail) = (answer.outcome.as_str(), &answer.detail);
        board.set(PART, Health::Degraded, format!("{}: {why}: {detail}", self.url));
        if self.trouble.replace(answer.outcome) != Some(answer.outcome) {
            tracing::warn!(url = self.url, why, detail, "the larger model gave no answer");
        }
    }
}

/// An answer as a function of bytes, for `crate::fuzz`: two for the length of its JSON, then the body.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn any_bytes(bytes: &[u8]) {
    use crate::types::{Asking, RecordId, Time};
    let Some(([high, low], body)) = bytes.split_first_chunk::<2>() else { return };
    let head = Some(usize::from(u16::from_be_bytes([*high, *low]))).filter(|n| *n > 0);
    let ask = Ask {
        id: RecordId([0; 16]),
        machine: "m".into(),
        at: Time(0),
        reason: Asking::Uncertain,
        steps: 2,
        channels: 1,
        window: [1.5, 2.0].into(),
    };
    for output in [None, Some("score")] {
        if let Ok(found) = wire::reply(body, head, &ask, output) {
            assert!(found.score.is_finite());
        }
        if let Ok(meta) = wire::metadata(wire::speaks_binary(body), body) {
            let _ = wire::request(&ask, &meta, output);
        }
    }
}
