//! A snapshot, as a function of bytes, for `crate::fuzz`.

use super::*;
use crate::pipeline::Settings;

/// Restored or refused, as it is and under the version of today; its checksum is the store's affair.
pub(crate) fn snapshot(bytes: &[u8]) {
    let version = postcard::to_stdvec(&SNAPSHOT_VERSION).unwrap_or_default();
    let today = [&version, bytes.get(1..).unwrap_or_default()].concat();
    for bytes in [bytes, &today] {
        let mut engine = plain();
        if engine.restore(bytes).is_ok() {
            let again = engine.snapshot();
            engine.restore(&again).expect("what was restored can be kept and restored");
        }
    }
}

/// An engine for any machine, without a model.
fn plain() -> Engine {
    let second = Duration::from_secs(1);
    let settings = Settings {
        rate: None,
        stale_after: vec![("*".into(), second)],
        lateness: None,
        running: None,
        ranges: Vec::new(),
        stuck_after: None,
    };
    let block = Block {
        matcher: WildMatch::new("*"),
        model: None,
        layout: Arc::new(Layout::new(&settings, vec!["flow".into(), "speed".into()], 1, 1, second)),
        limit: Limit::PValue(1e-4),
        alarm: crate::alarm::Config::default(),
        suppress: None,
    };
    Engine::new(Recorder::new("site", "gw"), vec![block], 8)
}

/// What an engine keeps that has seen two signals.
#[cfg(test)]
pub(crate) fn seed() -> Vec<u8> {
    let mut engine = plain();
    let good = |signal: &str, at| crate::types::Reading::good("press-1".into(), signal.into(), Time(at), 1.5);
    for second in 1..6 {
        let at = second * 1_000_000_000;
        engine.step(&Group { inputs: vec![Input::Readings(Time(at), vec![good("flow", at), good("speed", at)])] });
    }
    engine.snapshot()
}
