//! Second opinions in the engine: what is asked, what it costs, what answers do, and that a crash counts
//! nothing twice.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::tests::{course, engine};
use super::*;
use crate::forward::budget::{Prices, Rules};
use crate::types::{Kind, May, Outcome as Ended};

const UNIT: u64 = 1_000_000;

fn policy(band: [f64; 2], limit: u64, reserve: u64) -> Policy {
    Policy {
        model: "large".into(),
        escalate: band,
        audit_fraction: 0.0,
        threshold: 0.5,
        budget: Rules {
            limit: limit * UNIT,
            period: Duration::from_secs(3600),
            reserve: reserve * UNIT,
            burst: limit * UNIT,
        },
        prices: Prices::default(),
        may: May { confirm: true, ..May::default() },
    }
}

/// Only alarms are asked about.
fn alarms_only() -> Policy {
    policy([2.0, 3.0], 100, 10)
}

fn asking(policy: Policy) -> Engine {
    engine().with_second_opinions(Some(policy))
}

fn answer(ask: &Ask, ended: Ended, score: Option<f64>) -> Answer {
    Answer {
        id: ask.id,
        at: ask.at.plus(Duration::from_millis(300)),
        outcome: ended,
        score,
        version: Some("7".into()),
        detail: String::new(),
        calls: u32::from(ended != Ended::Unreachable),
        bytes_out: 2048,
        took_ms: 300,
    }
}

fn tell(engine: &mut Engine, answer: Answer) -> Outcome {
    engine.step(&Group { inputs: vec![Input::Opinion(answer)] })
}

/// Everything that came of feeding all this, eight readings at a time, and the time of the first alarm.
fn run(engine: &mut Engine, readings: &[Reading]) -> (Vec<Ask>, Vec<Record>, Vec<Escalation>) {
    let (mut asks, mut records, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for some in readings.chunks(8) {
        let group = Group { inputs: vec![Input::Readings(some[some.len() - 1].at, some.to_vec())] };
        let out = engine.step(&group);
        for ask in &out.asks {
            assert!(out.records.iter().any(|r| r.id == ask.id), "asked about a verdict of this very group");
            let raised = |r: &&Record| r.kind == Kind::Alarm && r.data.contains("\"transition\":\"raised\"");
            assert!(ask.reason != Asking::Alarm || out.records.iter().any(|r| raised(&r)), "the alarm did not wait");
        }
        asks.extend(out.asks);
        records.extend(out.records);
        ends.extend(out.tally.escalations);
    }
    (asks, records, ends)
}

fn of(records: &[Record], kind: Kind) -> Vec<serde_json::Value> {
    let mine = records.iter().filter(|r| r.kind == kind);
    mine.map(|r| serde_json::from_str(&r.data).expect("JSON")).collect()
}

#[test]
fn an_alarm_is_asked_about_and_the_answer_is_linked_to_it() {
    let mut engine = asking(alarms_only());
    let (asks, _, ends) = run(&mut engine, &course(20, &[]));
    let [ask] = asks.as_slice() else { panic!("{} asks, {ends:?}", asks.len()) };
    assert_eq!((ask.reason, &*ask.machine, ask.channels, ask.window.len()), (Asking::Alarm, "pump-2", 8, 32 * 8));
    let out = tell(&mut engine, answer(ask, Ended::Answered, Some(0.93)));
    let (usage, opinions) = (of(&out.records, Kind::Usage), of(&out.records, Kind::Opinion));
    assert_eq!((usage.len(), opinions.len()), (1, 1));
    let wanted = serde_json::json!({"timestamp": usage[0]["timestamp"], "machine": "pump-2", "model": "large",
        "reason": "alarm", "outcome": "answered", "calls": 1, "elements": 256, "bytes_out": 2048, "cost_units": 1.0,
        "latency_ms": 300, "causationid": ask.id.to_string()});
    assert_eq!(usage[0], wanted);
    assert_eq!((&opinions[0]["prediction"], &opinions[0]["agrees"]), (&1.into(), &true.into()));
    assert_eq!(opinions[0]["causationid"], ask.id.to_string());
    let alarms = of(&out.records, Kind::Alarm);
    assert_eq!(alarms[0]["transition"], "confirmed");
    assert_eq!(alarms[0]["second_opinion"]["score"], 0.93);
    let cause = out.records.iter().find(|r| r.kind == Kind::Opinion).map(|r| r.id.to_string());
    assert_eq!(alarms[0]["causationid"].as_str().map(str::to_owned), cause);
    assert_eq!(engine.budget(ask.at).and_then(|b| b.agreement), Some(1.0));
    assert!(tell(&mut engine, answer(ask, Ended::Answered, Some(0.1))).records.is_empty(), "once is enough");
}

#[test]
fn with_the_budget_spent_routine_stops_and_alarms_still_go() {
    let mut engine = asking(policy([0.0, 1.0], 6, 2));
    let (asks, _, ends) = run(&mut engine, &course(20, &[]));
    let count = |r: Asking| asks.iter().filter(|a| a.reason == r).count();
    assert_eq!((count(Asking::Uncertain), count(Asking::Alarm)), (4, 1));
    assert!(ends.iter().filter(|e| **e == (Asking::Uncertain, "budget")).count() > 10, "{ends:?}");
    let budget = engine.budget(Time(20_000_000_000)).expect("a budget");
    assert_eq!((budget.standing, budget.pending), (Standing::AlarmsOnly, 5));
}

#[test]
fn what_reached_nobody_costs_nothing() {
    let mut engine = asking(alarms_only());
    let (asks, ..) = run(&mut engine, &course(20, &[]));
    assert_eq!(engine.budget(asks[0].at).map(|b| b.remaining), Some(0.99));
    let out = tell(&mut engine, answer(&asks[0], Ended::Unreachable, None));
    let usage = &of(&out.records, Kind::Usage)[0];
    assert_eq!((&usage["outcome"], &usage["cost_units"]), (&"unreachable".into(), &0.0.into()));
    assert_eq!(engine.budget(asks[0].at).map(|b| (b.remaining, b.pending)), Some((1.0, 0)));
    assert!(of(&out.records, Kind::Opinion).is_empty());
}

#[test]
fn verdicts_in_the_band_say_so() {
    let mut engine = asking(policy([0.0, 1.0], 1000, 0));
    let (asks, records, _) = run(&mut engine, &course(10, &[]));
    assert!(asks.len() > 5 && asks.len() <= MAX_PENDING);
    let reasons: Vec<_> = of(&records, Kind::Verdict).iter().map(|v| v["prediction_reason"].clone()).collect();
    assert!(reasons.contains(&"UNCERTAIN".into()) && !reasons.contains(&"NO_ANOMALY_DETECTED".into()), "{reasons:?}");
}

#[test]
fn questions_without_answers_are_bounded_and_alarms_find_room() {
    let mut engine = asking(policy([0.0, 1.0], 100_000, 0));
    let (asks, _, ends) = run(&mut engine, &course(60, &[]));
    assert_eq!(asks.iter().filter(|a| a.reason != Asking::Alarm).count(), MAX_PENDING / 2);
    assert!(asks.iter().any(|a| a.reason == Asking::Alarm) && ends.contains(&(Asking::Uncertain, "queue")));
}

#[test]
fn windows_that_wait_take_no_more_than_their_part_of_memory() {
    let window = vec![0.0f32; 100_000];
    let mut desk = Desk::default();
    let take = |desk: &mut Desk, n: u8, reason| {
        let room = desk.room(RecordId([n; 16]), reason, &window);
        if room.is_ok() {
            let ask = Ask {
                id: RecordId([n; 16]),
                machine: "m".into(),
                at: Time(0),
                reason,
                steps: 1,
                channels: window.len(),
                window: window.as_slice().into(),
            };
            let charge = Purse::default().charge(&policy([0.0, 1.0], 9, 0).budget, Time(0), reason, 1).expect("enough");
            let (strength, p_value, quality, top_channel) = (1.0, None, Quality::Good, None);
            desk.pending.push(Pending { ask, charge, anomaly: true, strength, p_value, quality, top_channel });
        }
        room.is_ok()
    };
    assert_eq!((0..20).filter(|n| take(&mut desk, *n, Asking::Uncertain)).count(), 5);
    assert_eq!((20..40).filter(|n| take(&mut desk, *n, Asking::Alarm)).count(), 5);
    assert_eq!(desk.room(RecordId([99; 16]), Asking::Alarm, &vec![0.0; 1 << 20]), Err("too_large"));
    assert_eq!(desk.room(RecordId([99; 16]), Asking::Alarm, &[f32::NAN]), Err("not_finite"));
}

#[test]
fn the_lot_is_drawn_by_the_record() {
    let drawn = |fraction| (0..10_000u32).filter(|n| is_drawn(RecordId::of(&[&n.to_le_bytes()]), fraction)).count();
    assert_eq!((drawn(0.0), drawn(1.0)), (0, 10_000));
    assert!((400..600).contains(&drawn(0.05)), "{}", drawn(0.05));
}

#[test]
fn a_larger_model_may_raise_what_was_uncertain() {
    let lone = |raise| Policy { may: May { raise, ..May::default() }, ..policy([0.0, 1.0], 100, 0) };
    for raise in [true, false] {
        let mut engine = asking(lone(raise));
        let (asks, records, _) = run(&mut engine, &course(6, &[]));
        assert!(of(&records, Kind::Alarm).iter().all(|a| a["machine"] != "pump-1"));
        let ask = asks.iter().find(|a| &*a.machine == "pump-1").expect("an uncertain window");
        let out = tell(&mut engine, answer(ask, Ended::Answered, Some(0.8)));
        let alarms = of(&out.records, Kind::Alarm);
        assert_eq!(alarms.len(), usize::from(raise));
        if let [alarm] = alarms.as_slice() {
            assert_eq!((&alarm["transition"], &alarm["state"]), (&"raised".into(), &"unacknowledged".into()));
            assert!(
                alarm["message"]
                    .as_str()
                    .is_some_and(|m| m.starts_with("large finds an anomaly where it was uncertain"))
            );
            assert!(alarm["causationid"].is_string());
        }
    }
}

#[test]
fn a_larger_model_may_end_an_alarm_and_is_not_contradicted_at_once() {
    for clear in [true, false] {
        let mut engine = asking(Policy { may: May { clear, confirm: true, raise: false }, ..alarms_only() });
        let readings = course(40, &[]);
        let half = readings.len() * 6 / 10;
        let (asks, ..) = run(&mut engine, &readings[..half]);
        let out = tell(&mut engine, answer(&asks[0], Ended::Answered, Some(0.1)));
        let alarm = &of(&out.records, Kind::Alarm)[0];
        assert_eq!(alarm["transition"], if clear { "overruled" } else { "doubted" });
        assert_eq!(alarm["active"], !clear);
        let (asks, records, _) = run(&mut engine, &readings[half..]);
        assert_eq!((of(&records, Kind::Alarm).len(), asks.len()), (0, 0), "the same goes on, and nothing new is said");
    }
}

#[test]
fn without_a_larger_model_nothing_is_asked_and_answers_mean_nothing() {
    let mut with = asking(policy([0.0, 1.0], 100, 0));
    let (asks, ..) = run(&mut with, &course(10, &[]));
    let mut without = engine();
    assert!(run(&mut without, &course(10, &[])).0.is_empty() && without.budget(Time(0)).is_none());
    without.restore(&with.snapshot()).expect("restored");
    assert!(without.unanswered().is_empty());
    assert!(tell(&mut without, answer(&asks[0], Ended::Answered, Some(1.0))).records.is_empty());
    let mut other = asking(Policy { model: "another".into(), ..policy([0.0, 1.0], 100, 0) });
    other.restore(&with.snapshot()).expect("restored");
    assert!(other.unanswered().is_empty(), "another model was not asked");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Killed between any two groups and brought back from a snapshot some groups earlier, with the journal
    /// replayed from there: the same records, the same state, and each question one usage record.
    #[test]
    fn a_crash_counts_nothing_twice(
        sizes in prop::collection::vec(20usize..200, 4..8),
        ends in prop::collection::vec((0usize..4, 0usize..3, 0f64..1.0), 1..40),
        snapshot in any::<prop::sample::Index>(),
        kill in any::<prop::sample::Index>(),
    ) {
        let make = || asking(Policy { may: May { confirm: true, raise: true, clear: true }, ..policy([0.0, 1.0], 12, 2) });
        let readings = course(16, &[]);
        // The journal as it would be: readings, and answers to what was asked, early or late.
        let (mut one, mut groups, mut records) = (make(), Vec::new(), Vec::new());
        let (mut waiting, mut at, mut ends) = (Vec::new(), 0, ends.into_iter().cycle());
        let mut sizes = sizes.into_iter().cycle();
        let mut take = |one: &mut Engine, group: Group, waiting: &mut Vec<Ask>| {
            let out = one.step(&group);
            waiting.extend(out.asks);
            records.extend(out.records);
            groups.push(group);
        };
        while at < readings.len() {
            let end = (at + sizes.next().expect("endless")).min(readings.len());
            take(&mut one, Group { inputs: vec![Input::Readings(readings[end - 1].at, readings[at..end].to_vec())] }, &mut waiting);
            at = end;
            let (now, how, score) = ends.next().expect("endless");
            if now > 0 && !waiting.is_empty() {
                let ask = waiting.remove(now % waiting.len());
                let (ended, score) =
                    [(Ended::Answered, Some(score)), (Ended::Timeout, None), (Ended::Unreachable, None)][how];
                take(&mut one, Group { inputs: vec![Input::Opinion(answer(&ask, ended, score))] }, &mut waiting);
            }
        }
        let kill = kill.index(groups.len());
        let snapshot = snapshot.index(kill + 1);
        let mut two = make();
        let mut again = Vec::new();
        for group in &groups[..snapshot] {
            again.extend(two.step(group).records);
        }
        let kept = two.snapshot();
        let mut two = make();
        two.restore(&kept).expect("restored");
        for group in &groups[snapshot..kill] {
            let read = Group::decode(&group.encode()).expect("the journal");
            again.extend(two.step(&read).records);
        }
        // Asked again under the ids they had; the journal goes on with answers that may come twice.
        let asked_again = two.unanswered();
        for group in &groups[kill..] {
            again.extend(two.step(group).records);
            if matches!(group.inputs[0], Input::Opinion(_)) {
                again.extend(two.step(group).records);
            }
        }
        prop_assert_eq!(&again, &records);
        prop_assert_eq!(two.snapshot(), one.snapshot());
        let mut per_question: BTreeMap<String, u32> = BTreeMap::new();
        for usage in of(&records, Kind::Usage) {
            *per_question.entry(usage["causationid"].to_string()).or_default() += 1;
        }
        prop_assert!(per_question.values().all(|n| *n == 1), "{per_question:?}");
        prop_assert!(asked_again.len() <= MAX_PENDING);
    }
}
