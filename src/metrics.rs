//! What the agent tells of itself: Prometheus metrics, and a board with the health of each part.
//! Names and units follow prometheus.io's conventions: `andon_` prefix, base units.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio_util::sync::CancellationToken;

mod admitted;
mod board;
mod printable;
mod refusals;
mod resync;

pub use admitted::Admitted;
pub use board::{Board, Component, Health, Pulse};
pub use printable::{example, printable};
pub use refusals::{LogLine, Pace, Refusal, Refusals};
pub use resync::Resync;

/// Label names and values; the names are fixed for each metric.
pub type Labels<const N: usize> = [(&'static str, String); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type CountersOfUnits<const N: usize> = Family<Labels<N>, Counter<f64, AtomicU64>>;
type Gauges<const N: usize> = Family<Labels<N>, Gauge>;
type FloatGauges<const N: usize> = Family<Labels<N>, Gauge<f64, AtomicU64>>;
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// Lines that the log left out. The log is older than all metrics.
pub static LOG_LINES_LEFT_OUT: LazyLock<Counter> = LazyLock::new(Counter::default);

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ty, $name:literal, $unit:expr, $new:expr;)*) => {
        /// Every metric, by stage. Hot paths keep the counter that `get_or_create_owned` gives.
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $kind,)*
        }

        impl Metrics {
            /// All metrics at zero.
            pub fn new() -> Arc<Metrics> {
                let mut registry = Registry::with_prefix("andon");
                $(
                    let $field: $kind = $new;
                    let help = concat!($($help),+).trim().trim_end_matches('.');
                    match $unit {
                        Some(unit) => registry.register_with_unit($name, help, unit, $field.clone()),
                        None => registry.register($name, help, $field.clone()),
                    }
                )*
                Arc::new(Metrics { registry, $($field,)* })
            }
        }
    };
}

metrics! {
    /// Version of the agent, always 1.
    build_info: Gauges<1>, "build_info", None, Family::default();
    /// Readings taken in, by source and quality.
    readings: Counters<2>, "readings", None, Family::default();
    /// Payloads that could not be read and were set aside, by source.
    rejects: Counters<1>, "rejected_payloads", None, Family::default();
    /// Values of Sparkplug edge nodes that hold and are not repeated, by source and reason: machine, machine_limit, limit.
    repeats_skipped: Counters<2>, "sparkplug_repeats_skipped", None, Family::default();
    /// Readings not used, by reason: duplicate, late, future, no_machine, other_origin, limit.
    readings_dropped: Counters<1>, "readings_dropped", None, Family::default();
    /// Steps closed before their lateness was over, since too many readings wait.
    steps_closed_early: Counter, "steps_closed_early", None, Counter::default();
    /// Whether the source is connected, 1 or 0.
    source_connected: Gauges<1>, "source_connected", None, Family::default();
    /// Connections made, by source.
    source_connects: Counters<1>, "source_connects", None, Family::default();
    /// Modbus requests, by source and outcome: ok, exception, timeout, error.
    modbus_requests: Counters<2>, "modbus_requests", None, Family::default();
    /// Time a Modbus request took, by source.
    modbus_request: Histograms<1>, "modbus_request", Some(Unit::Seconds), Family::new_with_constructor(latency);
    /// Windows judged, by model and reason.
    windows: Counters<2>, "windows", None, Family::default();
    /// Time a batch took in the model, by model.
    inference: Histograms<1>, "inference", Some(Unit::Seconds), Family::new_with_constructor(latency);
    /// Model runs that failed, by model.
    inference_errors: Counters<1>, "inference_errors", None, Family::default();
    /// Processor time a batch took in a model's candidate, by model.
    candidate_inference: Histograms<1>, "candidate_inference", Some(Unit::Seconds), Family::new_with_constructor(latency);
    /// Steps that delivered bundles took, by model and stage.
    model_steps: Counters<2>, "model_steps", None, Family::default();
    /// How far a channel has moved from what its model was made from (population stability index), by model and channel.
    drift_psi: FloatGauges<2>, "drift_psi", None, Family::default();
    /// Distance of p-values from uniform, 0 to 1, by model.
    score_drift: FloatGauges<1>, "score_drift", None, Family::default();
    /// Share of windows of running machines that could not be judged for their inputs, by model.
    bad_windows: FloatGauges<1>, "bad_windows_ratio", None, Family::default();
    /// Alarms of a machine in a day, by model and kind: promised, measured.
    alarms_per_day: FloatGauges<2>, "alarms_per_machine_day", None, Family::default();
    /// The last anomaly score, by machine.
    anomaly_score: FloatGauges<1>, "anomaly_score", None, Family::default();
    /// The last p-value, by machine.
    anomaly_p_value: FloatGauges<1>, "anomaly_p_value", None, Family::default();
    /// Alarms raised, by condition.
    alarms_raised: Counters<1>, "alarms_raised", None, Family::default();
    /// Alarms that are active now, by condition.
    alarms_active: Gauges<1>, "alarms_active", None, Family::default();
    /// Alarms that are shelved, suppressed or out of service.
    alarms_put_aside: Gauge, "alarms_put_aside", None, Gauge::default();
    /// Whether there is a flood of alarms, 1 or 0.
    alarm_flood: Gauge, "alarm_flood", None, Gauge::default();
    /// The state of each machine (red, amber, white, green or off), always 1.
    machine_state: Gauges<2>, "machine_state", None, Family::default();
    /// Machines known.
    machines: Gauge, "machines", None, Gauge::default();
    /// Groups written and synced.
    store_commits: Counter, "store_commits", None, Counter::default();
    /// Time from the first record of a group to its sync.
    store_commit: Histogram, "store_commit", Some(Unit::Seconds), latency();
    /// Records appended, by kind.
    store_records: Counters<1>, "store_records", None, Family::default();
    /// Records waiting for the slowest sink, by lane.
    outbox_records: Gauges<1>, "outbox_records", None, Family::default();
    /// Of these, those of a backlog before which live records go, by sink.
    outbox_backlog: Gauges<1>, "outbox_backlog_records", None, Family::default();
    /// Bytes on disk, by lane.
    store_disk: Gauges<1>, "store_disk", Some(Unit::Bytes), Family::default();
    /// Records given up, by lane and reason.
    store_dropped: Counters<2>, "store_dropped", None, Family::default();
    /// Requests and batches sent, by sink and outcome: HTTP status, timeout, connect, io or ok.
    forward_requests: Counters<2>, "forward_requests", None, Family::default();
    /// Records the sink has accepted, by sink.
    forward_records: Counters<1>, "forward_records", None, Family::default();
    /// Records set aside as dead letters, by sink.
    forward_dead_letters: Counters<1>, "forward_dead_letters", None, Family::default();
    /// Time from a record's event to the sink's acceptance, by sink.
    forward_delay: Histograms<1>, "forward_delay", Some(Unit::Seconds), Family::new_with_constructor(latency);
    /// Bytes sent, by sink.
    forward_sent: Counters<1>, "forward_sent", Some(Unit::Bytes), Family::default();
    /// Requests that may be under way at once, by sink.
    forward_concurrency: Gauges<1>, "forward_concurrency", None, Family::default();
    /// Windows that were to be put before a larger model, by model, reason and outcome.
    escalations: Counters<3>, "escalations", None, Family::default();
    /// What asking has cost, by model.
    cost_units: CountersOfUnits<1>, "cost_units", None, Family::default();
    /// The part of the budget that is left, by model.
    budget_remaining_ratio: FloatGauges<1>, "budget_remaining_ratio", None, Family::default();
    /// How often the larger model agrees with the gateway's own, of all answers, by model.
    escalation_agreement_ratio: FloatGauges<1>, "escalation_agreement_ratio", None, Family::default();
    /// Messages published for dashboards.
    published: Counter, "published_messages", None, Counter::default();
    /// Messages for dashboards that were left out, by reason: lag, full, offline, machines.
    publish_dropped: Counters<1>, "publish_dropped_messages", None, Family::default();
    /// Lines that the log left out, since they came too fast.
    log_left_out: Counter, "log_lines_left_out", None, LOG_LINES_LEFT_OUT.clone();
    /// Web requests and connections refused, by reason: accept, connections, body_bytes, answer_bytes, wrong_token, token_rate.
    web_refused: Counters<1>, "web_refused", None, Family::default();
}

fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.000_01, 2.5, 16))
}

impl Metrics {
    /// The text that Prometheus scrapes (OpenMetrics 1.0).
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut out, &self.registry);
        out
    }
}

impl Metrics {
    /// The same in Prometheus' own text format (0.0.4), for those who do not ask for OpenMetrics: there
    /// a counter's help and type stand under the name of its samples, and units are no lines of their own.
    pub fn render_plain(&self) -> String {
        let text = self.render();
        let counters: BTreeSet<&str> =
            text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
        let mut out = String::with_capacity(text.len());
        for line in text.lines().filter(|l| !l.starts_with("# UNIT ") && *l != "# EOF") {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                    out.push_str(&format!("# {what} {name}_total {rest}"));
                }
                _ => out.push_str(line),
            }
            out.push('\n');
        }
        out
    }

    /// The sum of all samples of this name, as scraped, whose labels contain `label`; for those who
    /// count now and then.
    pub fn total(&self, sample: &str, label: &str) -> u64 {
        let text = self.render();
        let mine = text.lines().filter_map(|l| l.strip_prefix(sample));
        let mine = mine.filter(|l| l.starts_with(['{', ' ']) && l.contains(label));
        mine.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }
}

/// What every stage is handed when it is built.
#[derive(Clone)]
pub struct Shared {
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// Who is well and who is not.
    pub board: Arc<Board>,
    /// Cancelled when the agent stops. Only sources, forwarders and web listen to it; everything
    /// between ends when its input closes.
    pub stop: CancellationToken,
    /// The stage's own pulse; nobody's unless the agent gave it one.
    pub pulse: Pulse,
    /// For receivers of live events that have missed some.
    pub resync: Resync,
    /// The machines that the engine follows.
    pub admitted: Admitted,
}

impl Shared {
    /// A fresh set.
    pub fn new() -> Shared {
        Shared {
            metrics: Metrics::new(),
            board: Board::new(),
            stop: CancellationToken::new(),
            pulse: Pulse::default(),
            resync: Resync::default(),
            admitted: Admitted::default(),
        }
    }

    /// The same with a pulse for this stage; [`Board::ended`] takes it back.
    pub fn for_stage(&self, stage: &str) -> Shared {
        Shared { pulse: self.board.pulse(stage), ..self.clone() }
    }
}

impl Default for Shared {
    fn default() -> Shared {
        Shared::new()
    }
}

/// Locks, and goes on with what is there if another thread panicked while holding it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_render_with_prefix_unit_and_help() {
        let m = Metrics::new();
        m.readings.get_or_create(&[("source", "shop".into()), ("quality", "good".into())]).inc();
        m.store_commit.observe(0.002);
        let text = m.render();
        assert!(text.contains("andon_readings_total{source=\"shop\",quality=\"good\"} 1"), "{text}");
        m.readings.get_or_create(&[("source", "plc".into()), ("quality", "good".into())]).inc_by(5);
        assert_eq!(m.total("andon_readings_total", ""), 6);
        assert_eq!(m.total("andon_readings_total", "source=\"plc\""), 5);
        assert!(text.contains("# UNIT andon_store_commit_seconds seconds"), "{text}");
        let plain = m.render_plain();
        assert!(plain.contains("# HELP andon_readings_total Readings") && !plain.contains("# UNIT"), "{plain}");
        assert!(text.contains("# HELP andon_readings Readings taken in, by source and quality."), "{text}");
    }
}
